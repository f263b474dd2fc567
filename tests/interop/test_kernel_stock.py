# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel path against stock vde_plug and the kernel's own vxlan device, on an underlay of 1500 bytes.

Shows: ping, whole 1500-byte packets (stock nodes send them as fragments, we by the exception path), larger ones, and
TCP in both directions, between our guests and taps, our nodes on another host, stock nodes on other hosts and on the
same one, over IPv4 and IPv6; a stock node that leaves and another that takes its address, with and without a
goodbye; guests whose frames exceed the uplink, between our nodes; vxlan devices of the kernel with all offloads.
"""

from __future__ import annotations

import itertools
import re
import signal

import pytest

from tests.kernelkit import NETWORK, bad_checksums, counters, plug, reaches, show, transfer, until
from tests.labkit import VDEXDP, require, require_tool
from vdexdp.lab import Lab, Namespace, Process
from vdexdp.lab.measure import iperf_server

LOSS = 0.5
"""Retransmissions per segment: what a stock node's socket has no room for is lost, 0.2 between two of them."""
NETWORKS = {4: NETWORK, 6: "vxvde:///v6/if=lan0"}


def stock(host: Namespace, tap: str, network: str = NETWORK) -> Process:
    """A stock node with a tap that it makes."""
    process = host.spawn(require_tool("vde_plug"), f"tap://{tap}", network)
    until(lambda: host.exists(tap) or process.poll() is not None, f"stock vde_plug's {tap}")
    assert process.poll() is None, process.output()
    return process


def stock_guest(lab: Lab, host: Namespace, number: int, network: str) -> Namespace:
    """A stock node whose tap is in a namespace of its own."""
    stock(host, f"s{number}", network)
    guest = lab.namespace(f"stock{number}")
    host.ip(f"link set s{number} netns {guest.full_name}")
    lab.address(guest, f"s{number}", number)
    return guest


def peers_seen(host: Namespace, count: int) -> None:
    until(lambda: [one["local_peers"] for one in show(host)["switches"]] == [count], f"{count} nodes on {host.name}")


def both_ways(client: Namespace, number: int, *, megabytes: int = 5, least: float = 0.01) -> None:
    for form, direction in itertools.product(("10.0.0.{}", "fd00::{:x}"), ((), ("-R",))):
        address = form.format(number)
        speed, lost = transfer(client, address, megabytes, *direction)
        assert speed > least, f"{client.name}, {address}, {direction}: {speed:.3f} Gbit/s, {lost:.2%} retransmitted"
        assert lost < LOSS, f"{client.name}, {address}, {direction}: {speed:.3f} Gbit/s, {lost:.2%} retransmitted"


@pytest.mark.parametrize("family", [4, 6])
def test_everybody_with_everybody(lab: Lab, family: int) -> None:
    network = NETWORKS[family]
    ours, other, theirs = lab.host("ours"), lab.host("other"), lab.host("theirs")
    # Stock nodes read from a socket, where nobody finishes the checksums that a veth leaves unfinished.
    lab.underlay(ours, other, theirs, like_a_wire=True)
    for port in (1, 2, 3):
        lab.namespaces["lan0"].run("ethtool", "-K", f"port{port}", "tx", "off")
    for host in (ours, theirs):
        host.ip("route add multicast ff05:56de::1 dev lan0 table local")
    members = {1: lab.guest(ours, "g1", 1), 2: lab.guest(other, "g2", 2)}
    plug(ours, "netdev://g1", network)
    plug(other, "netdev://g2", network)
    plug(ours, "tap://t3", network)
    lab.address(ours, "t3", 3)
    members |= {3: ours, 4: stock_guest(lab, ours, 4, network), 5: stock_guest(lab, theirs, 5, network)}
    members[6] = stock_guest(lab, theirs, 6, network)
    peers_seen(ours, 1)
    whole = ("-s", "1472", "-M", "do")
    for one, number in itertools.product(members, members):
        if one != number:
            assert reaches(members[one], f"10.0.0.{number}", 2), f"{one} to {number}"
            assert reaches(members[one], f"10.0.0.{number}", 2, *whole), f"{one} to {number}, 1500 bytes"
            assert reaches(members[one], f"fd00::{number}", 1, "-s", "4000"), f"{one} to {number}, 4000 bytes"
    for number in (1, 3, 4, 5):
        iperf_server(members[number])
    both_ways(members[4], 1)
    both_ways(members[5], 1)
    both_ways(members[4], 3)
    both_ways(members[2], 4)
    assert not [number for number, member in members.items() if bad_checksums(member)]
    exceptions = counters(ours, "vx")["exceptions"]
    assert exceptions["mtu"], "frames that exceed the uplink"
    assert exceptions["local"], "frames for the node on this host"
    assert exceptions["input"], "fragments"


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL], ids=["goodbye", "killed"])
@pytest.mark.parametrize("place", ["same host", "another host"])
def test_a_stock_node_leaves_and_another_takes_its_address(lab: Lab, place: str, end: signal.Signals) -> None:
    ours, theirs = lab.host("ours"), lab.host("theirs")
    lab.underlay(ours, theirs)
    guest = lab.guest(ours, "g1", 1)
    plug(ours, "netdev://g1", NETWORK)
    host = ours if place == "same host" else theirs
    for tap in ("s1", "s2"):
        peer = stock(host, tap)
        if host is ours:
            peers_seen(ours, 1)
        host.ip(f"link set {tap} address 02:00:00:00:00:22")
        lab.address(host, tap, 2)
        if end is signal.SIGKILL:  # no goodbye: its own first frame tells where the address is now
            assert reaches(host, "10.0.0.1", 1)
        assert reaches(guest, "10.0.0.2", 5)
        peer.stop(end)
        until(lambda tap=tap: not host.exists(tap), "the end of the stock node")  # type: ignore[misc]
    if end is signal.SIGTERM:
        until(lambda: counters(ours, "vx")["events"].get("goodbye", 0) >= 2, "goodbyes")


