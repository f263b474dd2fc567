/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Decapsulation: tc ingress of uplinks, and of the exception tap.
 *
 * Everything that is not addressed to one of our endpoints goes on to the host untouched, fragments too: the host's own
 * UDP sockets reassemble them, and the exception worker sends the whole datagram in by the exception tap, where this same program sees
 * it as if the uplink had carried it in one piece.
 */
#include "switch_tc.h"

/*
 * Takes the outer headers off, and trims what Ethernet padding the uplink left behind.
 *
 * adjust_room wants an IP header's worth of bytes to remain behind the Ethernet header, IPv4's if it is told that IPv4 is what appears
 * (kernels from 6.2 on), else that of the outer family.  Shorter frames are made longer for the moment; the kernel does not do
 * that to an skb marked as encapsulated, which a frame of that length never is (see send_tunnel).
 */
static __always_inline int decap(struct __sk_buff *skb, const struct outer *o, const struct eth *eth, const struct tags *tags)
{
	__u32 strip = o->len + 4 * tags->count, len = o->payload - 4 * tags->count;
	int resize = 0, typed;
	__u64 decap_to;

	if (!skb->gso_size) {
		if (len < encap_min(eth->proto)) {
			if (skb_change_tail(skb, skb->len + 40, 0))
				return -1;
			resize = 1;
		} else if (skb->len != o->len + o->payload) {
			resize = 1;
		}
	}
	decap_to = eth->proto == PROTO_IPV6 ? ROOM_DECAP_L3_IPV6 : ROOM_DECAP_L3_IPV4;
	/* More tags than MAX_TAGS, or a tag that is cut off: what is left of them stays in the frame, untyped. */
	typed = eth->proto == o->proto || is_vlan(eth->proto);
	if (skb_adjust_room(skb, -(__s32)strip, ROOM_MAC, ROOM_FIXED_GSO | (eth->proto == o->proto ? 0 : decap_to))) {
		if (eth->proto == o->proto)
			return -1;
		if (!resize && len < encap_min(o->proto) && !skb->gso_size) {
			if (skb_change_tail(skb, skb->len + 40, 0))
				return -1;
			resize = 1;
		}
		if (skb_adjust_room(skb, -(__s32)strip, ROOM_MAC, ROOM_FIXED_GSO))
			return -1;
	} else if (eth->proto == PROTO_IP || eth->proto == PROTO_IPV6) {
		typed = 1;
	}
	if (skb_store_bytes(skb, 0, eth, ETH_LEN, 0))
		return -1;
	if (resize && skb_change_tail(skb, len, 0))
		return -1;
	if (!typed && set_protocol(skb, eth->proto))
		return -1;
	return push_tags(skb, tags);
}

static __always_inline int load_inner(struct __sk_buff *skb, __u32 at, struct eth *eth, struct tags *tags)
{
	int i;

	tags->count = 0;
	if (skb_load_bytes(skb, at, eth, ETH_LEN))
		return -1;
#pragma unroll
	for (i = 0; i < MAX_TAGS; i++) {
		if (!is_vlan(eth->proto))
			break;
		tags->tag[i].proto = eth->proto;
		if (skb_load_bytes(skb, at + ETH_LEN + 4 * i, &tags->tag[i].tci, 2) ||
		    skb_load_bytes(skb, at + ETH_LEN + 4 * i + 2, &eth->proto, 2)) {
			/* The frame ends within its tags: carried as it is. */
			eth->proto = tags->tag[i].proto;
			break;
		}
		tags->count = i + 1;
	}
	return 0;
}

#define PACKET_LOOPBACK 5 /* linux/if_packet.h */

/* Group traffic, while other nodes of the network live on this host. */
static __always_inline int to_local_peers(const struct tunnel_info *t, const struct outer *o)
{
	return t->flags & TUNNEL_F_LOCAL_PEERS && o->dst[3] == t->group[3] && o->dst[2] == t->group[2] && o->dst[1] == t->group[1] &&
	       o->dst[0] == t->group[0];
}

