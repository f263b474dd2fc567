# SPDX-License-Identifier: GPL-2.0-or-later
"""Input of local ports under BPF_PROG_TEST_RUN: learning, look-up, ageing, flooding, encapsulation; frame in, frame
out, counters.

A test run takes frames of 15 bytes to about 3500; 14-byte and jumbo frames go through real devices in tests/interop.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from tests.bpf.rig import (
    BROADCAST,
    GROUP,
    GROUP6,
    HOST,
    HOST6,
    PEER,
    PEER6,
    PEER_PORT,
    PORT,
    STACK,
    TC_NEXT,
    TC_REDIRECT,
    TC_SHOT,
    TUNNEL,
    UPLINK,
    WIRE1,
    WIRE2,
    A,
    B,
    C,
    K,
    Rig,
    address,
    ethernet,
    inet_sum,
    outer,
    udp4,
)
from vdexdp.wire.vxlan import encode_header, parse_outer

VNI_HEADER = encode_header(7)


@pytest.fixture
def rig(root: None) -> Iterator[Rig]:
    with Rig() as made:
        yield made


@pytest.fixture
def rig6(root: None) -> Iterator[Rig]:
    with Rig(v6=True) as made:
        yield made


FRAMES = {
    "ipv4": ethernet(B, A, 0x0800, udp4(b"x" * 100)),
    "ipv4, no UDP checksum": ethernet(B, A, 0x0800, udp4(b"x" * 100, checksum="none")),
    "ipv4, UDP checksum left to hardware": ethernet(B, A, 0x0800, udp4(b"odd", checksum="partial")),
    "ipv6": ethernet(B, A, 0x86DD, struct.pack("!IHBB", 6 << 28, 20, 59, 64) + bytes(32) + b"y" * 20),
    "arp": ethernet(B, A, 0x0806, bytes(28)),
    "15 bytes": ethernet(B, A, 0x88B5, b"z"),
    "802.3 length": ethernet(B, A, 60, bytes(60)),
    "1514": ethernet(B, A, 0x0800, udp4(bytes(range(250)) * 5 + bytes(222))),
    "3000": ethernet(B, A, 0x0800, udp4(bytes(range(200)) * 14 + bytes(158))),
    "802.1Q": ethernet(B, A, 0x0800, udp4(b"tagged"), (0x8100, 0x6005)),
    "802.1Q arp": ethernet(B, A, 0x0806, bytes(28), (0x8100, 0x0FFE)),
    "802.1ad": ethernet(B, A, 0x0800, udp4(b"service"), (0x88A8, 0x0064)),
    "QinQ": ethernet(B, A, 0x0800, udp4(b"both"), (0x88A8, 0x0064), (0x8100, 0x0005)),
    "tag and nothing else": B + A + bytes.fromhex("81000005"),
}


def vlan_of(frame: bytes) -> int:
    tagged = frame[12:14] in (b"\x81\x00", b"\x88\xa8") and len(frame) >= 18
    return struct.unpack_from("!H", frame, 14)[0] & 0xFFF if tagged else 0


@pytest.mark.parametrize("name", FRAMES)
def test_known_unicast_is_encapsulated_whole(rig: Rig, name: str) -> None:
    frame = FRAMES[name]
    rig.learn(B, TUNNEL, PEER, vlan=vlan_of(frame), flags=K["FDB_F_STATIC"])
    result = rig.run("port_ingress", WIRE1, frame)
    assert result.verdict == TC_REDIRECT, rig.drops()
    packet = parse_outer(result.data)
    assert packet is not None
    assert packet[1:6] == (HOST, PORT, PEER, PEER_PORT, 64)
    assert bytes(packet.payload) == VNI_HEADER + frame
    assert len(result.data) == 50 + len(frame)
    assert inet_sum(result.data[14:34]) == 0
    assert rig.count(WIRE1, "rx_frames", "PATH_TC") == 1
    assert rig.count(WIRE1, "rx_bytes", "PATH_TC") == len(frame)
    assert rig.count(TUNNEL, "tx_bytes", "PATH_TC") == len(frame)
    assert rig.drops() == {}


@pytest.mark.parametrize("name", FRAMES)
def test_ipv6_underlay_has_a_right_checksum(rig6: Rig, name: str) -> None:
    """A stock peer's kernel checks it: over the frame as it will be when hardware has filled in the inner checksum."""
    frame = FRAMES[name]
    rig6.learn(B, TUNNEL, PEER6, vlan=vlan_of(frame), flags=K["FDB_F_STATIC"])
    result = rig6.run("port_ingress", WIRE1, frame)
    assert result.verdict == TC_REDIRECT, rig6.drops()
    packet = parse_outer(result.data)
    assert packet is not None
    assert packet[1:6] == (HOST6, PORT, PEER6, PEER_PORT, 64)
    assert bytes(packet.payload) == VNI_HEADER + frame
    finished = result.data.replace(udp4(b"odd", checksum="partial"), udp4(b"odd"))
    segment = finished[54:]
    assert inet_sum(address(HOST6) + address(PEER6) + struct.pack("!II", len(segment), 17) + segment) == 0


