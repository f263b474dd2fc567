# SPDX-License-Identifier: GPL-2.0-or-later
"""macvtap://, pcap:// and vxvdex:// in namespaces, with stock peers where there are any.

Shows: macvtap in userspace and in the kernel; a macvtap that is deleted, one whose node nobody made, one that is
none; pcap copies and disturbs nobody, alike for ours and stock; vxvdex meets stock's vxvde://grp= and keeps groups
apart. Needs root.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import pytest

from tests.kernelkit import streams
from tests.labkit import VDEXDP, require, require_tool, settled
from vdexdp.lab import Lab, Namespace, Process, wait_until
from vdexdp.lab.measure import iperf_server, ping


@pytest.fixture
def hosts(lab: Lab) -> tuple[Namespace, Namespace]:
    """Two hosts joined by the veth lan0."""
    left, right = lab.host("left"), lab.host("right")
    lab.pair(left, "lan0", right, "lan0")
    return left, right


def add_macvtap(host: Namespace) -> None:
    require("macvtap")
    host.ip("link add link lan0 name mv0 type macvtap mode bridge")
    host.ip("link set mv0 up addrgenmode none")


@pytest.mark.parametrize("accel", ["off", "require"])
def test_macvtap(lab: Lab, hosts: tuple[Namespace, Namespace], accel: str) -> None:
    """A tap with the macvtap's own address is a machine on the LAN behind it."""
    left, right = hosts
    add_macvtap(left)
    left.ip("tuntap add mode tap name t0")
    left.ip(f"link set t0 address {left.mac('mv0')}")
    plug = left.spawn(*VDEXDP, "vde_plug", "--accel", accel, "macvtap://mv0", "tap://t0")
    plug.wait_output("macvtap://mv0 -- tap://t0: ")
    lab.address(left, "t0", 1)
    lab.address(right, "lan0", 2)
    settled(left, "10.0.0.2")
    settled(right, "fd00::1")
    iperf_server(right)
    streams(left, "10.0.0.2", 0.0)
    settled(left, "10.0.0.2")
    left.ip("link delete mv0")
    plug.wait(5)


NODELESS = """
import os, subprocess, sys
subprocess.run(["mount", "-t", "tmpfs", "none", "/dev"], check=True)
from vdexdp.plugins.macvtap import open_macvtap
fd = open_macvtap("mv0")
print(len(os.listdir("/dev")), os.write(fd, bytes(60)))
"""


def test_macvtap_whose_node_nobody_made(hosts: tuple[Namespace, Namespace]) -> None:
    left, _ = hosts
    add_macvtap(left)
    assert left.run("unshare", "-m", sys.executable, "-c", NODELESS).stdout == "0 60\n"


def test_macvtap_that_is_none(hosts: tuple[Namespace, Namespace]) -> None:
    left, _ = hosts
    for name, cause in (("lan0", "is not a macvtap interface"), ("mv9", "no such interface")):
        result = left.run(*VDEXDP, "vde_plug", "--accel", "off", f"macvtap://{name}", "null://", check=False)
        assert cause in result.stderr
        assert result.returncode in (1, 2)


def our_plug(host: Namespace, *vnls: str) -> Process:
    process = host.spawn(*VDEXDP, "vde_plug", *vnls)
    process.wait_output("in userspace")
    return process


def stock_plug(host: Namespace, *vnls: str) -> Process:
    process = host.spawn(require_tool("vde_plug"), *vnls)
    wait_until(lambda: host.exists("t0"), what="t0")
    return process


@pytest.mark.parametrize("plug", [our_plug, stock_plug], ids=["ours", "stock"])
def test_pcap(lab: Lab, hosts: tuple[Namespace, Namespace], plug: Callable[..., Process]) -> None:
    """The machine behind pcap, the host and the far host, each by its own address."""
    left, right = hosts
    lab.address(left, "lan0", 1)
    lab.address(right, "lan0", 2)
    guest = lab.namespace("guest")
    lab.pair(left, "g0", guest, "eth0")
    lab.address(guest, "eth0", 3)
    for host, device in ((left, "lan0"), (right, "lan0"), (guest, "eth0")):
        if plug is stock_plug:  # which passes super-packets and unfinished checksums as they are
            host.run("ethtool", "-K", device, "tx", "off")
    left.ip("link set g0 addrgenmode none")
    plug(left, "pcap://lan0", "pcap://g0") if plug is our_plug else left.spawn(
        require_tool("vde_plug"), "pcap://lan0", "pcap://g0"
    )
    wait_until(lambda: ping(guest, "10.0.0.2", count=1, timeout=0.3).received, what="an answer from the far host")
    settled(guest, "10.0.0.2")
    settled(left, "10.0.0.2")  # the host goes on using its interface
    settled(right, "10.0.0.1")
    assert ping(left, "10.0.0.3", count=1, timeout=0.3).received == 0, "the host hears nothing that is sent there"
    iperf_server(right)
    streams(guest, "10.0.0.2", 0.0)
    settled(guest, "10.0.0.2")


def vxvdex(host: Namespace, gid: int, tap: str) -> Process:
    """A plug as a member of the group."""
    program = f"import os, sys; os.setegid({gid}); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    command = [sys.executable, "-c", program, *VDEXDP[1:], "vde_plug", "--accel", "off", f"tap://{tap}", "vxvdex://"]
    process = host.spawn(*command)
    process.wait_output("in userspace")
    return process


def test_vxvdex(lab: Lab) -> None:
    left, right = lab.host("left"), lab.host("right")
    lab.underlay(left, right)
    for host in (left, right):
        host.ip("tuntap add mode tap name t0")
    vxvdex(left, 70000, "t0")
    right.spawn(require_tool("vde_plug"), "tap://t0", "vxvde:///grp=70000")
    lab.address(left, "t0", 1)
    lab.address(right, "t0", 2)
    wait_until(lambda: ping(left, "10.0.0.2", count=1, timeout=0.3).received, what="an answer from stock")
    settled(right, "10.0.0.1")
    right.ip("tuntap add mode tap name t1")
    vxvdex(right, 70001, "t1")
    lab.address(right, "t1", 3)
    right.ip("address del 10.0.0.2/24 dev t0")
    assert ping(left, "10.0.0.3", count=1, timeout=0.3).received == 0, "another group's network"
    assert os.getegid() == 0
