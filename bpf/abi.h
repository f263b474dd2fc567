/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The one contract between the kernel half (bpf/) and the Python half
 * (vdexdp/control/abi.py reads this file and derives its ctypes from it).
 *
 * Rules for editing, so that the small reader can follow:
 *   - integers are __u8 __u16 __u32 __u64 and arrays of them; no pointers, no unions, no bit fields;
 *   - padding is spelt out; every struct is naturally aligned and a multiple of its largest member;
 *   - the comment behind an enumerator is its help text in metrics and in "vdexdp show";
 *   - __be16 and __be32 are in network byte order, everything else in the host's.
 *
 * Theory.  A *switch* is a forwarding domain.  Its *ports* are either local (a netdev) or its one *tunnel*
 * (a vxvde or vxlan network).  Every port, the tunnel too, has one index into `ports` and one slot of
 * counters.  The FDB maps (switch, VLAN, MAC) to a port, and for a tunnel to the endpoint behind it.
 *
 * Nothing is ever walked to be forgotten.  An FDB entry keeps the sum of three generations, as they
 * were when it was learnt: its switch's (flush), its port's (unplugged) and its endpoint's (goodbye).  Endpoints
 * share GEN_SLOTS generation counters by hash: a collision makes the switch forget too much, which costs a flood, and never
 * too little.  Age is compared at look-up.
 */
#ifndef VDEXDP_ABI_H
#define VDEXDP_ABI_H

#define ABI_VERSION 1

#define MAX_PORTS 1024       /* port indices, 0 is never used */
#define MAX_SWITCHES 512     /* switch ids, 0 is never used */
#define MAX_MEMBERS 252      /* local ports of one switch */
#define MAX_FDB 65536        /* FDB entries, all switches together */
#define MAX_ENDPOINTS 4096   /* (address, UDP port, VNI) tuples we answer to */
#define GEN_SLOTS 4096       /* endpoint generations; a power of two */
#define MAX_TAGS 3           /* VLAN tags that encapsulation carries over from skb metadata */

#define FRAME_MIN 14         /* an Ethernet header alone */
#define FRAME_MAX 9234       /* 9216 + 14 + 4, as in the VDE family */
#define VXLAN_FLAGS 0x08000000 /* first 32-bit word of a VXLAN header: only the I bit */
#define FLOWLABEL_CAPABLE 0xde0d1 /* outer IPv6 flow label of a sender that accepts a zero UDP checksum */
#define BOUNCE_TPID 0x88a8   /* frames that come back from the exception tap carry their port index in this tag */
#define ENDPOINT_META 0x0200 /* first two bytes of the outer source MAC of packets from the exception worker, the uplink's ifindex in
				network byte order behind them */
#define UPLINK_KEY 0x80000000 /* or-ed to the ifindex of an uplink in `ingress`, so that one device can be a port and an uplink */
#define INGRESS_BOUNCED 0   /* in `ingress`, for the exception tap: the port is the one that the frame came from */
#define HISTOGRAM_SLOTS 26 /* slot n counts what took less than 2^(n + HISTOGRAM_SHIFT) ns, the last one all that took longer */
#define HISTOGRAM_SHIFT 6
#define MAX_VLAN_STEPS 4     /* vlan:// one around another, on both ends of a cable together */
#define MAX_VLANS 4096       /* tables of them */
#define VLAN_VIDS 4096
#define VLAN_PASS 0xffff     /* instead of a VLAN: the frame stays as it is */
#define VLAN_POP 0xfffe      /* its tag is taken off */
#define VLAN_DROP 0xfffd     /* it is dropped */
#define MAX_PROBES 4096      /* requests whose answers are awaited, for the histograms of round trips */
#define MAX_OBSERVERS 4
#define MAX_MIRRORS 16
#define SNAP_MAX 65600       /* bytes of a frame that an observer can have: the largest super-packet */
#define ROOM_WORDS 8224      /* words of eight bytes for struct sighting, SNAP_MAX bytes and a little more */
#define EVERYWHERE 0xffff    /* sighting.out of what is flooded */
#define VLAN_ANY 0xffff
#define REFRESH_NS 500000000 /* an FDB entry's time is rewritten at most this often */

