/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Flooding, in two programs: a clone to every other local port of the switch; then the original, which encapsulation changes,
 * goes to the tunnel's group, unless it came from there (the group's other members have had their copy).
 */
#include "switch_tc.h"

/* Clones to every local member but the one it came from. */
static __always_inline void flood_local(struct __sk_buff *skb, const struct switch_info *sw, const struct frame *f, struct counters *c)
{
	__u32 len = frame_len(skb);
	int i;

	for (i = 0; i < MAX_MEMBERS; i++) {
		struct port_info *port;
		__u32 member;

		if (i >= sw->members)
			break;
		member = sw->member[i];
		if (member == f->in)
			continue;
		port = port_at(member);
		if (!port || port->switch_id != f->key.switch_id)
			continue;
		if (port->mtu && !skb->gso_size && len > port->mtu + 4) {
			count_drop(c, DROP_TOO_BIG);
			OBSERVE_COPY(skb, 0);
			continue;
		}
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
	struct frame f = {};
	struct switch_info *sw;
	struct counters *c;

	restore(skb, &f);
	c = counters_at(f.in);
	sw = switch_at(f.key.switch_id);
	if (!sw || !c)
		return count_drop(c, DROP_NO_SWITCH);
	flood_local(skb, sw, &f, c);
	if (sw->tunnel && sw->tunnel != f.in) {
		tail_call(skb, MAP(jumps), JUMP_GROUP);
		return count_drop(c, DROP_REDIRECT);
	}
	if (sw->members == 0 || (sw->members == 1 && sw->member[0] == f.in))
		return count_drop(c, DROP_NO_PORTS);
	return TOLD(VERDICT_DROP, TOLD_FLOODED, 0);
}

PROGRAM(flood_all, "tc")(struct __sk_buff *skb)
{
	return OBSERVED(skb, to_all(skb), SEEN_BEFORE);
}
