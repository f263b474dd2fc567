# SPDX-License-Identifier: GPL-2.0-or-later
"""vxvde and tap in userspace (``--accel off``) against stock vde_plug, each role on each side, over IPv4 and IPv6.

Shows: ping, TCP both ways, frames of all sizes and tags unchanged (those over 1442 bytes as IP fragments), several
nodes on one host, a peer that leaves and another that takes over its MAC.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.kernelkit import streams, transfer
from tests.labkit import VDEXDP, require_tool, settled
from tests.rawframes import RawPort, dot1q, frame, stream_plug
from vdexdp.lab import Lab, Namespace, Process, wait_until
from vdexdp.lab.measure import iperf_server, ping

GROUP = "234.0.0.1"
Start = Callable[[Namespace, str, str], Process]
Hosts = tuple[Namespace, Namespace]


def ours(host: Namespace, tap: str, network: str) -> Process:
    process = host.spawn(*VDEXDP, "vde_plug", "--accel", "off", f"tap://{tap}", network)
    process.wait_output("in userspace")
    return process


def stock(host: Namespace, tap: str, network: str) -> Process:
    process = host.spawn(require_tool("vde_plug"), f"tap://{tap}", network)
    wait_until(lambda: host.exists(tap), what=tap)
    return process


@pytest.fixture
def hosts(lab: Lab) -> Hosts:
    """Two hosts on an underlay of 1500 bytes."""
    left, right = lab.host("left"), lab.host("right")
    lab.underlay(left, right)
    for host in (left, right):
        host.ip("route add multicast ff05:56de::1 dev lan0 table local")
    return left, right


@pytest.mark.parametrize("network", [f"vxvde://{GROUP}", "vxvde:///v6", f"vxvde://{GROUP}/port=5000/vni=70000"])
@pytest.mark.parametrize("peer", [ours, stock], ids=["ours", "stock"])
def test_ping_and_tcp(lab: Lab, hosts: Hosts, peer: Start, network: str) -> None:
    left, right = hosts
    ours(left, "t1", network)
    peer(right, "t2", network)
    lab.address(left, "t1", 1)
    lab.address(right, "t2", 2)
    settled(left, "10.0.0.2")
    settled(right, "fd00::1")
    assert ping(left, "10.0.0.2", size=1472, options=("-M", "do")).received == 3
    iperf_server(right)
    streams(left, "10.0.0.2", 0.05)
    settled(left, "10.0.0.2")


def test_frames_are_the_same(hosts: Hosts) -> None:
    left, right = hosts
    stock(right, "t2", f"vxvde://{GROUP}")
    right.ip("link set t2 mtu 9000 up")
    tap = RawPort(right, "t2")
    sizes = (22, 59, 60, 590, 1442, 1443, 1514, 9014)  # stock drops frames of 14 bytes
    frames = [frame(size, size, tags=tags) for tags in (b"", dot1q(7), dot1q(7, 8, tpid=0x88A8)) for size in sizes]
    with stream_plug(left, *VDEXDP, "vde_plug", "--accel", "off", f"vxvde://{GROUP}") as stream:
        tap.send(frame(60))
        assert stream.receive(1) == [frame(60)]
        for data in frames:
            stream.send(data)
        assert tap.receive(len(frames)) == frames
        for data in frames:
            tap.send(data)
        assert stream.receive(len(frames)) == frames


def test_several_nodes_on_one_host(lab: Lab, hosts: Hosts) -> None:
    """Two of ours and a stock one on the left, a stock one on the right, everybody to everybody."""
    network = f"vxvde://{GROUP}"
    left, right = hosts
    guests: list[Namespace] = []
    for number, start in enumerate((ours, ours, stock), 1):
        start(left, f"t{number}", network)
        guest = lab.namespace(f"guest{number}")
        left.ip(f"link set t{number} netns {guest.full_name}")
        lab.address(guest, f"t{number}", number)
        guests.append(guest)
    stock(right, "t4", network)
    lab.address(right, "t4", 4)
    for guest in guests:
        for number in range(1, 5):
            assert ping(guest, f"10.0.0.{number}").received == 3, f"{guest.name} to {number}"


def test_checksums_that_a_virtual_link_left_open(lab: Lab, hosts: Hosts) -> None:
    """A peer in the kernel path leaves inner checksums to the NIC, and a veth has none that would do it."""
    network = f"vxvde://{GROUP}"
    left, right = hosts
    left.run("ethtool", "-K", "lan0", "tx-udp_tnl-segmentation", "off", "tx-udp_tnl-csum-segmentation", "off")
    guest = lab.guest(left, "g1", 1)
    left.spawn(*VDEXDP, "vde_plug", "netdev://g1", network).wait_output("in the kernel", timeout=20)
    ours(right, "t2", network)
    lab.address(right, "t2", 2)
    iperf_server(right)
    for address in ("10.0.0.2", "fd00::2"):
        assert transfer(guest, address, 20)[0] > 0.02


def test_a_peer_leaves_and_another_takes_its_mac(lab: Lab, hosts: Hosts) -> None:
    """The goodbye makes us forget at once; without it the address would be looked for in the old place for 128 s."""
    network = f"vxvde://{GROUP}"
    left, right = hosts
    ours(left, "t1", network)
    lab.address(left, "t1", 1)
    for tap in ("t2", "t3"):
        peer = stock(right, tap, network)
        right.ip(f"link set {tap} address 02:00:00:00:00:22")
        lab.address(right, tap, 2)
        assert ping(left, "10.0.0.2", count=5).received >= 4
        peer.stop()
        wait_until(lambda tap=tap: not right.exists(tap), what="stock vde_plug's end")  # type: ignore[misc]


def test_our_goodbye_is_understood_by_stock(lab: Lab, hosts: Hosts) -> None:
    network = f"vxvde://{GROUP}"
    left, right = hosts
    stock(right, "t2", network)
    lab.address(right, "t2", 2)
    for tap in ("t1", "t3"):
        peer = ours(left, tap, network)
        left.ip(f"link set {tap} address 02:00:00:00:00:11")
        lab.address(left, tap, 1)
        assert ping(right, "10.0.0.1", count=5).received >= 4
        assert peer.stop() == 0