enum switch_mode {
	MODE_SWITCH = 1, /* learning switch */
	MODE_HUB = 2, /* every frame to every other port */
	MODE_CABLE = 3, /* exactly two ports, no learning */
	MODE_MULTI = 4, /* the first port's frames to all others, theirs to it alone */
	MODE_BONDING = 5, /* the first port's frames to the others in turn, theirs to it alone */
};

enum switch_flag {
	SWITCH_F_ANNOUNCE = 1, /* another switch is behind a port: a frame whose source is new or has moved goes to everybody */
};

enum port_kind {
	PORT_NONE = 0, /* free index */
	PORT_WIRE = 1, /* netdev:// a switch port: input at ingress, output by transmitting */
	PORT_STACK = 2, /* tap:// the host's own stack: input at egress, output into ingress */
	PORT_TUNNEL = 3, /* a vxvde or vxlan network */
	PORT_UPLINK = 4, /* counters of an uplink device; not a member of any switch */
	PORT_EXCEPTION = 5, /* the exception tap, seen as an uplink */
};

enum port_flag {
	PORT_F_PEER = 1, /* output may use bpf_redirect_peer: a veth whose far end is in another namespace */
	PORT_F_XDP_OUT = 2, /* the device takes frames from XDP_REDIRECT and a tx_ports entry exists */
	PORT_F_BRIDGE = 4, /* a plug's process is behind it: it has made the news of its addresses known by itself */
};

enum tunnel_kind {
	TUNNEL_VXVDE = 1, /* header exact, source port is identity, goodbye datagrams */
	TUNNEL_VXLAN = 2, /* reserved bits ignored, replies go to the tunnel's own port */
};

enum tunnel_flag {
	TUNNEL_F_V6 = 1, /* the underlay is IPv6 */
	TUNNEL_F_LOCAL_PEERS = 2, /* nodes of this network live on this host: copy group traffic to the exception path */
	TUNNEL_F_XDP_OUT = 4, /* the uplink takes frames from XDP_REDIRECT */
	TUNNEL_F_VIRTUAL = 8, /* no hardware behind the uplink finishes checksums: other stacks get skbs as we send them */
};

/* Indices of the per-path counters. */
enum frame_path {
	PATH_TC = 0, /* tc program */
	PATH_XDP = 1, /* XDP program */
	PATH_EXCEPTION = 2, /* through the exception tap and a UDP socket */
	PATH_MAX = 3,
};

enum drop_reason {
	DROP_RUNT = 0, /* shorter than an Ethernet header */
	DROP_TOO_BIG = 1, /* longer than the VDE family's largest frame */
	DROP_NO_SWITCH = 2, /* the port belongs to no switch */
	DROP_SAME_PORT = 3, /* the destination is behind the port the frame came from */
	DROP_SPLIT_HORIZON = 4, /* from the tunnel, for the tunnel: the group has its own copy */
	DROP_OWN_COPY = 5, /* our own multicast came back */
	DROP_BAD_HEADER = 6, /* malformed outer or tunnel header on one of our endpoints */
	DROP_TAGS = 7, /* more VLAN tags than can be carried over */
	DROP_NO_ROOM = 8, /* the kernel refused to make or remove room for the outer headers */
	DROP_NO_ROUTE = 9, /* no route or next hop towards the endpoint */
	DROP_NO_PORTS = 10, /* nobody else is plugged into the switch */
	DROP_PORT_DOWN = 11, /* the destination device is gone or refuses frames */
	DROP_BAD_BOUNCE = 12, /* a frame on the exception tap that nobody sent there */
	DROP_REDIRECT = 13, /* the kernel refused a redirect or a copy */
	DROP_VLAN = 14, /* vlan:// does not let the frame's VLAN pass */
	DROP_MAX = 16,
};

/* Why a frame took the exception path. */
enum exception_reason {
	EXC_MTU = 0, /* encapsulated, it exceeds the uplink's MTU and has to be fragmented */
	EXC_LOCAL = 1, /* the endpoint, or a member of the group, is on this host */
	EXC_CSUM6 = 2, /* a super-packet for an IPv6 endpoint that wants outer UDP checksums */
	EXC_NESTED = 3, /* a super-packet of UDP, or of a guest's own tunnel, that must be segmented first */
	EXC_INPUT = 4, /* came in through a UDP socket: fragments, or a node on this host */
	EXC_OFFLOAD = 5, /* a super-packet or an unfinished checksum, on a virtual uplink, for a node that reads a socket */
	EXC_MAX = 8,
};

