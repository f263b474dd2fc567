# SPDX-License-Identifier: GPL-2.0-or-later
"""Plugging and unplugging against a real daemon: what it builds, what ``show`` says, and that the host is as before."""

from __future__ import annotations

import os

import pytest

from tests.control.rig import call, daemon, looks, ping, plug, port, same, tunnel, until, wire
from tests.labkit import VDEXDP, TwoHosts
from vdexdp.control.protocol import Bridge, End
from vdexdp.errors import HostError, KernelPathError, RequestError, VdexdpError
from vdexdp.lab import Lab
from vdexdp.plugins.base import Netdev


def test_two_hosts(two_hosts: TwoHosts) -> None:
    left, right = two_hosts.left, two_hosts.right
    daemon(left)
    daemon(right)
    before = looks(left), looks(right)
    near, far = plug(left, wire("g1"), tunnel()), plug(right, wire("g2"), tunnel())
    assert [path.path for path in near.reply.paths] == ["tc", "tc"]
    assert "veth" in near.reply.paths[0].why
    assert ping(two_hosts.left_guest, "10.0.0.2")
    assert ping(two_hosts.left_guest, "fd00::2")

    shown = call(left, "show")
    (cable,) = shown["plugs"]
    assert cable["paths"][1]["end"] == "vxvde 234.0.0.1:14789 vni 1 via lan0"
    (network,) = shown["switches"]
    assert (network["mode"], network["local"], network["fdb"]) == ("switch", "192.0.2.1", 2)
    counters = port(shown, "g1")["counters"]
    assert counters["rx_frames"]["tc"] > 0
    assert counters["tx_frames"]["tc"] > 0
    entries = {one["mac"]: one for one in call(left, "fdb", action="list")["entries"]}
    there = entries[two_hosts.right_guest.mac("eth0")]
    assert there["endpoint"] == ["192.0.2.2", call(right, "show")["switches"][0]["udp_port"]]

    near.close()
    far.close()
    same(left, before[0])
    same(right, before[1])
    assert call(left, "show")["ports"] == []


def test_a_goodbye_purges_what_the_peer_was_learnt_as(two_hosts: TwoHosts) -> None:
    left, right = two_hosts.left, two_hosts.right
    daemon(left, "--auto")
    daemon(right, "--auto")
    near, far = plug(left, wire("g1"), tunnel()), plug(right, wire("g2"), tunnel())
    assert ping(two_hosts.left_guest, "10.0.0.2")
    assert call(left, "show")["switches"][0]["fdb"] == 2
    far.close()
    until(lambda: port(call(left, "show"), "vxvde")["counters"]["events"].get("goodbye"), "a goodbye")
    assert call(left, "show")["switches"][0]["fdb"] == 1
    near.close()


def test_plugs_share_a_network_and_leave_one_by_one(lab: Lab) -> None:
    host = lab.host("host")
    lab.underlay(host, lab.host("other"))
    guests = [lab.guest(host, f"g{n}", n, mtu=1400) for n in (1, 2)]
    daemon(host, "--auto")
    before = looks(host)
    first, second = plug(host, wire("g1"), tunnel()), plug(host, wire("g2"), tunnel())
    shown = call(host, "show")
    assert len(shown["switches"]) == 1
    assert len(shown["uplinks"]) == 1
    assert ping(guests[0], "10.0.0.2")
    third = plug(host, Bridge("null://"), tunnel(vni=2))
    assert third.bridge >= 0
    assert [one["name"] for one in call(host, "show")["switches"]] == [
        "vxvde 234.0.0.1:14789 vni 1 via lan0",
        "vxvde 234.0.0.1:14789 vni 2 via lan0",
    ]
    first.close()
    until(lambda: len(call(host, "show")["plugs"]) == 2, "the first plug to leave")
    assert host.exists("vdxp0")
    second.close()
    third.close()
    same(host, before)


def test_a_bridge_tap_carries_userspace_frames(two_hosts: TwoHosts) -> None:
    left, right = two_hosts.left, two_hosts.right
    daemon(left, "--auto")
    daemon(right, "--auto")
    here, there = plug(left, Bridge("null://"), tunnel()), plug(right, wire("g2"), tunnel())
    mac = bytes.fromhex(two_hosts.right_guest.mac("eth0").replace(":", ""))
    ours = bytes.fromhex("020000000099")
    request = bytes.fromhex("0001080006040001") + ours + bytes([10, 0, 0, 99]) + bytes(6) + bytes([10, 0, 0, 2])
    os.write(here.bridge, b"\xff" * 6 + ours + b"\x08\x06" + request)
    frames: list[bytes] = []

    def answered() -> bool:
        try:
            frames.append(os.read(here.bridge, 2048))
        except BlockingIOError:
            return False
        return frames[-1][:12] == ours + mac and frames[-1][20:22] == b"\x00\x02"

    until(answered, "an ARP reply through the bridge tap")
    here.close()
    there.close()


