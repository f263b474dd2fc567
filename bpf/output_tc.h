/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Output from tc programs: to a local port, and encapsulated into a tunnel.
 *
 * Encapsulation and super-packets.  A guest with offloads hands over TCP super-packets of up to 64 kB and checksums that are not filled
 * in yet.  bpf_skb_adjust_room keeps both (the kernel, or the NIC, segments and sums when the frame really leaves), provided
 * that it is told the truth about the inner headers: the inner L2 length is that of the inner Ethernet header with
 * its tags, without the VXLAN header.
 *
 * adjust_room knows only skbs whose protocol is IP or IPv6, and redirect_neigh and redirect_peer trust skb->protocol too.
 * For ARP and all else, set_protocol() makes the kernel read skb->protocol from the frame again: a VLAN tag is
 * pushed twice and popped twice, which leaves the frame as it was.  While the frame is being encapsulated its ethertype says IP; the
 * real one stands in the inner header that is written afterwards.
 *
 * VLAN tags.  The kernel takes the outermost tag out of a received frame into skb metadata, which would end up in the outer
 * Ethernet header: tags are popped first and written into the inner header.
 */
#ifndef VDEXDP_OUTPUT_TC_H
#define VDEXDP_OUTPUT_TC_H

#include "fdb.h"

/* One frame's way through a tc program. */
struct frame {
	struct fdb_key key; /* switch, VLAN and, in turn, source and destination MAC */
	struct fdb_entry at; /* where it came from, as learning would have it */
	__u32 frames; /* 1, or the segments of a super-packet */
	__u32 in; /* port index */
	__u8 path;
};

static __always_inline __u32 frames_of(const struct __sk_buff *skb)
{
	return skb->gso_segs ? skb->gso_segs : 1;
}

static __always_inline __u32 frame_len(const struct __sk_buff *skb)
{
	return skb->len + (skb->vlan_present ? 4 : 0);
}

/* The Ethernet header, from the linear part where it is, as it nearly always is. */
static __always_inline int load_eth(struct __sk_buff *skb, struct eth *eth)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;

	if (data + ETH_LEN > end)
		return skb_load_bytes(skb, 0, eth, ETH_LEN);
	__builtin_memcpy(eth, data, ETH_LEN);
	return 0;
}

/* skb->protocol = proto.  The frame's ethertype field is left at proto as well. */
static __always_inline int set_protocol(struct __sk_buff *skb, __be16 proto)
{
	if (skb_store_bytes(skb, 12, &proto, 2, 0))
		return -1;
	if (skb_vlan_push(skb, PROTO_DOT1Q, 1) || skb_vlan_push(skb, PROTO_DOT1Q, 1))
		return -1;
	if (skb_vlan_pop(skb) || skb_vlan_pop(skb))
		return -1;
	return 0;
}

static __always_inline int send_local(struct __sk_buff *skb, struct port_info *port, struct counters *drops, __u32 out, __u32 frames,
				      __u8 path, int at_ingress)
{
	__u32 len = frame_len(skb);

	/* 4 more: every device takes one VLAN tag beyond its MTU. */
	if (port->mtu && !skb->gso_size && len > port->mtu + 4)
		return count_drop(drops, DROP_TOO_BIG);
	count_tx(counters_at(out), path, frames, len);
	if (port->kind == PORT_STACK)
		return redirect(port->ifindex, TO_INGRESS);
	if (at_ingress && port->flags & PORT_F_PEER) {
		/* The far end's stack would take it for a frame to somebody else: it was addressed to the near end's neighbour. */
		skb_change_type(skb, 0 /* PACKET_HOST */);
		return redirect_peer(port->ifindex, 0);
	}
	return redirect(port->ifindex, 0);
}

