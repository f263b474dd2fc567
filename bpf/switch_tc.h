/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The switch, for tc programs: learn, decide, send.  Complete: whatever an XDP program leaves ends here.
 *
 * Flooding is a program of its own (flood_tc.c): its loop is what costs the verifier most, and it is not in the way of
 * known unicast.
 */
#ifndef VDEXDP_SWITCH_TC_H
#define VDEXDP_SWITCH_TC_H

#include "output_tc.h"

/* Words of skb->cb, from a program to the one it continues in. */
#define CB_SWITCH 0
#define CB_IN 1
#define CB_PATH 2

/* Sends to the entry's place: a local port, or an endpoint behind the tunnel. */
static __always_inline int send_to(struct __sk_buff *skb, struct fdb_entry *e, struct port_info *port, struct frame *f, struct counters *c,
				   int at_ingress)
{
	struct target to;
	struct tunnel_info *t;

	if (port->kind != PORT_TUNNEL)
		return send_local(skb, port, c, e->port, f->frames, f->path, at_ingress);
	t = tunnel_at(e->port);
	if (!t)
		return count_drop(c, DROP_NO_SWITCH);
	if (port->sample)
		rtt_out(skb, e->port);
	__builtin_memcpy(to.addr, e->addr, 16);
	to.port = e->udp_port;
	to.ttl = 64;
	to.group = 0;
	to.direct = e->flags & FDB_F_ON_LINK && has_mac(e->next_hop);
	__builtin_memcpy(to.next_hop, e->next_hop, 6);
	return send_tunnel(skb, t, e->port, &to, e->flags, f);
}

/* Continues in the flood program, which finds in skb->cb what it has to know. */
static __always_inline int flood(struct __sk_buff *skb, struct frame *f, struct counters *c)
{
	count_event(c, EV_FLOOD);
	skb->cb[CB_SWITCH] = f->key.switch_id;
	skb->cb[CB_IN] = f->in;
	skb->cb[CB_PATH] = f->path;
	tail_call(skb, MAP(jumps), JUMP_FLOOD);
	return count_drop(c, DROP_REDIRECT);
}

/* A frame enters the switch by a local port.  `start` is when, if it is to be timed. */
static __always_inline int port_input(struct __sk_buff *skb, __u32 in, __u8 path, __u64 *start)
{
	struct port_info *port = port_at(in), *out;
	struct counters *c = counters_at(in);
	struct switch_info *sw;
	struct fdb_entry *e = NULL;
	struct frame f = {};
	enum source learnt;
	struct eth eth;
	int at_ingress;

	if (!port)
		return VERDICT_NEXT;
	at_ingress = port->kind != PORT_STACK;
	OBSERVE_ENTRY(skb, in);
	*start = sample_start(port, c, path);
	sw = switch_at(port->switch_id);
	if (!sw)
		return count_drop(c, DROP_NO_SWITCH);
	if (load_eth(skb, &eth))
		return count_drop(c, DROP_RUNT);
	if (!skb->gso_size && frame_len(skb) > FRAME_MAX + 4)
		return count_drop(c, DROP_TOO_BIG);
	f.in = in;
	f.path = path;
	f.frames = frames_of(skb);
	count_rx(c, path, f.frames, frame_len(skb));

	f.key.switch_id = port->switch_id;
	if (skb->vlan_present) {
		f.key.vlan = skb->vlan_tci & 0xfff;
	} else if (is_vlan(eth.proto) && skb->len >= ETH_LEN + 4) {
		__be16 tci = 0;

		skb_load_bytes(skb, ETH_LEN, &tci, 2);
		f.key.vlan = swap16(tci) & 0xfff;
	}
	if (sw->mode == MODE_SWITCH) {
		f.at.port = in;
		f.at.last_seen = ktime_ns();
		f.at.generation = sw->generation + port->generation;
		__builtin_memcpy(f.key.mac, eth.src, 6);
		learnt = fdb_learn(&f.key, &f.at, sw, port, c);
		OBSERVE_LEARNT(skb, learnt);
		if (!is_group(eth.dst) && !is_news(learnt, sw, port)) {
			__builtin_memcpy(f.key.mac, eth.dst, 6);
			e = fdb_find(&f.key, sw, &out, f.at.last_seen, c);
		}
	}
	OBSERVE(skb, 0, skb->len, &f, sw, e);
	if (path != PATH_EXCEPTION) /* of what comes back in segments, mirrors have had the whole */
		OBSERVE_MIRROR(skb, &f, sw, e);
	if (e) {
		if (e->port == in)
			return count_drop(c, DROP_SAME_PORT);
		return send_to(skb, e, out, &f, c, at_ingress);
	}
	if (sw->mode == MODE_CABLE && !sw->tunnel) {
		__u32 other = sw->member[0] == in ? sw->member[1] : sw->member[0];

		out = port_at(other);
		if (!out || sw->members != 2 || out->switch_id != port->switch_id)
			return count_drop(c, DROP_NO_PORTS);
		return send_local(skb, out, c, other, f.frames, path, at_ingress);
	}
	return flood(skb, &f, c);
}

#endif
