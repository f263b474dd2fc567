/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * What capture, trace and mirror need of the programs.
 *
 * Nothing, while nobody watches: the macros below are empty then.  With -DOBSERVED_BUILD the same programs are built once more; the daemon puts
 * that build behind the links when somebody begins to watch, and the normal one back when the last has ended.  The observed build leaves
 * everything to tc (its XDP programs pass all), so that only the complete programs are watched.
 *
 * A frame is written down where its way has just been decided and nothing of it changed yet (OBSERVE), one of our endpoints'
 * inner frame where it still stands behind its outer headers.  It stays in the CPU's room until the program returns
 * (OBSERVED), by when it is known what became of it, and goes as one record into the ring of each observer whom it concerns.  What
 * became of it is told in the upper bytes of the functions' return values (TOLD), from where OBSERVED takes it.  skb->cb says,
 * across tail calls, whether the frame has been written down, and as which.
 *
 * What finds no room in a ring is counted as lost; frames never wait.
 */
#ifndef VDEXDP_OBSERVE_H
#define VDEXDP_OBSERVE_H

#include "eth.h"

#define FRAME_ITSELF 0 /* OBSERVED: a frame that nothing was written of stands at the start of the packet */
#define BEHIND_OUTER 1 /* behind outer headers */
#define SEEN_BEFORE 2 /* it was written down by the program before, or it concerns nobody */

#ifndef OBSERVED_BUILD

#define TOLD(verdict, told, detail) (verdict)
#define OBSERVED(skb, verdict, where) (verdict)
#define OBSERVE_ENTRY(skb, port)
#define OBSERVE_LEARNT(skb, learnt) ((void)(learnt))
#define OBSERVE(skb, offset, size, f, sw, entry)
#define OBSERVE_MIRROR(skb, f, sw, entry)
#define OBSERVE_COPY(skb, sent)
#define OBSERVE_XDP()

#else

#define TOLD(verdict, told, detail) tell((verdict) | (told) << 8 | (__u32)(detail) << 16)
#define OBSERVED(skb, verdict, where) \
	({ \
		if (where != SEEN_BEFORE) \
			skb->cb[CB_SEEN] = SEEN_NOBODY; \
		observed(skb, verdict, where); \
	})
#define OBSERVE_ENTRY(skb, port) observe_entry(skb, port)
#define OBSERVE_LEARNT(skb, learnt) ((skb)->cb[CB_LEARNT] = (learnt))
#define OBSERVE(skb, offset, size, f, sw, entry) \
	observe(skb, offset, size, &(f)->key, &(f)->at, (f)->in, (f)->path, sw, entry)
#define OBSERVE_MIRROR(skb, f, sw, entry) mirror(skb, (f)->key.switch_id, (f)->in, way_out(sw, (f)->in, entry))
#define OBSERVE_COPY(skb, sent) observe_copy(skb, sent)
#define OBSERVE_XDP() return 2 /* XDP_PASS */

/* Words of skb->cb; switch_tc.h has the others. */
#define CB_OBSERVE_IN 1
#define CB_SEEN 3
#define CB_LEARNT 4 /* enum source */
#define CB_VERDICT 4
#define SEEN_NOBODY 1 /* it concerns nobody; ids begin at 256 */

/* Or the compiler would take an array's index out of it again, of which the verifier does not know the bounds any more. */
static __always_inline int tell(int verdict)
{
	OPAQUE(verdict);
	return verdict;
}

static __always_inline struct sighting *room(void)
{
	__u32 cpu = processor();

	return map_lookup(MAP(rooms), &cpu);
}

static __always_inline void observe_entry(struct __sk_buff *skb, __u32 port)
{
	skb->cb[CB_SEEN] = 0;
	skb->cb[CB_LEARNT] = SOURCE_NONE;
	skb->cb[CB_OBSERVE_IN] = port;
}

/* Which way the switch has decided on: as port_input() and tunnel_input() do. */
static __always_inline __u32 way_out(const struct switch_info *sw, __u32 in, const struct fdb_entry *e)
{
	if (e)
		return e->port;
	if (sw->mode == MODE_CABLE && sw->tunnel)
		return sw->tunnel == in ? sw->member[0] : EVERYWHERE;
	if (sw->mode == MODE_CABLE)
		return sw->member[0] == in ? sw->member[1] : sw->member[0];
	return EVERYWHERE;
}

/* What filters ask for; at the end of the room, whose content the verifier does not follow. */
struct traits {
	__u8 mac[12]; /* as in the frame: destination, source */
	__be16 proto; /* the frame's type, behind its tags in the end */
	__be16 src; /* TCP or UDP ports; 0 where there are none */
	__be16 dst;
	__u8 l4_proto;
	__u8 pad;
	__u8 ip[20];
	__u32 l3; /* where the IP header is */
};

