# SPDX-License-Identifier: GPL-2.0-or-later
"""TCP with every offload on, between ports of all kinds: what guests leave unfinished is finished exactly once.

Shows: streams at a sane speed, without a storm of retransmissions or a wrong checksum, in both directions, between
veths, taps of the host and a virtual machine's tap, on two hosts and on one, by tc and by XDP, over IPv4, IPv6 and
802.1Q in the guests, over vxvde and vxlan, IPv4 and IPv6 in the underlay; through a tunnel that a guest makes itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.kernelkit import NETWORK, VirtualMachine, bad_checksums, counters, plug, reaches, start, tagged, transfer
from tests.labkit import require
from vdexdp.control.client import call
from vdexdp.lab import Lab, Namespace
from vdexdp.lab.measure import IPERF_PORT, iperf_server

TC, XDP = 0.4, 0.15
"""Gbit/s that each path reaches even on a busy machine; stock vde_plug is below both."""
LOSS = 0.02
"""Retransmissions per segment."""
VLAN = 5

Guests = dict[str, tuple[Namespace, int]]
"""By the name of their port on the host: where their stack is, and their number in the lab's addresses."""


@contextmanager
def guests_of(lab: Lab, left: Namespace, right: Namespace, network: str = NETWORK) -> Iterator[Guests]:
    """Ports of every kind on two hosts in one network, iperf3 servers behind each."""
    lab.underlay(left, right, mtu=1700)
    for host in (left, right):
        host.run("ethtool", "-K", "lan0", "gro", "on")
    guests: Guests = {}
    number = 0
    machines = []
    plugs = []
    for host, side in ((left, "l"), (right, "r")):
        for kind in ("veth", "wire", "xdp", "tap", "vm"):
            number += 1
            name = f"{side}{kind}"
            vnl = f"netdev://{name}"
            if kind == "tap":
                host.ip(f"tuntap add mode tap name {name}")
                lab.address(host, name, number)
                guests[name], vnl = (host, number), f"tap://{name}"
            elif kind == "vm":
                machines.append(VirtualMachine(lab, host, name, number))
                guests[name] = machines[-1].guest, number
            else:
                guests[name] = lab.guest(host, f"guest-{name}", number, device=name), number
            if kind == "xdp":
                guests[name][0].run("ethtool", "-K", "eth0", "gro", "on")
                if host is left:  # one whose checksums are finished: XDP carries it, and leaves the other to tc
                    guests[name][0].run("ethtool", "-K", "eth0", "tx", "off")
                vnl += "/hook=xdp"
            plugs.append(start(host, vnl, network))
    try:
        for process in plugs:
            process.wait_output("in the kernel", 20)
        for namespace in {namespace.name: namespace for namespace, _ in guests.values()}.values():
            iperf_server(namespace)
        yield guests
    finally:
        for machine in machines:
            machine.close()


def check(guests: Guests, one: str, other: str, least: float, form: str = "10.0.0.{}", port: int = IPERF_PORT) -> None:
    """A stream in each direction."""
    client, number = guests[one][0], guests[other][1]
    address = form.format(number)
    # A host's own tap is one address of several: the stream has to leave by it.
    source = ("-p", str(port), "-B", form.format(guests[one][1]))
    for direction in ((), ("-R",)):
        speed, lost = transfer(client, address, 60, *source, *direction)
        what = f"{one} {'from' if direction else 'to'} {other} ({address})"
        assert speed > least, f"{what}: {speed:.3f} Gbit/s, {lost:.2%} retransmitted"
        assert lost < LOSS, f"{what}: {speed:.3f} Gbit/s, {lost:.2%} retransmitted"


REMOTE = [
    ("lveth", "rveth", TC),
    ("ltap", "rtap", TC),
    ("lveth", "rtap", TC),
    ("lvm", "rvm", 0.1),
    ("lvm", "rveth", 0.1),
    ("lxdp", "rveth", XDP),
    ("lxdp", "rxdp", XDP),
    ("lxdp", "rtap", XDP),
]
LOCAL = [
    ("lveth", "lwire", TC),
    ("lveth", "ltap", TC),
    ("lxdp", "lveth", XDP),
    ("lxdp", "rtap", XDP),
    ("lvm", "lveth", 0.1),
    ("lvm", "ltap", 0.1),
]