def test_the_next_hop_is_the_learnt_one_only_on_our_own_link(rig: Rig) -> None:
    """The kernel's route and neighbour look-ups are for endpoints behind a router; for them the MAC is left to it."""
    for peer, mac in ((PEER, "0a0000000002"), ("10.78.0.9", "0a0000000002")):
        rig.run("uplink_ingress", UPLINK, outer(ethernet(BROADCAST, B, 0x0806, bytes(28)), peer))
        sent = rig.run("port_ingress", WIRE1, FRAMES["ipv4"]).data[:6]
        assert (sent == bytes.fromhex(mac)) == (peer == PEER)


def test_ipv6_peer_that_needs_no_checksum_gets_none(rig6: Rig) -> None:
    rig6.learn(B, TUNNEL, PEER6, flags=K["FDB_F_STATIC"] | K["FDB_F_ZERO_CSUM"])
    result = rig6.run("port_ingress", WIRE1, FRAMES["ipv4"])
    assert result.data[60:62] == b"\0\0"
    assert struct.unpack_from("!I", result.data, 14)[0] & 0xFFFFF == K["FLOWLABEL_CAPABLE"]


def test_source_is_learnt_and_used(rig: Rig) -> None:
    assert rig.run("port_ingress", WIRE1, ethernet(B, A, 0x0806, bytes(28))).verdict == TC_REDIRECT
    entry = rig.entry(A)
    assert (entry.port, entry.flags) == (WIRE1, 0)
    assert rig.run("port_ingress", WIRE2, ethernet(A, B, 0x0806, bytes(28))).verdict == TC_REDIRECT
    assert rig.count(WIRE2, "events", "EV_FLOOD") == 0
    assert rig.count(WIRE1, "tx_frames", "PATH_TC") == 1
    assert rig.count(WIRE1, "events", "EV_LEARN") == rig.count(WIRE2, "events", "EV_LEARN") == 1


@pytest.mark.parametrize("dst", [BROADCAST, B, bytes.fromhex("3333ff000001")])
def test_broadcast_and_unknown_go_everywhere_once(rig: Rig, dst: bytes) -> None:
    frame = ethernet(dst, A, 0x0800, udp4(b"to all"))
    result = rig.run("port_ingress", WIRE1, frame)
    assert rig.sent(WIRE2) == [frame]
    assert rig.sent(WIRE1) == []
    packet = parse_outer(result.data)
    assert packet is not None
    assert (packet.dst, packet.dport, packet.ttl) == (GROUP, 14789, 1)
    assert bytes(packet.payload) == VNI_HEADER + frame
    assert result.data[:6] == bytes.fromhex("01005e000001")
    assert [rig.count(port, "tx_frames", "PATH_TC") for port in (WIRE1, WIRE2, STACK, TUNNEL)] == [0, 1, 1, 1]


def test_group_over_ipv6(rig6: Rig) -> None:
    result = rig6.run("port_ingress", WIRE1, ethernet(BROADCAST, A, 0x0806, bytes(28)))
    packet = parse_outer(result.data)
    assert packet is not None
    assert (packet.src, packet.dst, packet.dport, packet.ttl) == (HOST6, GROUP6, 14789, 1)
    segment = result.data[54:]
    assert inet_sum(address(HOST6) + address(GROUP6) + struct.pack("!II", len(segment), 17) + segment) == 0


def test_vlans_are_apart(rig: Rig) -> None:
    rig.learn(B, WIRE2, vlan=5)
    rig.run("port_ingress", WIRE1, ethernet(B, A, 0x0806, bytes(28), (0x8100, 5)))
    assert rig.count(WIRE1, "events", "EV_FLOOD") == 0
    assert rig.entry(A, vlan=5).port == WIRE1
    rig.run("port_ingress", WIRE1, ethernet(B, A, 0x0806, bytes(28), (0x8100, 6)))
    assert rig.count(WIRE1, "events", "EV_FLOOD") == 1


