# SPDX-License-Identifier: GPL-2.0-or-later
"""Decapsulation under BPF_PROG_TEST_RUN: what is ours and what is not, learning of endpoints, goodbyes, the exception
tap's input."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from tests.bpf.rig import (
    BROADCAST,
    EXCEPTION,
    GROUP,
    GROUP6,
    GROUP_PORT,
    HOST,
    HOST6,
    OTHER_PEER,
    PEER,
    PEER6,
    PEER_PORT,
    PORT,
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
    outer,
)
from tests.bpf.test_port import FRAMES, vlan_of
from vdexdp.control.host import Host
from vdexdp.control.netlink import Netlink
from vdexdp.wire.vxlan import build_outer, encode_header


@pytest.fixture
def rig(root: None) -> Iterator[Rig]:
    with Rig() as made:
        yield made


@pytest.fixture
def rig6(root: None) -> Iterator[Rig]:
    with Rig(v6=True) as made:
        yield made


@pytest.mark.parametrize("name", FRAMES)
@pytest.mark.parametrize("family", [4, 6])
def test_known_unicast_comes_out_whole(root: None, family: int, name: str) -> None:
    frame = FRAMES[name]
    with Rig(v6=family == 6) as rig:
        rig.learn(B, WIRE2, vlan=vlan_of(frame), flags=K["FDB_F_STATIC"])
        packet = outer(frame) if family == 4 else outer(frame, PEER6, HOST6)
        result = rig.run("uplink_ingress", UPLINK, packet)
        assert result.verdict == TC_REDIRECT, rig.drops()
        # A test run does not return the outermost tag, which the program hands to the skb's metadata.
        stripped = frame[:12] + frame[16:] if frame[12:14] in (b"\x81\x00", b"\x88\xa8") and len(frame) >= 18 else frame
        assert result.data == stripped
        entry = rig.entry(A, vlan=vlan_of(frame))
        assert (entry.port, bytes(entry.addr)) == (TUNNEL, address(PEER if family == 4 else PEER6))
        assert entry.udp_port == struct.unpack("=H", struct.pack("!H", PEER_PORT))[0]
        assert rig.count(TUNNEL, "rx_bytes", "PATH_TC") == len(frame)
        assert rig.count(WIRE2, "tx_frames", "PATH_TC") == 1
        assert rig.drops() == {}


@pytest.mark.parametrize("name", [name for name in FRAMES if name != "tag and nothing else"])  # no kernel receives that
def test_flooded_frames_reach_local_ports_byte_for_byte(rig: Rig, name: str) -> None:
    frame = FRAMES[name]
    assert rig.run("uplink_ingress", UPLINK, outer(frame, dst=GROUP, dport=GROUP_PORT)).verdict == TC_SHOT
    assert rig.sent(WIRE1) == [frame] or vlan_of(frame)
    assert len(rig.sent(WIRE2)) == 1
    assert rig.sent(UPLINK) == []
    assert rig.drops() == {}


NOT_OURS = {
    "another port": outer(FRAMES["ipv4"], dport=PORT + 1),
    "another address": outer(FRAMES["ipv4"], dst=OTHER_PEER),
    "another network": outer(FRAMES["ipv4"], header=encode_header(8)),
    "not VXLAN": outer(FRAMES["ipv4"], header=bytes(8)),
    "a fragment": outer(FRAMES["ipv4"], fragment=0x2000),
    "a later fragment": outer(FRAMES["ipv4"], fragment=0x00B9),
    "no UDP payload": outer(b"", header=b""),
    "ARP": ethernet(BROADCAST, A, 0x0806, bytes(46)),
    "TCP": ethernet(B, A, 0x0800, b"\x45\0\0\x28\0\1\0\0\x40\x06" + bytes(30)),
}


@pytest.mark.parametrize("name", NOT_OURS)
def test_what_is_not_ours_passes_untouched(rig: Rig, name: str) -> None:
    for point in ("uplink_ingress", "uplink_xdp"):
        result = rig.run(point, UPLINK, NOT_OURS[name])
        assert result.verdict == (TC_NEXT if point == "uplink_ingress" else 2)
        assert result.data == NOT_OURS[name]
    assert rig.drops() == {}
    assert rig.count(UPLINK, "rx_frames", "PATH_TC") == 0


DROPPED = {
    "reserved bits set": (outer(FRAMES["ipv4"], header=bytes.fromhex("0800000100000700")), "DROP_BAD_HEADER"),
    "reserved byte set": (outer(FRAMES["ipv4"], header=bytes.fromhex("0800000000000701")), "DROP_BAD_HEADER"),
    "a runt": (outer(b"short"), "DROP_RUNT"),
    "our own copy": (outer(FRAMES["ipv4"], HOST, GROUP, PORT, GROUP_PORT), "DROP_OWN_COPY"),
    "cut short": (outer(FRAMES["1514"])[:900], "DROP_BAD_HEADER"),
}


@pytest.mark.parametrize("name", DROPPED)
def test_bad_packets_are_dropped_with_their_reason(rig: Rig, name: str) -> None:
    packet, reason = DROPPED[name]
    assert rig.run("uplink_ingress", UPLINK, packet).verdict == TC_SHOT
    assert rig.drops() == {reason: 1}
    assert rig.sent(WIRE1) == []


def test_vxlan_ignores_reserved_bits_and_answers_to_its_own_port(root: None) -> None:
    with Rig(kind="TUNNEL_VXLAN") as rig:
        rig.learn(B, WIRE2)
        packet = outer(FRAMES["ipv4"], header=bytes.fromhex("0c00000000000701"))
        assert rig.run("uplink_ingress", UPLINK, packet).verdict == TC_REDIRECT
        assert rig.entry(A).udp_port == rig.tunnel.group_port


def test_padding_of_a_short_packet_is_taken_off(rig: Rig) -> None:
    rig.learn(B, WIRE2)
    frame = FRAMES["15 bytes"]
    assert rig.run("uplink_ingress", UPLINK, outer(frame, pad=bytes(20))).data == frame


def test_from_the_tunnel_for_the_tunnel(rig: Rig) -> None:
    rig.learn(B, TUNNEL, OTHER_PEER, flags=K["FDB_F_STATIC"])
    assert rig.run("uplink_ingress", UPLINK, outer(FRAMES["ipv4"])).verdict == TC_SHOT
    assert rig.drops() == {"DROP_SPLIT_HORIZON": 1}


def test_goodbye_forgets_that_peer_and_no_other(rig: Rig) -> None:
    rig.run("uplink_ingress", UPLINK, outer(ethernet(BROADCAST, A, 0x0806, bytes(28))))
    rig.run("uplink_ingress", UPLINK, outer(ethernet(BROADCAST, B, 0x0806, bytes(28)), src=OTHER_PEER))
    goodbye = outer(b"", dst=GROUP, dport=GROUP_PORT)
    assert rig.run("uplink_ingress", UPLINK, goodbye + bytes(10)).verdict == TC_SHOT
    assert rig.count(TUNNEL, "events", "EV_GOODBYE") == 1
    rig.run("port_ingress", WIRE1, ethernet(A, C, 0x0806, bytes(28)))
    assert rig.count(WIRE1, "events", "EV_FLOOD") == 1
    rig.run("port_ingress", WIRE1, ethernet(B, C, 0x0806, bytes(28)))
    assert rig.count(WIRE1, "events", "EV_FLOOD") == 1
    rig.run("uplink_ingress", UPLINK, outer(ethernet(BROADCAST, A, 0x0806, bytes(28))))
    rig.run("port_ingress", WIRE1, ethernet(A, C, 0x0806, bytes(28)))
    assert rig.count(WIRE1, "events", "EV_FLOOD") == 1


def test_another_node_that_takes_the_mac(rig: Rig) -> None:
    frame = ethernet(BROADCAST, A, 0x0806, bytes(28))
    rig.run("uplink_ingress", UPLINK, outer(frame))
    rig.run("uplink_ingress", UPLINK, outer(frame, sport=PEER_PORT + 1))
    assert rig.count(TUNNEL, "events", "EV_MOVE") == 1
    assert rig.entry(A).udp_port == struct.unpack("=H", struct.pack("!H", PEER_PORT + 1))[0]


def test_zero_checksum_capability_is_learnt(rig6: Rig) -> None:
    frame = ethernet(BROADCAST, A, 0x0806, bytes(28))
    rig6.run("uplink_ingress", UPLINK, outer(frame, PEER6, GROUP6, PEER_PORT, GROUP_PORT, flow=K["FLOWLABEL_CAPABLE"]))
    assert rig6.entry(A).flags == K["FDB_F_ZERO_CSUM"] | K["FDB_F_ON_LINK"]
    rig6.run(
        "uplink_ingress", UPLINK, outer(ethernet(BROADCAST, B, 0x0806, bytes(28)), PEER6, GROUP6, PEER_PORT, GROUP_PORT)
    )
    assert rig6.entry(B).flags == K["FDB_F_ON_LINK"]


def test_a_kernel_is_known_by_its_missing_checksum(rig: Rig) -> None:
    packet = outer(ethernet(BROADCAST, A, 0x0806, bytes(28)))
    rig.run("uplink_ingress", UPLINK, packet)
    assert rig.entry(A).flags == K["FDB_F_ZERO_CSUM"] | K["FDB_F_ON_LINK"]
    packet = outer(ethernet(BROADCAST, B, 0x0806, bytes(28)))
    rig.run("uplink_ingress", UPLINK, packet[:40] + b"\x12\x34" + packet[42:])
    assert rig.entry(B).flags == K["FDB_F_ON_LINK"]


def test_a_vxlan_device_is_known_by_its_source_ports(root: None) -> None:
    """Kernels choose them by flow; a node that reads a socket sends from the group's port."""
    with Rig(kind="TUNNEL_VXLAN") as rig:
        for mac, sport, flag in ((A, PEER_PORT, K["FDB_F_ZERO_CSUM"]), (B, GROUP_PORT, 0)):
            packet = outer(ethernet(BROADCAST, mac, 0x0806, bytes(28)), sport=sport)
            rig.run("uplink_ingress", UPLINK, packet[:40] + b"\x12\x34" + packet[42:])
            assert rig.entry(mac).flags == flag | K["FDB_F_ON_LINK"]


