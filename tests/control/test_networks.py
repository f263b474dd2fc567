# SPDX-License-Identifier: GPL-2.0-or-later
"""Networks of every kind between hosts.

IPv6, vxlan, several on one uplink, frames that exceed the uplink, stock peers.
"""

from __future__ import annotations

import os
import signal

import pytest

from tests.control.rig import call, daemon, looks, ping, plug, port, same, silent, tunnel, until, wire, workers
from tests.labkit import TwoHosts, require, require_tool
from vdexdp.lab import Lab
from vdexdp.plugins.base import Tunnel

KINDS = {
    "vxvde4": tunnel(),
    "vxvde6": tunnel(group="ff05::77", family=6),
    "vxlan4": tunnel(kind="vxlan", group="239.0.0.1", port=4789),
    "vxlan6": tunnel(kind="vxlan", group="ff05::78", family=6, port=4789),
}


@pytest.mark.parametrize("kind", KINDS)
def test_two_nodes_of_ours(lab: Lab, kind: str) -> None:
    hosts = lab.host("left"), lab.host("right")
    lab.underlay(*hosts, mtu=1500)
    guests = [lab.guest(host, f"g{n}", n, mtu=1500) for n, host in enumerate(hosts, 1)]
    before = [looks(host) for host in hosts]
    for host in hosts:
        daemon(host, "--auto")
    plugs = [plug(host, wire(f"g{n}"), KINDS[kind]) for n, host in enumerate(hosts, 1)]
    assert any("exception path" in note for note in plugs[0].reply.notes), "1500 in 1500 does not fit, and it says so"
    assert ping(guests[0], "10.0.0.2")
    assert ping(guests[0], "fd00::2")
    for size in (1400, 1472, 4000):  # fits; fits the guest only; fragments of the guest's own
        assert ping(guests[0], "10.0.0.2", size=size), size
    exceptions = port(call(hosts[0], "show"), "vx")["counters"]["exceptions"]
    assert exceptions["mtu"] > 0
    assert exceptions["input"] > 0
    assert "drop-unknown" not in call(hosts[0], "show")["worker"]["counters"]
    for held in plugs:
        held.close()
    for host, was in zip(hosts, before, strict=True):
        same(host, was)


@pytest.mark.parametrize("family", [4, 6])
def test_vxlan_with_the_kernels_own_device(lab: Lab, family: int) -> None:
    require("vxlan")
    ours, kernel = lab.host("ours"), lab.host("kernel")
    lab.underlay(ours, kernel, mtu=1500)
    guest = lab.guest(ours, "g1", 1, mtu=1500)
    network = KINDS[f"vxlan{family}"]
    group = f"group {network.group} dev lan0 dstport 4789"
    kernel.ip(f"link add vx0 type vxlan id 1 {group}")
    lab.address(kernel, "vx0", 2)
    daemon(ours, "--auto")
    held = plug(ours, wire("g1"), network)
    assert ping(guest, "10.0.0.2")
    assert ping(kernel, "10.0.0.1")
    assert ping(guest, "10.0.0.2", size=1472), "larger than the uplink takes, encapsulated"
    held.close()


def test_networks_on_one_uplink_do_not_meet(lab: Lab) -> None:
    left, right = lab.host("left"), lab.host("right")
    lab.underlay(left, right, mtu=9000)
    guests = {}
    for host, numbers in ((left, (1, 2)), (right, (3, 4))):
        for number in numbers:
            guests[number] = lab.guest(host, f"g{number}", number)
        daemon(host, "--auto")
    plugs = [plug(left, wire("g1"), tunnel(vni=1)), plug(left, wire("g2"), tunnel(vni=2))]
    plugs += [plug(right, wire("g3"), tunnel(vni=1)), plug(right, wire("g4"), tunnel(vni=2))]
    assert ping(guests[1], "10.0.0.3")
    assert ping(guests[2], "10.0.0.4")
    for first, second in ((1, 2), (1, 4), (2, 3)):
        assert silent(guests[first], f"10.0.0.{second}"), (first, second)
    for held in plugs:
        held.close()


def test_two_uplinks(lab: Lab) -> None:
    left, right = lab.host("left"), lab.host("right")
    lab.underlay(left, right, mtu=9000)
    lab.underlay(left, right, device="lan1", mtu=9000)
    guests = [lab.guest(left, "g1", 1), lab.guest(left, "g2", 2), lab.guest(right, "g3", 3), lab.guest(right, "g4", 4)]
    daemon(left, "--auto")
    daemon(right, "--auto")
    by: dict[str, Tunnel] = {name: tunnel(device=name) for name in ("lan0", "lan1")}
    plugs = [plug(left, wire("g1"), by["lan0"]), plug(left, wire("g2"), by["lan1"])]
    plugs += [plug(right, wire("g3"), by["lan0"]), plug(right, wire("g4"), by["lan1"])]
    assert ping(guests[0], "10.0.0.3")
    assert ping(guests[1], "10.0.0.4")
    assert silent(guests[0], "10.0.0.4")
    uplinks = {one["name"]: one["counters"]["rx_frames"]["tc"] for one in call(left, "show")["uplinks"]}
    assert set(uplinks) == {"lan0", "lan1"}
    assert all(uplinks.values())
    for held in plugs:
        held.close()


@pytest.mark.parametrize("family", [4, 6])
def test_a_stock_node_on_another_host_with_fragments(lab: Lab, family: int) -> None:
    require_tool("vde_plug")
    ours, theirs = lab.host("ours"), lab.host("theirs")
    lab.underlay(ours, theirs, mtu=1500)
    guest = lab.guest(ours, "g1", 1, mtu=1500)
    daemon(ours, "--auto")
    network = KINDS[f"vxvde{family}"]
    stock = theirs.spawn("vde_plug", "tap://stock0", f"vxvde://{network.group}" + ("/v6" if family == 6 else ""))
    until(lambda: theirs.exists("stock0"), "the stock node's tap")
    lab.address(theirs, "stock0", 2)
    held = plug(ours, wire("g1"), network)
    assert ping(guest, "10.0.0.2")
    assert ping(guest, "10.0.0.2", size=1472), "fragments, both ways"
    assert ping(theirs, "10.0.0.1", size=1472)
    assert port(call(ours, "show"), "vxvde")["counters"]["exceptions"]["input"] > 0
    stock.stop()
    held.close()


def freeze(pids: list[int], number: int) -> None:
    for pid in pids:
        os.kill(pid, number)


def test_frozen_processes(two_hosts: TwoHosts) -> None:
    left, right, guest = two_hosts.left, two_hosts.right, two_hosts.left_guest
    masters = [daemon(left, "--auto"), daemon(right, "--auto")]
    plugs = [plug(left, wire("g1"), tunnel()), plug(right, wire("g2"), tunnel())]
    frozen = [master.pid for master in masters] + workers(left) + workers(right)
    assert len(frozen) == 4
    freeze(frozen, signal.SIGSTOP)
    try:
        assert ping(guest, "10.0.0.2"), "neighbour resolution included"
        assert ping(guest, "fd00::2")
        guest.ip("neigh flush all")
        assert ping(guest, "10.0.0.2")
    finally:
        freeze(frozen, signal.SIGCONT)
    for held in plugs:
        held.close()
