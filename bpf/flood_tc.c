/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Flooding, in two programs: a clone to every other local port of the switch; then the original, which encapsulation changes,
 * goes to the tunnel's group, unless it came from there (the group's other members have had their copy).
 */
#include "switch_tc.h"

static __always_inline __u32 member_at(const struct switch_info *sw, __u64 place)
{
	OPAQUE(place);
	return place < MAX_MEMBERS ? sw->member[place] : 0;
}

/*
 * The member, by its port index, that gets the frame itself, not a clone; 0: none.  `*others` is whether there are more who get it.
 *
 * Where there is a tunnel, its group does.  Elsewhere somebody has to: a host's stack takes a frame that was dropped for one that was not
 * sent, and TCP sends it again.
 */
static __always_inline __u32 last_member(struct switch_info *sw, const struct frame *f, int *others)
{
	__u32 first = sw->member[0], last;

	if (sw->mode == MODE_BONDING || (sw->mode == MODE_MULTI && first != f->in)) {
		*others = 0;
		if (first != f->in)
			return first;
		return sw->members < 2 ? 0 : member_at(sw, 1 + ++sw->turn % (sw->members - 1));
	}
	*others = 1;
	if (sw->tunnel)
		return 0;
	last = member_at(sw, (__u64)sw->members - 1);
	return last == f->in ? member_at(sw, (__u64)sw->members - 2) : last;
}

/* The port that a member is, if it takes a frame of this length from there. */
static __always_inline struct port_info *receiver(const struct __sk_buff *skb, __u32 member, const struct frame *f, __u32 len,
						  struct counters *c)
{
	struct port_info *port;

	if (member == f->in)
		return NULL;
	port = port_at(member);
	if (!port || port->switch_id != f->key.switch_id)
		return NULL;
	if (port->mtu && !skb->gso_size && len > port->mtu + 4) {
		count_drop(c, DROP_TOO_BIG);
		OBSERVE_COPY(skb, 0);
		return NULL;
	}
	return port;
}

/* Clones to every local member but the one it came from, and the one that is left for the frame itself. */
static __always_inline void flood_local(struct __sk_buff *skb, const struct switch_info *sw, const struct frame *f, struct counters *c,
					__u32 last)
{
	__u32 len = frame_len(skb);
	int i;

	for (i = 0; i < MAX_MEMBERS; i++) {
		struct port_info *port;
		__u32 member;

		if (i >= sw->members)
			break;
		member = sw->member[i];
		if (member == last)
			continue;
		port = receiver(skb, member, f, len, c);
		if (!port)
			continue;
		if (clone_redirect(skb, port->ifindex, port->kind == PORT_STACK ? TO_INGRESS : 0)) {
			count_drop(c, DROP_PORT_DOWN);
			OBSERVE_COPY(skb, 0);
		} else {
			count_tx(counters_at(member), f->path, f->frames, len);
			OBSERVE_COPY(skb, 1);
		}
	}
}

static __always_inline void restore(const struct __sk_buff *skb, struct frame *f)
{
	f->key.switch_id = skb->cb[CB_SWITCH];
	f->in = skb->cb[CB_IN];
	f->path = skb->cb[CB_PATH] == PATH_EXCEPTION ? PATH_EXCEPTION : PATH_TC;
	f->frames = frames_of(skb);
}

static __always_inline int to_group(struct __sk_buff *skb)
{
	struct tunnel_info *t;
	struct switch_info *sw;
	struct frame f = {};
	struct target to;
	struct counters *c;

	restore(skb, &f);
	c = counters_at(f.in);
	sw = switch_at(f.key.switch_id);
	t = sw ? tunnel_at(sw->tunnel) : NULL;
	if (!t)
		return count_drop(c, DROP_NO_SWITCH);
	__builtin_memcpy(to.addr, t->group, 16);
	to.port = t->group_port;
	to.ttl = t->ttl;
	to.group = 1;
	to.direct = 1;
	__builtin_memcpy(to.next_hop, t->group_mac, 6);
	return send_tunnel(skb, t, sw->tunnel, &to, 0, &f);
}

PROGRAM(flood_group, "tc")(struct __sk_buff *skb)
{
	return OBSERVED(skb, to_group(skb), SEEN_BEFORE);
}

static __always_inline int to_all(struct __sk_buff *skb)
{
	struct port_info *port;
	__u32 last;
	int others;
	struct frame f = {};
	struct switch_info *sw;
	struct counters *c;

	restore(skb, &f);
	c = counters_at(f.in);
	sw = switch_at(f.key.switch_id);
	if (!sw || !c)
		return count_drop(c, DROP_NO_SWITCH);
	last = last_member(sw, &f, &others);
	if (others)
		flood_local(skb, sw, &f, c, last);
	if (sw->tunnel && sw->tunnel != f.in) {
		tail_call(skb, MAP(jumps), JUMP_GROUP);
		return count_drop(c, DROP_REDIRECT);
	}
	port = last ? receiver(skb, last, &f, frame_len(skb), c) : NULL;
	if (port) {
		count_tx(counters_at(last), f.path, f.frames, frame_len(skb));
		OBSERVE_COPY(skb, 1);
		return TOLD(redirect(port->ifindex, port->kind == PORT_STACK ? TO_INGRESS : 0), TOLD_FLOODED, 0);
	}
	if (sw->members == 0 || (sw->members == 1 && sw->member[0] == f.in))
		return count_drop(c, DROP_NO_PORTS);
	return TOLD(VERDICT_DROP, TOLD_FLOODED, 0);
}

PROGRAM(flood_all, "tc")(struct __sk_buff *skb)
{
	return OBSERVED(skb, to_all(skb), SEEN_BEFORE);
}
