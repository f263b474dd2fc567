/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Input of local ports.  At tc ingress of a "wire" port; at tc egress of a "stack" port, where the host's own stack sends.
 * Built once more as `bounce`, for frames that went through the exception tap to be segmented.
 */
#include "switch_tc.h"

static __always_inline int local_port(struct __sk_buff *skb, int at_ingress)
{
	__u32 ifindex = skb->ifindex;
	__u32 *in = map_lookup(MAP(ingress), &ifindex);
	__u64 start = 0;
	int verdict;

	if (!in)
		return VERDICT_NEXT;
	verdict = port_input(skb, *in, PATH_TC, at_ingress, &start);
	sample_end(start, TIMED_PORT_TC);
	return verdict;
}

#ifdef BOUNCE
PROGRAM(bounce, "tc")(struct __sk_buff *skb)
{
	__u64 start;

	return OBSERVED(skb, port_input(skb, skb->cb[CB_IN], PATH_EXCEPTION, 1, &start), FRAME_ITSELF);
}
#elif defined(AT_EGRESS)
PROGRAM(port_egress, "tc")(struct __sk_buff *skb)
{
	return OBSERVED(skb, local_port(skb, 0), FRAME_ITSELF);
}
#else
PROGRAM(port_ingress, "tc")(struct __sk_buff *skb)
{
	return OBSERVED(skb, local_port(skb, 1), FRAME_ITSELF);
}
#endif