enum event {
	EV_LEARN = 0, /* a new FDB entry */
	EV_MOVE = 1, /* a MAC changed port or endpoint */
	EV_LIMITED = 2, /* not learnt: the port has used up its share of new entries */
	EV_FLOOD = 3, /* broadcast, multicast or unknown destination */
	EV_EXPIRED = 4, /* looked up, found too old */
	EV_GOODBYE = 5, /* a peer said it leaves */
	EV_PASS = 6, /* an XDP program left the frame to the tc program of the same device */
	EV_GROUPED = 7, /* unicast sent to the group as the next hop was not resolved yet */
	EV_MAX = 8,
};

/* What is timed; the index into `timings`. */
enum timed {
	TIMED_PORT_TC = 0, /* tc program of a local port */
	TIMED_PORT_XDP = 1, /* XDP program of a local port, frames that it forwards itself */
	TIMED_UPLINK_TC = 2, /* tc program of an uplink */
	TIMED_UPLINK_XDP = 3, /* XDP program of an uplink, frames that it forwards itself */
	TIMED_MAX = 4,
};

/* Programs that others continue in, in the map `jumps`. */
enum jump {
	JUMP_FLOOD = 0, /* send to every other port of the switch */
	JUMP_GROUP = 1, /* send to the tunnel's group */
	JUMP_BOUNCE = 2, /* input of local ports, for a frame that comes back from the exception tap */
	JUMP_MAX = 3,
};

/* What a frame taught of its source address; of the tables that an observer sees, as the following ones. */
enum source {
	SOURCE_NONE = 0, /* not looked at: nothing is learnt here */
	SOURCE_KNOWN = 1, /* in this place already */
	SOURCE_LEARNT = 2, /* new */
	SOURCE_MOVED = 3, /* was in another place */
	SOURCE_LIMITED = 4, /* new, and not learnt: the port has used up its share of new entries */
	SOURCE_GROUP = 5, /* a group address, never learnt */
};

/* What the look-up of a frame's destination found. */
enum target_state {
	TARGET_NONE = 0, /* not looked up: a cable or a hub, or the frame was dropped before */
	TARGET_FOUND = 1, /* in the table */
	TARGET_UNKNOWN = 2, /* not in the table */
	TARGET_STALE = 3, /* in the table, but too old, or from before a flush, an unplug or a goodbye */
	TARGET_GROUP = 4, /* broadcast or multicast */
};

/* What became of a frame. */
enum told {
	TOLD_SENT = 0, /* to one port, or, flooded, to the tunnel's group too */
	TOLD_DROPPED = 1, /* detail: enum drop_reason */
	TOLD_EXCEPTION = 2, /* detail: enum exception_reason */
	TOLD_FLOODED = 3, /* to local ports only */
	TOLD_CONSUMED = 4, /* a peer's goodbye */
};

enum observer_flag {
	OBSERVER_F_ACTIVE = 1,
	OBSERVER_F_DROPS = 2, /* dropped frames only */
};

struct fdb_key {
	__u32 switch_id;
	__u16 vlan; /* VID of the outermost tag, 0 without */
	__u8 mac[6];
};

/* FDB entry flags */
enum fdb_flag {
	FDB_F_STATIC = 1, /* set by the user: never ages, never moves */
	FDB_F_ZERO_CSUM = 2, /* the endpoint is a kernel's: it accepts a zero outer UDP checksum, and unfinished inner ones */
	FDB_F_LOCAL = 4, /* the endpoint's address is one of this host's */
	FDB_F_ON_LINK = 8, /* the endpoint is in the uplink's own network: next_hop is its own MAC */
};

struct fdb_entry {
	__u64 last_seen; /* ns, CLOCK_MONOTONIC */
	__u32 generation;
	__u16 port;
	__u8 flags;
	__u8 pad;
	__u32 addr[4]; /* endpoint, network byte order; IPv4 in addr[3], the rest as in ::ffff:0:0/96 */
	__be16 udp_port;
	__u8 next_hop[6]; /* outer source MAC of the endpoint's frames; zero if not known */
};