def test_exception_tap_input(rig: Rig) -> None:
    """A datagram that a socket reassembled goes the same way, for the uplink it names."""
    rig.learn(B, WIRE2)
    payload = encode_header(7) + FRAMES["3000"]
    packet = build_outer(PEER, PEER_PORT, HOST, PORT, rig.ifindex[UPLINK], payload)
    result = rig.run("exception_ingress", EXCEPTION, packet)
    assert (result.verdict, result.data) == (TC_REDIRECT, FRAMES["3000"])
    assert rig.count(TUNNEL, "exceptions", "EXC_INPUT") == 1
    assert rig.count(TUNNEL, "rx_frames", "PATH_EXCEPTION") == 1
    assert rig.entry(A).flags == 0
    assert bytes(rig.entry(A).next_hop) == bytes(6)


def test_exception_tap_input_from_this_host(rig: Rig) -> None:
    packet = build_outer(HOST, 50000, GROUP, GROUP_PORT, rig.ifindex[UPLINK], encode_header(7) + FRAMES["arp"])
    rig.run("exception_ingress", EXCEPTION, packet)
    assert rig.entry(A).flags == K["FDB_F_LOCAL"]


def test_a_frame_that_nobody_sent_to_the_exception_tap(rig: Rig) -> None:
    assert rig.run("exception_ingress", EXCEPTION, outer(FRAMES["ipv4"])).verdict == TC_SHOT
    assert rig.drops() == {"DROP_BAD_BOUNCE": 1}


