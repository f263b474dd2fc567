# SPDX-License-Identifier: GPL-2.0-or-later
"""vxlan in userspace (``--accel off``) against the kernel's own vxlan device, over IPv4 and IPv6.

The kernel is the oracle, as the vxlan module of stock vde_plug (4.0.1) receives nothing.  Shows: ping, TCP both ways,
a second VNI that stays apart, and another port.
"""

from __future__ import annotations

import pytest

from tests.interop.test_user_netdev import checksum_errors
from tests.interop.test_user_vxvde import ours
from tests.kernelkit import streams, transfer
from tests.labkit import require, settled
from vdexdp.lab import Lab, Namespace
from vdexdp.lab.measure import iperf_server, ping


@pytest.mark.parametrize(
    ("network", "device"),
    [
        ("vxlan://239.1.2.3/vni=42", "group 239.1.2.3 id 42 dstport 4789"),
        ("vxlan:///v6/vni=7/if=lan0", "group ff05:56de::1 id 7 dstport 4789"),
        ("vxlan://239.1.2.3/port=8472/vni=16777215", "group 239.1.2.3 id 16777215 dstport 8472"),
    ],
)
def test_ping_and_tcp(lab: Lab, network: str, device: str) -> None:
    require("vxlan")
    left, right = lab.host("left"), lab.host("right")
    lab.underlay(left, right, like_a_wire=True)
    ours(left, "t1", network)
    kernel(right, "x2", device, lab, 2)
    lab.address(left, "t1", 1)
    settled(left, "10.0.0.2")
    settled(right, "fd00::1")
    iperf_server(right)
    streams(left, "10.0.0.2", 0.05)


def kernel(host: Namespace, name: str, device: str, lab: Lab, number: int) -> None:
    host.ip(f"link add {name} type vxlan {device} dev lan0 ttl 1")
    lab.address(host, name, number)


def test_checksums_that_a_virtual_link_left_open(lab: Lab) -> None:
    """Between virtual machines nobody may finish the inner checksums of what the kernel's device sends."""
    require("vxlan")
    left, right = lab.host("left"), lab.host("right")
    lab.underlay(left, right)
    right.run("ethtool", "-K", "lan0", "tx-udp_tnl-segmentation", "off", "tx-udp_tnl-csum-segmentation", "off")
    ours(left, "t1", "vxlan://239.1.2.3")
    kernel(right, "x2", "group 239.1.2.3 id 1 dstport 4789", lab, 2)
    lab.address(left, "t1", 1)
    iperf_server(right)
    for address in ("10.0.0.2", "fd00::2"):
        assert transfer(left, address, 20, "-R")[0] > 0.05
    left.run("iperf3", "-c", "10.0.0.2", "-u", "-R", "-b", "20M", "-n", "1M")
    assert checksum_errors(left) == 0


def test_another_vni_stays_apart(lab: Lab) -> None:
    require("vxlan")
    left, right = lab.host("left"), lab.host("right")
    lab.underlay(left, right)
    ours(left, "t1", "vxlan://239.1.2.3/vni=1")
    lab.address(left, "t1", 1)
    kernel(right, "x2", "group 239.1.2.3 id 2 dstport 4789", lab, 2)
    assert ping(left, "10.0.0.2", timeout=0.5).received == 0