@pytest.mark.parametrize(("family", "mtu"), [(4, 9000), (6, 1500)])
def test_guests_larger_than_the_uplink(lab: Lab, family: int, mtu: int) -> None:
    left, right = lab.host("left"), lab.host("right")
    lab.underlay(left, right)
    guests = [lab.guest(host, f"g{number}", number, mtu=mtu) for number, host in enumerate((left, right), 1)]
    for number, host in enumerate((left, right), 1):
        said = plug(host, f"netdev://g{number}", NETWORKS[family]).output()
        assert "leaves no room on lan0" in said
    assert reaches(guests[0], "10.0.0.2", 10, "-s", str(mtu - 28), "-M", "do")
    assert reaches(guests[1], "fd00::1", 10, "-s", str(mtu - 48), "-M", "do")
    iperf_server(guests[1])
    both_ways(guests[0], 2, megabytes=20, least=0.02)
    assert not any(bad_checksums(guest) for guest in guests)


@pytest.mark.parametrize("family", [4, 6])
def test_the_kernels_own_vxlan_device(lab: Lab, family: int) -> None:
    require("vxlan")
    ours, kernel = lab.host("ours"), lab.host("kernel")
    lab.underlay(ours, kernel, mtu=1700)
    guest = lab.guest(ours, "g1", 1)
    group, network = ("239.0.0.1", "vxlan://") if family == 4 else ("ff05:56de::1", "vxlan:///v6/if=lan0")
    plug(ours, "netdev://g1", network)
    plug(ours, "tap://t3", network)
    lab.address(ours, "t3", 3)
    kernel.ip(f"link add vx0 type vxlan id 1 group {group} dev lan0 dstport 4789")
    kernel.ip("link set vx0 mtu 1500")
    lab.address(kernel, "vx0", 2)
    assert reaches(guest, "10.0.0.2", 10)
    assert reaches(kernel, "fd00::1", 10, "-s", "1452", "-M", "do")
    assert reaches(ours, "10.0.0.2", 3, "-I", "10.0.0.3")
    iperf_server(kernel)
    both_ways(guest, 2, megabytes=50, least=0.3 if family == 4 else 0.03)
    for namespace in (guest, kernel, ours):
        assert not bad_checksums(namespace)


def test_many_plugs_networks_and_uplinks(lab: Lab) -> None:
    """Three networks over two uplinks, two plugs and a stock node in each, a stock peer far away in each."""
    left, right = lab.host("left"), lab.host("right")
    lab.underlay(left, right, device="lan0")
    lab.underlay(left, right, device="lan1")
    networks = {
        "a": "vxvde://234.0.0.1",
        "b": "vxvde://234.0.0.1/vni=2",
        "c": "vxvde://234.0.0.1/if=lan1",
    }
    # Stock vde_plug's if= does not choose where it sends: its groups go by the route, lan0's, so c is our nodes alone.
    guests = {}
    for name, network in networks.items():
        for number in (1, 2):
            guests[name, number] = lab.guest(left, f"{name}{number}", number)
            plug(left, f"netdev://{name}{number}", network)
        guests[name, 3] = lab.guest(right, f"{name}3", 3)
        plug(right, f"netdev://{name}3", network)
        if name != "c":
            guests[name, 4] = stock_guest(lab, left, 40 + ord(name) - ord("a"), network)
            guests[name, 5] = stock_guest(lab, right, 50 + ord(name) - ord("a"), network)
    numbers = {(name, n): n if n < 4 else 10 * n + ord(name) - ord("a") for name, n in guests}
    until(lambda: sum(one["local_peers"] for one in show(left)["switches"]) >= 2, "the stock nodes")
    for (name, one), (another, two) in itertools.permutations(guests, 2):
        if name == another:
            address = f"10.0.0.{numbers[another, two]}"
            assert reaches(guests[name, one], address, 2), f"{name}{one} to {name}{two}"
    for key, guest in guests.items():
        heard = set(re.findall(r"^10\.0\.0\.(\d+) .*lladdr", guest.ip("neigh show"), re.MULTILINE))
        assert heard == {str(number) for other, number in numbers.items() if other[0] == key[0] and other != key}, key


def test_a_tap_that_moves_into_a_namespace(lab: Lab) -> None:
    """As with stock vde_plug, the tap still works there; the kernel path does not reach it, and the plug says so."""
    left, right = lab.host("left"), lab.host("right")
    lab.underlay(left, right, mtu=1700)
    guest = lab.guest(right, "g2", 2)
    plug(right, "netdev://g2", NETWORK)
    stays, moves = plug(left, "tap://t3", NETWORK), left.spawn(*VDEXDP, "vde_plug", "tap://t1", NETWORK)
    moves.wait_output("in the kernel")
    lab.address(left, "t3", 3)
    inner = lab.namespace("inner")
    left.ip(f"link set t1 netns {inner.full_name}")
    moves.wait_output("in userspace (t1 was moved to another network namespace)")
    lab.address(inner, "t1", 1)
    for one, number in ((inner, 2), (inner, 3), (guest, 1), (left, 1)):
        assert reaches(one, f"10.0.0.{number}")
    left.ip("link delete t3")
    assert stays.wait(5) == 0
    inner.ip("link delete t1")
    assert moves.wait(5) == 0
