# SPDX-License-Identifier: GPL-2.0-or-later
"""``vdexdp bench lac``: two guests on two hosts in one LAC, against Linux bridge + kernel vxlan and against
stock vde_plug.

Every contestant has the same network: hosts *left* and *right* are network namespaces, joined by a veth
underlay with an MTU of 9000, so that the guests' 1500 bytes need no fragments; a guest namespace on each.  Each
is set up as well as it can be:

* a bare veth between the guests, without hosts, shows the most that can be reached;
* the kernel's guests are veths on a Linux bridge, together with a multicast vxlan device; GSO everywhere;
* stock VDE's tap is on a Linux bridge with the guest's veth (a tap moved into the guest brings no more: both were
tried);
* ours are veths whose near ends are ``netdev://`` ports.
"""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from vdexdp.bench.contest import Contestant, Progress, compete, require_tools
from vdexdp.bench.generator import FRAME, flood, paced, udp_frame
from vdexdp.bench.report import Metric, Report, Target
from vdexdp.errors import HostError
from vdexdp.lab import GUEST_MTU, UNDERLAY, Lab, Namespace, Process, wait_until
from vdexdp.lab.measure import iperf_server, ping, tcp

UNDERLAY_MTU = 9000
GROUP = "234.0.0.1"
PINGS, PING_INTERVAL = 150, 0.002
FRAME_SECONDS, PACED_SECONDS = 1.0, 0.25

METRICS = (
    Metric("tcp_out", "TCP →", "Gbit/s", 1e-9, 2),
    Metric("tcp_in", "TCP ←", "Gbit/s", 1e-9, 2),
    Metric("frames", f"{FRAME} B flood", "k/s", 1e-3, 0),
    Metric("paced", f"{FRAME} B paced", "k/s", 1e-3, 0),
    Metric("rtt", "ping", "µs", 1e6, 0, less_is_better=True),
    Metric("cpu_per_bit", "CPU", "ms/Gbit", 1e12, 0, less_is_better=True),
)
TCP = ("tcp_out", "tcp_in")
TARGETS = (
    Target("TCP against bridge + kernel vxlan", "vdexdp", "kernel", TCP, 1.2),
    Target("TCP against stock vde_plug", "vdexdp", "stock", TCP, 15),
    Target("small frames against bridge + kernel vxlan", "vdexdp", "kernel", ("frames",), 2.5),
    Target("small frames against stock vde_plug", "vdexdp", "stock", ("frames",), 8),
    Target("ping against bridge + kernel vxlan", "vdexdp", "kernel", ("rtt",), 1.0),
)
ABOUT = (
    "Guest to guest over two hosts (namespaces of this machine, veth underlay with MTU 9000, guests with MTU 1500), "
    "all contestants interleaved in one run, medians. TCP: one iperf3 stream, from the left guest (→) and to it (←). "
    f"{FRAME} B: UDP datagrams in {FRAME}-byte frames, counted on the right guest's device. flood: XDP live frames. "
    "paced: the most that arrives from a packet socket at rising rates (its cost is in the figure, but it leaves "
    "processes the time to work that a flood would take from them). ping: median round-trip. "
    "CPU: busy time of the whole machine per Gbit of TCP, both guests and iperf3 included."
)


@contextmanager
def _polling(host: Namespace, port: str) -> Iterator[None]:
    """The near end of a guest's veth polls, and so takes redirected XDP frames."""
    host.run("ethtool", "-K", port, "gro", "on")
    try:
        yield
    finally:
        host.run("ethtool", "-K", port, "gro", "off")


class LacContestant(Contestant):
    """Two hosts and the measurements; a subclass joins the guests."""

    left: Namespace
    right: Namespace
    left_guest: Namespace
    right_guest: Namespace

    def __init__(self, seconds: int) -> None:
        self.seconds = seconds
        self.plugs: list[Process] = []

    def build(self, lab: Lab) -> None:
        self.left, self.right = lab.host("left"), lab.host("right")
        lab.underlay(self.left, self.right, mtu=UNDERLAY_MTU)
        self.left_guest = self.join(lab, self.left, 1)
        self.right_guest = self.join(lab, self.right, 2)
        address, _ = Lab.guest_addresses(2)
        wait_until(self._through, 8, f"{self.title}: a first ping")
        iperf_server(self.right_guest)
        self.frame = udp_frame(
            self.left_guest.mac("eth0"), self.right_guest.mac("eth0"), Lab.guest_addresses(1)[0], address
        )

    def _through(self) -> bool:
        for plug in self.plugs:
            ended(plug)
        return bool(ping(self.left_guest, Lab.guest_addresses(2)[0], 1, timeout=0.3).received)

    @abstractmethod
    def join(self, lab: Lab, host: Namespace, number: int) -> Namespace:
        """Make the guest of this number on the host and plug it into the LAC."""

    def flood(self) -> float:
        """Small frames per second that reach the right guest, however many are sent."""
        with _polling(self.left, "g1"):
            return flood(self.left_guest, self.right_guest, self.frame, FRAME_SECONDS).received

    def measure(self) -> Mapping[str, float]:
        address, _ = Lab.guest_addresses(2)
        out = tcp(self.left_guest, address, self.seconds)
        back = tcp(self.left_guest, address, self.seconds, reverse=True)
        seen = ping(self.left_guest, address, PINGS, PING_INTERVAL)
        if not seen.received:
            raise HostError(self.title, "no ping comes back")
        return {
            "tcp_out": out.bits_per_second,
            "tcp_in": back.bits_per_second,
            "frames": self.flood(),
            "paced": paced(self.left_guest, self.right_guest, self.frame, PACED_SECONDS).received,
            "rtt": seen.median / 1e3,
            "cpu_per_bit": (out.cpu + back.cpu) / (out.bits_per_second + back.bits_per_second),
        }


