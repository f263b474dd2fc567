# SPDX-License-Identifier: GPL-2.0-or-later
"""What the kernel has is found by probes, and what it lacks costs speed, not frames.

Shows: each probe says no to what no kernel knows, and yes to what this one must have; on a kernel that lacks a thing
(``tests.oldkernel``) exactly that probe says no, doctor and explain tell, and every kind of port carries pings,
broadcasts and whole TCP super-packets all the same; what is attached without links goes when plugs end, and with the
next daemon when they were killed.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from tests import oldkernel
from tests.control.rig import attached, kill, listening, looks, port, same, tunnel, wire
from tests.kernelkit import NETWORK, bad_checksums, plug, reaches, show, transfer, until
from tests.labkit import VDEXDP, TwoHosts, require, settled
from tests.pcapngkit import Capture, parse
from vdexdp.control import abi, bytecode, features
from vdexdp.control.dataplane import Dataplane
from vdexdp.control.features import TABLE, Features
from vdexdp.control.host import Host
from vdexdp.control.model import Model
from vdexdp.control.netlink import Netlink
from vdexdp.control.protocol import PlugRequest
from vdexdp.lab import UNDERLAY, Lab, Namespace, Process
from vdexdp.lab.measure import iperf_server

ALL = ",".join(oldkernel.LACKS)


def without(*lacks: str) -> tuple[str, ...]:
    """The start of a command line on a kernel that lacks these."""
    return sys.executable, oldkernel.__file__, ",".join(lacks)


def plug_without(host: Namespace, lacks: str, *vnls: str) -> Process:
    process = host.spawn(*without(lacks), *VDEXDP, "vde_plug", "--accel", "require", *vnls)
    process.wait_output("in the kernel", 20)
    return process


def test_a_probe_can_say_no(root: None) -> None:
    nobody = 0x7FFFFFFF
    assert not features.has_helper("tc", 9999, 2)
    assert not features.takes_link("tc", 9999, nobody)
    assert not features.loads("xdp", bytes.fromhex("b700000002000000 9500000000000000"), 1 << 30)
    assert not features.room_flags(50, features.ENCAP_UDP4 | 1 << 30)
    assert not features.redirect_map_flags(1 << 20)


def test_the_programs_call_what_is_probed() -> None:
    """The numbers of helpers and flags are those of bpf/platform.h."""
    text = (abi.source_dir() / "platform.h").read_text()
    helpers = {name: int(number) for name, number in re.findall(r"\(\*(\w+)\)\(.*\) = HELPER\((\d+)\);", text)}
    assert helpers["redirect_peer"] == features.REDIRECT_PEER
    assert helpers["redirect"] == features.REDIRECT
    assert helpers["ktime_ns"] == features.KTIME_COARSE
    assert helpers["ktime_fine"] == features.KTIME_NS
    assert helpers["xdp_get_buff_len"] == features.XDP_BUFF_LEN
    flags = {name: 1 << int(shift) for name, shift in re.findall(r"#define ROOM_(\w+) \(1 << (\d+)\)", text)}
    assert flags["ENCAP_L2_ETH"] == features.ENCAP_ETHERNET
    assert flags["DECAP_L3_IPV4"] == features.DECAP_IPV4
    assert flags["ENCAP_L3_IPV4"] | flags["ENCAP_L4_UDP"] | 14 << 56 == features.ENCAP_UDP4


ASK = "import json; from vdexdp.control.features import Features; print(json.dumps(Features().all()))"


@pytest.mark.parametrize("lack", [name for name in oldkernel.LACKS if name in TABLE])
def test_only_what_is_missing_is_missed(lab: Lab, lack: str) -> None:
    host = lab.host("host")
    usual: Mapping[str, bool] = Features().all()
    found = json.loads(host.run(*without(lack), sys.executable, "-c", ASK).stdout)
    assert found == {**usual, lack: False}


def test_doctor_and_explain_tell(two_hosts: TwoHosts) -> None:
    host = two_hosts.left
    before = looks(host)
    found = json.loads(host.run(*without(ALL), *VDEXDP, "doctor", "--json").stdout)
    assert found["ok"]
    checks = {check["name"]: check for check in found["checks"]}
    for name, row in TABLE.items():
        assert checks[row.title]["ok"] is (None if name in oldkernel.LACKS else Features().all()[name] or None), name
    assert "does not tell" in checks["XDP of veth"]["detail"]
    assert checks["clsact"]["ok"]
    assert checks["native XDP on veth"]["ok"]
    cable = ("explain", "netdev://g1/hook=xdp", NETWORK)
    said = json.loads(host.run(*without(ALL), *VDEXDP, *cable, "--json").stdout)
    assert any(lack.startswith("links for tc programs (tcx): clsact") for lack in said["lacks"])
    assert any(lack.startswith("redirect_peer: ") for lack in said["lacks"])
    assert "native XDP if the driver takes it" in said["ends"][0]["why"]
    assert "This kernel lacks links for XDP programs" in host.run(*without(ALL), *VDEXDP, *cable).stdout
    same(host, before)


def test_explain_without_privilege_asks_the_daemon(lab: Lab) -> None:
    host = lab.host("host")
    lab.guest(host, "g1", 1)
    host.spawn(*without("redirect_peer"), *VDEXDP, "daemon")
    until(lambda: listening(host), "a daemon", 20)
    powerless = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")
    said = json.loads(host.run(*powerless, *VDEXDP, "explain", "netdev://g1", "--json").stdout)
    assert [lack.split(":")[0] for lack in said["lacks"]] == ["redirect_peer"]


def watched(host: Namespace, path: Path, source: Namespace, address: str) -> Capture:
    """What ``capture`` writes of five pings, and of nothing else."""
    process = host.spawn(*VDEXDP, "capture", "g1", "--ethertype", "ip", "-w", str(path), "-c", "10")
    process.wait_output("watching", 20)
    settled(source, address)
    assert process.wait() == 0, process.output()
    return parse(path.read_bytes())


def test_traffic_without_any_of_them(lab: Lab, two_hosts: TwoHosts, tmp_path: Path) -> None:
    """The left host lacks everything; the right one is this kernel as it is."""
    left, right, guest = two_hosts.left, two_hosts.right, two_hosts.left_guest
    near = lab.guest(left, "g3", 3)
    left.ip("tuntap add mode tap name t0")
    left.ip("link set t0 addrgenmode none")
    lab.address(left, "t0", 4)
    left.run("tc", "qdisc", "add", "dev", "g3", "clsact")  # somebody's own, which stays
    before = looks(left)
    plugs = [plug_without(left, ALL, vnl, NETWORK) for vnl in ("netdev://g1/hook=xdp", "netdev://g3", "tap://t0")]
    plug(right, "netdev://g2", NETWORK)
    shown = show(left)
    assert port(shown, "g1")["hooks"] == ["xdp", "tc"]
    assert left.run("tc", "filter", "show", "dev", "g1", "ingress").stdout.count("vdexdp") == 1
    assert "xdp" in left.ip("link show dev g1")
    settled(guest, "10.0.0.2")
    for address in ("10.0.0.3", "10.0.0.4"):
        settled(guest, address)
    programs = attached(left, "g1", "g3", "t0", UNDERLAY)
    assert [name.split()[3] for name in programs] == ["port_tc", "port_tc", "port_tc", "uplink_ingress", "port_xdp"]
    found = watched(left, tmp_path / "old.pcapng", guest, "10.0.0.2")
    assert [one.direction for one in found.packets] == ["in", "out"] * 5
    until(lambda: attached(left, "g1", "g3", "t0", UNDERLAY) == programs, "the normal programs")
    for end in (two_hosts.right_guest, near):
        iperf_server(end)
    server = iperf_server(left, 5204)
    for client, address, more in (
        (near, "10.0.0.2", ()),
        (guest, "10.0.0.2", ()),
        (guest, "10.0.0.3", ()),
        (near, "10.0.0.4", ("-p", "5204")),
    ):
        for direction in ((), ("-R",)):
            transfer(client, address, 20, *more, *direction)
    assert not any(map(bad_checksums, (guest, near, two_hosts.right_guest)))
    assert not any(show(left)["worker"].get("drops", {}).values())

    for process in plugs[1:]:
        assert process.stop() == 0
    with left.entered(), Netlink() as netlink:
        assert netlink.clsact_leftovers()
        assert netlink.xdp_leftovers()
    server.stop()
    assert plugs[0].stop() == 0
    same(left, before)


def test_what_was_killed_without_links_goes_with_the_next_daemon(lab: Lab) -> None:
    host = lab.host("host")
    for number in (1, 2):
        lab.guest(host, f"g{number}", number)
    before = looks(host)
    server = host.spawn(*without(ALL), *VDEXDP, "daemon")
    until(lambda: listening(host), "a daemon", 20)
    process = plug_without(host, ALL, "netdev://g1/hook=xdp", "netdev://g2")
    for one in (server, process):  # the daemon would unplug it
        kill(one)
    found = json.loads(host.run(*without(ALL), *VDEXDP, "doctor", "--json").stdout)["checks"]
    assert any("2 tc filters, 1 XDP programs" in check["detail"] for check in found if check["name"] == "leftovers")
    server = host.spawn(*without(ALL), *VDEXDP, "daemon")
    server.wait_output("removed 3 programs that an earlier daemon left attached", 20)
    until(lambda: listening(host), "a daemon", 20)
    host.run(*VDEXDP, "daemon", "--stop")
    same(host, before)


def test_xdp_where_frames_come_in_fragments(lab: Lab) -> None:
    """A port whose MTU takes more than a page; frames that do are tc's.  Without fragments all of it is."""
    require("frags")
    host = lab.host("host")
    guests = [lab.guest(host, f"g{number}", number, mtu=9000) for number in (1, 2)]
    for guest in guests:
        guest.run("ethtool", "-K", "eth0", "gro", "on", "tx", "off")
    ends = ("netdev://g1/hook=xdp", "netdev://g2/hook=xdp")
    for command, hooks in (((), ["xdp", "tc"]), (without("frags"), ["tc"])):
        server = host.spawn(*command, *VDEXDP, "daemon")
        until(lambda: listening(host), "a daemon", 20)
        process = host.spawn(*VDEXDP, "vde_plug", "--accel", "require", *ends)
        process.wait_output("in the kernel", 20)
        assert [port(show(host), name)["hooks"] for name in ("g1", "g2")] == [hooks, hooks]
        for size in (56, 3000, 8900):
            assert reaches(guests[0], "10.0.0.2", 3, "-s", str(size)), (hooks, size)
        process.stop()
        server.stop()
        server.wait()


