# SPDX-License-Identifier: GPL-2.0-or-later
"""What must not meet does not meet, what is not ours is not touched, and nobody can fill the table for the others.

Shows: frames of one network never come out of another, whatever they differ in (VNI, group, port, kind, uplink), known
addresses included; the hosts' own traffic passes an uplink at its old speed, and datagrams that only look like ours
reach the sockets that they are for; 100,000 invented addresses from one guest leave a pair of others undisturbed, here
and over the tunnel.
"""

from __future__ import annotations

import itertools
import re
import socket
import struct
import subprocess
import time
from contextlib import ExitStack
from random import Random

import pytest

from tests.frameshapes import BROADCAST, LOCAL, MARK, mac_of, shapes
from tests.kernelkit import NETWORK, End, PacketEnd, counters, plug, plug_ends, reaches, show, start, transfer, veth
from vdexdp.lab import Lab
from vdexdp.lab.measure import iperf_server
from vdexdp.wire.vxlan import build_outer, encode_header

NETWORKS = [
    "vxvde://234.0.0.1/if=lan0",
    "vxvde://234.0.0.1/vni=2/if=lan0",
    "vxvde://234.0.0.2/if=lan0",
    "vxvde://234.0.0.1/port=5000/if=lan0",
    "vxvde://234.0.0.1/if=lan1",
    "vxvde:///v6/if=lan0",
    "vxlan://239.0.0.1/if=lan0",
    "vxlan://239.0.0.1/vni=2/if=lan0",
]
PORT_LIMIT, TUNNEL_LIMIT = 4096, 16384
"""New addresses for each expiry time."""


def numbered(sender: End, target: bytes, network: int) -> bytes:
    return target + sender.mac + LOCAL.to_bytes(2, "big") + bytes((network,)) * 50


def test_networks_never_meet(lab: Lab) -> None:
    """Two ends on the left and one on the right in each of eight networks, with the same addresses in all of them."""
    left, right = lab.host("left"), lab.host("right")
    for device in ("lan0", "lan1"):
        lab.underlay(left, right, device=device, mtu=1700)
    members: list[list[End]] = []
    with ExitStack() as undo:
        for index, network in enumerate(NETWORKS):
            ends: list[End] = [veth(lab, host, 10 * index + n, mtu=1500) for n, host in enumerate((left, left, right))]
            for n, end in enumerate(ends):
                end.mac = MARK + bytes((9, 9, n))
                undo.callback(end.close)
            plug_ends(left, network, ends[:2])
            plug_ends(right, network, ends[2:])
            members.append(ends)
        assert len(show(left)["switches"]) == len(NETWORKS)
        for target in (lambda end: BROADCAST, lambda end: end.mac):
            for number, ends in enumerate(members):
                for one, other in itertools.permutations(ends, 2):
                    one.send(numbered(one, target(other), number))
            for number, ends in enumerate(members):
                for end in ends:
                    expected = 4 if target(end) == BROADCAST else 2
                    end.collect(expected, 3)
                    assert len(end.seen) == expected, f"{NETWORKS[number]}: {len(end.seen)} came to {end}"
                    assert {data[14] for data in end.seen} == {number}, f"{end} in {NETWORKS[number]}: {end.seen}"
                    end.seen.clear()


def test_what_is_not_ours_passes(lab: Lab) -> None:
    left, right = lab.host("left"), lab.host("right")
    lab.underlay(left, right)
    lab.guest(left, "g1", 1)
    plug(left, "netdev://g1", NETWORK)
    header = struct.pack("!II", 0x08000000, 77 << 8)
    frame = BROADCAST + MARK + bytes(3) + bytes(60)
    datagrams = {
        "another VNI": header + frame,
        "no VXLAN flag": bytes(8) + frame,
        "short": b"abc",
        "empty": b"",
        "as long as a header": header,
        "fragments": header + bytes(4000),
    }
    with ExitStack() as undo:
        for family, here, there in (
            (socket.AF_INET, "192.0.2.1", "192.0.2.2"),
            (socket.AF_INET6, "2001:db8::1", "2001:db8::2"),
        ):
            with left.entered():
                receiver = undo.enter_context(socket.socket(family, socket.SOCK_DGRAM))
                receiver.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # beside the network's own socket
                receiver.bind((here, 14789))
                receiver.settimeout(2)
            with right.entered():
                sender = undo.enter_context(socket.socket(family, socket.SOCK_DGRAM))
                sender.bind((there, 0))
            for name, data in datagrams.items():
                sender.sendto(data, (here, 14789))
                assert receiver.recv(9000) == data, name
    assert reaches(right, "192.0.2.1", 3, "-s", "3000")
    assert not any(show(left)["uplinks"][0]["counters"]["drops"].values())


def test_the_hosts_own_traffic_keeps_its_speed(lab: Lab) -> None:
    left, right = lab.host("left"), lab.host("right")
    lab.underlay(left, right)
    lab.guest(left, "g1", 1)
    iperf_server(left)
    without: list[float] = []
    plugged: list[float] = []
    for _ in range(3):
        without.append(transfer(right, "192.0.2.1", 300)[0])
        process = plug(left, "netdev://g1", NETWORK)
        plugged.append(transfer(right, "192.0.2.1", 300)[0])
        process.stop()
    assert max(plugged) > 0.6 * max(without), f"{plugged} Gbit/s, {without} without"


