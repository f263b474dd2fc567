/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Histograms for the metrics: how long the programs take, and how long peers take to answer.
 *
 * Off, which is when port_info.sample is 0, this costs one comparison of a word that is in the cache anyway.  On, that share
 * of the frames is timed: two readings of the fine clock and a store.  Timed is the program itself, from the look-up of
 * its port on: look-ups, learning, encapsulation; what the kernel does with its verdict is not in it, nor is flooding.
 *
 * A round trip is that of a request and its own answer: TCP SYN and SYN-ACK, ICMP echo and reply, IPv4 and IPv6.  The request
 * is noted when it is encapsulated for a known endpoint, the answer when it has come out of the tunnel; the
 * peer's guest is in between, as far as its stack answers by itself.  Requests are not sampled: connections are few beside
 * frames.  XDP programs leave both to tc.
 */
#ifndef VDEXDP_SAMPLE_H
#define VDEXDP_SAMPLE_H

#include "eth.h"

#define L4_ICMP 1
#define L4_ICMP6 58
#define TCP_SYN 0x02
#define TCP_ACK 0x10

/* When a frame that is to be timed came in, else 0.  Frames are chosen by a hash of how many there have been on this CPU. */
static __always_inline __u64 sample_start(const struct port_info *port, const struct counters *c, enum frame_path path)
{
#ifdef OBSERVED_BUILD
	return 0; /* of somebody who watches, the times would say more than of the programs */
#endif
	if (!port->sample || !c || (__u32)c->rx_frames[path] * 0x9e3779b1 > port->sample)
		return 0;
	return ktime_fine();
}

static __always_inline void histogram_add(void *map, __u32 index, __u64 ns)
{
	struct histogram *h = map_lookup(map, &index);
	__u64 left = ns >> HISTOGRAM_SHIFT;
	__u32 slot = 0;

	if (!h)
		return;
	if (left >> 16) {
		left >>= 16;
		slot += 16;
	}
	if (left >> 8) {
		left >>= 8;
		slot += 8;
	}
	if (left >> 4) {
		left >>= 4;
		slot += 4;
	}
	if (left >> 2) {
		left >>= 2;
		slot += 2;
	}
	if (left >> 1) {
		left >>= 1;
		slot += 1;
	}
	slot += !!left;
	h->sum += ns;
	h->bucket[slot < HISTOGRAM_SLOTS ? slot : HISTOGRAM_SLOTS - 1]++;
}

static __always_inline void sample_end(__u64 start, enum timed what)
{
	if (start)
		histogram_add(MAP(timings), what, ktime_fine() - start);
}

/* Is this one side of a request and its answer?  `l4` has the first 14 bytes behind the IP header. */
static __always_inline int is_probe(__u8 proto, const __u8 *l4)
{
	if (proto == L4_TCP)
		return l4[13] & TCP_SYN;
	if (proto == L4_ICMP)
		return l4[0] == 8 || l4[0] == 0;
	return proto == L4_ICMP6 && (l4[0] == 128 || l4[0] == 129);
}

static __always_inline __u32 word(const __u8 *bytes)
{
	return *(const __u32 *)bytes;
}

/* Reads what identifies a request or an answer at the frame's IP header.  1: request, 2: answer, 0: neither. */
static __always_inline int read_probe(struct __sk_buff *skb, __u32 at, __be16 proto, struct rtt_key *key)
{
	__u8 b[40] __attribute__((aligned(4)));
	__u32 src, dst;
	__u8 l4;
	int answer;

	if (proto == PROTO_IP) {
		if (skb_load_bytes(skb, at, b, 20) || b[0] != 0x45 || *(__be16 *)(b + 6) & swap16(0x3fff))
			return 0;
		l4 = b[9];
		src = word(b + 12);
		dst = word(b + 16);
		at += 20;
	} else if (proto == PROTO_IPV6) {
		if (skb_load_bytes(skb, at, b, 40))
			return 0;
		l4 = b[6];
		src = word(b + 8) ^ word(b + 12) ^ word(b + 16) ^ word(b + 20);
		dst = word(b + 24) ^ word(b + 28) ^ word(b + 32) ^ word(b + 36);
		at += 40;
	} else {
		return 0;
	}
	if (l4 != L4_TCP && l4 != L4_ICMP && l4 != L4_ICMP6)
		return 0;
	/* An echo without data is eight bytes, a TCP header at least twenty. */
	if (skb_load_bytes(skb, at, b, l4 == L4_TCP ? 14 : 8) || !is_probe(l4, b))
		return 0;
	if (l4 == L4_TCP) {
		answer = b[13] & TCP_ACK;
		key->ports = answer ? (__u32)*(__u16 *)b << 16 | *(__u16 *)(b + 2) : (__u32)*(__u16 *)(b + 2) << 16 | *(__u16 *)b;
		key->number = answer ? swap32(word(b + 8)) : swap32(word(b + 4)) + 1;
	} else {
		answer = b[0] == 0 || b[0] == 129;
		key->ports = *(__u16 *)(b + 4);
		key->number = *(__u16 *)(b + 6);
	}
	key->near = answer ? dst : src;
	key->far = answer ? src : dst;
	return answer ? 2 : 1;
}

/* A frame is about to go out to an endpoint of the tunnel whose port is `tunnel`. */
static __always_inline void rtt_out(struct __sk_buff *skb, __u32 tunnel)
{
	struct rtt_key key = { .tunnel = tunnel };
	__be16 proto = 0;
	__u64 now;

	if (skb_load_bytes(skb, 12, &proto, 2) || read_probe(skb, ETH_LEN, proto, &key) != 1)
		return;
	now = ktime_fine();
	map_update(MAP(probes), &key, &now, 0);
}

/* A frame has come out of the tunnel; its IP header is at `at`. */
static __always_inline void rtt_in(struct __sk_buff *skb, __u32 at, __be16 proto, __u32 tunnel)
{
	struct rtt_key key = { .tunnel = tunnel };
	__u64 *then, sent;

	if (read_probe(skb, at, proto, &key) != 2)
		return;
	then = map_lookup(MAP(probes), &key);
	if (!then)
		return;
	sent = *then;
	if (!map_delete(MAP(probes), &key))
		histogram_add(MAP(rtts), tunnel, ktime_fine() - sent);
}

/* The same question for XDP programs; `eth` has been checked against `end`. */
static __always_inline int holds_probe(const struct eth *eth, void *end)
{
	__u8 *l3 = (void *)(eth + 1);

	if (eth->proto == PROTO_IP)
		return (void *)(l3 + 34) <= end && l3[0] == 0x45 && is_probe(l3[9], l3 + 20);
	return eth->proto == PROTO_IPV6 && (void *)(l3 + 54) <= end && is_probe(l3[6], l3 + 40);
}

#endif
