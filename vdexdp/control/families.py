# SPDX-License-Identifier: GPL-2.0-or-later
"""Which metrics there are: names, units, help texts, labels.

Label sets are bounded by what is plugged: ``netns`` is the daemon's namespace, ``network`` the switch (a LAC or a
cable), ``port`` an interface, ``path``, ``reason`` and ``cause`` the enumerators of ``bpf/abi.h``, whose
help texts are the HELP lines here.

What a switch forwarded is no metric of its own: ``sum by (netns, network)`` over its ports and its LAC says it.
Evictions from the FDB, an LRU map, are not counted by the kernel: they happen when ``vdexdp_fdb_slots_used`` comes
close to ``vdexdp_fdb_slots``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from vdexdp.control.abi import enum

_EVENTS: Final = {
    "learn": "fdb_learns",
    "move": "fdb_moves",
    "limited": "fdb_limited",
    "flood": "flooded_frames",
    "expired": "fdb_expired",
    "goodbye": "goodbyes",
    "pass": "frames_left_to_tc",
    "grouped": "grouped_frames",
}
"""enum event → part of a metric's name."""
ONLY_LAC: Final = ("goodbye", "grouped", "own_copy", "bad_header", "split_horizon", "bad_bounce")
"""Events and drop reasons that a local port can't have: no series of zeros for them."""


@dataclass(frozen=True)
class Family:
    """One metric.  ``name`` without the prefix and without ``_total``."""

    kind: Literal["counter", "gauge", "histogram"]
    name: str
    help: str
    labels: tuple[str, ...]


def _texts(name: str) -> str:
    return "; ".join(f"{row.label}: {row.help}" for row in enum(name))


def _scope(scope: str, what: str, labels: tuple[str, ...]) -> dict[str, Family]:
    """The metrics of one kind of port: by path, by reason, by event."""
    paths = _texts("frame_path") + "; user: through the process of a plug"
    found: dict[str, Family] = {}
    for key, direction, way in (("rx", "receive", "from"), ("tx", "transmit", "to")):
        for unit, text in (("frames", "Frames, segments of super-packets counted singly,"), ("bytes", "Bytes")):
            words = f"{text} {way} {what}, by path ({paths})."
            found[f"{key}_{unit}"] = Family("counter", f"{scope}_{direction}_{unit}", words, (*labels, "path"))
    words = f"Frames from {what} that were dropped, by reason ({_texts('drop_reason')})."
    found["drops"] = Family("counter", f"{scope}_drops", words, (*labels, "reason"))
    for row in enum("event"):
        words = f"{what.capitalize()}: {row.help}."
        found[row.label] = Family("counter", f"{scope}_{_EVENTS.get(row.label, row.label)}", words, labels)
    return found


_NETNS: Final = ("netns",)
_NETWORK: Final = ("netns", "network")
_PORT: Final = ("netns", "network", "port")
_UPLINK: Final = ("netns", "uplink")
_PLUG: Final = ("netns", "plug")
_COLLECTOR: Final = ("netns", "collector")

PORT: Final = _scope("port", "a local port", _PORT)
LAC: Final = _scope("lac", "the tunnel of a LAC", _NETWORK)
UPLINK: Final = _scope("uplink", "an uplink, with outer headers", _UPLINK)

EXCEPTIONS: Final = Family(
    "counter",
    "lac_exception_frames",
    f"Frames that took the exception path, by cause ({_texts('exception_reason')}).",
    (*_NETWORK, "cause"),
)
WORKER_LOSSES: Final = {
    "queue_full": "the exception tap's queue was full, as the worker was too slow",
    "socket_full": "a UDP socket's buffer was full, as the worker was too slow",
}
"""Reasons beside enum drop_reason that the kernel counts by itself."""
EXCEPTION_DROPS: Final = Family(
    "counter",
    "exception_drops",
    f"Frames lost on the exception path, by reason ({_texts('drop_reason')}; "
    + "; ".join(f"{name}: {words}" for name, words in WORKER_LOSSES.items())
    + ").",
    (*_NETNS, "reason"),
)

