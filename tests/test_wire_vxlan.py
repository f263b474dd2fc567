# SPDX-License-Identifier: GPL-2.0-or-later
"""Shows that outer packets are read as the kernel writes them, and that nothing from the wire breaks the reader.

Needs root, for a packet socket on the loopback interface of the tests' own namespace.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vdexdp.wire import vxlan

V4 = st.binary(min_size=4, max_size=4).map(lambda raw: socket.inet_ntop(socket.AF_INET, raw))
V6 = st.binary(min_size=16, max_size=16).map(lambda raw: socket.inet_ntop(socket.AF_INET6, raw))
PORTS = st.integers(0, 65535)
PAYLOADS = st.binary(max_size=200)


@given(st.integers(0, 2**24 - 1))
def test_header(vni: int) -> None:
    header = vxlan.encode_header(vni)
    assert header == b"\x08\0\0\0" + struct.pack("!I", vni)[1:] + b"\0"
    assert vxlan.decode_header(header + b"frame") == vni
    assert vxlan.is_vxvde(memoryview(header + b"frame"), header)


@pytest.mark.parametrize("vni", [-1, 2**24])
def test_header_out_of_range(vni: int) -> None:
    with pytest.raises(ValueError, match="24 bits"):
        vxlan.encode_header(vni)


@given(st.integers(0, 7), st.integers(1, 255))
def test_reserved_bits(byte: int, bits: int) -> None:
    """vxvde compares them, VXLAN does not, the I bit excepted."""
    header = vxlan.encode_header(0x123456)
    other = bytearray(header)
    other[byte] ^= bits
    assert not vxlan.is_vxvde(other, header)
    if byte in (1, 2, 3, 7):
        assert vxlan.decode_header(other) == 0x123456
    if byte == 0:
        assert vxlan.decode_header(other) == (None if bits & 8 else 0x123456)
    assert vxlan.decode_header(header[:byte]) is None


@given(st.one_of(st.tuples(V4, V4), st.tuples(V6, V6)), PORTS, PORTS, st.integers(0, 2**32 - 1), PAYLOADS)
def test_round_trip(addresses: tuple[str, str], sport: int, dport: int, ifindex: int, payload: bytes) -> None:
    src, dst = addresses
    packet = vxlan.build_outer(src, sport, dst, dport, ifindex, memoryview(payload))
    assert packet[6:12] == b"\x02\x00" + struct.pack("!I", ifindex)
    assert not packet[0] & 1
    outer = vxlan.parse_outer(packet + b"padding")
    assert outer == vxlan.Outer(4 if ":" not in src else 6, src, sport, dst, dport, 64, memoryview(payload))
    for end in range(len(packet)):
        assert vxlan.parse_outer(packet[:end]) is None


@given(
    st.sampled_from(["10.0.0.1", "fe80::1%eth0"]),
    PAYLOADS,
    st.lists(st.tuples(st.integers(0, 61), st.integers(0, 255)), max_size=6),
)
def test_damaged(src: str, payload: bytes, changes: list[tuple[int, int]]) -> None:
    """Whatever the bytes, the payload is inside the packet."""
    packet = bytearray(vxlan.build_outer(src, 1, "ff05::1" if ":" in src else "239.0.0.1", 2, 3, payload))
    for where, value in changes:
        if where < len(packet):
            packet[where] = value
    outer = vxlan.parse_outer(packet)
    assert outer is None or len(outer.payload) <= len(packet) - 42


@pytest.mark.parametrize(
    ("offset", "value"),
    [(12, 0x81), (14, 0x65), (14, 0x44), (20, 0x20), (21, 0x01), (23, 6), (38, 0xFF), (17, 27), (39, 7)],
    ids=["vlan", "version", "ihl", "more-fragments", "offset", "tcp", "udp-long", "ip-short", "udp-short"],
)
def test_something_else(offset: int, value: int) -> None:
    packet = bytearray(vxlan.build_outer("10.0.0.1", 1, "10.0.0.2", 2, 3, b"12345678"))
    assert vxlan.parse_outer(packet)
    packet[offset] = value
    assert vxlan.parse_outer(packet) is None


def test_too_big() -> None:
    assert vxlan.parse_outer(vxlan.build_outer("10.0.0.1", 1, "10.0.0.2", 2, 3, bytes(65507)))
    with pytest.raises(ValueError, match="65508 bytes fit no datagram"):
        vxlan.build_outer("10.0.0.1", 1, "10.0.0.2", 2, 3, bytes(65508))


@pytest.mark.parametrize(
    ("family", "address", "ttl_option"),
    [
        (socket.AF_INET, "127.0.0.1", (socket.IPPROTO_IP, socket.IP_TTL)),
        (socket.AF_INET6, "::1", (socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS)),
    ],
    ids=["ipv4", "ipv6"],
)
@pytest.mark.parametrize("size", [0, 1, 8, 1508, 9242])
@pytest.mark.usefixtures("root")
def test_packets_of_the_kernel(family: int, address: str, ttl_option: tuple[int, int], size: int) -> None:
    with contextlib.ExitStack() as stack:
        sniffer = stack.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)))
        sniffer.bind(("lo", 0))
        sniffer.settimeout(0.2)
        receiver = stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
        receiver.bind((address, 0))
        sender = stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
        sender.bind((address, 0))
        sender.setsockopt(*ttl_option, 7)
        sport, dport = sender.getsockname()[1], receiver.getsockname()[1]
        payload = bytes(i & 0xFF for i in range(size))
        sender.sendto(payload, receiver.getsockname())
        version: Literal[4, 6] = 4 if family == socket.AF_INET else 6
        expected = vxlan.Outer(version, address, sport, address, dport, 7, memoryview(payload))
        seen: list[vxlan.Outer | None] = []
        deadline = time.monotonic() + 5
        while expected not in seen:
            assert time.monotonic() < deadline, f"not among {seen}"
            with contextlib.suppress(TimeoutError):
                seen.append(vxlan.parse_outer(sniffer.recv(65536)))
