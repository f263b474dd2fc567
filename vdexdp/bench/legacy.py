# SPDX-License-Identifier: GPL-2.0-or-later
"""``vdexdp bench legacy``: what runs in userspace, against the stock program that does the same.

Each contestant joins two guests, *left* and *right*: namespaces with a tap called eth0 that a vde_plug holds.  Within a
family only what is measured differs:

* switch: two stock vde_plugs on a switch, which is stock's or ours;
* lac: a legacy client on a switch that is a node of a vxvde network, and a guest of another host in that network;
* ptp and cmd: a cable between two plugs, stock's or ours; cmd is a vdestream through pipes.

With ``--floor`` the last two also compete with the shortest Python program for it (``vdexdp.bench.bareloop``).

The processor time is that of the processes that carry the frames, plugs and switches, at one rate for all.  What the
kernel does for them outside system calls is not in it; for paths that end in the kernel that is most of the work.
"""

from __future__ import annotations

import os
import sys
import tempfile
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from vdexdp.bench.contest import Contestant, Progress, compete, require_tools
from vdexdp.bench.generator import FRAME, paced, steady, udp_frame
from vdexdp.bench.report import Metric, Report, Target
from vdexdp.errors import HostError
from vdexdp.lab import Lab, Namespace, Process, marked, wait_until
from vdexdp.lab.measure import cpu_seconds, iperf_server, ping, tcp

PINGS, PING_INTERVAL = 200, 0.002
PACED_SECONDS = 0.25
STEADY_RATE, STEADY_SECONDS = 25_000.0, 1.0
GROUP = "234.0.0.1"

OURS = (sys.executable, "-m", "vdexdp", "vde_plug")
STOCK = ("vde_plug",)
BARE = (sys.executable, "-m", "vdexdp.bench.bareloop")

METRICS = (
    Metric("tcp_out", "TCP →", "Mbit/s", 1e-6, 0),
    Metric("tcp_in", "TCP ←", "Mbit/s", 1e-6, 0),
    Metric("frames", f"{FRAME} B", "k/s", 1e-3, 0),
    Metric("cpu", "CPU", "µs/frame", 1e6, 1, less_is_better=True),
    Metric("rtt", "ping", "µs", 1e6, 0, less_is_better=True),
)
TCP = ("tcp_out", "tcp_in")
ABOUT = (
    "Two guests (namespaces of this machine, MTU 1500), all contestants interleaved in one run, medians. TCP: one "
    f"iperf3 stream from the left guest (→) and to it (←). {FRAME} B: the most UDP datagrams in {FRAME}-byte frames "
    f"that arrive from a packet socket at rising rates. CPU: of the plugs and switches, at {STEADY_RATE:.0f} such "
    "frames per second. ping: median round-trip."
)


class Pair(Contestant):
    """Two guests and the measurements; a subclass joins them."""

    family: ClassVar[str]
    prefix: str
    left: Namespace
    right: Namespace

    def __init__(self, seconds: int, path: Path) -> None:
        self.seconds = seconds
        self.path = path  # of its own: for a switch, or for what else needs a name

    def build(self, lab: Lab) -> None:
        self.prefix = lab.prefix
        self.left, self.right = lab.namespace("left"), lab.namespace("right")
        self.join(lab)
        for number, guest in enumerate((self.left, self.right), 1):
            wait_until(lambda guest=guest: guest.exists("eth0"), 10, f"{self.title}: its tap")  # type: ignore[misc]
            lab.address(guest, "eth0", number)
        address, _ = Lab.guest_addresses(2)
        wait_until(lambda: ping(self.left, address, 1, timeout=0.3).received, 10, f"{self.title}: a first ping")
        self.server = iperf_server(self.right)
        self.frame = udp_frame(self.left.mac("eth0"), self.right.mac("eth0"), Lab.guest_addresses(1)[0], address)

    @abstractmethod
    def join(self, lab: Lab) -> None:
        """Give both guests an eth0 and join them."""

    def busy(self) -> float:
        """Seconds that the processes of this contestant have worked."""
        return sum(cpu_seconds(pid) for pid in marked(self.prefix) if pid != self.server.pid)

    def measure(self) -> Mapping[str, float]:
        address, _ = Lab.guest_addresses(2)
        out = tcp(self.left, address, self.seconds)
        back = tcp(self.left, address, self.seconds, reverse=True)
        seen = ping(self.left, address, PINGS, PING_INTERVAL)
        if not seen.received:
            raise HostError(self.title, "no ping comes back")
        before = self.busy()
        arrived = steady(self.left, self.right, self.frame, STEADY_SECONDS, STEADY_RATE).received * STEADY_SECONDS
        return {
            "tcp_out": out.bits_per_second,
            "tcp_in": back.bits_per_second,
            "cpu": (self.busy() - before) / max(arrived, 1),
            "frames": paced(self.left, self.right, self.frame, PACED_SECONDS).received,
            "rtt": seen.median / 1e3,
        }


