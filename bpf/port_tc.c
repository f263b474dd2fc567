/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Input of local ports.  At tc ingress of a "wire" port; at tc egress of a "stack" port, where the host's own stack sends.
 * exception_ingress jumps here too, with frames that went through the exception tap to be segmented.
 */
#include "switch_tc.h"

static __always_inline int local_port(struct __sk_buff *skb)
{
	__u32 ifindex = skb->ifindex, in;
	__u32 *at = map_lookup(MAP(ingress), &ifindex);
	__u8 path = PATH_TC;
	__u64 start = 0;
	int verdict;

	if (!at)
		return VERDICT_NEXT;
	in = *at;
	if (in == INGRESS_BOUNCED) {
		in = skb->cb[CB_IN];
		path = PATH_EXCEPTION;
	}
	verdict = port_input(skb, in, path, &start);
	sample_end(start, TIMED_PORT_TC);
	return verdict;
}

PROGRAM(port_tc, "tc")(struct __sk_buff *skb)
{
	return OBSERVED(skb, local_port(skb), FRAME_ITSELF);
}
