# SPDX-License-Identifier: GPL-2.0-or-later
"""Metrics for Prometheus; the only importer of prometheus_client.

A scrape asks each daemon once for what ``vdexdp show --json`` prints; nothing is kept between scrapes and nothing is
added to the cost of a frame: the counters are the per-CPU ones that the kernel programs keep anyway.

Histograms of what the programs take for a frame, and of round trips to peers, cost something while they are wanted:
with one frame in 256 timed, 2 ns of a program's 140 on the machine where it was measured; bpf/sample.h has the details.

A reason that never happened is there with 0, so that ``rate()`` sees its first.  The metrics themselves stand in
:mod:`vdexdp.control.families`.
"""

from __future__ import annotations

import os
import platform
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import ThreadingWSGIServer
from prometheus_client.registry import Collector

from vdexdp import __version__
from vdexdp.control import families as f
from vdexdp.control.abi import K, enum
from vdexdp.control.rates import path_of
from vdexdp.control.scrape import Answer, ask_all
from vdexdp.errors import HostError, RequestError

VNL_MAX: Final = 128
"""Characters of a VNL that go into a label."""


class Families:
    """The metrics of one scrape: made when first added to, given out in one piece each."""

    def __init__(self) -> None:
        self._found: dict[str, CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily] = {}

    def add(self, family: f.Family, labels: Sequence[str], value: float) -> None:
        self._family(family).add_metric(labels, value)

    def add_histogram(self, family: f.Family, labels: Sequence[str], slots: range, found: Mapping[str, Any]) -> None:
        """``found`` has ``sum`` in ns and ``buckets`` as in ``struct histogram``; those of ``slots`` are given out."""
        counts = found["buckets"]
        bounds = [(str((1 << slot + K["HISTOGRAM_SHIFT"]) / 1e9), sum(counts[: slot + 1])) for slot in slots]
        self._family(family).add_metric(labels, [*bounds, ("+Inf", sum(counts))], found["sum"] / 1e9)

    def _family(self, family: f.Family) -> Any:
        metric = self._found.get(family.name)
        if metric is None:
            kind = _KINDS[family.kind]
            metric = self._found[family.name] = kind(f"vdexdp_{family.name}", family.help, labels=family.labels)
        return metric

    def __iter__(self) -> Iterator[Metric]:
        return iter(self._found.values())


_KINDS: Final = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily, "histogram": HistogramMetricFamily}

Part = Callable[[Families, str, Mapping[str, Any]], None]


def _daemon(out: Families, netns: str, shown: Mapping[str, Any]) -> None:
    started = "on demand" if shown["auto"] else "by hand"
    out.add(f.DAEMON, (netns, shown["version"], shown["kernel"], started), 1)
    out.add(f.DAEMON_START, (netns,), shown["since"])
    if "fdb" in shown:
        out.add(f.FDB_USED, (netns,), shown["fdb"]["used"])
        out.add(f.FDB_SIZE, (netns,), shown["fdb"]["size"])
    for name, found in shown.get("timings", {}).items():
        if found["sum"]:  # a hook that nobody uses would only be a NaN in every quantile
            out.add_histogram(f.FORWARDING, (netns, *name.split("_")), f.FORWARDING_SLOTS, found)


def _plugs(out: Families, netns: str, shown: Mapping[str, Any]) -> None:
    networks = _networks(shown)
    for plug in shown["plugs"]:
        labels = (netns, str(plug["id"]))
        first, second = (vnl[:VNL_MAX] for vnl in plug["vnls"])
        out.add(f.PLUG_UP, labels, 1)
        out.add(f.PLUG_START, labels, plug["since"])
        out.add(f.PLUG, (*labels, networks[plug["switch"]], first, second, plug["user"]), 1)
        for path in plug["paths"]:
            out.add(f.PLUG_END, (*labels, path["end"][:VNL_MAX], path["path"]), 1)


def _switches(out: Families, netns: str, shown: Mapping[str, Any]) -> None:
    uplinks = {switch: uplink["name"] for uplink in shown["uplinks"] for switch in uplink["lacs"]}
    for switch in shown["switches"]:
        labels = (netns, switch["name"])
        out.add(f.SWITCH, (*labels, switch["mode"]), 1)
        out.add(f.SWITCH_PORTS, labels, len(switch["ports"]))
        out.add(f.SWITCH_PLUGS, labels, len(switch["plugs"]))
        out.add(f.SWITCH_FDB, labels, switch["fdb"])
        if switch["tunnel"] is not None:
            out.add(f.LAC_INFO, (*labels, uplinks[switch["id"]], switch["local"]), 1)
            out.add(f.LAC_PEERS, labels, switch["peers"])
            out.add(f.LAC_NODES, labels, switch["local_peers"])
            if switch["rtt"] and switch["rtt"]["sum"]:
                out.add_histogram(f.RTT, labels, f.RTT_SLOTS, switch["rtt"])


def _ports(out: Families, netns: str, shown: Mapping[str, Any]) -> None:
    networks = _networks(shown)
    for port in shown["ports"]:
        network = networks[port["switch"]]
        if port["kind"] == "tunnel":
            _counters(out, f.LAC, (netns, network), port["counters"], enum_labels("event"))
            for cause in enum_labels("exception_reason"):
                out.add(f.EXCEPTIONS, (netns, network, cause), port["counters"]["exceptions"].get(cause, 0))
            continue
        labels = (netns, network, port["name"])
        out.add(f.PORT_INFO, (*labels, port["kind"], path_of(port), str(port["plug"])), 1)
        out.add(f.PORT_MTU, labels, port["mtu"])
        events = [event for event in enum_labels("event") if event not in f.ONLY_LAC]
        _counters(out, f.PORT, labels, port["counters"], events, user=port["bridge"])


