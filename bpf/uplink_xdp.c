/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Fast path of decapsulation: a known endpoint's unicast for a known local port that takes redirected frames.
 */
#include "switch_xdp.h"

static __always_inline int uplink_fast(struct xdp_md *ctx, __u64 *start)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct endpoint_key where = { .uplink = ctx->ingress_ifindex };
	__u32 *index, len, to;
	struct port_info *port, *out = NULL;
	struct fdb_key fdb_key = {};
	struct fdb_entry at = {}, *e;
	struct switch_info *sw;
	struct tunnel_info *t;
	struct counters *c;
	struct outer o;
	struct eth *eth;

	if (parse_outer(data, end, &o))
		return VERDICT_PASS;
	where.vni = swap32(o.vxlan_vni) >> 8;
	where.udp_port = o.dst_port;
	__builtin_memcpy(where.addr, o.dst, 16);
	index = map_lookup(MAP(endpoints), &where);
	if (!index)
		return VERDICT_PASS;
	port = port_at(*index);
	t = tunnel_at(*index);
	c = counters_at(*index);
	*start = port ? sample_start(port, c, PATH_XDP) : 0;
	sw = port ? switch_at(port->switch_id) : NULL;
	if (!sw || !t || sw->mode != MODE_SWITCH)
		return VERDICT_PASS;
	if (t->kind == TUNNEL_VXVDE && (o.vxlan_flags != swap32(VXLAN_FLAGS) || o.vxlan_vni & swap32(0xff)))
		return left_to_tc(c);

	eth = o.len == OUTER4_LEN ? data + OUTER4_LEN : data + OUTER6_LEN;
	if ((void *)(eth + 1) > end)
		return left_to_tc(c);
	len = end - (void *)eth;
	/* Padding, truncation, goodbyes, and frames in fragments, of which only the first can be seen here, are tc's. */
	if (len != o.payload)
		return left_to_tc(c);
	fdb_key.switch_id = port->switch_id;
	if (inspect(eth, end, &fdb_key) || (port->sample && holds_probe(eth, end)))
		return left_to_tc(c);

	__builtin_memcpy(at.addr, o.src, 16);
	at.udp_port = t->kind == TUNNEL_VXVDE ? o.src_port : t->group_port;
	at.port = *index;
	at.last_seen = ktime_ns();
	at.generation = generation_now(sw, port, &at);
	at.flags = (is_kernels(t, &o) ? FDB_F_ZERO_CSUM : 0) | (is_on_link(t, o.src) ? FDB_F_ON_LINK : 0);
	__builtin_memcpy(at.next_hop, o.source_mac, 6);
	e = fast_forward(&fdb_key, eth, &at, sw, &out, c);
	if (!e || !out || !takes_xdp(out, len))
		return left_to_tc(c);
	to = e->port;
	if (xdp_adjust_head(ctx, o.len))
		return left_to_tc(c);
	count_rx(c, PATH_XDP, 1, len);
	count_rx(counters_at(t->uplink_port), PATH_XDP, 1, len + o.len);
	count_tx(counters_at(to), PATH_XDP, 1, len);
	return redirect_map(MAP(tx_ports), to, 0);
}

PROGRAM(uplink_xdp, "xdp")(struct xdp_md *ctx)
{
	__u64 start = 0;
	int verdict;

	OBSERVE_XDP();
	verdict = uplink_fast(ctx, &start);

	if (verdict != VERDICT_PASS)
		sample_end(start, TIMED_UPLINK_XDP);
	return verdict;
}