def test_old_entries_are_not_used(rig: Rig) -> None:
    rig.set_switch(expiry=10**9)  # short: the clock of a machine that has just started does not go far back
    rig.learn(B, WIRE2, age=2)
    rig.run("port_ingress", WIRE1, ethernet(B, A, 0x0806, bytes(28)))
    assert rig.count(WIRE1, "events", "EV_EXPIRED") == 1
    assert rig.count(WIRE1, "events", "EV_FLOOD") == 1


@pytest.mark.parametrize("what", ["flush", "unplug"])
def test_generations_forget_without_a_walk(rig: Rig, what: str) -> None:
    rig.learn(B, WIRE2)
    if what == "flush":
        rig.set_switch(generation=1)
    else:
        rig.set_port(WIRE2, kind=K["PORT_WIRE"], generation=1)
    rig.run("port_ingress", WIRE1, ethernet(B, A, 0x0806, bytes(28)))
    assert rig.count(WIRE1, "events", "EV_FLOOD") == 1


def test_a_mac_that_moves_is_followed(rig: Rig) -> None:
    rig.learn(A, WIRE2)
    rig.run("port_ingress", WIRE1, ethernet(B, A, 0x0806, bytes(28)))
    assert rig.entry(A).port == WIRE1
    assert rig.count(WIRE1, "events", "EV_MOVE") == 1


def test_static_entries_neither_move_nor_age(rig: Rig) -> None:
    rig.learn(A, WIRE2, flags=K["FDB_F_STATIC"], age=10000)
    rig.run("port_ingress", WIRE1, ethernet(B, A, 0x0806, bytes(28)))
    assert rig.entry(A).port == WIRE2
    assert rig.run("port_ingress", WIRE1, ethernet(A, C, 0x0806, bytes(28))).verdict == TC_REDIRECT
    assert rig.count(WIRE2, "tx_frames", "PATH_TC") == 2  # one flooded before, one straight


def test_a_port_learns_no_more_than_its_share(rig: Rig) -> None:
    rig.set_port(WIRE1, kind=K["PORT_WIRE"], learn_limit=3)
    for number in range(10):
        rig.run("port_ingress", WIRE1, ethernet(BROADCAST, bytes.fromhex(f"0200000001{number:02x}"), 0x0806, bytes(28)))
    assert rig.count(WIRE1, "events", "EV_LEARN") == 3
    assert rig.count(WIRE1, "events", "EV_LIMITED") == 7
    assert len(list(rig.maps["fdb"].keys())) == 3
    assert len(rig.sent(WIRE2)) == 10


def test_group_sources_are_forwarded_but_never_learnt(rig: Rig) -> None:
    rig.run("port_ingress", WIRE1, ethernet(B, BROADCAST, 0x0806, bytes(28)))
    assert rig.entry(BROADCAST) is None
    assert len(rig.sent(WIRE2)) == 1


def test_destination_behind_the_same_port(rig: Rig) -> None:
    rig.learn(B, WIRE1)
    assert rig.run("port_ingress", WIRE1, ethernet(B, A, 0x0806, bytes(28))).verdict == TC_SHOT
    assert rig.drops() == {"DROP_SAME_PORT": 1}


def test_no_frame_escapes_its_switch(rig: Rig) -> None:
    """The entry's port has been given to another switch meanwhile."""
    rig.learn(B, WIRE2)
    rig.set_port(WIRE2, kind=K["PORT_WIRE"], switch_id=2)
    rig.run("port_ingress", WIRE1, ethernet(B, A, 0x0806, bytes(28)))
    assert rig.sent(WIRE2) == []
    assert rig.count(WIRE2, "tx_frames", "PATH_TC") == 0


def test_an_interface_that_is_no_port_is_left_alone(rig: Rig) -> None:
    frame = ethernet(BROADCAST, A, 0x0806, bytes(28))
    assert rig.run("port_ingress", UPLINK, frame).verdict == TC_NEXT


def test_hub_and_cable(rig: Rig) -> None:
    frame = ethernet(B, A, 0x0806, bytes(28))
    rig.set_switch("MODE_HUB", tunnel=0)
    assert rig.run("port_ingress", WIRE1, frame).verdict == TC_REDIRECT, "the last one gets the frame itself"
    assert rig.sent(WIRE2) == [frame]
    assert rig.entry(A) is None
    rig.set_switch("MODE_CABLE", members=(WIRE1, WIRE2), tunnel=0)
    assert rig.run("port_ingress", WIRE2, frame).verdict == TC_REDIRECT
    assert rig.count(WIRE1, "tx_frames", "PATH_TC") == 1
    rig.set_switch("MODE_CABLE", members=(WIRE2,), tunnel=0)
    assert rig.run("port_ingress", WIRE2, frame).verdict == TC_SHOT
    assert rig.drops() == {"DROP_NO_PORTS": 1}