def test_a_bounced_frame_enters_by_the_port_it_came_from(rig: Rig) -> None:
    rig.learn(B, TUNNEL, PEER, flags=K["FDB_F_STATIC"])
    frame = FRAMES["ipv4"]
    tag = struct.pack("!HH", K["BOUNCE_TPID"], WIRE2)
    # A test run takes no tag in metadata: the kernel does that for frames from a device, so this one is really sent.
    rig.maps["ingress"].update(rig.ifindex[EXCEPTION] | K["UPLINK_KEY"], EXCEPTION)
    with Netlink() as netlink:
        link = Host(rig.dataplane, netlink).attach(rig.ifindex[EXCEPTION], "exception_ingress")
        try:
            rig.taps[EXCEPTION].send(frame[:12] + tag + frame[12:])
            for _ in range(100):
                if rig.count(WIRE2, "rx_frames", "PATH_EXCEPTION"):
                    break
        finally:
            link.close()
    assert rig.count(WIRE2, "rx_frames", "PATH_EXCEPTION") == 1
    assert rig.count(TUNNEL, "tx_frames", "PATH_TC") == 1
    assert rig.entry(A).port == WIRE2


@pytest.mark.parametrize("size", [*range(15, 80), 1000])
def test_any_content_never_gets_out_of_the_switch(rig: Rig, size: int) -> None:
    """Junk inside valid outer headers: delivered inside the switch, or dropped with a reason."""
    junk = bytes((size * 7 + i * 131) & 0xFF for i in range(size))
    rig.run("uplink_ingress", UPLINK, outer(junk))
    out = [len(rig.sent(port)) for port in (WIRE1, WIRE2, 3, UPLINK, EXCEPTION)]
    assert out[3:] == [0, 0]
    assert out[0] == out[1]
    assert out[0] + sum(rig.drops().values()) >= 1
