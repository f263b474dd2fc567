/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * What differs between the two ways to build these programs.
 *
 *   bcc     -DVDEXDP_BCC and -DFD_<map>=<number> for every map: the numbers are placeholders that the loader
 *           (vdexdp/control/dataplane.py) replaces with the descriptors of maps it has made itself;
 *   clang   -target bpf, an object with BTF maps for libbpf.
 *
 * Each program is built once more with -DOBSERVED_BUILD, for the time that somebody watches it: see observe.h.
 *
 * Helpers are declared here by number, since bcc 0.26 declares some with arguments missing and libbpf's header is not
 * needed then.  Some of them have a stand-in with the same arguments, which the loader puts in where the kernel is found to lack
 * them (vdexdp/control/features.py).
 */
#ifndef VDEXDP_PLATFORM_H
#define VDEXDP_PLATFORM_H

#ifndef VDEXDP_BCC
#include <linux/types.h>
#include <linux/bpf.h>
#endif

/* The uapi headers define it as a mere inline. */
#undef __always_inline
#define __always_inline inline __attribute__((always_inline))
#ifndef NULL
#define NULL ((void *)0)
#endif
#define SECTION(name) __attribute__((section(name), used))

#include "abi.h"

#ifdef VDEXDP_BCC
#define MAP(name) ((void *)bpf_pseudo_fd(1, FD_##name))
#define PROGRAM(name, section) int name
#else
#define MAP(name) ((void *)&name)
#define PROGRAM(name, section) SECTION(section) int name
#define UINT_ATTR(name, value) int(*name)[value]
#define DEFINE_MAP(map, kind, key_type, value_type, entries, map_flag) \
	struct { \
		UINT_ATTR(type, BPF_MAP_TYPE_##kind); \
		key_type *key; \
		value_type *value; \
		UINT_ATTR(max_entries, entries); \
		UINT_ATTR(map_flags, map_flag); \
	} map SECTION(".maps");
VDEXDP_MAPS(DEFINE_MAP)
#ifdef OBSERVED_BUILD
VDEXDP_OBSERVE_MAPS(DEFINE_MAP)
#endif
char _license[] SECTION("license") = "GPL";
#endif

#define HELPER(id) ((void *)(id))
static void *(*map_lookup)(void *map, const void *key) = HELPER(1);
static long (*map_update)(void *map, const void *key, const void *value, __u64 flags) = HELPER(2);
static long (*map_delete)(void *map, const void *key) = HELPER(3);
static __u64 (*ktime_fine)(void) = HELPER(5);
static __u32 (*prandom_u32)(void) = HELPER(7);
static __u32 (*processor)(void) = HELPER(8);
static long (*skb_store_bytes)(struct __sk_buff *skb, __u32 offset, const void *from, __u32 len, __u64 flags) = HELPER(9);
static long (*tail_call)(void *ctx, void *map, __u32 index) = HELPER(12);
static long (*clone_redirect)(struct __sk_buff *skb, __u32 ifindex, __u64 flags) = HELPER(13);
static long (*skb_vlan_push)(struct __sk_buff *skb, __be16 proto, __u16 tci) = HELPER(18);
static long (*skb_vlan_pop)(struct __sk_buff *skb) = HELPER(19);
static long (*redirect)(__u32 ifindex, __u64 flags) = HELPER(23);
static long (*skb_load_bytes)(const void *skb, __u32 offset, void *to, __u32 len) = HELPER(26);
static __s64 (*csum_diff)(__be32 *from, __u32 from_size, __be32 *to, __u32 to_size, __u32 seed) = HELPER(28);
static long (*skb_change_type)(struct __sk_buff *skb, __u32 type) = HELPER(32);
static long (*skb_change_tail)(struct __sk_buff *skb, __u32 len, __u64 flags) = HELPER(38);
static long (*skb_pull_data)(struct __sk_buff *skb, __u32 len) = HELPER(39);
static long (*xdp_adjust_head)(struct xdp_md *ctx, int delta) = HELPER(44);
static long (*skb_adjust_room)(struct __sk_buff *skb, __s32 delta, __u32 mode, __u64 flags) = HELPER(50);
static long (*redirect_map)(void *map, __u64 key, __u64 flags) = HELPER(51);
static long (*ringbuf_output)(void *ring, void *data, __u64 size, __u64 flags) = HELPER(130);
static long (*redirect_neigh)(__u32 ifindex, void *params, int params_len, __u64 flags) = HELPER(152);
static long (*redirect_peer)(__u32 ifindex, __u64 flags) = HELPER(155); /* redirect where the kernel lacks it */
static __u64 (*ktime_ns)(void) = HELPER(160); /* coarse; ktime_fine where the kernel lacks it */

static __u64 (*xdp_get_buff_len)(struct xdp_md *ctx) = HELPER(188); /* 0 where the kernel has no XDP with fragments */

/* Keeps clang from using what it knows of a value, so that the verifier sees the bound as well. */
#define OPAQUE(x) asm volatile("" : "+r"(x))

#define swap16(x) ((__u16)__builtin_bswap16(x))
#define swap32(x) ((__u32)__builtin_bswap32(x))
#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "big-endian hosts: make swap16 and swap32 identities"
#endif

/* Verdicts and flags by their kernel names' values (uapi/linux/pkt_cls.h, uapi/linux/bpf.h). */
#define VERDICT_NEXT (-1) /* TC_ACT_UNSPEC, TCX_NEXT: not ours */
#define VERDICT_DROP 2 /* TC_ACT_SHOT */
#define ERROR_INVALID (-22) /* -EINVAL */
#define TO_INGRESS 1 /* BPF_F_INGRESS */
#define ROOM_MAC 1 /* BPF_ADJ_ROOM_MAC */
#define ROOM_FIXED_GSO (1 << 0)
#define ROOM_ENCAP_L3_IPV4 (1 << 1)
#define ROOM_ENCAP_L3_IPV6 (1 << 2)
#define ROOM_ENCAP_L4_UDP (1 << 4)
#ifndef ROOM_ENCAP_L2_ETH /* a test puts in a flag that no kernel knows */
#define ROOM_ENCAP_L2_ETH (1 << 6)
#endif
#define ROOM_DECAP_L3_IPV4 (1 << 7)
#define ROOM_DECAP_L3_IPV6 (1 << 8)
#define ROOM_ENCAP_L2(len) (((__u64)(len) & 0xff) << 56)

#endif