def test_a_cable_joins_two_devices(lab: Lab) -> None:
    host = lab.host("host")
    guests = [lab.guest(host, f"g{n}", n) for n in (1, 2)]
    daemon(host, "--auto")
    before = looks(host)
    cable = plug(host, wire("g1"), wire("g2"))
    assert ping(guests[0], "10.0.0.2")
    shown = call(host, "show")
    assert [(one["mode"], one["name"]) for one in shown["switches"]] == [("cable", "cable g1 = g2")]
    assert shown["uplinks"] == []
    assert not host.exists("vdxp0"), "a cable needs no exception path"
    cable.close()
    same(host, before)


def test_fdb_by_hand(two_hosts: TwoHosts) -> None:
    left = two_hosts.left
    daemon(left, "--auto")
    near = plug(left, wire("g1"), tunnel())
    index = port(call(left, "show"), "g1")["index"]
    call(left, "fdb", action="add", mac="02:00:00:00:00:07", port=index)
    call(left, "fdb", action="add", mac="02:00:00:00:00:08", vlan=5, endpoint=["192.0.2.9", 1234])
    call(left, "fdb", action="flush")
    entries = {(one["mac"], one["vlan"]): one for one in call(left, "fdb")["entries"] if one["static"]}
    assert entries["02:00:00:00:00:08", 5]["endpoint"] == ["192.0.2.9", 1234]
    assert entries["02:00:00:00:00:07", 0]["port"] == index
    call(left, "fdb", action="delete", mac="02:00:00:00:00:08", vlan=5)
    with pytest.raises(RequestError, match="not in the table"):
        call(left, "fdb", action="delete", mac="02:00:00:00:00:08", vlan=5)
    for wrong in (
        {"mac": "ff:ff:ff:ff:ff:ff", "port": index},
        {"mac": "00:00:00:00:00:00", "port": index},
        {"mac": "nonsense", "port": index},
        {"mac": "02:00:00:00:00:01", "endpoint": ["234.0.0.1", 5]},
        {"mac": "02:00:00:00:00:01", "endpoint": ["127.0.0.1", 5]},
        {"mac": "02:00:00:00:00:01", "endpoint": ["0.0.0.0", 5]},
        {"mac": "02:00:00:00:00:01", "port": 999},
        {"mac": "02:00:00:00:00:01", "endpoint": ["fd00::1", 5]},
        {"mac": "02:00:00:00:00:01", "port": index, "switch": 77},
    ):
        with pytest.raises(RequestError):
            call(left, "fdb", action="add", **wrong)
    near.close()


REFUSED: list[tuple[End, End, type[VdexdpError], str]] = [
    (wire("nope"), tunnel(), RequestError, "no such interface"),
    (wire("g1"), tunnel(device="nope"), RequestError, "no such interface"),
    (wire("g1"), tunnel(device="lo"), KernelPathError, "not an Ethernet interface"),
    (wire("g1"), tunnel(device="down0"), HostError, "the uplink is down"),
    (wire("g1"), tunnel(device="bare0"), HostError, "has no IPv4 address"),
    (wire("g1"), tunnel(bind="192.0.2.77"), RequestError, "not an address of this host"),
    (wire("g1"), tunnel(group="10.0.0.1"), RequestError, "not a multicast address"),
    (wire("g1"), tunnel(kind="vxlan", port=4789), HostError, "held by another socket"),
    (tunnel(), tunnel(2), KernelPathError, "no kernel path"),
    (Bridge("null://"), wire("g1"), KernelPathError, "no kernel path"),
    (Netdev("g1", "stack", hook="xdp"), tunnel(), RequestError, "XDP can't see"),
    (wire("taken0"), tunnel(), RequestError, "already plugged"),
    (wire("lan0"), tunnel(), RequestError, "the uplink of a network"),
    (wire("lan0"), tunnel(device="taken0", bind="192.0.2.1"), RequestError, "the uplink of a network"),
    (wire("g1"), tunnel(device="taken0", bind="192.0.2.1"), RequestError, "a port, of plug 1"),
    (wire("leg0"), tunnel(device="br0"), RequestError, "leg0: the way in of br0, the uplink of a network"),
    (wire("leg1"), tunnel(device="over0"), RequestError, "leg1: the way in of over0, the uplink of a network"),
    (wire("g1"), tunnel(device="br1"), RequestError, "br1: its frames come in by taken0, which is a port, of plug 1"),
    (wire("vdxp0"), tunnel(), RequestError, "vdexdp's own"),
    (wire("g1"), tunnel(vni=78, kind="vxlan", port=4790, group="239.0.0.2"), RequestError, "in use by vxlan 239.0.0.1"),
]