/* `start` is when, if the frame is to be timed. */
static __always_inline int tunnel_input(struct __sk_buff *skb, struct outer *o, __u32 uplink, __u8 path, __u64 *start)
{
	struct endpoint_key where = { .uplink = uplink, .vni = swap32(o->vxlan_vni) >> 8, .udp_port = o->dst_port };
	struct port_info *port, *out;
	struct switch_info *sw;
	struct tunnel_info *t;
	struct fdb_entry *e = NULL;
	struct counters *c;
	struct frame f = {};
	struct tags tags;
	enum source learnt;
	struct eth eth;
	__u32 *index;

	__builtin_memcpy(where.addr, o->dst, 16);
	index = map_lookup(MAP(endpoints), &where);
	if (!index)
		return VERDICT_NEXT;
	f.in = *index;
	port = port_at(f.in);
	t = tunnel_at(f.in);
	c = counters_at(f.in);
	if (!port || !t)
		return VERDICT_NEXT;
	OBSERVE_ENTRY(skb, f.in);
	*start = sample_start(port, c, path);
	sw = switch_at(port->switch_id);
	if (!sw)
		return count_drop(c, DROP_NO_SWITCH);
	/*
	 * Nodes on this host hear the group by their sockets alone: what another of them sent, looped back by the kernel, and,
	 * while there are any, what comes from the wire.  The exception worker hears it there too, and sends it in here.
	 */
	if (path != PATH_EXCEPTION && (skb->pkt_type == PACKET_LOOPBACK || to_local_peers(t, o)))
		return VERDICT_NEXT;
	if (t->kind == TUNNEL_VXVDE && (o->vxlan_flags != swap32(VXLAN_FLAGS) || (o->vxlan_vni & swap32(0xff))))
		return count_drop(c, DROP_BAD_HEADER);

	__builtin_memcpy(f.at.addr, o->src, 16);
	f.at.udp_port = t->kind == TUNNEL_VXVDE ? o->src_port : t->group_port;
	if (o->src_port == t->src_port && o->src[3] == t->local[3] && o->src[2] == t->local[2] && o->src[1] == t->local[1] &&
	    o->src[0] == t->local[0])
		return count_drop(c, DROP_OWN_COPY);
	if (o->payload == 0 && t->kind == TUNNEL_VXVDE) {
		__u32 *generation = endpoint_generation(f.at.addr, f.at.udp_port);

		if (generation)
			__sync_fetch_and_add(generation, 1);
		count_event(c, EV_GOODBYE);
		return VERDICT_DROP;
	}
	f.path = path;
	f.frames = frames_of(skb);
	if (!skb->gso_size) {
		if (o->payload < FRAME_MIN)
			return count_drop(c, DROP_RUNT);
		if (o->payload > FRAME_MAX + 4)
			return count_drop(c, DROP_TOO_BIG);
		if (skb->len < o->len + o->payload)
			return count_drop(c, DROP_BAD_HEADER);
	} else {
		o->payload = 0;
	}
	if (load_inner(skb, o->len, &eth, &tags))
		return count_drop(c, DROP_RUNT);
	count_rx(c, path, f.frames, skb->len - o->len);
	count_rx(counters_at(t->uplink_port), path, f.frames, skb->len);
	if (path == PATH_EXCEPTION && c)
		c->exceptions[EXC_INPUT]++;

	if (port->sample)
		rtt_in(skb, o->len + ETH_LEN + 4 * tags.count, eth.proto, f.in);

	f.key.switch_id = port->switch_id;
	if (tags.count)
		f.key.vlan = swap16(tags.tag[0].tci) & 0xfff;
	if (sw->mode == MODE_SWITCH) {
		f.at.port = f.in;
		f.at.last_seen = ktime_ns();
		f.at.generation = generation_now(sw, port, &f.at);
		if (path != PATH_EXCEPTION && is_kernels(t, o))
			f.at.flags = FDB_F_ZERO_CSUM;
		if (path == PATH_EXCEPTION) {
			/* Our own addresses are endpoints with our port: is the sender on this host? */
			__builtin_memcpy(where.addr, o->src, 16);
			where.udp_port = t->src_port;
			if (map_lookup(MAP(endpoints), &where))
				f.at.flags |= FDB_F_LOCAL;
		} else {
			__builtin_memcpy(f.at.next_hop, o->source_mac, 6);
			if (is_on_link(t, o->src))
				f.at.flags |= FDB_F_ON_LINK;
		}
		__builtin_memcpy(f.key.mac, eth.src, 6);
		learnt = fdb_learn(&f.key, &f.at, sw, port, c);
		OBSERVE_LEARNT(skb, learnt);
		if (!is_group(eth.dst) && !is_news(learnt, sw, port)) {
			__builtin_memcpy(f.key.mac, eth.dst, 6);
			e = fdb_find(&f.key, sw, &out, f.at.last_seen, c);
		}
	}
	OBSERVE(skb, o->len, o->payload ? o->payload : skb->len - o->len, &f, sw, e);
	if (e && e->port == f.in)
		return count_drop(c, DROP_SPLIT_HORIZON);
	if (decap(skb, o, &eth, &tags))
		return count_drop(c, DROP_NO_ROOM);
	OBSERVE_MIRROR(skb, &f, sw, e);
	if (e)
		return send_local(skb, out, c, e->port, f.frames, path, 1);
	if (sw->mode == MODE_CABLE && sw->members == 1) {
		out = port_at(sw->member[0]);
		if (out && out->switch_id == port->switch_id)
			return send_local(skb, out, c, sw->member[0], f.frames, path, 1);
	}
	return flood(skb, &f, c);
}