def stock_switch(host: Namespace, path: Path) -> Process:
    """vde_switch, which ends with its stdin."""
    read, _ = os.pipe2(os.O_CLOEXEC)  # the other end stays open as long as this process lives
    try:
        return host.spawn("vde_switch", "-s", str(path), stdin=read)
    finally:
        os.close(read)


def served(path: Path) -> Path:
    """Wait for a switch."""
    wait_until((path / "ctl").exists, 5, f"a switch at {path}")
    return path


class SwitchStock(Pair):
    family = "switch"
    key = "switch-stock"
    title = "vde_switch"
    how = "vde_switch between two stock vde_plugs"
    tools: ClassVar[tuple[str, ...]] = ("vde_plug", "vde_switch")

    def start(self, host: Namespace) -> None:
        stock_switch(host, self.path)

    def join(self, lab: Lab) -> None:
        self.start(lab.host("host"))
        for guest in (self.left, self.right):
            guest.spawn(*STOCK, f"vde://{served(self.path)}", "tap://eth0")


class SwitchOurs(SwitchStock):
    key = "switch-ours"
    title = "switch://"
    how = "vdexdp's switch:// between the same two stock vde_plugs"
    tools = ("vde_plug",)

    def start(self, host: Namespace) -> None:
        host.spawn(*OURS, "null://", f"switch://{self.path}")


class LacStock(Pair):
    family = "lac"
    key = "lac-stock"
    title = "vde_switch + vde_plug"
    how = "stock client, vde_switch, vde_plug vde:// vxvde:// — other host — vde_plug tap:// vxvde://"
    tools: ClassVar[tuple[str, ...]] = ("vde_plug", "vde_switch")

    def join(self, lab: Lab) -> None:
        near = lab.host("near")
        lab.underlay(near, self.right, mtu=9000)
        self.start(near)
        self.left.spawn(*STOCK, f"vde://{served(self.path)}", "tap://eth0")
        self.right.spawn(*self.plug, "tap://eth0", f"vxvde://{GROUP}")

    plug: tuple[str, ...] = STOCK

    def start(self, host: Namespace) -> None:
        stock_switch(host, self.path)
        host.spawn(*STOCK, f"vde://{served(self.path)}", f"vxvde://{GROUP}")


class LacOurs(LacStock):
    key = "lac-ours"
    title = "switch:// + LAC"
    how = "the same stock client, vdexdp's switch:// in the LAC — other host — vdexdp vde_plug tap:// vxvde://"
    tools = ("vde_plug",)
    plug = OURS

    def start(self, host: Namespace) -> None:
        host.spawn(*OURS, f"switch://{self.path}", f"vxvde://{GROUP}")


class PtpStock(Pair):
    family = "ptp"
    key = "ptp-stock"
    title = "ptp://, stock"
    how = "vde_plug tap:// ptp:// twice"
    tools: ClassVar[tuple[str, ...]] = ("vde_plug",)
    plug: tuple[str, ...] = STOCK

    def join(self, lab: Lab) -> None:
        for guest in (self.left, self.right):
            guest.spawn(*self.plug, "tap://eth0", f"ptp://{self.path}")