struct switch_info {
	__u64 expiry; /* ns */
	__u32 generation;
	__u16 mode;
	__u16 tunnel; /* port index of the tunnel, 0 without */
	__u16 members; /* how many of member[] are valid */
	__u16 member[MAX_MEMBERS]; /* local ports */
	__u16 flags; /* enum switch_flag */
	__u32 turn; /* of MODE_BONDING; races of CPUs do no harm */
};

struct port_info {
	__u32 ifindex;
	__u32 generation;
	__u32 learn_limit; /* new FDB entries per expiry time; 0 = no limit */
	__u32 mtu; /* largest frame in bytes, Ethernet header included, that the device takes; 0 = not checked */
	__u16 switch_id;
	__u8 kind;
	__u8 flags;
	__u32 sample; /* share of the frames that is timed, in 2^-32; 0 = none, and no round trips either */
	__u64 window_start; /* ns; the learning window that `learnt` counts in, written by the programs */
	__u32 learnt;
	__u32 pad2;
};

/* What encapsulation needs, at the tunnel's port index in `tunnels`. */
struct tunnel_info {
	__u32 local[4]; /* our address, as in fdb_entry.addr */
	__u32 group[4];
	__u32 netmask[4]; /* of the local address, as fdb_entry.addr: what is in the same network needs no route; all ones = nothing is */
	__u32 uplink; /* ifindex */
	__u32 exception; /* ifindex of the exception tap */
	__u32 mtu; /* of the uplink, bytes of outer IP packet */
	__u32 vni;
	__be16 src_port; /* our UDP port */
	__be16 group_port;
	__u8 uplink_mac[6];
	__u8 group_mac[6];
	__u8 kind;
	__u8 flags;
	__u8 ttl; /* of group traffic */
	__u8 pad;
	__u16 uplink_port; /* port index of the uplink's counters */
	__u16 pad2;
};

struct endpoint_key {
	__u32 addr[4]; /* destination of the outer packet: one of ours, or a group */
	__u32 uplink; /* ifindex */
	__u32 vni;
	__be16 udp_port;
	__u16 pad;
};

struct counters {
	__u64 rx_frames[3]; /* by path: from the port into the switch */
	__u64 rx_bytes[3];
	__u64 tx_frames[3]; /* by path: from the switch out of the port */
	__u64 tx_bytes[3];
	__u64 drops[16];
	__u64 exceptions[8];
	__u64 events[8];
};

struct histogram {
	__u64 sum; /* ns */
	__u64 bucket[HISTOGRAM_SLOTS];
};

/* A request that went out by a tunnel, as its answer will name it; all as in the packet, but `number` of TCP in host order. */
struct rtt_key {
	__u32 tunnel; /* port index */
	__u32 near; /* who asked: IPv4 address, or the four words of the IPv6 one, xor-ed */
	__u32 far;
	__u32 ports; /* of TCP; the identifier of an ICMP echo */
	__u32 number; /* which TCP acknowledges; the sequence number of an ICMP echo */
};

/* Somebody who watches: what he wants to see (0: any), and what he got; the index into `observers` and `rings`. */
struct observer {
	__u64 seen; /* frames */
	__u64 lost; /* frames that his ring had no room for */
	__u32 flags;
	__u32 switch_id;
	__u32 port; /* port index: came in by it, or goes out of it */
	__u32 snap; /* bytes of a frame */
	__be16 proto; /* behind the tags */
	__u16 vlan; /* VID of the outermost tag, 0 without; VLAN_ANY */
	__be16 l4_port; /* of TCP or UDP, either side */
	__u8 mac[6]; /* either side */
	__u32 pad;
};

/* One frame, as an observer gets it; as many of its bytes as he wants, from the addresses on, follow. */
struct sighting {
	__u64 time; /* ns, CLOCK_MONOTONIC */
	__u64 age; /* ns since frames from the destination's entry were last seen */
	__u32 id; /* differs from those of other frames at about the same time */
	__u32 len; /* bytes of the whole frame; a tag in `tag` is not among them */
	__u32 held; /* bytes of it that could be had */
	__u32 gso_size; /* of a super-packet, bytes of payload in a segment */
	__u32 gso_segs;
	__u32 observers; /* whom it concerns, a bit each */
	__u32 copies; /* flooded: to how many local ports */
	__u32 refused; /* flooded: how many local ports could not have it */
	__u32 from[4]; /* endpoint that it came from, as fdb_entry.addr */
	__u32 addr[4]; /* endpoint that it goes to */
	__be16 from_port;
	__be16 udp_port;
	__be16 tag_proto; /* a tag that the kernel keeps beside the frame; 0: none */
	__u16 tag_tci;
	__u16 switch_id;
	__u16 in; /* port indices */
	__u16 out; /* 0: not known */
	__u16 vlan;
	__u8 path; /* that it came in by */
	__u8 source;
	__u8 target;
	__u8 entry_flags; /* of the destination */
	__u8 told;
	__u8 detail;
	__u16 pad;
};

