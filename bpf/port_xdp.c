/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Fast path of a "wire" port's input: known unicast to another port, or encapsulated to a known endpoint.
 *
 * The next hop's MAC is the one that the endpoint's own frames came with (fdb_entry.next_hop), for endpoints in the uplink's own
 * network: bpf_fib_lookup would find others only on hosts that forward.  Those are tc's.
 */
#include "switch_xdp.h"

static __always_inline int encap_xdp(struct xdp_md *ctx, const struct tunnel_info *t, const struct fdb_entry *e, __u32 out, __u32 len,
				     struct counters *c)
{
	struct target to = { .port = e->udp_port, .ttl = 64 };
	__u8 next_hop[6];
	void *data, *end;

	__builtin_memcpy(to.addr, e->addr, 16);
	__builtin_memcpy(next_hop, e->next_hop, 6);
	if (t->flags & TUNNEL_F_V6) {
		struct headers6 h = {};

		if (xdp_adjust_head(ctx, -OUTER6_LEN))
			return left_to_tc(c);
		data = (void *)(long)ctx->data;
		end = (void *)(long)ctx->data_end;
		if (data + OUTER6_LEN > end)
			return 0;
		fill_headers6(&h, t, &to, next_hop, len);
		__builtin_memcpy(data, &h.eth, OUTER6_LEN);
	} else {
		struct headers4 h = {};

		if (xdp_adjust_head(ctx, -OUTER4_LEN))
			return left_to_tc(c);
		data = (void *)(long)ctx->data;
		end = (void *)(long)ctx->data_end;
		if (data + OUTER4_LEN > end)
			return 0;
		fill_headers4(&h, t, &to, next_hop, len);
		__builtin_memcpy(data, &h.eth, OUTER4_LEN);
	}
	count_tx(counters_at(out), PATH_XDP, 1, len);
	count_tx(counters_at(t->uplink_port), PATH_XDP, 1, end - data);
	return redirect_map(MAP(tx_ports), out, 0);
}

static __always_inline int port_fast(struct xdp_md *ctx, __u64 *start)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	__u32 ifindex = ctx->ingress_ifindex, len = end - data, to, *in, whole;
	struct port_info *port, *out = NULL;
	struct fdb_key key = {};
	struct fdb_entry at = {}, *e;
	struct switch_info *sw;
	struct tunnel_info *t;
	struct counters *c;
	struct eth *eth = data;

	in = map_lookup(MAP(ingress), &ifindex);
	if (!in)
		return VERDICT_PASS;
	port = port_at(*in);
	c = counters_at(*in);
	*start = port ? sample_start(port, c, PATH_XDP) : 0;
	sw = port ? switch_at(port->switch_id) : NULL;
	if (!sw || (void *)(eth + 1) > end || sw->mode != MODE_SWITCH)
		return left_to_tc(c);
	/* A frame in fragments, of which only the first can be seen here. */
	whole = xdp_get_buff_len(ctx);
	if (whole && whole != len)
		return left_to_tc(c);
	key.switch_id = port->switch_id;
	if (inspect(eth, end, &key))
		return left_to_tc(c);
	at.port = *in;
	at.last_seen = ktime_ns();
	at.generation = sw->generation + port->generation;
	e = fast_forward(&key, eth, &at, sw, &out, c);
	if (!e || !out || e->port == *in)
		return left_to_tc(c);
	to = e->port;
	if (out->kind != PORT_TUNNEL) {
		if (!takes_xdp(out, len))
			return left_to_tc(c);
		count_rx(c, PATH_XDP, 1, len);
		count_tx(counters_at(to), PATH_XDP, 1, len);
		return redirect_map(MAP(tx_ports), to, 0);
	}
	t = tunnel_at(to);
	if (!t || !(t->flags & TUNNEL_F_XDP_OUT) || !(e->flags & FDB_F_ON_LINK) || e->flags & FDB_F_LOCAL || !has_mac(e->next_hop))
		return left_to_tc(c);
	/* Outer checksums over IPv6 are tc's. */
	if (t->flags & TUNNEL_F_V6 && !(e->flags & FDB_F_ZERO_CSUM))
		return left_to_tc(c);
	if (len + (t->flags & TUNNEL_F_V6 ? OUTER6_LEN : OUTER4_LEN) - ETH_LEN > t->mtu)
		return left_to_tc(c);
	if (out->sample && holds_probe(eth, end))
		return left_to_tc(c);
	count_rx(c, PATH_XDP, 1, len);
	return encap_xdp(ctx, t, e, to, len, c);
}

PROGRAM(port_xdp, "xdp")(struct xdp_md *ctx)
{
	__u64 start = 0;
	int verdict;

	OBSERVE_XDP();
	verdict = port_fast(ctx, &start);

	if (verdict != VERDICT_PASS)
		sample_end(start, TIMED_PORT_XDP);
	return verdict;
}
