/* SPDX-License-Identifier: GPL-2.0-or-later
 * Ethernet and the outer headers, as bytes in packets. */
#ifndef VDEXDP_ETH_H
#define VDEXDP_ETH_H

#include "platform.h"

#define PROTO_IP swap16(0x0800)
#define PROTO_IPV6 swap16(0x86dd)
#define PROTO_DOT1Q swap16(0x8100)
#define PROTO_DOT1AD swap16(0x88a8)
#define L4_TCP 6
#define L4_UDP 17

#define ETH_LEN 14
#define VXLAN_LEN 8
#define OUTER4_LEN (14 + 20 + 8 + 8) /* outer Ethernet, IPv4, UDP, VXLAN */
#define OUTER6_LEN (14 + 40 + 8 + 8)

struct eth {
	__u8 dst[6];
	__u8 src[6];
	__be16 proto;
} __attribute__((packed));

struct tag {
	__be16 proto; /* the TPID that announces it */
	__be16 tci;
};

struct ip4 {
	__u8 version_ihl;
	__u8 tos;
	__be16 len;
	__be16 id;
	__be16 frag;
	__u8 ttl;
	__u8 proto;
	__u16 check;
	__be32 src;
	__be32 dst;
};

struct ip6 {
	__be32 version_flow;
	__be16 len;
	__u8 proto;
	__u8 hops;
	__be32 src[4];
	__be32 dst[4];
};

struct udp {
	__be16 src;
	__be16 dst;
	__be16 len;
	__u16 check;
};

struct vxlan {
	__be32 flags;
	__be32 vni; /* upper 24 bits; the lowest byte is reserved */
};

static __always_inline int is_vlan(__be16 proto)
{
	return proto == PROTO_DOT1Q || proto == PROTO_DOT1AD;
}

static __always_inline int is_group(const __u8 *mac)
{
	return mac[0] & 1;
}

static __always_inline int has_mac(const __u8 *mac)
{
	return *(__u16 *)mac || *(__u16 *)(mac + 2) || *(__u16 *)(mac + 4);
}

static __always_inline int same_mac(const __u8 *a, const __u8 *b)
{
	return *(__u16 *)a == *(__u16 *)b && *(__u16 *)(a + 2) == *(__u16 *)(b + 2) && *(__u16 *)(a + 4) == *(__u16 *)(b + 4);
}

static __always_inline __u16 csum_fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

/* What a tunnel packet's outer headers say. */
struct outer {
	__u32 src[4];
	__u32 dst[4];
	__be16 src_port;
	__be16 dst_port;
	__be32 vxlan_flags;
	__be32 vxlan_vni;
	__u16 payload; /* bytes behind the VXLAN header, from the UDP length */
	__u8 len; /* of all outer headers, Ethernet to VXLAN */
	__u8 capable; /* the sender is a kernel's and needs no checksums: no UDP checksum, over IPv6 our flow label */
	__u8 source_mac[6];
	__be16 proto;
};

/*
 * Reads the outer headers.  0: this is an unfragmented UDP packet with room for a VXLAN header in which the I bit is set.
 * -1: it is not, and none of our business.
 */
static __always_inline int parse_outer(void *data, void *end, struct outer *o)
{
	struct eth *eth = data;
	struct udp *udp;
	struct vxlan *vxlan;
	__u16 udp_len;

	if ((void *)(eth + 1) > end)
		return -1;
	o->proto = eth->proto;
	if (eth->proto == PROTO_IP) {
		struct ip4 *ip = data + ETH_LEN;

		if ((void *)ip + OUTER4_LEN - ETH_LEN > end)
			return -1;
		if (ip->version_ihl != 0x45 || ip->proto != L4_UDP || ip->frag & swap16(0x3fff))
			return -1;
		udp = (void *)(ip + 1);
		o->src[0] = o->src[1] = o->dst[0] = o->dst[1] = 0;
		o->src[2] = o->dst[2] = swap32(0xffff);
		o->src[3] = ip->src;
		o->dst[3] = ip->dst;
		o->len = OUTER4_LEN;
		o->capable = !udp->check;
	} else if (eth->proto == PROTO_IPV6) {
		struct ip6 *ip = data + ETH_LEN;

		if ((void *)ip + OUTER6_LEN - ETH_LEN > end)
			return -1;
		if ((ip->version_flow & swap32(0xf0000000)) != swap32(0x60000000) || ip->proto != L4_UDP)
			return -1;
		udp = (void *)(ip + 1);
		__builtin_memcpy(o->src, ip->src, 16);
		__builtin_memcpy(o->dst, ip->dst, 16);
		o->len = OUTER6_LEN;
		o->capable = (ip->version_flow & swap32(0xfffff)) == swap32(FLOWLABEL_CAPABLE);
	} else {
		return -1;
	}
	vxlan = (void *)(udp + 1);
	if (!(vxlan->flags & swap32(VXLAN_FLAGS)))
		return -1;
	udp_len = swap16(udp->len);
	if (udp_len < sizeof(*udp) + sizeof(*vxlan))
		return -1;
	o->payload = udp_len - sizeof(*udp) - sizeof(*vxlan);
	o->src_port = udp->src;
	o->dst_port = udp->dst;
	o->vxlan_flags = vxlan->flags;
	o->vxlan_vni = vxlan->vni;
	__builtin_memcpy(o->source_mac, eth->src, 6);
	return 0;
}