/* Bytes of Ethernet, IP and TCP or UDP headers that every segment of a super-packet repeats; `*l4` is which of the two. */
static __always_inline __u32 segment_headers(struct __sk_buff *skb, __u8 *l4)
{
	__u32 l3 = 20, at = ETH_LEN;
	__u8 byte = 0, proto = 0;

	if (skb->protocol == PROTO_IP) {
		skb_load_bytes(skb, at, &byte, 1);
		l3 = (byte & 15) * 4;
		skb_load_bytes(skb, at + 9, &proto, 1);
	} else if (skb->protocol == PROTO_IPV6) {
		l3 = 40;
		skb_load_bytes(skb, at + 6, &proto, 1);
	}
	*l4 = proto;
	if (proto == L4_UDP)
		return at + l3 + 8;
	if (proto != L4_TCP)
		return at + l3 + 60;
	byte = 0x50;
	skb_load_bytes(skb, at + l3 + 12, &byte, 1);
	return at + l3 + (byte >> 4) * 4;
}

struct tags {
	struct tag tag[MAX_TAGS]; /* outermost first */
	__u32 count;
};

static __always_inline int pop_tags(struct __sk_buff *skb, struct tags *tags)
{
	int i;

	tags->count = 0;
#pragma unroll
	for (i = 0; i < MAX_TAGS; i++) {
		if (skb->vlan_present) {
			tags->tag[i].proto = (__be16)skb->vlan_proto;
			tags->tag[i].tci = swap16(skb->vlan_tci);
		} else if (is_vlan((__be16)skb->protocol) && skb->len >= ETH_LEN + 4) {
			/* What the host sends may have all its tags in the frame, and adjust_room would make its room behind them. */
			tags->tag[i].proto = (__be16)skb->protocol;
			if (skb_load_bytes(skb, ETH_LEN, &tags->tag[i].tci, 2))
				return -1;
		} else {
			return 0;
		}
		tags->count = i + 1;
		if (skb_vlan_pop(skb))
			return -1;
	}
	return skb->vlan_present ? -1 : 0;
}

static __always_inline int push_tags(struct __sk_buff *skb, const struct tags *tags)
{
	int i;

#pragma unroll
	for (i = MAX_TAGS - 1; i >= 0; i--)
		if (i < tags->count && skb_vlan_push(skb, tags->tag[i].proto, swap16(tags->tag[i].tci)))
			return -1;
	return 0;
}

/* Writes the inner Ethernet header with its tags behind the outer headers; returns its length. */
static __always_inline __u32 fill_inner(__u8 *to, const struct eth *eth, const struct tags *tags)
{
	__u32 at = 12;
	int i;

	__builtin_memcpy(to, eth, 12);
#pragma unroll
	for (i = 0; i < MAX_TAGS; i++)
		if (i < tags->count) {
			__builtin_memcpy(to + 12 + 4 * i, &tags->tag[i], 4);
			at = 16 + 4 * i;
		}
	if (tags->count == 0)
		__builtin_memcpy(to + 12, &eth->proto, 2);
	else if (tags->count == 1)
		__builtin_memcpy(to + 16, &eth->proto, 2);
	else if (tags->count == 2)
		__builtin_memcpy(to + 20, &eth->proto, 2);
	else
		__builtin_memcpy(to + 24, &eth->proto, 2);
	return at + 2;
}

/*
 * Where the kernel or the NIC is still to fill in a TCP or UDP checksum, its field holds just the pseudo-header's sum, which goes to
 * `*seed`.  Returns the offset of the TCP or UDP header then, else 0.  A finished checksum looks like that once in 65536 times.
 */
