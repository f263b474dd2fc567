# SPDX-License-Identifier: GPL-2.0-or-later
"""netdev in userspace (``--accel off``): a guest with all offloads on behind a veth, stock vde_plug on the other host.

Shows: what the guest leaves unfinished (checksums, TCP and UDP super-packets, VLAN tags beside the frame) arrives
finished; frames of all sizes, jumbo and tagged ones too, are the same on both sides byte for byte; the plug ends when
the interface is deleted, and survives it being down.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.interop.test_user_vxvde import ours, stock
from tests.kernelkit import transfer
from tests.labkit import VDEXDP, TwoHosts, settled
from tests.rawframes import RawPort, dot1q, frame, stream_plug
from vdexdp.lab import Lab, Namespace, Process
from vdexdp.lab.measure import iperf_server, ping

NETWORK = "vxvde://234.0.0.1"


def plug(host: Namespace, *vnls: str) -> Process:
    process = host.spawn(*VDEXDP, "vde_plug", "--accel", "off", *vnls)
    process.wait_output("in userspace")
    return process


def checksum_errors(namespace: Namespace) -> int:
    lines = namespace.run("nstat", "-asz", "TcpInCsumErrors", "UdpInCsumErrors", "Udp6InCsumErrors").stdout.split("\n")
    return sum(int(line.split()[1]) for line in lines if "Csum" in line)


@pytest.mark.parametrize("peer", [ours, stock], ids=["ours", "stock"])
def test_tcp_and_udp_with_offloads(
    lab: Lab, two_hosts: TwoHosts, peer: Callable[[Namespace, str, str], Process]
) -> None:
    plug(two_hosts.left, "netdev://g1", NETWORK)
    peer(two_hosts.right, "t2", NETWORK)
    lab.address(two_hosts.right, "t2", 9)
    guest = two_hosts.left_guest
    settled(guest, "10.0.0.9")
    iperf_server(guest)
    iperf_server(two_hosts.right)
    for address, client in (("10.0.0.9", guest), ("fd00::9", guest), ("10.0.0.1", two_hosts.right)):
        assert transfer(client, address, 20)[0] > 0.05
    guest.run("iperf3", "-c", "10.0.0.9", "-u", "-b", "20M", "-l", "1400", "-n", "1M")
    guest.run("iperf3", "-c", "fd00::9", "-u", "-b", "20M", "-n", "1M")
    assert checksum_errors(guest) == 0
    assert checksum_errors(two_hosts.right) == 0


def test_frames_are_the_same(two_hosts: TwoHosts) -> None:
    for namespace in (two_hosts.left_guest, two_hosts.left):
        namespace.ip(f"link set {'g1' if namespace is two_hosts.left else 'eth0'} mtu 9000")
    plug(two_hosts.left, "netdev://g1", NETWORK)
    guest = RawPort(two_hosts.left_guest, "eth0")
    with stream_plug(two_hosts.right, *VDEXDP, "vde_plug", "--accel", "off", NETWORK) as stream:
        frames = [frame(size, size) for size in (14, 15, 60, 64, 590, 1514, 9014)]
        for tags in (dot1q(5), dot1q(5, tpid=0x88A8), dot1q(5, 6), dot1q(4095), dot1q(0)):
            frames += [frame(size, size, tags=tags) for size in (18 + len(tags), 64, 1514)]
        for data in frames:
            guest.send(data)
        assert stream.receive(len(frames)) == frames
        for data in frames:
            stream.send(data)
        assert guest.receive(len(frames)) == frames


def test_interface_down_and_deleted(two_hosts: TwoHosts) -> None:
    process = plug(two_hosts.left, "netdev://g1", NETWORK)
    ours(two_hosts.right, "t2", NETWORK)
    two_hosts.right.ip("address add 10.0.0.9/24 dev t2")
    two_hosts.right.ip("link set t2 up")
    assert ping(two_hosts.left_guest, "10.0.0.9").received == 3
    two_hosts.left.ip("link set g1 down")
    two_hosts.left.ip("link set g1 up")
    assert ping(two_hosts.left_guest, "10.0.0.9", count=5, timeout=5).received >= 3
    two_hosts.left.ip("link delete g1")
    assert process.wait(5) == 0
