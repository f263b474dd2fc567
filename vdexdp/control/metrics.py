# SPDX-License-Identifier: GPL-2.0-or-later
"""Metrics for Prometheus; the only importer of prometheus_client.

A scrape asks each daemon once for what ``vdexdp show --json`` prints; nothing is kept between scrapes and nothing is
added to the cost of a frame: the counters are the per-CPU ones that the kernel programs keep anyway.

Label sets are bounded by what is plugged: ``netns`` is the daemon's namespace, ``network`` the switch (a LAC or a
cable), ``port`` an interface, ``path``, ``reason`` and ``cause`` the enumerators of ``bpf/abi.h``, whose
help texts are the HELP lines here.  A reason that never happened is there with 0, so that ``rate()`` sees its first.

What a switch forwarded is no metric of its own: ``sum by (netns, network)`` over its ports and its LAC says it.
Evictions from the FDB, an LRU map, are not counted by the kernel: they happen when ``vdexdp_fdb_slots_used`` comes
close to ``vdexdp_fdb_slots``.
"""

from __future__ import annotations

import os
import platform
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, Metric, generate_latest, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import ThreadingWSGIServer
from prometheus_client.registry import Collector

from vdexdp import __version__
from vdexdp.control.abi import enum
from vdexdp.control.scrape import Answer, ask_all
from vdexdp.errors import HostError, RequestError

VNL_MAX: Final = 128
"""Characters of a VNL that go into a label."""

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
_ONLY_LAC: Final = ("goodbye", "grouped", "own_copy", "bad_header", "split_horizon", "bad_bounce")
"""Events and drop reasons that a local port can't have: no series of zeros for them."""


@dataclass(frozen=True)
class Family:
    """One metric.  ``name`` without the prefix and without ``_total``."""

    kind: Literal["counter", "gauge"]
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
        found[row.label] = Family("counter", f"{scope}_{_EVENTS[row.label]}", words, labels)
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
TAP_DROPS: Final = Family(
    "counter",
    "exception_tap_drops",
    f"Frames dropped on their way back from the exception tap, by reason ({_texts('drop_reason')}).",
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


class Families:
    """The metrics of one scrape: made when first added to, given out in one piece each."""

    def __init__(self) -> None:
        self._found: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}

    def add(self, family: Family, labels: Sequence[str], value: float) -> None:
        metric = self._found.get(family.name)
        if metric is None:
            kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
            metric = self._found[family.name] = kind(f"vdexdp_{family.name}", family.help, labels=family.labels)
        metric.add_metric(labels, value)

    def __iter__(self) -> Iterator[Metric]:
        return iter(self._found.values())


Part = Callable[[Families, str, Mapping[str, Any]], None]


def _daemon(out: Families, netns: str, shown: Mapping[str, Any]) -> None:
    started = "on demand" if shown["auto"] else "by hand"
    out.add(DAEMON, (netns, shown["version"], shown["kernel"], started), 1)
    out.add(DAEMON_START, (netns,), shown["since"])
    if "fdb" in shown:
        out.add(FDB_USED, (netns,), shown["fdb"]["used"])
        out.add(FDB_SIZE, (netns,), shown["fdb"]["size"])


def _plugs(out: Families, netns: str, shown: Mapping[str, Any]) -> None:
    networks = _networks(shown)
    for plug in shown["plugs"]:
        labels = (netns, str(plug["id"]))
        first, second = (vnl[:VNL_MAX] for vnl in plug["vnls"])
        out.add(PLUG_UP, labels, 1)
        out.add(PLUG_START, labels, plug["since"])
        out.add(PLUG, (*labels, networks[plug["switch"]], first, second, plug["user"]), 1)
        for path in plug["paths"]:
            out.add(PLUG_END, (*labels, path["end"][:VNL_MAX], path["path"]), 1)


def _switches(out: Families, netns: str, shown: Mapping[str, Any]) -> None:
    uplinks = {switch: uplink["name"] for uplink in shown["uplinks"] for switch in uplink["lacs"]}
    for switch in shown["switches"]:
        labels = (netns, switch["name"])
        out.add(SWITCH, (*labels, switch["mode"]), 1)
        out.add(SWITCH_PORTS, labels, len(switch["ports"]))
        out.add(SWITCH_PLUGS, labels, len(switch["plugs"]))
        out.add(SWITCH_FDB, labels, switch["fdb"])
        if switch["tunnel"] is not None:
            out.add(LAC_INFO, (*labels, uplinks[switch["id"]], switch["local"]), 1)
            out.add(LAC_PEERS, labels, switch["peers"])
            out.add(LAC_NODES, labels, switch["local_peers"])


def _ports(out: Families, netns: str, shown: Mapping[str, Any]) -> None:
    networks = _networks(shown)
    for port in shown["ports"]:
        network = networks[port["switch"]]
        if port["kind"] == "tunnel":
            _counters(out, LAC, (netns, network), port["counters"], enum_labels("event"))
            for cause in enum_labels("exception_reason"):
                out.add(EXCEPTIONS, (netns, network, cause), port["counters"]["exceptions"].get(cause, 0))
            continue
        labels = (netns, network, port["name"])
        path = "user" if port["bridge"] else port["hooks"][0]
        out.add(PORT_INFO, (*labels, port["kind"], path, str(port["plug"])), 1)
        out.add(PORT_MTU, labels, port["mtu"])
        events = [event for event in enum_labels("event") if event not in _ONLY_LAC]
        _counters(out, PORT, labels, port["counters"], events, user=port["bridge"])