static __always_inline void read_ports(struct __sk_buff *skb, struct traits *t)
{
	__u32 l4 = t->l3 + 40;

	t->l4_proto = 0;
	if (t->proto == PROTO_IP && !skb_load_bytes(skb, t->l3, t->ip, 20)) {
		if (t->ip[6] & 0x1f || t->ip[7]) /* a fragment, and not the first */
			return;
		t->l4_proto = t->ip[9];
		l4 = t->l3 + (t->ip[0] & 15) * 4;
	} else if (t->proto == PROTO_IPV6) {
		skb_load_bytes(skb, t->l3 + 6, &t->l4_proto, 1);
	}
	if (t->l4_proto == L4_TCP || t->l4_proto == L4_UDP)
		skb_load_bytes(skb, l4, &t->src, 4);
}

static __always_inline void read_traits(struct __sk_buff *skb, __u32 at, struct traits *t)
{
	int i;

	t->src = t->dst = 0;
	t->l3 = at + ETH_LEN;
	if (skb_load_bytes(skb, at, t->mac, ETH_LEN))
		__builtin_memset(t->mac, 0, ETH_LEN);
	for (i = 0; i < MAX_TAGS; i++) {
		if (!is_vlan(t->proto) || skb_load_bytes(skb, t->l3 + 2, &t->proto, 2))
			break;
		t->l3 += 4;
	}
	read_ports(skb, t);
}

static __always_inline int concerns(const struct observer *o, const struct sighting *s, const struct traits *t)
{
	if (!(o->flags & OBSERVER_F_ACTIVE) || (o->switch_id && o->switch_id != s->switch_id))
		return 0;
	if (o->port && o->port != s->in && o->port != s->out && s->out != EVERYWHERE)
		return 0;
	if ((o->proto && o->proto != t->proto) || (o->vlan != VLAN_ANY && o->vlan != s->vlan))
		return 0;
	if (o->l4_port && o->l4_port != t->src && o->l4_port != t->dst)
		return 0;
	return !has_mac(o->mac) || same_mac(o->mac, t->mac) || same_mac(o->mac, t->mac + 6);
}

/*
 * Whom the frame of `s` concerns, and in s->held how much of it the one wants who wants most.  What is summed up goes into memory: in
 * registers, each of its values would be a state of its own to the verifier.
 */
static __always_inline void find_observers(struct __sk_buff *skb, __u32 at, struct sighting *s)
{
	struct traits *t = (void *)s + sizeof(struct sighting_room) - sizeof(*t);
	__u32 i;

	s->observers = s->held = 0;
	read_traits(skb, at, t);

	for (i = 0; i < MAX_OBSERVERS; i++) {
		__u32 slot = i;
		struct observer *o = map_lookup(MAP(observers), &slot);

		if (!o || !concerns(o, s, t))
			continue;
		s->observers |= 1 << i;
		if (o->snap > s->held)
			s->held = o->snap;
	}
}

/* Copies as many of the frame's bytes behind `s` as are wanted. */
static __always_inline void hold(struct __sk_buff *skb, __u32 at, struct sighting *s)
{
	__u64 size = s->len < s->held ? s->len : s->held;

	s->held = 0;
	if (!size)
		return;
	if (size > SNAP_MAX)
		size = SNAP_MAX;
	/* Verifiers before 6.8 do not conclude from "not 0" that it is at least 1. */
	size--;
	OPAQUE(size);
	if (size < SNAP_MAX && !skb_load_bytes(skb, at, s + 1, size + 1))
		s->held = size + 1;
}

/* A number that the room has not had lately. */
static __always_inline __u32 next_id(__u32 last)
{
	__u32 id = (last | 0xff) + 1;

	return (id ? id : 256) | (processor() & 0xff);
}

/* Writes the frame down if it concerns somebody: `len` bytes at `at`. */
static __always_inline void write_down(struct __sk_buff *skb, __u32 at, __u32 len, struct sighting *s)
{
	s->len = len;
	find_observers(skb, at, s);
	skb->cb[CB_SEEN] = SEEN_NOBODY;
	if (!s->observers)
		return;
	s->time = ktime_fine();
	s->id = next_id(s->id);
	s->gso_size = skb->gso_size;
	s->gso_segs = skb->gso_segs;
	s->copies = s->refused = 0;
	s->tag_proto = !at && skb->vlan_present ? (__be16)skb->vlan_proto : 0;
	s->tag_tci = skb->vlan_tci;
	skb->cb[CB_SEEN] = s->id;
	hold(skb, at, s);
}

/* The destination's entry was not found: is there one that does not count any more? */
static __always_inline __u8 why_not_found(const struct switch_info *sw, const struct fdb_key *key, __u8 first)
{
	if (sw->mode != MODE_SWITCH)
		return TARGET_NONE;
	if (first & 1)
		return TARGET_GROUP;
	return map_lookup(MAP(fdb), key) ? TARGET_STALE : TARGET_UNKNOWN;
}