def test_between_all_kinds_of_ports(lab: Lab) -> None:
    left, right = lab.host("left"), lab.host("right")
    with guests_of(lab, left, right) as guests:
        for one, other, least in REMOTE + LOCAL:
            check(guests, one, other, least)
        for one, other, least in (REMOTE[0], REMOTE[1], REMOTE[3], REMOTE[5], LOCAL[0], LOCAL[1]):
            check(guests, one, other, least, "fd00::{:x}")
        assert not [name for name, (namespace, _) in guests.items() if bad_checksums(namespace)]
        assert counters(left, "lxdp")["rx_frames"]["xdp"] > 1000
        for host in (left, right):
            seen = counters(host, "vx")
            assert not any(seen["exceptions"].values()), seen
            assert sum(seen["drops"].values()) <= 10, seen


@pytest.mark.parametrize("network", ["vxvde://234.0.0.1", "vxvde:///v6/if=lan0"])
def test_tagged_guests(lab: Lab, network: str) -> None:
    require("tcx")
    left, right = lab.host("left"), lab.host("right")
    lab.underlay(left, right, mtu=1700)
    guests: Guests = {}
    with ExitStack() as undo:
        for number, host in enumerate((left, right), 1):
            veth, tap = f"veth{number}", f"tap{number}"
            guests[veth] = lab.guest(host, f"guest{number}", number, device=veth), number
            host.ip(f"tuntap add mode tap name {tap}")
            lab.address(host, tap, number + 2)
            guests[tap] = host, number + 2
            undo.enter_context(tagged(guests[veth][0], "eth0", VLAN))
            undo.enter_context(tagged(host, tap, VLAN))
            for process in [start(host, vnl, network) for vnl in (f"netdev://{veth}", f"tap://{tap}")]:
                process.wait_output("in the kernel", 20)
            for kind in (veth, tap):
                iperf_server(guests[kind][0], 5200 + guests[kind][1])
        for one, other in (("veth1", "veth2"), ("tap1", "tap2"), ("veth1", "tap2"), ("veth1", "tap1")):
            check(guests, one, other, TC, port=5200 + guests[other][1])
        check(guests, "veth1", "veth2", TC, "fd00::{:x}", port=5202)
        with left.entered():
            assert {entry["vlan"] for entry in call("fdb", action="list")["entries"]} == {VLAN}
        assert not [name for name, (namespace, _) in guests.items() if bad_checksums(namespace)]


@pytest.mark.parametrize("network", ["vxvde:///v6/if=lan0", "vxlan://239.0.0.1", "vxlan:///v6/if=lan0"])
def test_over_other_networks(lab: Lab, network: str) -> None:
    left, right = lab.host("left"), lab.host("right")
    lab.underlay(left, right, mtu=1700)
    guests: Guests = {}
    for number, host in enumerate((left, right), 1):
        guests[f"veth{number}"] = lab.guest(host, f"guest{number}", number, device=f"veth{number}"), number
        host.ip(f"tuntap add mode tap name tap{number}")
        lab.address(host, f"tap{number}", number + 2)
        guests[f"tap{number}"] = host, number + 2
        for process in [start(host, f"{scheme}{number}", network) for scheme in ("netdev://veth", "tap://tap")]:
            process.wait_output("in the kernel", 20)
        for kind in ("veth", "tap"):
            iperf_server(guests[f"{kind}{number}"][0])
    check(guests, "veth1", "veth2", TC)
    check(guests, "tap1", "tap2", TC, "fd00::{:x}")
    assert not [name for name, (namespace, _) in guests.items() if bad_checksums(namespace)]
    assert not any(counters(left, "vx")["exceptions"].values())


def test_a_guests_own_tunnel(lab: Lab) -> None:
    """A guest's vxlan device sends super-packets that are encapsulated already: the exception tap segments them."""
    require("vxlan")
    left, right = lab.host("left"), lab.host("right")
    lab.underlay(left, right, mtu=1700)
    guests = []
    for number, host in enumerate((left, right), 1):
        guest = lab.guest(host, f"guest{number}", number, device=f"g{number}")
        plug(host, f"netdev://g{number}", NETWORK)
        guest.ip(f"link add vx0 type vxlan id 9 local 10.0.0.{number} remote 10.0.0.{3 - number} dstport 4789")
        guest.ip(f"address add 10.9.0.{number}/24 dev vx0")
        guest.ip("link set vx0 up")
        guests.append(guest)
    assert reaches(guests[0], "10.9.0.2")
    iperf_server(guests[1])
    for direction in ((), ("-R",)):
        speed, lost = transfer(guests[0], "10.9.0.2", 20, *direction)
        assert speed > 0.05, f"{direction}: {speed:.3f} Gbit/s, {lost:.2%} retransmitted"
        assert lost < 0.1, f"{direction}: {speed:.3f} Gbit/s, {lost:.2%} retransmitted"
    assert counters(left, "vx")["exceptions"]["nested"]
    assert reaches(guests[0], "10.9.0.2", 20)