def _uplinks(out: Families, netns: str, shown: Mapping[str, Any]) -> None:
    for uplink in shown["uplinks"]:
        labels = (netns, uplink["name"])
        out.add(UPLINK_INFO, (*labels, uplink["hooks"][0]), 1)
        out.add(UPLINK_MTU, labels, uplink["mtu"])
        out.add(UPLINK_LACS, labels, len(uplink["lacs"]))
        _counters(out, UPLINK, labels, uplink["counters"], ())


def _worker(out: Families, netns: str, shown: Mapping[str, Any]) -> None:
    worker = shown["worker"]
    if "tap" not in worker:  # no LAC, no exception path
        return
    networks = _networks(shown)
    out.add(WORKER_UP, (netns,), worker["running"])
    out.add(WORKER_RESTARTS, (netns,), worker["restarts"])
    for reason in enum_labels("drop_reason"):
        out.add(TAP_DROPS, (netns, reason), worker["drops"].get(reason, 0))
    for result, count in worker.get("counters", {}).items():
        out.add(WORKER_TAP, (netns, result), count)
    for switch, counters in worker.get("lacs", {}).items():
        for result, count in counters.items():
            out.add(WORKER, (netns, networks[int(switch)], result), count)


PARTS: Final[dict[str, Part]] = {
    "info": _daemon,
    "plugs": _plugs,
    "switches": _switches,
    "ports": _ports,
    "uplinks": _uplinks,
    "exception_path": _worker,
}
"""Value of the label ``collector`` → what it does with a daemon's answer."""


def enum_labels(name: str) -> list[str]:
    return [row.label for row in enum(name)]


def _networks(shown: Mapping[str, Any]) -> dict[int, str]:
    return {switch["id"]: switch["name"] for switch in shown["switches"]}


def _counters(
    out: Families,
    scope: Mapping[str, Family],
    labels: tuple[str, ...],
    counters: Mapping[str, Mapping[str, int]],
    events: Sequence[str],
    *,
    user: bool = False,
) -> None:
    """``user``: what the kernel sees as tc came from, or goes to, a plug's process."""
    for name in ("rx_frames", "rx_bytes", "tx_frames", "tx_bytes"):
        for path, value in counters[name].items():
            out.add(scope[name], (*labels, "user" if user and path == "tc" else path), value)
    drops = counters["drops"]
    for reason in enum_labels("drop_reason"):
        if scope is not PORT or reason not in _ONLY_LAC or reason in drops:
            out.add(scope["drops"], (*labels, reason), drops.get(reason, 0))
    for event in events:
        out.add(scope[event], labels, counters["events"].get(event, 0))


class DaemonCollector(Collector):
    """Asks all daemons, or the one of the namespace ``only``, at every scrape."""

    def __init__(self, only: str = "") -> None:
        self.only = only

    def describe(self) -> list[Metric]:
        """Nothing, so that registering asks nobody."""
        return []

    def collect(self) -> Iterator[Metric]:
        out = Families()
        out.add(BUILD, (__version__, platform.python_version()), 1)
        answers = ask_all(self.only)
        out.add(DAEMONS, (), len(answers))
        for answer in answers:
            _collect(out, answer)
        yield from out


def _collect(out: Families, answer: Answer) -> None:
    labels = (answer.netns, "daemon")
    out.add(SUCCESS, labels, answer.shown is not None)
    out.add(DURATION, labels, answer.seconds)
    if answer.shown is None:
        return
    for name, part in PARTS.items():
        start = time.perf_counter()
        try:
            part(out, answer.netns, answer.shown)
            success = True
        except (KeyError, IndexError, TypeError, ValueError, AttributeError):  # a daemon of another version
            success = False
        labels = (answer.netns, name)
        out.add(SUCCESS, labels, success)
        out.add(DURATION, labels, time.perf_counter() - start)


def _registry(only: str) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(DaemonCollector(only))
    return registry


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """No line for every scrape."""


def serve(address: str, port: int, only: str = "") -> int:
    """Answer scrapes in threads of their own; return the port, which is another one where 0 was asked for.

    Always in the plain text format: OpenMetrics, which Prometheus would prefer, takes half as long again to write and
    has nothing more to say here.  Raises HostError where the address or the port can't be had.
    """
    where = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    app = make_wsgi_app(_registry(only))

    def text_only(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        environ.pop("HTTP_ACCEPT", None)
        return app(environ, start_response)

    try:
        family, _, _, _, where_to = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
        kind = type("Server", (ThreadingWSGIServer,), {"address_family": family})
        server: WSGIServer = make_server(str(where_to[0]), port, text_only, kind, _Quiet)
    except OSError as error:
        raise HostError(where, error.strerror or str(error), "choose another with --listen") from error
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return int(server.server_port)


def write_textfile(path: Path, only: str = "") -> None:
    """Replace the file at once, so that node_exporter never reads half of it.

    Raises RequestError for a name that node_exporter would not read, HostError; the old file then stays.
    """
    if path.suffix != ".prom":
        raise RequestError(str(path), "node_exporter reads only files whose names end in .prom")
    text = generate_latest(_registry(only))
    temporary = ""
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = file.name
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            if temporary:
                os.unlink(temporary)
        raise HostError.from_oserror(str(path), error) from error