BUILD: Final = Family("gauge", "build_info", "The exporter's versions, always 1.", ("version", "python"))
DAEMONS: Final = Family("gauge", "daemons", "Daemons that have a control socket on this host.", ())
SUCCESS: Final = Family(
    "gauge", "scrape_collector_success", "Whether this part of the scrape succeeded; daemon: it answered.", _COLLECTOR
)
DURATION: Final = Family(
    "gauge", "scrape_collector_duration_seconds", "How long this part of the scrape took.", _COLLECTOR
)
DAEMON: Final = Family(
    "gauge",
    "daemon_info",
    "A daemon's version, the kernel under it, and whether it was started on demand; always 1.",
    ("netns", "version", "kernel", "started"),
)
DAEMON_START: Final = Family("gauge", "daemon_start_time_seconds", "When the daemon started, since the epoch.", _NETNS)
FDB_USED: Final = Family(
    "gauge", "fdb_slots_used", "Entries in the FDB map, of all switches, what has expired included.", _NETNS
)
FDB_SIZE: Final = Family(
    "gauge", "fdb_slots", "Entries that the FDB map holds before the least recently used are evicted.", _NETNS
)
PLUG_UP: Final = Family("gauge", "plug_up", "1 while the plug's process holds its cable.", _PLUG)
PLUG_START: Final = Family("gauge", "plug_start_time_seconds", "When the plug was made, since the epoch.", _PLUG)
PLUG: Final = Family(
    "gauge", "plug_info", "A plug's VNLs and its owner, always 1.", (*_PLUG, "network", "first", "second", "user")
)
PLUG_END: Final = Family("gauge", "plug_end_info", "The path that one end takes, always 1.", (*_PLUG, "end", "path"))
SWITCH: Final = Family("gauge", "switch_info", "A switch and its mode, always 1.", (*_NETWORK, "mode"))
SWITCH_PORTS: Final = Family("gauge", "switch_ports", "Local ports of a switch.", _NETWORK)
SWITCH_PLUGS: Final = Family("gauge", "switch_plugs", "Plugs that use a switch.", _NETWORK)
SWITCH_FDB: Final = Family("gauge", "switch_fdb_entries", "Live FDB entries of a switch.", _NETWORK)
LAC_INFO: Final = Family(
    "gauge", "lac_info", "Address and uplink of a LAC, always 1.", (*_NETWORK, "uplink", "address")
)
LAC_PEERS: Final = Family("gauge", "lac_peers", "Distinct endpoints of other nodes in the FDB.", _NETWORK)
LAC_NODES: Final = Family("gauge", "lac_local_nodes", "Other nodes of the network on this same host.", _NETWORK)
PORT_INFO: Final = Family("gauge", "port_info", "A local port, always 1.", (*_PORT, "kind", "path", "plug"))
PORT_MTU: Final = Family("gauge", "port_mtu_bytes", "MTU of a local port.", _PORT)
UPLINK_INFO: Final = Family("gauge", "uplink_info", "An uplink and its fastest path, always 1.", (*_UPLINK, "path"))
UPLINK_MTU: Final = Family("gauge", "uplink_mtu_bytes", "MTU of an uplink.", _UPLINK)
UPLINK_LACS: Final = Family("gauge", "uplink_lacs", "LACs that use an uplink.", _UPLINK)
WORKER_UP: Final = Family("gauge", "exception_worker_up", "Whether the exception worker answers.", _NETNS)
WORKER_RESTARTS: Final = Family(
    "counter", "exception_worker_restarts", "Exception workers that had to be replaced.", _NETNS
)
WORKER: Final = Family(
    "counter",
    "exception_worker_packets",
    "Packets between the exception tap and a LAC's sockets, by what became of them.",
    (*_NETWORK, "result"),
)
WORKER_TAP: Final = Family(
    "counter",
    "exception_worker_tap_packets",
    "Packets on the exception tap that belong to no LAC.",
    (*_NETNS, "result"),
)


FORWARDING: Final = Family(
    "histogram",
    "forwarding_seconds",
    "Time that a program takes for one frame, sampled, redirection itself and flooding not included.",
    (*_NETNS, "program", "path"),
)
FORWARDING_SLOTS: Final = range(11)
RTT: Final = Family(
    "histogram",
    "peer_rtt_seconds",
    "Time between a request into a LAC's tunnel (TCP SYN, ICMP echo) and its answer, the answering guest included.",
    _NETWORK,
)
RTT_SLOTS: Final = range(7, 25)
"""The slots of ``struct histogram`` that become buckets: 64 ns to 66 µs, and 8 µs to 1 s."""