def _uplinks(out: Families, netns: str, shown: Mapping[str, Any]) -> None:
    for uplink in shown["uplinks"]:
        labels = (netns, uplink["name"])
        out.add(f.UPLINK_INFO, (*labels, uplink["hooks"][0]), 1)
        out.add(f.UPLINK_MTU, labels, uplink["mtu"])
        out.add(f.UPLINK_LACS, labels, len(uplink["lacs"]))
        _counters(out, f.UPLINK, labels, uplink["counters"], ())


def _worker(out: Families, netns: str, shown: Mapping[str, Any]) -> None:
    worker = shown["worker"]
    if "tap" not in worker:  # no f.LAC, no exception path
        return
    networks = _networks(shown)
    out.add(f.WORKER_UP, (netns,), worker["running"])
    out.add(f.WORKER_RESTARTS, (netns,), worker["restarts"])
    for reason in (*enum_labels("drop_reason"), *f.WORKER_LOSSES):
        out.add(f.EXCEPTION_DROPS, (netns, reason), worker["drops"].get(reason, 0))
    for result, count in worker.get("counters", {}).items():
        out.add(f.WORKER_TAP, (netns, result), count)
    for switch, counters in worker.get("lacs", {}).items():
        for result, count in counters.items():
            out.add(f.WORKER, (netns, networks[int(switch)], result), count)


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
    scope: Mapping[str, f.Family],
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
        if scope is not f.PORT or reason not in f.ONLY_LAC or reason in drops:
            out.add(scope["drops"], (*labels, reason), drops.get(reason, 0))
    for event in events:
        out.add(scope[event], labels, counters["events"].get(event, 0))


class DaemonCollector(Collector):
    """Asks all daemons, or the one of the namespace ``only``, at every scrape; one frame in ``sample`` is timed."""

    def __init__(self, only: str = "", sample: int = 0) -> None:
        self.only = only
        self.sample = sample

    def describe(self) -> list[Metric]:
        """Nothing, so that registering asks nobody."""
        return []

    def collect(self) -> Iterator[Metric]:
        out = Families()
        out.add(f.BUILD, (__version__, platform.python_version()), 1)
        answers = ask_all(self.only, self.sample)
        out.add(f.DAEMONS, (), len(answers))
        for answer in answers:
            _collect(out, answer)
        yield from out


def _collect(out: Families, answer: Answer) -> None:
    labels = (answer.netns, "daemon")
    out.add(f.SUCCESS, labels, answer.shown is not None)
    out.add(f.DURATION, labels, answer.seconds)
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
        out.add(f.SUCCESS, labels, success)
        out.add(f.DURATION, labels, time.perf_counter() - start)


@lru_cache(4096)
def _quoted(text: str) -> str:
    escaped = text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
    return f'"{escaped}"'


def exposition(metrics: Iterable[Metric]) -> bytes:
    """Prometheus' text format, version 0.0.4.

    The library's own writer is general and takes three times as long, and its server compresses at length what most
    often only crosses the loopback: together more than half of what a scrape would cost.
    """
    lines: list[str] = []
    for metric in metrics:
        name = f"{metric.name}_total" if metric.type == "counter" else metric.name
        words = metric.documentation.replace("\\", r"\\").replace("\n", r"\n")
        lines.append(f"# HELP {name} {words}\n# TYPE {name} {metric.type}\n")
        for sample in metric.samples:
            labels = ",".join([f"{label}={_quoted(value)}" for label, value in sample.labels.items()])
            where = f"{sample.name}{{{labels}}}" if labels else sample.name
            lines.append(f"{where} {sample.value + 0!r}\n")
    return "".join(lines).encode()


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """No line for every scrape."""


def serve(address: str, port: int, only: str = "", sample: int = 0) -> int:
    """Answer scrapes in threads of their own; return the port, which is another one where 0 was asked for.

    Raises HostError where the address or the port can't be had.
    """
    where = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    collector = DaemonCollector(only, sample)

    def app(environ: Mapping[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        if environ["PATH_INFO"] not in ("/", "/metrics"):
            start_response("404 Not Found", [])
            return []
        body = exposition(collector.collect())
        start_response("200 OK", [("Content-Type", CONTENT_TYPE_PLAIN_0_0_4), ("Content-Length", str(len(body)))])
        return [body]

    try:
        family, _, _, _, where_to = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
        kind = type("Server", (ThreadingWSGIServer,), {"address_family": family})
        server: WSGIServer = make_server(str(where_to[0]), port, app, kind, _Quiet)
    except OSError as error:
        raise HostError(where, error.strerror or str(error), "choose another with --listen") from error
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return int(server.server_port)


def write_textfile(path: Path, only: str = "", sample: int = 0) -> None:
    """Replace the file at once, so that node_exporter never reads half of it.

    Raises RequestError for a name that node_exporter would not read, HostError; the old file then stays.
    """
    if path.suffix != ".prom":
        raise RequestError(str(path), "node_exporter reads only files whose names end in .prom")
    text = exposition(DaemonCollector(only, sample).collect())
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
