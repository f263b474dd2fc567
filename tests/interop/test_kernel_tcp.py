# SPDX-License-Identifier: GPL-2.0-or-later
"""TCP with every offload on, between ports of all kinds: what guests leave unfinished is finished exactly once.

Shows: streams at a sane speed, without a storm of retransmissions or a wrong checksum, in both directions, between
veths, taps of the host and a virtual machine's tap, on two hosts and on one, by tc and by XDP, over IPv4, IPv6 and
802.1Q in the guests, over vxvde and vxlan, IPv4 and IPv6 in the underlay; through a tunnel that a guest makes itself,
and through a guest that routes.  UDP super-packets, too.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest

from tests.kernelkit import (
    NETWORK,
    VirtualMachine,
    bad_checksums,
    counters,
    daemon,
    plug,
    reaches,
    start,
    tagged,
    transfer,
    xdp_told,
)
from tests.labkit import require
from vdexdp.control.client import call
from vdexdp.lab import Lab, Namespace
from vdexdp.lab.measure import IPERF_PORT, iperf_server

TC, XDP = 0.4, 0.15
"""Gbit/s that each path reaches even on a busy machine; stock vde_plug is below both."""
LOSS = 0.1
"""Retransmissions per segment: in so short a stream the one window that slow start sends too much is seen."""
OVERRUN = 0.5
"""The same where Python carries the frames: its queue overflows when others have the processor (0.01 to 0.28 seen)."""
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
        speed, lost = transfer(client, address, 40, *source, *direction)
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
        assert counters(left, "lxdp")["rx_frames"]["xdp"] > 1000 or not xdp_told(left, "lxdp")
        for host in (left, right):
            seen = counters(host, "vx")
            assert not any(seen["exceptions"].values()), seen
            assert sum(seen["drops"].values()) <= 10, seen


@pytest.mark.parametrize("network", ["vxvde://234.0.0.1", "vxvde:///v6/if=lan0"])
def test_tagged_guests(lab: Lab, network: str) -> None:
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
            daemon(host)  # before tagged(): a daemon removes filters of ours that it finds
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
        assert lost < OVERRUN, f"{direction}: {speed:.3f} Gbit/s, {lost:.2%} retransmitted"
    assert counters(left, "vx")["exceptions"]["nested"]
    assert reaches(guests[0], "10.9.0.2", 20)


def test_udp_super_packets(lab: Lab) -> None:
    """UDP_SEGMENT, as QUIC servers and WireGuard use it: every datagram arrives, by itself and whole."""
    left, right = lab.host("left"), lab.host("right")
    lab.underlay(left, right, mtu=1700)
    guests: Guests = {}
    for number, (host, name) in enumerate(((left, "g1"), (left, "g2"), (right, "g3")), 1):
        guests[name] = lab.guest(host, f"guest-{name}", number, device=name), number
        plug(host, f"netdev://{name}", NETWORK)
    for number, (host, name) in enumerate(((left, "t4"), (right, "t5")), 4):
        plug(host, f"tap://{name}", NETWORK)
        lab.address(host, name, number)
        guests[name] = host, number
    machine = VirtualMachine(lab, right, "v6", 6)
    try:
        plug(right, "netdev://v6", NETWORK)
        guests["v6"] = machine.guest, 6
        for name in ("g2", "g3", "t4", "t5", "v6"):
            for form in ("10.0.0.{}", "fd00::{:x}"):
                address = form.format(guests[name][1])
                assert reaches(guests["g1"][0], address)
                sent, seen = super_packets(guests["g1"][0], guests[name][0], address)
                assert sorted(seen) == sorted(sent), f"{name}: {len(seen)} of {len(sent)} datagrams came"
        sent, seen = super_packets(right, guests["g1"][0], "10.0.0.1")
        assert sorted(seen) == sorted(sent), f"from a tap: {len(seen)} of {len(sent)} datagrams came"
        assert not [name for name, (namespace, _) in guests.items() if bad_checksums(namespace)]
    finally:
        machine.close()


UDP_SEGMENT = 103  # linux/udp.h


def super_packets(source: Namespace, target: Namespace, address: str) -> tuple[list[bytes], list[bytes]]:
    """Datagrams of 1400 bytes and a shorter last one, sent by the dozen; and those that came."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with target.entered():
        receiver = socket.socket(family, socket.SOCK_DGRAM)
        receiver.bind(("", 7777))
        receiver.settimeout(1)
    with source.entered():
        sender = socket.socket(family, socket.SOCK_DGRAM)
        sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1400)
    sent: list[bytes] = []
    seen: list[bytes] = []
    with sender, receiver:
        for burst in range(5):
            datagrams = [bytes((burst * 12 + n,)) * (1400 if n < 11 else 77) for n in range(12)]
            sender.sendto(b"".join(datagrams), (address, 7777))
            sent += datagrams
            with suppress(TimeoutError):
                while len(seen) < len(sent):
                    seen.append(receiver.recv(65535))
    return sent, seen


def test_guests_that_route(lab: Lab) -> None:
    """What comes out of the tunnel whole goes on through a guest's stack, to a device that takes no super-packets."""
    left, right = lab.host("left"), lab.host("right")
    lab.underlay(left, right, mtu=1700)
    client, router = lab.guest(left, "g1", 1), lab.guest(right, "g2", 2)
    behind = lab.namespace("behind")
    lab.pair(router, "eth1", behind, "eth0")
    router.run("ethtool", "-K", "eth1", "tx", "off")
    router.ip("address add 10.7.0.1/24 dev eth1")
    behind.ip("address add 10.7.0.2/24 dev eth0")
    behind.ip("route add 10.0.0.0/24 via 10.7.0.1")
    client.ip("route add 10.7.0.0/24 via 10.0.0.2")
    router.sysctl("net.ipv4.ip_forward", "1")
    plug(left, "netdev://g1", NETWORK)
    plug(right, "netdev://g2", NETWORK)
    assert reaches(client, "10.7.0.2")
    iperf_server(behind)
    for direction in ((), ("-R",)):
        speed, lost = transfer(client, "10.7.0.2", 60, *direction)
        assert speed > 0.2, f"{direction}: {speed:.3f} Gbit/s, {lost:.2%} retransmitted"
        assert lost < LOSS, f"{direction}: {speed:.3f} Gbit/s, {lost:.2%} retransmitted"
    assert not bad_checksums(behind) + bad_checksums(client)