def test_tcp_where_adjust_room_does_not_know_ethernet(
    two_hosts: TwoHosts, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The programs that encapsulate are built with a flag in its place that no kernel knows."""
    left, right = two_hosts.left, two_hosts.right
    for host in (left, right):
        host.run("ethtool", "-K", UNDERLAY, "tx", "off")  # as on a wire: super-packets are segmented before it
    usual = bytecode.images(["uplink_ingress", "exception_ingress"])
    for name in (unit := ["port_tc", "flood_all", "flood_group"]):
        changed = replace(bytecode.PROGRAMS[name], defines=("ROOM_ENCAP_L2_ETH=(1<<30)",))
        monkeypatch.setitem(bytecode.PROGRAMS, name, changed)
    monkeypatch.setattr(bytecode, "cache_dir", lambda: tmp_path)
    images = usual | bytecode.compile_programs(unit)
    monkeypatch.setattr(bytecode, "images", lambda names: {name: images[name] for name in names})
    plug(right, "netdev://g2", NETWORK)
    iperf_server(two_hosts.right_guest)
    with left.entered(), Netlink() as netlink:
        model = Model(Host(Dataplane.create(), netlink))
        model.plug(PlugRequest((wire("g1"), tunnel()), ("", "")), [])
        settled(two_hosts.left_guest, "10.0.0.2")
        for direction in ((), ("-R",)):
            speed, lost = transfer(two_hosts.left_guest, "10.0.0.2", 40, *direction)
            assert speed > 0.2, "super-packets went another way than the kernel's"
            assert lost < 0.01
        assert not bad_checksums(two_hosts.right_guest)
        lac = next(iter(model.tunnels.lacs.values()))
        assert not any(model.host.tables.counters(lac.index)["exceptions"])
        model.unplug_all()
        model.host.close()