def test_what_can_not_be_is_refused_and_changes_nothing(lab: Lab) -> None:
    host = lab.host("host")
    lab.underlay(host, lab.host("other"))
    lab.guest(host, "g1", 1)
    for pair in (
        "down0 type veth peer name down1",
        "bare0 type veth peer name bare1",
        "taken0 type veth peer name far0",
        "leg0 type veth peer name leg1",
        "br0 type bridge",
        "br1 type bridge",
    ):
        host.ip(f"link add {pair}")
    host.ip("link add link leg1 name over0 type macvlan")
    for number, (name, member) in enumerate((("br0", "leg0"), ("br1", "taken0"), ("over0", ""))):
        host.ip(f"address add 192.0.{3 + number}.1/24 dev {name}")
        if member:
            host.ip(f"link set {member} master {name}")
    for name in ("bare0", "taken0", "leg0", "leg1", "br0", "br1", "over0"):
        host.ip(f"link set {name} addrgenmode none up")
    for name in ("br0", "over0"):
        until(lambda name=name: "LOWER_UP" in host.ip(f"link show {name}"), "a carrier")  # type: ignore[misc]
    host.ip("link add kernel0 type vxlan id 9 dstport 4789 local 192.0.2.1")
    host.ip("link set kernel0 up")
    daemon(host)
    held = plug(host, wire("taken0"), tunnel(vni=77))
    vxlan = plug(host, Bridge("null://"), tunnel(vni=78, kind="vxlan", port=4790, group="239.0.0.1"))
    before = looks(host)
    for first, second, kind, cause in REFUSED:
        with pytest.raises(kind, match=cause):
            plug(host, first, second)
        same(host, before)
    for ends, cause in (
        (("netdev://lan0", "vxvde://234.0.0.1"), "the uplink of a network"),
        (("vxvde://234.0.0.1/if=br0", "netdev://leg0"), "leg0: the way in of br0, the uplink of a network"),
        (("tap://lan0", "null://"), "the interface exists and is not a tap"),
    ):
        for accel in ("off", "auto"):
            done = host.run(*VDEXDP, "vde_plug", "--accel", accel, *ends, check=False)
            assert (done.returncode, cause in done.stderr) == (2, True), done.stderr
    same(host, before)
    host.ip("route del 224.0.0.0/4 dev lan0")
    before = looks(host)
    with pytest.raises(RequestError, match="no route") as caught:
        plug(host, wire("g1"), tunnel())
    assert "/if=" in caught.value.hint
    same(host, before)
    held.close()
    vxlan.close()


def test_a_daemon_started_on_demand_leaves_after_the_last_plug(lab: Lab) -> None:
    host = lab.host("host")
    for n in (1, 2):
        lab.guest(host, f"g{n}", n)
    before = looks(host)
    process = host.spawn(*VDEXDP, "vde_plug", "--accel", "require", "netdev://g1", "netdev://g2")
    process.wait_output("tc", 20)
    pid = call(host, "hello")["pid"]
    assert call(host, "hello")["auto"]
    process.stop()
    until(lambda: not os.path.exists(f"/proc/{pid}"), "the daemon to leave", 5)
    same(host, before)
    assert not os.path.exists(f"/run/vdexdp/{host.inode}.sock")
    assert not os.path.exists(f"/run/vdexdp/{host.inode}.lock")


def test_stop_ends_the_plugs(lab: Lab) -> None:
    host = lab.host("host")
    for n in (1, 2):
        lab.guest(host, f"g{n}", n)
    master = daemon(host)
    before = looks(host)
    process = host.spawn(*VDEXDP, "vde_plug", "--accel", "require", "netdev://g1", "netdev://g2")
    process.wait_output("tc", 20)
    call(host, "stop")
    assert master.wait() == 0
    process.wait(5)
    same(host, before)


def test_a_second_daemon_is_refused(lab: Lab) -> None:
    host = lab.host("host")
    daemon(host)
    result = host.run(*VDEXDP, "daemon", check=False)
    assert result.returncode == 1
    assert "another one serves this network namespace" in result.stderr