static __always_inline __u32 unfinished(struct __sk_buff *skb, __u16 *seed)
{
	__be16 type = (__be16)skb->protocol;
	__u32 l3 = ETH_LEN, l4 = 0, word[10];
	__u16 check = 0;
	__u64 pseudo = 0;
	__u8 proto = 0;
	int i;

#pragma unroll
	for (i = 0; i < MAX_TAGS - 1; i++)
		if (is_vlan(type) && !skb_load_bytes(skb, l3 + 2, &type, 2))
			l3 += 4;
	if (type == PROTO_IP && !skb_load_bytes(skb, l3, word, 20)) {
		struct ip4 *ip = (void *)word;

		if (ip->version_ihl == 0x45 && !(ip->frag & swap16(0x3fff))) {
			proto = ip->proto;
			pseudo = (__u64)ip->src + ip->dst + swap16(swap16(ip->len) - 20) + swap16(proto);
			l4 = l3 + 20;
		}
	} else if (type == PROTO_IPV6 && !skb_load_bytes(skb, l3, word, 40)) {
		struct ip6 *ip = (void *)word;

		proto = ip->proto;
#pragma unroll
		for (i = 2; i < 10; i++)
			pseudo += word[i];
		pseudo += (__u64)ip->len + swap16(proto);
		l4 = l3 + 40;
	}
	if (proto != L4_TCP && proto != L4_UDP)
		return 0;
	*seed = csum_fold(pseudo);
	skb_load_bytes(skb, l4 + (proto == L4_TCP ? 16 : 6), &check, 2);
	return check && check == *seed ? l4 : 0;
}

#define SUM_BLOCK 128 /* bytes; a power of two */

/*
 * Sum of the frame as the outer UDP checksum wants it, before anything is done to the skb; a tag in its metadata counts as the
 * four bytes that it will be.  From where a checksum is unfinished the frame will sum up to the complement of the pseudo-header's sum
 * (local checksum offload, Documentation/networking/checksum-offloads.rst).
 */
static __always_inline __u64 sum_frame(struct __sk_buff *skb)
{
	__u32 end = skb->len, blocks, l4;
	__u32 word[SUM_BLOCK / 4];
	__u64 left, sum = 0;
	__u16 seed = 0;
	int i;

	if (skb->vlan_present)
		sum += (__u64)(__be16)skb->vlan_proto + swap16(skb->vlan_tci);
	l4 = unfinished(skb, &seed);
	if (l4) {
		sum += (__u16)~seed;
		end = l4;
	}
	/* Nothing that the loop leaves behind is used after it, or the verifier would walk the rest once for every exit. */
	blocks = end / SUM_BLOCK;
	for (i = 0; i <= (FRAME_MAX + 4) / SUM_BLOCK; i++) {
		if (i >= blocks || skb_load_bytes(skb, SUM_BLOCK * i, word, SUM_BLOCK))
			break;
		sum += (__u32)csum_diff(NULL, 0, word, SUM_BLOCK, 0);
	}
	left = end & (SUM_BLOCK - 1);
	__builtin_memset(word, 0, SUM_BLOCK);
	if (left) {
		/* The same number; verifiers before 6.8 do not conclude from "not 0" that it is at least 1. */
		left--;
		OPAQUE(left);
		left = (left & (SUM_BLOCK - 1)) + 1;
		OPAQUE(left);
	}
	if (left && !skb_load_bytes(skb, SUM_BLOCK * blocks, word, left))
		sum += (__u32)csum_diff(NULL, 0, word, SUM_BLOCK, 0);
	return sum;
}

/* Bytes of an untagged frame that holds as much of an IP header as adjust_room wants to find when the frame is taken out again. */
static __always_inline __u32 encap_min(__be16 proto)
{
	return proto == PROTO_IPV6 ? ETH_LEN + 40 : ETH_LEN + 20;
}

#define SPACE6 (HEADERS_PAD + OUTER6_LEN + ETH_LEN + 4 * MAX_TAGS)

/* To the exception tap, which segments a super-packet; its segments come back as plain frames of the same port. */
static __always_inline int to_be_segmented(struct __sk_buff *skb, const struct tunnel_info *t, const struct tags *tags,
					   const struct frame *f, struct counters *c)
{
	if (f->path == PATH_EXCEPTION || push_tags(skb, tags) || skb_vlan_push(skb, swap16(BOUNCE_TPID), f->in))
		return count_drop(c, DROP_NO_ROOM);
	c->exceptions[EXC_NESTED]++;
	return TOLD(redirect(t->exception, 0), TOLD_EXCEPTION, EXC_NESTED);
}