#define HEADERS_PAD 2 /* in front of the Ethernet header, so that everything behind it is aligned */

struct headers4 {
	__u8 pad[HEADERS_PAD];
	struct eth eth;
	struct ip4 ip;
	struct udp udp;
	struct vxlan vxlan;
};

struct headers6 {
	__u8 pad[HEADERS_PAD];
	struct eth eth;
	struct ip6 ip;
	struct udp udp;
	struct vxlan vxlan;
};

static __always_inline __u16 clamp16(__u32 len)
{
	return len > 0xffff ? 0xffff : len;
}

/* Where an encapsulated frame is going. */
struct target {
	__u32 addr[4];
	__be16 port;
	__u8 ttl;
	__u8 group; /* addr is the tunnel's group */
	__u8 direct; /* next_hop is the MAC to send to; else the kernel looks it up */
	__u8 next_hop[6];
};

static __always_inline void fill_ends(const struct tunnel_info *t, const struct target *to, struct udp *udp, struct vxlan *vxlan,
				      struct eth *eth, const __u8 *next_hop)
{
	udp->src = t->src_port;
	udp->dst = to->port;
	udp->check = 0;
	vxlan->flags = swap32(VXLAN_FLAGS);
	vxlan->vni = swap32(t->vni << 8);
	__builtin_memcpy(eth->src, t->uplink_mac, 6);
	__builtin_memcpy(eth->dst, next_hop, 6);
}

/* frame: inner frame's length in bytes. */
static __always_inline void fill_headers4(struct headers4 *h, const struct tunnel_info *t, const struct target *to,
					  const __u8 *next_hop, __u32 frame)
{
	__u64 sum;

	fill_ends(t, to, &h->udp, &h->vxlan, &h->eth, next_hop);
	h->eth.proto = PROTO_IP;
	h->udp.len = swap16(clamp16(frame + 16));
	h->ip.version_ihl = 0x45;
	h->ip.tos = 0;
	h->ip.len = swap16(clamp16(frame + 36));
	/* Fragments may be made of it on the way: the identification must not repeat soon (RFC 6864). */
	h->ip.id = prandom_u32();
	h->ip.frag = 0;
	h->ip.ttl = to->ttl;
	h->ip.proto = L4_UDP;
	h->ip.check = 0;
	h->ip.src = t->local[3];
	h->ip.dst = to->addr[3];
	sum = 0x45 + (__u64)h->ip.len + h->ip.id + ((__u32)L4_UDP << 8 | to->ttl);
	sum += (__u64)h->ip.src + h->ip.dst;
	h->ip.check = ~csum_fold(sum);
}

static __always_inline void fill_headers6(struct headers6 *h, const struct tunnel_info *t, const struct target *to,
					  const __u8 *next_hop, __u32 frame)
{
	fill_ends(t, to, &h->udp, &h->vxlan, &h->eth, next_hop);
	h->eth.proto = PROTO_IPV6;
	h->udp.len = swap16(clamp16(frame + 16));
	h->ip.version_flow = swap32(0x60000000 | FLOWLABEL_CAPABLE);
	h->ip.len = h->udp.len;
	h->ip.proto = L4_UDP;
	h->ip.hops = to->ttl;
	__builtin_memcpy(h->ip.src, t->local, 16);
	__builtin_memcpy(h->ip.dst, to->addr, 16);
}

/* Sum of the IPv6 pseudo-header, the UDP header and the VXLAN header, not folded. */
static __always_inline __u64 sum_headers6(const struct headers6 *h)
{
	__u64 sum = (__u64)h->udp.len + swap16(L4_UDP);
	int i;

#pragma unroll
	for (i = 0; i < 4; i++)
		sum += (__u64)h->ip.src[i] + h->ip.dst[i];
	sum += (__u64)h->udp.src + h->udp.dst + h->udp.len;
	sum += (__u64)h->vxlan.flags + h->vxlan.vni;
	return sum;
}

#endif
