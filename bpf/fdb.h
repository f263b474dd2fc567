/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The forwarding database: learning, look-up, ageing, forgetting, and the counters beside it.  No packet access, so tc and XDP
 * share it as it is.
 */
#ifndef VDEXDP_FDB_H
#define VDEXDP_FDB_H

#include "observe.h"
#include "sample.h"

static __always_inline struct port_info *port_at(__u32 index)
{
	return map_lookup(MAP(ports), &index);
}

static __always_inline struct switch_info *switch_at(__u32 id)
{
	struct switch_info *sw = map_lookup(MAP(switches), &id);

	return sw && sw->mode ? sw : NULL;
}

static __always_inline struct tunnel_info *tunnel_at(__u32 index)
{
	return map_lookup(MAP(tunnels), &index);
}

static __always_inline struct counters *counters_at(__u32 index)
{
	return map_lookup(MAP(counters), &index);
}

static __always_inline void count_rx(struct counters *c, enum frame_path path, __u32 frames, __u32 bytes)
{
	if (c) {
		c->rx_frames[path] += frames;
		c->rx_bytes[path] += bytes;
	}
}

static __always_inline void count_tx(struct counters *c, enum frame_path path, __u32 frames, __u32 bytes)
{
	if (c) {
		c->tx_frames[path] += frames;
		c->tx_bytes[path] += bytes;
	}
}

static __always_inline void count_event(struct counters *c, enum event event)
{
	if (c)
		c->events[event]++;
}

static __always_inline int count_drop(struct counters *c, enum drop_reason reason)
{
	if (c)
		c->drops[reason]++;
	return TOLD(VERDICT_DROP, TOLD_DROPPED, reason);
}

static __always_inline __u32 *endpoint_generation(const __u32 *addr, __be16 port)
{
	__u32 slot = addr[0] ^ addr[1] ^ addr[2] ^ addr[3] ^ ((__u32)port * 0x9e3779b1);

	slot *= 0x85ebca6b;
	slot = (slot ^ (slot >> 16)) & (GEN_SLOTS - 1);
	return map_lookup(MAP(generations), &slot);
}

/* The generation that an entry for this place would be learnt with now. */
static __always_inline __u32 generation_now(const struct switch_info *sw, const struct port_info *port, const struct fdb_entry *at)
{
	__u32 sum = sw->generation + port->generation;

	if (port->kind == PORT_TUNNEL) {
		__u32 *slot = endpoint_generation(at->addr, at->udp_port);

		if (slot)
			sum += *slot;
	}
	return sum;
}

static __always_inline int same_place(const struct fdb_entry *a, const struct fdb_entry *b)
{
	return a->port == b->port && a->udp_port == b->udp_port && a->addr[3] == b->addr[3] && a->addr[2] == b->addr[2] &&
	       a->addr[1] == b->addr[1] && a->addr[0] == b->addr[0];
}

/* CPUs read the clock a little apart: an entry may be younger than now. */
static __always_inline int is_old(const struct fdb_entry *e, const struct switch_info *sw, __u64 now)
{
	return now > e->last_seen && now - e->last_seen > sw->expiry;
}

/*
 * Finds a live entry.  Too old, from before a flush, an unplug or a goodbye: not found.  The entry's port belongs to the switch
 * (a port index that was given away in the meantime has another generation, and is compared here once more: no frame
 * escapes its switch).
 */
static __always_inline struct fdb_entry *fdb_find(const struct fdb_key *key, const struct switch_info *sw, struct port_info **port,
						  __u64 now, struct counters *c)
{
	struct fdb_entry *e = map_lookup(MAP(fdb), key);

	if (!e)
		return NULL;
	*port = port_at(e->port);
	if (!*port || (*port)->switch_id != key->switch_id)
		return NULL;
	if (e->flags & FDB_F_STATIC)
		return e;
	if (e->generation != generation_now(sw, *port, e))
		return NULL;
	if (is_old(e, sw, now)) {
		count_event(c, EV_EXPIRED);
		return NULL;
	}
	return e;
}

