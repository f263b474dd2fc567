/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * vlan:// in front of a port: tags put on, taken off and mapped, as tables say that are made from the same rules as userspace has
 * (vdexdp/wire/dot1q.py).
 *
 * These programs stand alone, at the hooks of a port's device: at the one by which frames come in, before the port's own program; and at
 * the other one, which frames pass that the switch sends out.  So the switch sees tags as they are behind vlan://, and ports without it
 * pay nothing.
 */
#include "output_tc.h"

/* One vlan://.  The outermost tag, if it is whole, is in the skb's metadata, and is so again afterwards. */
static __always_inline int rewrite(struct __sk_buff *skb, const struct vlan_table *t)
{
	__u16 tci = skb->vlan_tci, action = t->untagged;
	__be16 proto = 0;

	if (skb->vlan_present && (__be16)skb->vlan_proto == t->tpid) {
		action = t->tagged[tci & 0xfff];
		if (action == (tci & 0xfff))
			return 0;
		/* The next tag moves up into the metadata; where it is cut off that fails, when ours is gone already. */
		if (action != VLAN_DROP && skb_vlan_pop(skb) && skb->vlan_present)
			return -1;
		if (action <= 0xfff)
			action |= tci & 0xf000;
		else if (action == VLAN_POP)
			return 0;
		return action == VLAN_DROP || skb_vlan_push(skb, t->tpid, action) ? -1 : 0;
	}
	if (!skb->vlan_present && skb->len >= ETH_LEN + 2 && skb->len < ETH_LEN + 4) {
		skb_load_bytes(skb, 12, &proto, 2);
		if (proto == t->tpid)
			return -1;
	}
	if (action == VLAN_PASS)
		return 0;
	return action == VLAN_DROP || skb_vlan_push(skb, t->tpid, action) ? -1 : 0;
}

static __always_inline int rewrite_all(struct __sk_buff *skb, __u8 egress)
{
	struct vlan_key key = { .ifindex = skb->ifindex, .egress = egress };
	__be16 proto = 0;
	int i;

	/* What a host sends may have all its tags in the frame. */
	if (!skb->vlan_present && skb->len >= ETH_LEN + 4 && !skb_load_bytes(skb, 12, &proto, 2) && is_vlan(proto) &&
	    set_protocol(skb, proto))
		return VERDICT_DROP;
#pragma unroll
	for (i = 0; i < MAX_VLAN_STEPS; i++) {
		struct vlan_table *t;

		key.step = i;
		t = map_lookup(MAP(vlans), &key);
		if (!t)
			break;
		OBSERVE_ENTRY(skb, t->port);
		if (rewrite(skb, t))
			return count_drop(counters_at(t->port), DROP_VLAN);
		if (!skb->gso_size && frame_len(skb) > FRAME_MAX)
			return count_drop(counters_at(t->port), DROP_TOO_BIG);
	}
	return VERDICT_NEXT;
}

PROGRAM(vlan_ingress, "tc")(struct __sk_buff *skb)
{
	return OBSERVED(skb, rewrite_all(skb, 0), FRAME_ITSELF);
}

PROGRAM(vlan_egress, "tc")(struct __sk_buff *skb)
{
	return OBSERVED(skb, rewrite_all(skb, 1), FRAME_ITSELF);
}
