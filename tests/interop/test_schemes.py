# SPDX-License-Identifier: GPL-2.0-or-later
"""ptp, udp, cmd and seqpacket as cables between two namespaces, against stock vde_plug and against ourselves.

Shows, for each scheme, each of us in each role and each order of starting: ping, TCP both ways and both at once until
everything is full, and ping again.  Needs root.
"""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.kernelkit import streams
from tests.labkit import VDEXDP, require_tool, settled
from vdexdp.lab import Lab, Namespace, Process, wait_until
from vdexdp.lab.measure import iperf_server, ping, tcp

OURS, STOCK = "ours", "stock"
PAIRS = [(OURS, OURS), (OURS, STOCK), (STOCK, OURS)]
"""Who starts first, or is the parent."""


def program(who: str) -> tuple[str, ...]:
    return (*VDEXDP, "vde_plug") if who == OURS else (require_tool("vde_plug"),)


def plug(who: str, host: Namespace, tap: str, vnl: str, stdin: int | None = None) -> Process:
    process = host.spawn(*program(who), f"tap://{tap}", vnl, stdin=stdin)
    if who == OURS:
        process.wait_output("in userspace")
    wait_until(lambda: host.exists(tap), what=tap)
    return process


@pytest.fixture
def hosts(lab: Lab) -> tuple[Namespace, Namespace]:
    return lab.host("left"), lab.host("right")


def exercise(lab: Lab, left: Namespace, right: Namespace) -> None:
    """t1 in left and t2 in right are joined: use that."""
    lab.address(left, "t1", 1)
    lab.address(right, "t2", 2)
    wait_until(lambda: ping(left, "10.0.0.2", count=1, timeout=0.5).received, what="the first answer")
    settled(left, "10.0.0.2")
    settled(right, "fd00::1", size=1001)
    iperf_server(right)
    streams(left, "10.0.0.2", 0.0)
    print(tcp(left, "10.0.0.2", seconds=1, options=("--bidir",)))
    settled(left, "10.0.0.2")
    settled(right, "10.0.0.1")


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_ptp(lab: Lab, hosts: tuple[Namespace, Namespace], tmp_path: Path, first: str, second: str) -> None:
    left, right = hosts
    plug(first, left, "t1", f"ptp://{tmp_path}/p")
    wait_until((tmp_path / "p").exists)
    plug(second, right, "t2", f"ptp://{tmp_path}/p")
    exercise(lab, left, right)


@pytest.mark.parametrize("first", [OURS, STOCK])
def test_ptp_peer_is_restarted(lab: Lab, hosts: tuple[Namespace, Namespace], tmp_path: Path, first: str) -> None:
    """Either one leaves, tidily or killed, and is started again at once; the other one is not touched."""
    vnl = f"ptp://{tmp_path}/p"
    places = dict(zip((first, STOCK if first == OURS else OURS), hosts, strict=True))
    running = {}
    for number, (who, host) in enumerate(places.items(), 1):
        host.ip("tuntap add mode tap name t0")
        lab.address(host, "t0", number)
        running[who] = plug(who, host, "t0", vnl)
        wait_until((tmp_path / "p").exists)
    for leaver in (STOCK, OURS):
        for leave in (Process.stop, Process.kill):
            leave(running[leaver])
            running[leaver] = plug(leaver, places[leaver], "t0", vnl)
            wait_until(
                lambda: ping(hosts[0], "10.0.0.2", count=1, timeout=0.3).received,
                what=f"an answer after {leaver} was restarted",
            )
    assert all(process.poll() is None for process in running.values())


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_udp(lab: Lab, hosts: tuple[Namespace, Namespace], first: str, second: str) -> None:
    left, right = hosts
    lab.underlay(left, right)
    plug(first, left, "t1", "udp://3000->192.0.2.2:3001")
    plug(second, right, "t2", "udp://192.0.2.2:3001->192.0.2.1:3000")
    exercise(lab, left, right)


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_seqpacket(lab: Lab, hosts: tuple[Namespace, Namespace], first: str, second: str) -> None:
    left, right = hosts
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for who, host, tap, end in zip((first, second), hosts, ("t1", "t2"), ends, strict=True):
        plug(who, host, tap, "seqpacket://0", stdin=end.fileno())
        end.close()
    exercise(lab, left, right)


@pytest.mark.parametrize(("parent", "child"), PAIRS)
def test_cmd(lab: Lab, hosts: tuple[Namespace, Namespace], parent: str, child: str) -> None:
    left, right = hosts
    command = ["ip", "netns", "exec", right.full_name, *program(child), "tap://t2"]
    plug(parent, left, "t1", f"cmd://{' '.join(command)}")
    wait_until(lambda: right.exists("t2"), what="t2")
    exercise(lab, left, right)


def test_bridged_into_a_kernel_network(lab: Lab, hosts: tuple[Namespace, Namespace], tmp_path: Path) -> None:
    """A stock plug on a ptp, the ptp in a vxvde network that runs in the kernel, and a node of that network."""
    left, right = hosts
    lab.underlay(left, right, mtu=1600)
    bridge = left.spawn(*program(OURS), f"ptp://{tmp_path}/p", "vxvde://234.0.0.1")
    bridge.wait_output("bridged into the kernel")
    plug(STOCK, left, "t1", f"ptp://{tmp_path}/p")
    right.spawn(*program(OURS), "tap://t2", "vxvde://234.0.0.1").wait_output("in the kernel")
    exercise(lab, left, right)