@pytest.mark.parametrize(
    ("mtu", "size", "reason"), [(1500, 1464, None), (1500, 1465, "EXC_MTU"), (9000, 1514, None), (576, 1000, "EXC_MTU")]
)
def test_what_the_uplink_cannot_carry_takes_the_exception_path(
    root: None, mtu: int, size: int, reason: str | None
) -> None:
    frame = ethernet(B, A, 0x0800, udp4(bytes(size - 42)))
    assert len(frame) == size
    with Rig(mtu=mtu) as rig:
        rig.learn(B, TUNNEL, PEER, flags=K["FDB_F_STATIC"])
        result = rig.run("port_ingress", WIRE1, frame)
        assert result.verdict == TC_REDIRECT
        assert bytes(result.data[50:]) == frame
        assert rig.count(TUNNEL, "exceptions", "EXC_MTU") == (reason is not None)
        assert rig.count(TUNNEL, "tx_frames", "PATH_EXCEPTION") == (reason is not None)


@pytest.mark.parametrize("capable", [True, False])
@pytest.mark.parametrize("finished", [True, False])
def test_virtual_uplinks_and_nodes_that_read_sockets(root: None, capable: bool, finished: bool) -> None:
    """No hardware would finish the inner checksum: the exception tap does, unless the far end is a kernel's."""
    with Rig(tunnel_flags=K["TUNNEL_F_VIRTUAL"]) as rig:
        rig.learn(B, TUNNEL, PEER, flags=K["FDB_F_STATIC"] | (K["FDB_F_ZERO_CSUM"] if capable else 0))
        rig.run("port_ingress", WIRE1, FRAMES["ipv4" if finished else "ipv4, UDP checksum left to hardware"])
        assert rig.count(TUNNEL, "exceptions", "EXC_OFFLOAD") == (not capable and not finished)
        assert rig.drops() == {}


def test_an_endpoint_on_this_host_takes_the_exception_path(rig: Rig) -> None:
    rig.learn(B, TUNNEL, HOST, flags=K["FDB_F_STATIC"] | K["FDB_F_LOCAL"])
    rig.run("port_ingress", WIRE1, FRAMES["ipv4"])
    assert rig.count(TUNNEL, "exceptions", "EXC_LOCAL") == 1


def test_members_of_the_group_on_this_host_get_a_copy_with_ttl_0(root: None) -> None:
    with Rig(tunnel_flags=K["TUNNEL_F_LOCAL_PEERS"]) as rig:
        frame = ethernet(BROADCAST, A, 0x0806, bytes(28))
        result = rig.run("port_ingress", WIRE1, frame)
        (copy,) = rig.sent(6)
        packet, twin = parse_outer(result.data), parse_outer(copy)
        assert packet is not None
        assert twin is not None
        assert (packet.ttl, twin.ttl) == (1, 0)
        assert bytes(packet.payload) == bytes(twin.payload) == VNI_HEADER + frame
        assert inet_sum(result.data[14:34]) == 0


def test_too_big_for_the_port(rig: Rig) -> None:
    rig.set_port(WIRE2, kind=K["PORT_WIRE"], mtu=1514)
    rig.learn(B, WIRE2)
    assert rig.run("port_ingress", WIRE1, ethernet(B, A, 0x88B5, bytes(1504))).verdict == TC_REDIRECT
    assert rig.run("port_ingress", WIRE1, ethernet(B, A, 0x88B5, bytes(1505))).verdict == TC_SHOT
    assert rig.drops() == {"DROP_TOO_BIG": 1}


def test_a_super_packet_that_cannot_be_encapsulated_is_bounced(rig: Rig) -> None:
    """The kernel refuses room in it (here since a test run's super-packet is of no type; in life, a guest's own
    tunnel): the exception tap has it segmented and sends it back."""
    rig.learn(B, TUNNEL, PEER, flags=K["FDB_F_STATIC"])
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + 20 + 2000, 1, 0, 64, 6, 0, bytes(4), bytes(4))
    tcp = struct.pack("!HHIIBBHHH", 1, 2, 3, 4, 0x50, 0x10, 500, 0, 0)
    frame = ethernet(B, A, 0x0800, ip + tcp + bytes(2000))
    result = rig.run("port_ingress", WIRE1, frame, gso_size=500, gso_segs=4)
    assert result.verdict == TC_REDIRECT
    assert result.data == frame
    assert rig.count(WIRE1, "rx_frames", "PATH_TC") == 4
    assert rig.count(TUNNEL, "exceptions", "EXC_NESTED") == 1
    assert rig.drops() == {}
