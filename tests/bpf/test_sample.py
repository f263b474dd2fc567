# SPDX-License-Identifier: GPL-2.0-or-later
"""The histograms under BPF_PROG_TEST_RUN: what is timed, which answer is whose, and nothing at all when off."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.bpf.rig import (
    PEER,
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
    outer,
    udp4,
)

ALWAYS = 0xFFFFFFFF
HERE4, THERE4 = "10.1.0.1", "10.1.0.2"
HERE6, THERE6 = "fd00::1", "fd00::2"
SYN, ACK = 0x02, 0x10


def ip(proto: int, src: str, dst: str, payload: bytes) -> tuple[int, bytes]:
    """Ethertype and packet; checksums are nobody's business here."""
    if ":" in src:
        ends = socket.inet_pton(socket.AF_INET6, src) + socket.inet_pton(socket.AF_INET6, dst)
        return 0x86DD, struct.pack("!IHBB", 6 << 28, len(payload), proto, 64) + ends + payload
    ends = socket.inet_aton(src) + socket.inet_aton(dst)
    return 0x0800, struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 1, 0, 64, proto, 0) + ends + payload


def tcp(src: str, dst: str, ports: tuple[int, int], seq: int, ack: int, flags: int) -> tuple[int, bytes]:
    return ip(6, src, dst, struct.pack("!HHIIBBHHH", *ports, seq, ack, 0x50, flags, 1000, 7, 0))


def echo(src: str, dst: str, kind: int, ident: int, seq: int) -> tuple[int, bytes]:
    return ip(58 if ":" in src else 1, src, dst, struct.pack("!BBHHH", kind, 0, 7, ident, seq))


@pytest.fixture
def rig(root: None) -> Iterator[Rig]:
    with Rig() as made:
        made.learn(A, WIRE1)
        made.learn(B, TUNNEL, PEER)
        yield made


def switch_on(rig: Rig, share: int = ALWAYS) -> None:
    for port in (WIRE1, WIRE2, STACK):
        rig.set_port(port, kind=K["PORT_WIRE"], flags=K["PORT_F_XDP_OUT"], sample=share)
        rig.maps["tx_ports"].update(port, rig.ifindex[port])
    rig.set_port(TUNNEL, kind=K["PORT_TUNNEL"], sample=share)


def buckets(rig: Rig, name: str, index: int) -> list[int]:
    return [sum(counts) for counts in zip(*(cpu.bucket for cpu in rig.maps[name].lookup(index)), strict=True)]


def total(rig: Rig, name: str, index: int) -> int:
    return sum(buckets(rig, name, index))


def go_out(rig: Rig, packet: tuple[int, bytes]) -> None:
    assert rig.run("port_ingress", WIRE1, ethernet(B, A, *packet)).verdict == TC_REDIRECT


def come_in(rig: Rig, packet: tuple[int, bytes], *tags: tuple[int, int]) -> None:
    rig.run("uplink_ingress", UPLINK, outer(ethernet(A, B, *packet, *tags)))


REQUESTS: dict[str, Any] = {
    "TCP over IPv4": (
        tcp(HERE4, THERE4, (4000, 80), 0xFFFFFFFF, 0, SYN),
        tcp(THERE4, HERE4, (80, 4000), 9, 1, SYN | ACK),
        tcp(THERE4, HERE4, (80, 4000), 9, 0, SYN | ACK),
    ),
    "TCP over IPv6": (
        tcp(HERE6, THERE6, (4000, 80), 5, 0, SYN),
        tcp(THERE6, HERE6, (80, 4001), 9, 6, SYN | ACK),
        tcp(THERE6, HERE6, (80, 4000), 9, 6, SYN | ACK),
    ),
    "ICMP": (echo(HERE4, THERE4, 8, 3, 1), echo(THERE4, HERE4, 0, 3, 2), echo(THERE4, HERE4, 0, 3, 1)),
    "ICMPv6": (echo(HERE6, THERE6, 128, 3, 1), echo(THERE6, HERE6, 129, 4, 1), echo(THERE6, HERE6, 129, 3, 1)),
}
"""Name → request, another request's answer, its own answer."""


