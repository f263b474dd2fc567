# SPDX-License-Identifier: GPL-2.0-or-later
"""``scripts/demo``: one LAC over three hosts, half of it vdexdp's and half stock vde_plug's, and everybody
talks to everybody.

    alpha                            beta                          gamma
      g1     a guest's veth  vdexdp    g2   a guest's veth  vdexdp   g3     a guest's veth  vdexdp
      alpha  tap://t0        vdexdp                                  gamma  tap://t0        stock vde_plug
         └───────────────── underlay, MTU 1600 ────────────────────────┘

Every step prints the command that an operator would type.  A ping or a TCP stream that fails makes the exit status 1.
"""

from __future__ import annotations

import itertools
import signal
import sys
from dataclasses import dataclass
from types import FrameType

from vdexdp.errors import HostError, VdexdpError
from vdexdp.lab.lab import Lab
from vdexdp.lab.measure import iperf_server, ping, tcp
from vdexdp.lab.namespace import Namespace, Process, wait_until

LAC = "vxvde://234.0.0.1"
STOCK_LAC = "vxvde://234.0.0.2"
UNDERLAY_MTU = 1600
PINGS = 5
VDEXDP = (sys.executable, "-m", "vdexdp")


@dataclass(frozen=True)
class Node:
    """A member of the LAC: whose frames they are, its number in the addresses, and who plugs it."""

    name: str
    namespace: Namespace
    number: int
    by: str

    @property
    def address(self) -> str:
        return Lab.guest_addresses(self.number)[0]


def say(text: str = "") -> None:
    print(text, flush=True)


def plug(host: Namespace, *ends: str) -> Process:
    """``vdexdp vde_plug`` on a host; prints the command and the line with the path it takes."""
    say(f"{host.name}# vdexdp vde_plug {' '.join(ends)}")
    process = host.spawn(*VDEXDP, "vde_plug", *ends)
    wait_until(lambda: "\n" in process.output() or process.poll() is not None, 20, f"{host.name}: vde_plug {ends}")
    if process.poll() is not None:
        raise HostError(f"vdexdp vde_plug {' '.join(ends)}", process.output().strip())
    say(f"  {process.output().strip()}")
    return process


def stock_plug(host: Namespace, tap: str, lac: str) -> Process:
    """Stock ``vde_plug`` on a host, with a tap that it makes."""
    say(f"{host.name}# vde_plug tap://{tap} {lac}")
    process = host.spawn("vde_plug", f"tap://{tap}", lac)
    wait_until(lambda: host.exists(tap) or process.poll() is not None, 5, f"{host.name}: vde_plug makes {tap}")
    if process.poll() is not None:
        raise HostError(f"vde_plug tap://{tap} {lac}", process.output().strip())
    return process


def build(lab: Lab) -> tuple[list[Node], list[Process]]:
    """The network above; the nodes, and vdexdp's plugs of the two guests."""
    alpha, beta, gamma = (lab.host(name) for name in ("alpha", "beta", "gamma"))
    lab.underlay(alpha, beta, gamma, mtu=UNDERLAY_MTU)
    # Towards gamma the LAN is like a cable: packets get whole and their checksums final before they arrive.  A
    # veth would hand them over unfinished, which a program that reads the inner frames from a socket, as stock
    # vde_plug, can't know.
    lab.namespaces["lan0"].run("ethtool", "-K", "port3", "tx", "off")
    g1, g2, g3 = (lab.guest(host, f"g{number}", number) for number, host in enumerate((alpha, beta, gamma), 1))

    plugs = [plug(alpha, "netdev://g1", LAC), plug(beta, "netdev://g2", LAC)]
    plug(alpha, "tap://t0", LAC)
    lab.address(alpha, "t0", 4)

    plug(gamma, "netdev://g3", LAC)
    stock_plug(gamma, "t0", LAC)
    lab.address(gamma, "t0", 5)

    nodes = [
        Node("g1", g1, 1, "vdexdp on alpha"),
        Node("g2", g2, 2, "vdexdp on beta"),
        Node("g3", g3, 3, "vdexdp on gamma"),
        Node("alpha", alpha, 4, "vdexdp on alpha"),
        Node("gamma", gamma, 5, "stock on gamma"),
    ]
    return nodes, plugs


def talk(nodes: list[Node]) -> int:
    """Ping and TCP between all pairs, printed as a table; how many failed."""
    for node in nodes:
        iperf_server(node.namespace)
    failures = 0
    for left, right in itertools.combinations(nodes, 2):
        who = f"{left.name:>5} ({left.by}) ↔ {right.name} ({right.by})"
        seen = ping(left.namespace, right.address, PINGS, timeout=1)
        line = f"{who:<50} ping {seen.received}/{seen.sent}, {seen.median:.3f} ms"
        if seen.received < seen.sent:
            failures += 1
            line += "  FAILED"
        try:
            there = tcp(left.namespace, right.address, 1)
            back = tcp(left.namespace, right.address, 1, reverse=True)
            line += f"   TCP → {there.bits_per_second / 1e9:5.2f}  ← {back.bits_per_second / 1e9:5.2f} Gbit/s"
        except HostError as error:
            failures += 1
            line += f"   TCP FAILED: {error}"
        say(line)
    return failures


def compare(lab: Lab, left: Node, right: Node, plugs: list[Process]) -> None:
    """One line: the two guests over vdexdp, then over stock vde_plug and a bridge on the same hosts."""
    ours = tcp(left.namespace, right.address, 1).bits_per_second
    for process in plugs:
        process.stop()
    for host, guest in (("alpha", "g1"), ("beta", "g2")):
        stock_plug(lab.namespaces[host], "stock0", STOCK_LAC)
        lab.bridge(lab.namespaces[host], "br0", guest, "stock0")
    wait_until(lambda: ping(left.namespace, right.address, 1, timeout=0.3).received, 5, "ping over stock vde_plug")
    theirs = tcp(left.namespace, right.address, 1).bits_per_second
    say(
        f"g1 → g2, one TCP stream on this lab: vdexdp {ours / 1e9:.2f} Gbit/s, "
        f"stock vde_plug {theirs / 1e9:.2f} Gbit/s: {ours / theirs:.1f}×"
    )


def demo() -> int:
    """The whole demonstration; its exit status."""
    with Lab() as lab:
        say("— one LAC, three hosts (network namespaces of this machine)")
        nodes, plugs = build(lab)
        say("\n— everybody talks to everybody")
        failures = talk(nodes)
        say("\nalpha# vdexdp show")
        say(lab.namespaces["alpha"].run(*VDEXDP, "show").stdout)
        say("— and with stock vde_plug")
        compare(lab, nodes[0], nodes[1], plugs)
    say(f"\n{failures} FAILED" if failures else "\nAll pings and TCP streams passed; everything is torn down.")
    return 1 if failures else 0


def _end(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


def main() -> None:
    """Entry of scripts/demo: prints errors as the command line tool does, ends cleanly on a signal."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    try:
        sys.exit(demo())
    except (VdexdpError, TimeoutError) as error:
        print(f"demo: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