class PtpOurs(PtpStock):
    key = "ptp-ours"
    title = "ptp://, ours"
    how = "vdexdp vde_plug tap:// ptp:// twice"
    tools = ()
    plug = OURS


class CmdStock(Pair):
    family = "cmd"
    key = "cmd-stock"
    title = "cmd://, stock"
    how = 'vde_plug tap:// cmd://"vde_plug tap://"'
    tools: ClassVar[tuple[str, ...]] = ("vde_plug",)
    plug: tuple[str, ...] = STOCK

    def join(self, lab: Lab) -> None:
        coprocess = ("ip", "netns", "exec", self.right.full_name, *self.plug, "tap://eth0")
        self.left.spawn(*self.plug, "tap://eth0", f"cmd://{' '.join(coprocess)}")


class CmdOurs(CmdStock):
    key = "cmd-ours"
    title = "cmd://, ours"
    how = 'vdexdp vde_plug tap:// cmd://"vdexdp vde_plug tap://"'
    tools = ()
    plug = OURS


class PtpFloor(PtpStock):
    key = "ptp-floor"
    title = "ptp, bare loop"
    how = "a Python loop of poll, readv and write twice"
    tools = ()

    def join(self, lab: Lab) -> None:
        names = (f"{self.path}.left", f"{self.path}.right")
        self.left.spawn(*BARE, "ptp", *names)
        self.right.spawn(*BARE, "ptp", *reversed(names))


class CmdFloor(CmdStock):
    key = "cmd-floor"
    title = "cmd, bare loop"
    how = "such a loop with a vdestream twice"
    tools = ()

    def join(self, lab: Lab) -> None:
        self.left.spawn(*BARE, "cmd", "ip", "netns", "exec", self.right.full_name, *BARE, "cmd")


KINDS: Sequence[type[Pair]] = (SwitchStock, SwitchOurs, LacStock, LacOurs, PtpStock, PtpOurs, CmdStock, CmdOurs)
FLOORS: Sequence[type[Pair]] = (PtpFloor, CmdFloor)
FAMILIES = tuple(dict.fromkeys(kind.family for kind in KINDS))


def targets(families: Sequence[str]) -> list[Target]:
    """At least level with stock in everything, and what is expected beyond that."""
    found = []
    for family in families:
        ours, stock = f"{family}-ours", f"{family}-stock"
        found += [
            Target(f"{family}: TCP against stock", ours, stock, TCP, 1.0),
            Target(f"{family}: small frames against stock", ours, stock, ("frames",), 1.0),
            Target(f"{family}: CPU against stock", ours, stock, ("cpu",), 1.0),
            Target(f"{family}: ping against stock", ours, stock, ("rtt",), 1.0),
        ]
    return found


def describe(measured: Mapping[str, float]) -> str:
    """One sample in words."""
    return ", ".join(
        f"{metric.title} {measured[metric.key] * metric.scale:.{metric.digits}f} {metric.unit}"
        for metric in METRICS
        if metric.key in measured
    )


def run(runs: int, seconds: int, families: Sequence[str], say: Progress, *, floor: bool = False) -> Report:
    """Measure ``runs`` rounds with TCP streams of ``seconds``.  Raises HostError where a needed tool is missing."""
    require_tools("ip", "iperf3", "ping")
    floors = [kind for kind in FLOORS if floor and kind.family in families]
    with tempfile.TemporaryDirectory(prefix="vdexdp-bench-") as place:
        kinds = [kind for kind in KINDS if kind.family in families] + floors
        results = compete([kind(seconds, Path(place, kind.key)) for kind in kinds], runs, say, describe)
    beside = [(kind.key, f"{kind.family}-stock") for kind in floors]
    return Report("legacy", ABOUT, runs, METRICS, targets(families), results, beside)