class Bare(LacContestant):
    """The ceiling: what the guests' own stacks and one veth cost, everybody pays."""

    key = "veth"
    title = "bare veth"
    how = "no hosts and no LAC: the guests have the two ends of one veth, the most that their stacks can do here"

    def join(self, lab: Lab, host: Namespace, number: int) -> Namespace:
        guest = lab.namespace(f"g{number}")
        if number == 2:
            lab.pair(self.left_guest, "eth0", guest, "eth0")
            for place, end in enumerate((self.left_guest, guest), 1):
                lab.address(end, "eth0", place)
        return guest

    def flood(self) -> float:
        with _polling(self.right_guest, "eth0"):
            return flood(self.left_guest, self.right_guest, self.frame, FRAME_SECONDS).received


class Kernel(LacContestant):
    key = "kernel"
    title = "bridge + kernel vxlan"
    how = "Linux bridge with the guest's veth and a multicast vxlan device, as it comes, GSO on"

    def join(self, lab: Lab, host: Namespace, number: int) -> Namespace:
        port = f"g{number}"
        guest = lab.guest(host, port, number)
        host.ip(f"link add name vx0 mtu {GUEST_MTU} type vxlan id 1 group 239.1.1.1 dev {UNDERLAY} dstport 4789")
        lab.bridge(host, "br0", port, "vx0")
        return guest


class Stock(LacContestant):
    key = "stock"
    title = "stock vde_plug"
    how = f"vde_plug tap://tap0 vxvde://{GROUP} on both hosts, the tap on a Linux bridge with the guest's veth"
    tools = ("vde_plug",)

    def join(self, lab: Lab, host: Namespace, number: int) -> Namespace:
        port = f"g{number}"
        guest = lab.guest(host, port, number)
        plug = host.spawn("vde_plug", "tap://tap0", f"vxvde://{GROUP}")
        self.plugs.append(plug)
        wait_until(lambda: host.exists("tap0") or ended(plug), 5, "stock vde_plug: its tap")
        lab.bridge(host, "br0", port, "tap0")
        return guest


class Vdexdp(LacContestant):
    key = "vdexdp"
    title = "vdexdp"
    how = f"vdexdp vde_plug netdev://g1 vxvde://{GROUP} on both hosts, hooks as vdexdp chooses"
    netdev_options = ""

    def join(self, lab: Lab, host: Namespace, number: int) -> Namespace:
        port = f"g{number}"
        guest = lab.guest(host, port, number)
        self.prepare(host, guest)
        command = (sys.executable, "-m", "vdexdp", "vde_plug", "--accel", "require")
        plug = host.spawn(*command, f"netdev://{port}{self.netdev_options}", f"vxvde://{GROUP}")
        self.plugs.append(plug)
        wait_until(lambda: ended(plug) or plug.output(), 20, "vdexdp vde_plug: its line on stderr")
        return guest

    def prepare(self, host: Namespace, guest: Namespace) -> None:
        """What has to be set at the devices before."""


class VdexdpXdp(Vdexdp):
    key = "vdexdp-xdp"
    title = "vdexdp, hook=xdp"
    how = "the same with XDP at the guests' ports; veths poll, guests finish their checksums, as XDP needs both"
    netdev_options = "/hook=xdp"

    def prepare(self, host: Namespace, guest: Namespace) -> None:
        guest.run("ethtool", "-K", "eth0", "tx", "off", "gro", "on")
        host.run("ethtool", "-K", UNDERLAY, "gro", "on")

    def flood(self) -> float:
        return flood(self.left_guest, self.right_guest, self.frame, FRAME_SECONDS).received


def ended(process: Process) -> bool:
    """False while it runs.  Raises HostError with what it said when it has ended."""
    if process.poll() is None:
        return False
    raise HostError(" ".join(process.argv[4:]), f"ended with status {process.poll()}: {process.output().strip()}")


def describe(measured: Mapping[str, float]) -> str:
    """One sample in words."""
    return ", ".join(
        f"{metric.title} {measured[metric.key] * metric.scale:.{metric.digits}f} {metric.unit}"
        for metric in METRICS
        if metric.key in measured
    )


def run(runs: int, seconds: int, say: Progress) -> Report:
    """Measure ``runs`` rounds with TCP streams of ``seconds``.  Raises HostError where a needed tool is missing."""
    require_tools("ip", "iperf3", "ping", "ethtool")
    contestants = [kind(seconds) for kind in (Bare, Kernel, Stock, Vdexdp, VdexdpXdp)]
    return Report("lac", ABOUT, runs, METRICS, TARGETS, compete(contestants, runs, say, describe))
