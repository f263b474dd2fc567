/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * What the XDP programs share.
 *
 * XDP is the fast path for the common case and nothing else: both MACs known, fresh and in place, the frame plain, the way out
 * open to XDP_REDIRECT.  Whatever is not so is left (XDP_PASS) to the complete tc program on the same device: learning,
 * flooding, fragments, goodbyes, errors and their counters.
 *
 * Checksums.  A virtual device hands XDP frames whose TCP or UDP checksum is still to be filled in, and XDP would lose the mark
 * that says so.  Such a frame is told by its checksum field, which holds just the pseudo-header's sum; it goes to tc, which
 * keeps the mark.  A finished frame looks like that by chance once in 65536, and then only takes the slower path.
 */
#ifndef VDEXDP_SWITCH_XDP_H
#define VDEXDP_SWITCH_XDP_H

#include "fdb.h"

#define VERDICT_PASS 2 /* XDP_PASS */

static __always_inline int left_to_tc(struct counters *c)
{
	count_event(c, EV_PASS);
	return VERDICT_PASS;
}

static __always_inline int wants_checksum(void *l3, void *end, __be16 eth_proto)
{
	__u64 pseudo = 0;
	__u16 check;
	void *l4;
	__u8 proto;

	if (eth_proto == PROTO_IP) {
		struct ip4 *ip = l3;

		if ((void *)(ip + 1) > end || ip->version_ihl != 0x45 || ip->frag & swap16(0x3fff))
			return 0;
		proto = ip->proto;
		pseudo = (__u64)ip->src + ip->dst + swap16(swap16(ip->len) - 20) + swap16(proto);
		l4 = ip + 1;
	} else if (eth_proto == PROTO_IPV6) {
		struct ip6 *ip = l3;
		int i;

		if ((void *)(ip + 1) > end)
			return 0;
		proto = ip->proto;
#pragma unroll
		for (i = 0; i < 4; i++)
			pseudo += (__u64)ip->src[i] + ip->dst[i];
		pseudo += (__u64)ip->len + swap16(proto);
		l4 = ip + 1;
	} else {
		return 0;
	}
	if (proto == L4_TCP) {
		if (l4 + 18 > end)
			return 0;
		check = *(__u16 *)(l4 + 16);
	} else if (proto == L4_UDP) {
		if (l4 + 8 > end)
			return 0;
		check = *(__u16 *)(l4 + 6);
	} else {
		return 0;
	}
	return check && check == csum_fold(pseudo);
}

/* Reads the frame's VLAN and says whether a checksum is missing.  `eth` has been checked against `end`. */
static __always_inline int inspect(struct eth *eth, void *end, struct fdb_key *key)
{
	void *l3 = eth + 1;
	__be16 proto = eth->proto;
	int i;

#pragma unroll
	for (i = 0; i < 2; i++) {
		struct tag *tag = l3;

		if (!is_vlan(proto))
			break;
		if ((void *)(tag + 1) > end)
			return 0;
		/* In packets, a tag's TCI comes first and the next protocol behind it. */
		if (i == 0)
			key->vlan = swap16(*(__be16 *)l3) & 0xfff;
		proto = *(__be16 *)(l3 + 2);
		l3 += 4;
	}
	return wants_checksum(l3, end, proto);
}

/*
 * The two look-ups.  `at` says where the frame came from.  Returns the destination's entry when both addresses are known and
 * fresh, else NULL.
 */
static __always_inline struct fdb_entry *fast_forward(struct fdb_key *key, const struct eth *eth, const struct fdb_entry *at,
						      const struct switch_info *sw, struct port_info **out, struct counters *c)
{
	if (is_group(eth->dst))
		return NULL;
	__builtin_memcpy(key->mac, eth->src, 6);
	if (!fdb_refresh(map_lookup(MAP(fdb), key), at))
		return NULL;
	__builtin_memcpy(key->mac, eth->dst, 6);
	return fdb_find(key, sw, out, at->last_seen, c);
}

static __always_inline int takes_xdp(const struct port_info *port, __u32 len)
{
	return port->kind == PORT_WIRE && port->flags & PORT_F_XDP_OUT && (!port->mtu || len <= port->mtu + 4);
}

#endif