def invented(count: int, target: bytes) -> list[bytes]:
    rest = LOCAL.to_bytes(2, "big") + bytes(46)
    return [target + b"\x06" + number.to_bytes(5, "big") + rest for number in range(count)]


def flood(end: PacketEnd, frames: list[bytes]) -> None:
    for data in frames:
        while True:
            try:
                end.socket.send(data)
                break
            except BlockingIOError:
                time.sleep(0.001)


@pytest.mark.parametrize("place", ["here", "over the tunnel"])
def test_invented_addresses_do_not_disturb_others(lab: Lab, place: str) -> None:
    left, right = lab.host("left"), lab.host("right")
    lab.underlay(left, right, mtu=1700)
    guests = [lab.guest(left, "g1", 1), lab.guest(right, "g2", 2)]
    for host, vnl in ((left, "netdev://g1"), (right, "netdev://g2")):
        plug(host, vnl, NETWORK)
    evil = veth(lab, left if place == "here" else right, 6, mtu=1500)
    # The other host's user has lifted its limit: our side must hold by its own.
    start(left if place == "here" else right, evil.vnl + ("/limit=0" if place != "here" else ""), NETWORK).wait_output(
        "in the kernel"
    )
    target = bytes.fromhex(guests[0].mac("eth0").replace(":", ""))
    try:
        assert reaches(guests[0], "10.0.0.2")
        before = counters(left, "g1")["events"].get("flood", 0)
        pinging = guests[0].spawn("ping", "-n", "-q", "-i", "0.005", "-w", "60", "-c", "100000", "10.0.0.2")
        flood(evil, invented(100_000, target))
        pinging.signal(2)
        pinging.wait(5)
        said = pinging.output()
        sent, received = (int(word) for word in said.split("---")[2].replace("packets transmitted,", "").split()[:2])
        # The request that is under way when ping ends has no answer yet.
        assert sent - received <= max(2, sent // 50), said
        assert sent > 20, said
        assert counters(left, "g1")["events"].get("flood", 0) - before <= 2, "the pair's own frames were not flooded"
        entries = show(left)["switches"][0]["fdb"]
        if place == "here":
            assert counters(left, "v6")["events"]["limited"] > 90_000
            assert entries <= PORT_LIMIT + 10
        else:
            assert counters(left, "vx")["events"]["limited"] > 50_000
            assert entries <= TUNNEL_LIMIT + 10
        assert reaches(guests[1], "10.0.0.1")
    finally:
        evil.close()


@pytest.mark.parametrize("family", [4, 6])
def test_anything_at_all(lab: Lab, family: int) -> None:
    """Noise from a guest, and damaged packets of the network from the LAN, harm nobody."""
    network = NETWORK if family == 4 else "vxvde:///v6/if=lan0"
    left, right = lab.host("left"), lab.host("right")
    lab.underlay(left, right, mtu=1700)
    guests = [lab.guest(left, "g1", 1), lab.guest(right, "g2", 2)]
    plug(left, "netdev://g1", network)
    plug(right, "netdev://g2", network)
    noisy, other = veth(lab, left, 6, mtu=1500), veth(lab, left, 7, mtu=1500)
    plug(left, noisy.vnl, network)
    plug(left, other.vnl, f"{network}/vni=2")
    lan = PacketEnd(8, "", right, "lan0")
    random = Random(family)
    printed = kernel_log()
    try:
        assert reaches(guests[0], "10.0.0.2")
        for _ in range(2000):
            noisy.send(random.choice((BROADCAST, random.randbytes(6))) + random.randbytes(random.randint(8, 200)))
        end = next(one for one in show(left)["switches"] if one["name"].endswith("vni 1 via lan0"))
        near, far = bytes.fromhex(left.mac("lan0").replace(":", "")), bytes.fromhex(right.mac("lan0").replace(":", ""))
        inner = list(shapes(mac_of(8), BROADCAST, 1500).values())
        sender = end["local"].rpartition("1")[0] + "2"
        for number in range(4000):
            payload = encode_header(1) + random.choice(inner)[: random.choice((4000, random.randint(0, 60)))]
            packet = bytearray(build_outer(sender, 5000, end["local"], end["udp_port"], 0, payload))
            packet[0:12] = near + far
            for _ in range(number % 4):  # in the outer headers, or the inner ones
                packet[random.randrange(12, min(len(packet), 120))] = random.randrange(256)
            lan.send(bytes(packet[: random.choice((4000, 4000, random.randint(14, len(packet))))]))
        assert reaches(guests[0], "10.0.0.2")
        assert reaches(guests[1], "fd00::1")
        assert counters(left, "vx")["rx_frames"]["tc"] > 1000
        assert show(left)["worker"]["restarts"] == 0
        other.collect(1, 0.2)
        assert not other.seen, "nothing escaped into another network"
    finally:
        for one in (noisy, other, lan):
            one.close()
    complaints = [line for line in kernel_log()[len(printed) :] if re.search(r"WARNING|BUG|Oops|skb|bpf", line)]
    assert not complaints, complaints


def kernel_log() -> list[str]:
    return subprocess.run(["dmesg"], capture_output=True, text=True, check=True).stdout.splitlines()