/* `key` has the destination's address if that is not a group. */
static __always_inline void observe(struct __sk_buff *skb, __u32 at, __u32 len, const struct fdb_key *key, const struct fdb_entry *from, __u32 in,
				    __u8 path, const struct switch_info *sw, const struct fdb_entry *e)
{
	struct sighting *s = room();
	__u8 first = 0;

	if (!s)
		return;
	skb_load_bytes(skb, at, &first, 1);
	s->in = in;
	s->out = way_out(sw, in, e);
	s->switch_id = key->switch_id;
	s->vlan = key->vlan;
	s->path = path;
	s->source = skb->cb[CB_LEARNT];
	__builtin_memcpy(s->from, from->addr, 16);
	s->from_port = from->udp_port;
	if (e) {
		s->target = TARGET_FOUND;
		s->entry_flags = e->flags;
		__builtin_memcpy(s->addr, e->addr, 16);
		s->udp_port = e->udp_port;
		s->age = from->last_seen > e->last_seen ? from->last_seen - e->last_seen : 0;
	} else {
		s->target = why_not_found(sw, key, first);
		s->entry_flags = 0;
		s->udp_port = 0;
		s->age = 0;
	}
	write_down(skb, at, len, s);
}

/* A frame that was dropped before its way was decided. */
static __always_inline void observe_early(struct __sk_buff *skb, __u32 at)
{
	struct sighting *s = room();
	__u32 in = skb->cb[CB_OBSERVE_IN];
	struct port_info *port = map_lookup(MAP(ports), &in);

	if (!s || !port)
		return;
	__builtin_memset(s->from, 0, 32);
	s->from_port = s->udp_port = s->vlan = 0;
	s->in = in;
	s->out = 0;
	s->switch_id = port->switch_id;
	s->path = PATH_TC;
	s->source = SOURCE_NONE;
	s->target = TARGET_NONE;
	s->entry_flags = 0;
	s->age = 0;
	write_down(skb, at, skb->len > at ? skb->len - at : 0, s);
}

static __always_inline void observe_copy(const struct __sk_buff *skb, int sent)
{
	struct sighting *s = room();

	if (s && s->id == skb->cb[CB_SEEN]) {
		s->copies += !!sent;
		s->refused += !sent;
	}
}

/* Into the ring of each observer whom it concerns. */
static __always_inline void publish(struct sighting *s)
{
	__u32 i, observers = s->observers, dropped = s->told == TOLD_DROPPED;

	for (i = 0; i < MAX_OBSERVERS; i++) {
		__u32 slot = i;
		struct observer *o;
		__u64 size;
		void *ring;

		if (!(observers & 1 << i))
			continue;
		o = map_lookup(MAP(observers), &slot);
		if (!o || (o->flags & OBSERVER_F_DROPS && !dropped))
			continue;
		ring = map_lookup(MAP(rings), &slot);
		if (!ring)
			continue;
		size = s->held < o->snap ? s->held : o->snap;
		if (size > SNAP_MAX)
			size = SNAP_MAX;
		OPAQUE(size);
		if (size > SNAP_MAX)
			continue;
		if (ringbuf_output(ring, s, sizeof(*s) + size, 0))
			__sync_fetch_and_add(&o->lost, 1);
		else
			__sync_fetch_and_add(&o->seen, 1);
	}
}

/* The program's end: its verdict is `verdict` without what it tells. */
static __always_inline int observed(struct __sk_buff *skb, int verdict, int where)
{
	struct sighting *s = room();
	__u32 id;

	/* Through memory: to the verifier, all verdicts are the same from here on. */
	skb->cb[CB_VERDICT] = verdict;
	asm volatile("" ::: "memory");
	verdict = skb->cb[CB_VERDICT];
	if (verdict == VERDICT_NEXT || !s)
		return verdict < 0 ? verdict : verdict & 0xff;
	if (where != SEEN_BEFORE && !skb->cb[CB_SEEN])
		observe_early(skb, where == FRAME_ITSELF ? 0 : skb->protocol == PROTO_IPV6 ? OUTER6_LEN : OUTER4_LEN);
	id = skb->cb[CB_SEEN];
	/* Another id: the program was interrupted by itself, as a port's device sent a copy on through another port. */
	if (id > SEEN_NOBODY && s->id == id) {
		s->told = verdict >> 8 & 0xff;
		s->detail = verdict >> 16 & 0xff;
		if (!s->told && (verdict & 0xff) == VERDICT_DROP)
			s->told = TOLD_CONSUMED;
		publish(s);
	}
	skb->cb[CB_SEEN] = SEEN_NOBODY;
	return verdict & 0xff;
}

/* Copies for mirrors; `out` is a port or EVERYWHERE.  Two mirrors into the same device make one copy. */
static __always_inline void mirror(struct __sk_buff *skb, __u32 switch_id, __u32 in, __u32 out)
{
	__u32 i, last = 0;

	for (i = 0; i < MAX_MIRRORS; i++) {
		__u32 slot = i;
		struct mirror *m = map_lookup(MAP(mirrors), &slot);

		if (!m || !m->ifindex)
			break;
		if (m->switch_id != switch_id || (m->port != in && m->port != out && out != EVERYWHERE) || m->ifindex == last)
			continue;
		last = m->ifindex;
		if (clone_redirect(skb, m->ifindex, m->to_ingress ? TO_INGRESS : 0))
			__sync_fetch_and_add(&m->refused, 1);
		else
			__sync_fetch_and_add(&m->frames, 1);
	}
}

#endif
#endif