/*
 * Encapsulates and sends.  Consumes the skb: the return value is the program's verdict.  When the frame can't go out by the uplink as it
 * is, it goes the same way to the exception tap, where the kernel segments and sums it and the exception worker hands it to a
 * UDP socket.
 */
static __always_inline int send_tunnel(struct __sk_buff *skb, const struct tunnel_info *t, __u32 out, const struct target *to,
				       __u8 endpoint_flags, struct frame *f)
{
	struct counters *c = counters_at(out);
	__u8 space[SPACE6] __attribute__((aligned(8)));
	__u32 v6 = t->flags & TUNNEL_F_V6;
	__u32 outer_len = v6 ? OUTER6_LEN : OUTER4_LEN;
	__u32 inner_len, frame, wire, device = t->uplink, len = frame_len(skb);
	__u64 room, written, sum = 0;
	struct tags tags;
	struct eth eth;
	__be16 proto, outer_proto = v6 ? PROTO_IPV6 : PROTO_IP;
	int exception = -1;
	long error;

	if (!c) /* never: every tunnel has its slot; said once here, it halves the verifier's work */
		return VERDICT_DROP;
	/* First of all, where the verifier knows of one state only: its loop is walked once for each. */
	if (v6 && !skb->gso_size && !(endpoint_flags & FDB_F_ZERO_CSUM))
		sum = sum_frame(skb);
	if (t->flags & TUNNEL_F_VIRTUAL && !(endpoint_flags & FDB_F_ZERO_CSUM)) {
		__u16 seed;

		if (skb->gso_size || unfinished(skb, &seed))
			exception = EXC_OFFLOAD;
	}
	if (pop_tags(skb, &tags))
		return count_drop(c, DROP_TAGS);
	if (load_eth(skb, &eth))
		return count_drop(c, DROP_RUNT);
	frame = skb->len + 4 * tags.count;

	wire = frame;
	room = ROOM_ENCAP_L4_UDP | ROOM_ENCAP_L2_ETH | ROOM_FIXED_GSO;
	if (skb->gso_size) {
		__u8 l4;

		wire = segment_headers(skb, &l4) + skb->gso_size + 4 * tags.count;
		/*
		 * Nothing takes the mark of a tunnel off an skb again, and a UDP socket that gets a super-packet trusts the mark:
		 * all of it would be lost.
		 */
		if (l4 == L4_UDP && t->flags & TUNNEL_F_VIRTUAL)
			return to_be_segmented(skb, t, &tags, f, c);
		/* Just too long by what encapsulation adds: let the kernel cut the super-packet into shorter segments. */
		if (wire + outer_len - ETH_LEN > t->mtu && wire - ETH_LEN <= t->mtu) {
			room &= ~(__u64)ROOM_FIXED_GSO;
			wire -= outer_len;
		}
	}
	if (wire + outer_len - ETH_LEN > t->mtu)
		exception = EXC_MTU;
	else if (endpoint_flags & FDB_F_LOCAL)
		exception = EXC_LOCAL;
	else if (v6 && skb->gso_size && !(endpoint_flags & FDB_F_ZERO_CSUM))
		exception = EXC_CSUM6;

	proto = (__be16)skb->protocol;
	if ((proto != PROTO_IP && proto != PROTO_IPV6) || skb->len < encap_min(v6 ? PROTO_IPV6 : proto)) {
		/* Nothing in it can be segmented.  Marked as encapsulated, it could not always be taken out again: see decap(). */
		room = ROOM_FIXED_GSO;
		proto = 0;
	} else {
		room |= v6 ? ROOM_ENCAP_L3_IPV6 : ROOM_ENCAP_L3_IPV4;
		room |= ROOM_ENCAP_L2(ETH_LEN + 4 * tags.count);
	}
	if (proto != PROTO_IP && proto != PROTO_IPV6 && set_protocol(skb, outer_proto))
		return count_drop(c, DROP_NO_ROOM);
	/* A header of constant length keeps the stores below checkable for old verifiers. */
	inner_len = ETH_LEN + 4 * tags.count;
	error = skb_adjust_room(skb, outer_len + 4 * tags.count, ROOM_MAC, room);
	if (error == ERROR_INVALID) /* a kernel that can't be told what is inside: it segments super-packets itself */
		error = skb_adjust_room(skb, outer_len + 4 * tags.count, ROOM_MAC, room & ~(__u64)ROOM_ENCAP_L2_ETH);
	if (error) {
		/*
		 * A guest's own tunnel: the skb is marked as encapsulated already.  A super-packet goes to the exception tap, which segments
		 * it, and comes back as plain frames; for those, room without a second mark is enough.
		 */
		if (skb->gso_size)
			return to_be_segmented(skb, t, &tags, f, c);
		if (set_protocol(skb, outer_proto) || skb_adjust_room(skb, outer_len + 4 * tags.count, ROOM_MAC, ROOM_FIXED_GSO))
			return count_drop(c, DROP_NO_ROOM);
	}

	if (v6) {
		struct headers6 *h = (void *)space;

		fill_headers6(h, t, to, to->direct ? to->next_hop : t->uplink_mac, frame);
		fill_inner(space + HEADERS_PAD + OUTER6_LEN, &eth, &tags);
		if (exception < 0 && !(endpoint_flags & FDB_F_ZERO_CSUM)) {
			__u16 check;

			sum += sum_headers6(h);
			check = ~csum_fold(sum);
			h->udp.check = check ? check : 0xffff;
		}
		inner_len += OUTER6_LEN;
	} else {
		fill_headers4((void *)space, t, to, to->direct ? to->next_hop : t->uplink_mac, frame);
		fill_inner(space + HEADERS_PAD + OUTER4_LEN, &eth, &tags);
		inner_len += OUTER4_LEN;
	}
	written = inner_len;
	OPAQUE(written);
	if (written > SPACE6 - HEADERS_PAD)
		return count_drop(c, DROP_NO_ROOM);
	OPAQUE(written); /* two comparisons: of the one that clang makes of both, old verifiers learn nothing */
	if (written < OUTER4_LEN || skb_store_bytes(skb, 0, space + HEADERS_PAD, written, 0))
		return count_drop(c, DROP_NO_ROOM);

	if (exception >= 0) {
		c->exceptions[exception & 7]++;
		count_tx(c, PATH_EXCEPTION, f->frames, len);
		if (exception != EXC_LOCAL)
			count_tx(counters_at(t->uplink_port), PATH_EXCEPTION, f->frames, skb->len);
		return TOLD(redirect(t->exception, 0), TOLD_EXCEPTION, exception & 7);
	}
	count_tx(c, PATH_TC, f->frames, len);
	count_tx(counters_at(t->uplink_port), PATH_TC, f->frames, skb->len);
	/* The MAC comes from the kernel's own route and neighbour look-ups (which refuse a group address in the frame). */
	if (!to->direct)
		return redirect_neigh(device, NULL, 0, 0);
	if (to->group && t->flags & TUNNEL_F_LOCAL_PEERS) {
		/* The same frame with a TTL of 0: for members of the group on this host, and nobody else. */
		__u8 none = 0;

		c->exceptions[EXC_LOCAL]++;
		if (skb_store_bytes(skb, v6 ? ETH_LEN + 7 : ETH_LEN + 8, &none, 1, 0) || clone_redirect(skb, t->exception, 0) ||
		    skb_store_bytes(skb, v6 ? ETH_LEN + 7 : ETH_LEN + 8, &to->ttl, 1, 0))
			return count_drop(c, DROP_REDIRECT);
	}
	return redirect(device, 0);
}

#endif
