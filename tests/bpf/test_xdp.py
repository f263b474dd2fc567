# SPDX-License-Identifier: GPL-2.0-or-later
"""The XDP fast paths under BPF_PROG_TEST_RUN: they do just what tc would do, or leave the frame untouched to it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.bpf.rig import (
    BROADCAST,
    GROUP,
    GROUP_PORT,
    HOST,
    HOST6,
    PEER,
    PEER6,
    PEER_PORT,
    PORT,
    STACK,
    TC_REDIRECT,
    TUNNEL,
    UPLINK,
    WIRE1,
    WIRE2,
    XDP_PASS,
    XDP_REDIRECT,
    A,
    B,
    K,
    Rig,
    ethernet,
    inet_sum,
    outer,
    udp4,
)
from tests.bpf.test_port import FRAMES, VNI_HEADER, vlan_of
from vdexdp.wire.vxlan import parse_outer

PLAIN = [name for name in FRAMES if name not in ("ipv4, UDP checksum left to hardware", "tag and nothing else")]


def ready(rig: Rig) -> Rig:
    """Both ports and the uplink take redirected frames; A is behind WIRE1, or behind the peer."""
    for port in (WIRE1, WIRE2):
        rig.set_port(port, kind=K["PORT_WIRE"], flags=K["PORT_F_XDP_OUT"])
        rig.maps["tx_ports"].update(port, rig.ifindex[port])
    rig.maps["tx_ports"].update(TUNNEL, rig.ifindex[UPLINK])
    return rig


@pytest.fixture
def rig(root: None) -> Iterator[Rig]:
    with Rig(tunnel_flags=K["TUNNEL_F_XDP_OUT"]) as made:
        yield ready(made)


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("family", [4, 6])
def test_encapsulation_equals_tc(root: None, family: int, name: str) -> None:
    frame, vlan = FRAMES[name], vlan_of(FRAMES[name])
    with Rig(v6=family == 6, tunnel_flags=K["TUNNEL_F_XDP_OUT"]) as rig:
        ready(rig)
        rig.learn(A, WIRE1, vlan=vlan)
        rig.learn(B, TUNNEL, PEER if family == 4 else PEER6, vlan=vlan, flags=K["FDB_F_STATIC"] | K["FDB_F_ZERO_CSUM"])
        result = rig.run("port_xdp", WIRE1, frame)
        assert result.verdict == XDP_REDIRECT
        packet = parse_outer(result.data)
        assert packet is not None
        ends = (HOST, PORT, PEER, PEER_PORT, 64) if family == 4 else (HOST6, PORT, PEER6, PEER_PORT, 64)
        assert packet[1:6] == ends
        assert bytes(packet.payload) == VNI_HEADER + frame
        assert result.data[:12] == bytes.fromhex("0a0000000002") + bytes.fromhex("0a0000000001")
        assert family == 6 or inet_sum(result.data[14:34]) == 0
        assert rig.count(TUNNEL, "tx_bytes", "PATH_XDP") == len(frame)
        assert rig.count(WIRE1, "rx_frames", "PATH_XDP") == 1


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("family", [4, 6])
def test_decapsulation_equals_tc(root: None, family: int, name: str) -> None:
    frame, vlan = FRAMES[name], vlan_of(FRAMES[name])
    src, dst = (PEER, HOST) if family == 4 else (PEER6, HOST6)
    with Rig(v6=family == 6) as rig:
        ready(rig)
        rig.learn(A, TUNNEL, src, vlan=vlan)
        rig.learn(B, WIRE2, vlan=vlan)
        result = rig.run("uplink_xdp", UPLINK, outer(frame, src, dst))
        assert (result.verdict, result.data) == (XDP_REDIRECT, frame)
        assert rig.count(TUNNEL, "rx_bytes", "PATH_XDP") == len(frame)
        assert rig.count(WIRE2, "tx_frames", "PATH_XDP") == 1


def test_local_to_local(rig: Rig) -> None:
    rig.learn(A, WIRE1)
    rig.learn(B, WIRE2)
    result = rig.run("port_xdp", WIRE1, FRAMES["ipv4"])
    assert (result.verdict, result.data) == (XDP_REDIRECT, FRAMES["ipv4"])


def leaves(rig: Rig, frame: bytes, point: str = "port_xdp", port: int = WIRE1) -> None:
    result = rig.run(point, port, frame)
    assert (result.verdict, result.data) == (XDP_PASS, frame)
    assert sum(rig.count(index, "rx_frames", "PATH_XDP") for index in (WIRE1, TUNNEL)) == 0


@pytest.mark.parametrize(
    "frame",
    [
        ethernet(BROADCAST, A, 0x0806, bytes(28)),
        ethernet(bytes.fromhex("020000000099"), A, 0x0800, udp4(b"unknown destination")),
        ethernet(B, bytes.fromhex("020000000098"), 0x0800, udp4(b"unknown source")),
        ethernet(B, A, 0x0800, udp4(b"the checksum is still to come", checksum="partial")),
        ethernet(B, A, 0x0800, udp4(b"tagged", checksum="partial"), (0x8100, 0)),
    ],
)
def test_everything_else_is_left_to_tc(rig: Rig, frame: bytes) -> None:
    rig.learn(A, WIRE1)
    rig.learn(B, TUNNEL, PEER)
    leaves(rig, frame)


@pytest.mark.parametrize(
    "how",
    [
        {"flags": K["FDB_F_LOCAL"]},
        {"age": 2.0},
    ],
)
def test_endpoints_that_are_tcs(rig: Rig, how: dict[str, float]) -> None:
    rig.set_switch(expiry=10**9)
    rig.learn(A, WIRE1)
    rig.learn(B, TUNNEL, PEER, **how)  # type: ignore[arg-type]
    leaves(rig, FRAMES["ipv4"])


def test_ports_that_take_no_redirect(rig: Rig) -> None:
    rig.learn(A, WIRE1)
    rig.learn(B, STACK)
    leaves(rig, FRAMES["ipv4"])
    rig.set_port(WIRE2, kind=K["PORT_WIRE"])
    rig.learn(B, WIRE2)
    leaves(rig, FRAMES["ipv4"])


def test_a_frame_over_the_uplinks_mtu(root: None) -> None:
    with Rig(mtu=1500, tunnel_flags=K["TUNNEL_F_XDP_OUT"]) as rig:
        ready(rig)
        rig.learn(A, WIRE1)
        rig.learn(B, TUNNEL, PEER)
        leaves(rig, FRAMES["1514"])


@pytest.mark.parametrize(
    "packet",
    [
        outer(b"", dst=GROUP, dport=GROUP_PORT),
        outer(FRAMES["ipv4"], pad=bytes(4)),
        outer(FRAMES["ipv4"])[:100],
        outer(FRAMES["ipv4"], header=bytes.fromhex("0800000000000701")),
        outer(FRAMES["ipv4, UDP checksum left to hardware"]),
        outer(FRAMES["ipv4"], sport=1),
    ],
)
def test_tunnel_packets_that_are_left_to_tc(rig: Rig, packet: bytes) -> None:
    rig.learn(A, TUNNEL, PEER)
    rig.learn(B, WIRE2)
    leaves(rig, packet, "uplink_xdp", UPLINK)


def test_a_hub_is_tcs(rig: Rig) -> None:
    rig.set_switch("MODE_HUB")
    rig.learn(A, WIRE1)
    rig.learn(B, WIRE2)
    leaves(rig, FRAMES["ipv4"])


def test_after_xdp_tc_learns_what_was_left(rig: Rig) -> None:
    """The two programs hand over: tc learns, and the next frame is XDP's."""
    rig.learn(B, WIRE2)
    leaves(rig, FRAMES["ipv4"])
    assert rig.run("port_ingress", WIRE1, FRAMES["ipv4"]).verdict == TC_REDIRECT
    assert rig.run("port_xdp", WIRE1, FRAMES["ipv4"]).verdict == XDP_REDIRECT


@pytest.mark.parametrize(("point", "path"), [("port_xdp", "PATH_XDP"), ("port_ingress", "PATH_TC")])
def test_the_uplink_counts_what_it_carries_with_outer_headers(rig: Rig, point: str, path: str) -> None:
    rig.learn(A, WIRE1)
    rig.learn(B, TUNNEL, PEER)
    frame = ethernet(B, A, 0x0800, udp4(b"x" * 100))
    assert rig.run(point, WIRE1, frame).verdict in (XDP_REDIRECT, TC_REDIRECT)
    assert rig.count(UPLINK, "tx_frames", path) == 1
    assert rig.count(UPLINK, "tx_bytes", path) == len(frame) + 50