@pytest.mark.parametrize("name", REQUESTS)
def test_a_round_trip_is_a_request_and_its_own_answer(rig: Rig, name: str) -> None:
    request, other, answer = REQUESTS[name]
    switch_on(rig)
    go_out(rig, request)
    come_in(rig, other)
    assert total(rig, "rtts", TUNNEL) == 0
    time.sleep(0.01)
    come_in(rig, answer)
    assert total(rig, "rtts", TUNNEL) == 1
    come_in(rig, answer)
    assert total(rig, "rtts", TUNNEL) == 1, "once"
    slot = buckets(rig, "rtts", TUNNEL).index(1)
    spent = sum(cpu.sum for cpu in rig.maps["rtts"].lookup(TUNNEL))
    assert 0.01e9 <= spent < 1e9
    assert 1 << (slot + K["HISTOGRAM_SHIFT"] - 1) <= spent < 1 << (slot + K["HISTOGRAM_SHIFT"])


def test_a_tagged_answer_counts(rig: Rig) -> None:
    switch_on(rig)
    request, _, answer = REQUESTS["TCP over IPv4"]
    go_out(rig, request)
    come_in(rig, answer, (0x8100, 5))
    assert total(rig, "rtts", TUNNEL) == 1


def test_what_is_no_request_is_not_noted(rig: Rig) -> None:
    switch_on(rig)
    for packet in (
        tcp(HERE4, THERE4, (4000, 80), 5, 9, ACK),
        echo(HERE4, THERE4, 3, 3, 1),
        (0x0800, udp4(b"x" * 20)),
        (0x0806, bytes(28)),
        ip(6, HERE4, THERE4, b"cut off"),
        ip(6, HERE6, THERE6, b"cut off"),
    ):
        go_out(rig, packet)
    assert not list(rig.maps["probes"].keys())


def test_programs_are_timed(rig: Rig) -> None:
    switch_on(rig)
    frame = ethernet(B, A, 0x0800, udp4(b"x" * 100))
    for _ in range(5):
        go_out(rig, (0x0800, udp4(b"x" * 100)))
        come_in(rig, (0x0800, udp4(b"x" * 100)))
    rig.learn(B, WIRE2)
    for _ in range(3):
        assert rig.run("port_xdp", WIRE1, frame).verdict == XDP_REDIRECT
    rig.learn(B, TUNNEL, PEER)
    for _ in range(2):
        inner = ethernet(A, B, 0x0800, udp4(b"x" * 100))
        assert rig.run("uplink_xdp", UPLINK, outer(inner)).verdict == XDP_REDIRECT
    counted = {name: total(rig, "timings", K[name]) for name in K if name.startswith("TIMED_") and name != "TIMED_MAX"}
    assert counted == {"TIMED_PORT_TC": 5, "TIMED_UPLINK_TC": 5, "TIMED_PORT_XDP": 3, "TIMED_UPLINK_XDP": 2}
    spent = sum(cpu.sum for cpu in rig.maps["timings"].lookup(K["TIMED_PORT_TC"]))
    assert 5 * 50 < spent < 5 * 1_000_000


def test_a_share_of_the_frames_is_timed(rig: Rig) -> None:
    switch_on(rig, (1 << 32) // 16)
    for _ in range(640):
        go_out(rig, (0x0800, udp4(b"x" * 20)))
    assert 20 <= total(rig, "timings", K["TIMED_PORT_TC"]) <= 60


def test_xdp_leaves_requests_and_answers_to_tc(rig: Rig) -> None:
    request, _, answer = REQUESTS["TCP over IPv4"]
    back = outer(ethernet(A, B, *answer))
    rig.set_port(WIRE1, kind=K["PORT_WIRE"], flags=K["PORT_F_XDP_OUT"])
    rig.maps["tx_ports"].update(WIRE1, rig.ifindex[WIRE1])
    assert rig.run("uplink_xdp", UPLINK, back).verdict == XDP_REDIRECT
    switch_on(rig)
    assert rig.run("uplink_xdp", UPLINK, back).verdict == XDP_PASS
    assert rig.run("port_xdp", WIRE1, ethernet(B, A, *request)).verdict == XDP_PASS


def test_off_means_nothing_is_written(rig: Rig) -> None:
    for request, _, answer in REQUESTS.values():
        go_out(rig, request)
        come_in(rig, answer)
    assert not list(rig.maps["probes"].keys())
    assert total(rig, "rtts", TUNNEL) == 0
    assert not any(total(rig, "timings", index) for index in range(K["TIMED_MAX"]))