/*
 * A port may make `learn_limit` new entries in one expiry time.  What it made in earlier windows has expired unless it is in
 * use, so that a port never holds more than about twice its limit, whatever addresses it invents.
 */
static __always_inline int learn_allowed(struct port_info *port, const struct switch_info *sw, __u64 now)
{
	if (!port->learn_limit)
		return 1;
	if (now - port->window_start > sw->expiry) {
		port->window_start = now;
		port->learnt = 0;
	}
	if (port->learnt >= port->learn_limit)
		return 0;
	__sync_fetch_and_add(&port->learnt, 1);
	return 1;
}

static __always_inline int fdb_is_live(const struct fdb_entry *e, const struct switch_info *sw, __u64 now)
{
	struct port_info *port = port_at(e->port);

	return port && e->generation == generation_now(sw, port, e) && !is_old(e, sw, now);
}

/* Is the endpoint in the same network as our own address? */
static __always_inline int is_on_link(const struct tunnel_info *t, const __u32 *addr)
{
	return !(((addr[3] ^ t->local[3]) & t->netmask[3]) | ((addr[2] ^ t->local[2]) & t->netmask[2]) |
		 ((addr[1] ^ t->local[1]) & t->netmask[1]) | ((addr[0] ^ t->local[0]) & t->netmask[0]));
}

/*
 * Is the sender a kernel, to which checksums that a virtual link leaves unfinished, and super-packets, mean no harm?  Those of ours say so
 * (outer.capable).  VXLAN devices of kernels choose source ports by flow, nodes that read a socket send from the port that they listen
 * on; over IPv6, though, the former want the outer checksum.
 */
static __always_inline int is_kernels(const struct tunnel_info *t, const struct outer *o)
{
	return o->capable || (t->kind == TUNNEL_VXLAN && !(t->flags & TUNNEL_F_V6) && o->src_port != t->group_port);
}

/*
 * Refreshes the entry when it says the same as `at` already.  1: done.  0: there is something to learn.  A static entry stays where it is, but is
 * told what frames from there say of the endpoint.
 */
static __always_inline int fdb_refresh(struct fdb_entry *e, const struct fdb_entry *at)
{
	int fixed;

	if (!e)
		return 0;
	fixed = e->flags & FDB_F_STATIC;
	if (!same_place(e, at) || (!fixed && e->generation != at->generation))
		return fixed;
	if ((__s64)(at->last_seen - e->last_seen) > REFRESH_NS) {
		e->last_seen = at->last_seen;
		e->flags |= at->flags;
		if (has_mac(at->next_hop))
			__builtin_memcpy(e->next_hop, at->next_hop, 6);
	}
	return 1;
}

/* Is everybody to hear of where a source is, as one more switch has to know it? */
static __always_inline int is_news(enum source learnt, const struct switch_info *sw, const struct port_info *port)
{
	return (learnt == SOURCE_LEARNT || learnt == SOURCE_MOVED) && sw->flags & SWITCH_F_ANNOUNCE && !(port->flags & PORT_F_BRIDGE);
}

/* `at` is the entry as it would be made now.  Group addresses as source are forwarded, as VDE does, but never learnt. */
static __always_inline enum source fdb_learn(const struct fdb_key *key, const struct fdb_entry *at, const struct switch_info *sw,
				      struct port_info *port, struct counters *c)
{
	enum source learnt = SOURCE_LEARNT;
	struct fdb_entry *e;

	if (is_group(key->mac))
		return SOURCE_GROUP;
	e = map_lookup(MAP(fdb), key);
	if (fdb_refresh(e, at))
		return SOURCE_KNOWN;
	if (e && fdb_is_live(e, sw, at->last_seen)) {
		count_event(c, EV_MOVE);
		learnt = SOURCE_MOVED;
	} else if (learn_allowed(port, sw, at->last_seen)) {
		count_event(c, EV_LEARN);
	} else {
		count_event(c, EV_LIMITED);
		return SOURCE_LIMITED;
	}
	map_update(MAP(fdb), key, at, 0);
	return learnt;
}

#endif