/* What a device got from outside; `tap` says that it is the exception tap. */
static __always_inline int outer_input(struct __sk_buff *skb, int tap)
{
	__u32 ifindex = skb->ifindex;
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct outer o;
	__u64 start = 0;
	int verdict;

	if (skb->vlan_present) {
		if (!tap || (__be16)skb->vlan_proto != swap16(BOUNCE_TPID))
			return VERDICT_NEXT;
		skb->cb[CB_IN] = skb->vlan_tci;
		if (!skb_vlan_pop(skb))
			tail_call(skb, MAP(jumps), JUMP_BOUNCE);
		return VERDICT_DROP;
	}
	if (skb->protocol != PROTO_IP && skb->protocol != PROTO_IPV6)
		return VERDICT_NEXT;
	if (data + OUTER6_LEN > end && skb->len > OUTER4_LEN) {
		/* Headers not in the linear part: rare, and only for our sizes worth a pull. */
		if (skb_pull_data(skb, skb->len < OUTER6_LEN ? skb->len : OUTER6_LEN))
			return VERDICT_NEXT;
		data = (void *)(long)skb->data;
		end = (void *)(long)skb->data_end;
	}
	if (parse_outer(data, end, &o))
		return VERDICT_NEXT;
	if (tap) {
		if (o.source_mac[0] != ENDPOINT_META >> 8 || o.source_mac[1] != (ENDPOINT_META & 0xff)) {
			__u32 key = ifindex | UPLINK_KEY, *index = map_lookup(MAP(ingress), &key);

			return index ? count_drop(counters_at(*index), DROP_BAD_BOUNCE) : VERDICT_DROP;
		}
		ifindex = (__u32)o.source_mac[2] << 24 | (__u32)o.source_mac[3] << 16 | (__u32)o.source_mac[4] << 8 | o.source_mac[5];
		return tunnel_input(skb, &o, ifindex, PATH_EXCEPTION, &start);
	}
	verdict = tunnel_input(skb, &o, ifindex, PATH_TC, &start);
	sample_end(start, TIMED_UPLINK_TC);
	return verdict;
}

PROGRAM(uplink_ingress, "tc")(struct __sk_buff *skb)
{
	return OBSERVED(skb, outer_input(skb, 0), BEHIND_OUTER);
}

PROGRAM(exception_ingress, "tc")(struct __sk_buff *skb)
{
	return OBSERVED(skb, outer_input(skb, 1), BEHIND_OUTER);
}
