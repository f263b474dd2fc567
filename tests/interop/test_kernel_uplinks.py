# SPDX-License-Identifier: GPL-2.0-or-later
"""Uplinks as real hosts have them: a bridge with the LAN in it, a way through a router, a LAN whose MTU changes.

Shows ping and TCP, with a stock node in the network where one can be; that an endpoint behind a router is reached by
the host's own routes and neighbours; that a change of the uplink's MTU decides at once which frames take the exception
path.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.kernelkit import NETWORK, bad_checksums, counters, plug, reaches, show, streams, until
from tests.labkit import require, require_tool
from vdexdp.control.client import call
from vdexdp.lab import Lab, Namespace
from vdexdp.lab.measure import iperf_server


def test_the_uplink_is_a_bridge(lab: Lab) -> None:
    require("bridge")
    left, right = lab.host("left"), lab.host("right")
    lab.underlay(left, right, mtu=1700)
    left.run("ethtool", "-K", "lan0", "tx", "off")
    right.run("ethtool", "-K", "lan0", "tx", "off")
    lab.bridge(left, "br0", "lan0", mtu=1700)
    left.ip("address del 192.0.2.1/24 dev lan0")
    left.ip("address add 192.0.2.1/24 dev br0")
    left.ip("route replace 224.0.0.0/4 dev br0")
    guests = [lab.guest(host, f"g{number}", number) for number, host in enumerate((left, right), 1)]
    for number, host in enumerate((left, right), 1):
        said = plug(host, f"netdev://g{number}", NETWORK).output()
    assert "via lan0" in said
    assert [one["name"] for one in show(left)["uplinks"]] == ["br0"]
    right.spawn(require_tool("vde_plug"), "tap://s3", NETWORK)
    until(lambda: right.exists("s3"), "the stock node")
    lab.address(right, "s3", 3)
    for number in (2, 3):
        assert reaches(guests[0], f"10.0.0.{number}")
    iperf_server(guests[1])
    iperf_server(right)
    streams(guests[0], "10.0.0.2", 0.1)
    streams(guests[0], "10.0.0.3", 0.02)
    assert not bad_checksums(guests[1]) + bad_checksums(right)


@pytest.mark.parametrize("family", [4, 6])
def test_an_endpoint_behind_a_router(lab: Lab, family: int) -> None:
    """The group does not get there, so each side is told the other's endpoint and address by hand."""
    left, router, right = lab.host("left"), lab.host("router"), lab.host("right")
    lab.underlay(left, router, device="lan0", mtu=1700)
    lab.underlay(right, router, device="lan1", mtu=1700)
    router.sysctl("net.ipv4.ip_forward", "1")
    router.sysctl("net.ipv6.conf.all.forwarding", "1")
    left.ip("route add 198.18.1.0/24 via 192.0.2.2")
    left.ip("route add 2001:db8:1::/64 via 2001:db8::2")
    right.ip("route add 192.0.2.0/24 via 198.18.1.2")
    right.ip("route add 2001:db8::/64 via 2001:db8:1::2")
    guests = [lab.guest(host, f"g{number}", number) for number, host in enumerate((left, right), 1)]
    ends: list[dict[str, Any]] = []
    for number, (host, device) in enumerate(((left, "lan0"), (right, "lan1")), 1):
        network = f"{NETWORK}/if={device}" if family == 4 else f"vxvde:///v6/if={device}"
        plug(host, f"netdev://g{number}", network)
        ends.append(show(host)["switches"][0])
    for host, end, guest in ((left, ends[1], guests[1]), (right, ends[0], guests[0])):
        with host.entered():
            call("fdb", action="add", mac=guest.mac("eth0"), endpoint=[end["local"], end["udp_port"]])
    for one, other, number in ((guests[0], guests[1], 2), (guests[1], guests[0], 1)):
        for address in Lab.guest_addresses(number):
            one.ip(f"neigh replace {address} lladdr {other.mac('eth0')} dev eth0")
    # Each switch only knows the far guest by what it was told, which never ages; the near one's frames teach its own.
    assert reaches(guests[0], "10.0.0.2")
    assert reaches(guests[1], "fd00::1")
    for host in (left, router, right):
        host.ip("neigh flush all")
    # Entries are refreshed twice a second: by then both know that the other takes super-packets.
    assert reaches(guests[0], "10.0.0.2", 50)
    iperf_server(guests[1])
    streams(guests[0], "10.0.0.2", 0.4 if family == 4 else 0.02)
    assert not sum(bad_checksums(guest) for guest in guests)


def test_the_mtu_of_the_uplink_changes(lab: Lab) -> None:
    left, right = lab.host("left"), lab.host("right")
    lab.underlay(left, right, mtu=1700)
    guests = [lab.guest(host, f"g{number}", number) for number, host in enumerate((left, right), 1)]
    for number, host in enumerate((left, right), 1):
        plug(host, f"netdev://g{number}", NETWORK)
    whole = ("-s", "1472", "-M", "do")
    assert reaches(guests[0], "10.0.0.2", 3, *whole)
    assert not counters(left, "vx")["exceptions"].get("mtu")
    for host in (left, right):
        host.ip("link set lan0 mtu 1400")
    until(lambda: show(left)["uplinks"][0]["mtu"] == show(right)["uplinks"][0]["mtu"] == 1400, "the MTU to be seen")
    assert reaches(guests[0], "10.0.0.2", 3, *whole)
    seen = counters(left, "vx")["exceptions"]["mtu"]
    assert seen
    for host in (left, right):
        host.ip("link set lan0 mtu 9000")
    until(lambda: show(left)["uplinks"][0]["mtu"] == show(right)["uplinks"][0]["mtu"] == 9000, "the MTU to be seen")
    for host, guest, port in ((left, guests[0], "g1"), (right, guests[1], "g2")):
        host.ip(f"link set {port} mtu 8900")
        guest.ip("link set eth0 mtu 8900")
        until(lambda host=host, port=port: port_mtu(host, port) == 8900, "the port's MTU to be seen")  # type: ignore[misc]
    assert reaches(guests[0], "10.0.0.2", 3, "-s", "8872", "-M", "do")
    assert counters(left, "vx")["exceptions"]["mtu"] == seen


def port_mtu(host: Namespace, port: str) -> int:
    return int(next(one for one in show(host)["ports"] if one["name"] == port)["mtu"])