/* Where a CPU writes a sighting before it goes into rings. */
struct sighting_room {
	__u64 word[ROOM_WORDS];
};

/* Copies what comes in by `port` or goes out of it to another device; what follows a blank one is not looked at. */
struct mirror {
	__u64 frames;
	__u64 refused; /* copies that the device did not take */
	__u32 port;
	__u32 switch_id;
	__u32 ifindex;
	__u32 to_ingress; /* 1: up into the host's stack, as for a PORT_STACK */
};

struct vlan_key {
	__u32 ifindex;
	__u8 egress; /* 1: tc egress, 0: tc ingress */
	__u8 step; /* of several tables, in the order in which they are applied */
	__u16 pad;
};

/* What one vlan:// does to frames in one direction: a VLAN is put on, or put in the place of the one that is there. */
struct vlan_table {
	__u32 port; /* index, for the drops */
	__be16 tpid; /* of the tags that count as such */
	__u16 untagged; /* what is done to all other frames: VLAN_PASS, VLAN_DROP, or a VLAN */
	__u16 tagged[VLAN_VIDS]; /* by VLAN: VLAN_DROP, VLAN_POP, or a VLAN, which may be the same */
};

/*
 * Maps: M(name, type, key type, value type, entries, flags).  This table is the only place that knows them.
 * counters and ports are indexed by port index; tunnels and rtts by the tunnel's port index; jumps by enum jump.
 * vlans are made as they are needed (flag 1, BPF_F_NO_PREALLOC).  tx_ports has the device that XDP_REDIRECT sends to: a local
 * port's own, a tunnel's uplink; absent where it takes none.
 */
#define VDEXDP_MAPS(M) \
	M(fdb, LRU_HASH, struct fdb_key, struct fdb_entry, MAX_FDB, 0) \
	M(ingress, HASH, __u32, __u32, MAX_PORTS, 0) \
	M(ports, ARRAY, __u32, struct port_info, MAX_PORTS, 0) \
	M(switches, ARRAY, __u32, struct switch_info, MAX_SWITCHES, 0) \
	M(tunnels, ARRAY, __u32, struct tunnel_info, MAX_PORTS, 0) \
	M(endpoints, HASH, struct endpoint_key, __u32, MAX_ENDPOINTS, 0) \
	M(generations, ARRAY, __u32, __u32, GEN_SLOTS, 0) \
	M(counters, PERCPU_ARRAY, __u32, struct counters, MAX_PORTS, 0) \
	M(tx_ports, DEVMAP, __u32, __u32, MAX_PORTS, 0) \
	M(jumps, PROG_ARRAY, __u32, __u32, JUMP_MAX, 0) \
	M(timings, PERCPU_ARRAY, __u32, struct histogram, TIMED_MAX, 0) \
	M(rtts, PERCPU_ARRAY, __u32, struct histogram, MAX_PORTS, 0) \
	M(probes, LRU_HASH, struct rtt_key, __u64, MAX_PROBES, 0) \
	M(vlans, HASH, struct vlan_key, struct vlan_table, MAX_VLANS, 1)

/*
 * Maps of the observed build, made while somebody watches.  rings has ring buffers, made for each
 * observer; rooms is indexed by CPU.  Python makes `rooms` as long as there are CPUs.
 */
#define VDEXDP_OBSERVE_MAPS(M) \
	M(observers, ARRAY, __u32, struct observer, MAX_OBSERVERS, 0) \
	M(rings, ARRAY_OF_MAPS, __u32, __u32, MAX_OBSERVERS, 0) \
	M(rooms, ARRAY, __u32, struct sighting_room, 1, 0) \
	M(mirrors, ARRAY, __u32, struct mirror, MAX_MIRRORS, 0)

#endif
