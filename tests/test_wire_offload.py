# SPDX-License-Identifier: GPL-2.0-or-later
"""Unfinished frames: checksums and super-packets, against the definition written out the slow way."""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vdexdp.wire.offload import (
    Unsupported,
    VnetHeader,
    checksum,
    close_checksum,
    finish,
    parse_vnet_header,
)

NEEDS_CSUM, TCPV4, UFO, TCPV6, UDP_L4, ECN = 1, 1, 3, 4, 5, 0x80
FIN, PSH, ACK, CWR = 0x01, 0x08, 0x10, 0x80


def slow_sum(data: bytes) -> int:
    """RFC 1071, word by word, not complemented."""
    total = 0
    for index in range(0, len(data), 2):
        total += int.from_bytes(data[index : index + 2].ljust(2, b"\0"), "big")
        total = (total & 0xFFFF) + (total >> 16)
    return total


@given(st.binary(max_size=3000))
def test_checksum(data: bytes) -> None:
    got, expected = checksum(data), 0xFFFF - slow_sum(data)
    assert got == expected or (not any(data) and (got, expected) == (0, 0xFFFF))


def packet(v6: bool, tcp: bool, data: bytes, tags: bytes = b"", flags: int = ACK) -> tuple[bytearray, int]:
    """A frame whose transport checksum holds the pseudo-header's sum, and where the transport header begins."""
    protocol = 6 if tcp else 17
    if tcp:
        transport = struct.pack("!HHIIBBHHH", 1000, 2000, 0xFFFFFF00, 7, 0x80, flags, 500, 0, 0) + bytes(range(12))
    else:
        transport = struct.pack("!HHHH", 1000, 2000, 8 + len(data), 0)
    size = len(transport) + len(data)
    if v6:
        addresses = bytes(range(32))
        network = struct.pack("!IHBB", 0x60012345, size, protocol, 64) + addresses
    else:
        addresses = bytes((10, 0, 0, 1, 10, 0, 0, 2))
        network = struct.pack("!BBHHHBBH", 0x46, 0, 24 + size & 0xFFFF, 0xFFFF, 0x4000, 64, protocol, 0)
        network += addresses + b"\1\1\1\0"  # with options
        network = network[:10] + (0xFFFF - slow_sum(network)).to_bytes(2, "big") + network[12:]
    pseudo = slow_sum(addresses + struct.pack("!II", size, protocol))
    at = 16 if tcp else 6
    transport = transport[:at] + pseudo.to_bytes(2, "big") + transport[at + 2 :]
    head = bytes.fromhex("020000000001020000000002") + tags + (b"\x86\xdd" if v6 else b"\x08\0") + network
    return bytearray(head + transport + data), len(head)


def check(frame: bytes, start: int, v6: bool, protocol: int) -> None:
    """All checksums and lengths of one finished frame."""
    network = start - (40 if v6 else 24)
    if v6:
        assert int.from_bytes(frame[network + 4 : network + 6], "big") == len(frame) - start
        addresses = frame[network + 8 : network + 40]
    else:
        assert slow_sum(frame[network:start]) == 0xFFFF
        assert int.from_bytes(frame[network + 2 : network + 4], "big") == len(frame) - network
        addresses = frame[network + 12 : network + 20]
    assert slow_sum(addresses + struct.pack("!II", len(frame) - start, protocol) + frame[start:]) == 0xFFFF


@pytest.mark.parametrize("v6", [False, True])
@pytest.mark.parametrize("tcp", [False, True])
@pytest.mark.parametrize("tags", [b"", b"\x81\0\0\5", b"\x88\xa8\0\5\x81\0\0\6"])
@given(data=st.binary(max_size=1400))
def test_a_missing_checksum_is_filled_in(v6: bool, tcp: bool, tags: bytes, data: bytes) -> None:
    frame, start = packet(v6, tcp, data, tags)
    header = VnetHeader(NEEDS_CSUM, 0, 0, 0, start, 16 if tcp else 6)
    (finished,) = finish(frame, header)
    check(bytes(finished), start, v6, 6 if tcp else 17)


@pytest.mark.parametrize("v6", [False, True])
@pytest.mark.parametrize("tags", [b"", b"\x81\0\0\5"])
@pytest.mark.parametrize("size", [1, 1448, 1449, 2896, 30001, 65000])
def test_tcp_super_packet(v6: bool, tags: bytes, size: int) -> None:
    data = random.Random(size).randbytes(size)
    frame, start = packet(v6, True, data, tags, FIN | PSH | ACK | CWR)
    header = VnetHeader(NEEDS_CSUM, (TCPV6 if v6 else TCPV4) | ECN, start + 32, 1448, start, 16)
    segments = [bytes(segment) for segment in finish(frame, header)]
    assert len(segments) == -(-size // 1448)
    assert b"".join(segment[start + 32 :] for segment in segments) == data
    for number, segment in enumerate(segments):
        check(segment, start, v6, 6)
        last = number == len(segments) - 1
        sequence, flags = struct.unpack_from("!4xI5xB", segment, start)
        assert sequence == (0xFFFFFF00 + number * 1448) % (1 << 32)
        assert flags == ACK | (FIN | PSH if last else 0) | (CWR if number == 0 else 0)
        if not v6:
            assert int.from_bytes(segment[start - 20 : start - 18], "big") == (0xFFFF + number) & 0xFFFF


@pytest.mark.parametrize("v6", [False, True])
def test_udp_super_packet(v6: bool) -> None:
    data = random.Random(1).randbytes(5000)
    frame, start = packet(v6, False, data)
    segments = [bytes(segment) for segment in finish(frame, VnetHeader(NEEDS_CSUM, UDP_L4, 0, 1200, start, 6))]
    assert b"".join(segment[start + 8 :] for segment in segments) == data
    assert [len(segment) - start - 8 for segment in segments] == [1200] * 4 + [200]
    for segment in segments:
        check(segment, start, v6, 17)
        assert int.from_bytes(segment[start + 4 : start + 6], "big") == len(segment) - start


def test_sctp_checksum() -> None:
    """The value is that of the kernel's crc32c; see RFC 3720, B.4, for "32 bytes of zeroes"."""
    frame = bytearray(14 + 20) + bytearray(32)
    (finished,) = finish(frame, VnetHeader(NEEDS_CSUM, 0, 0, 0, 34, 8))
    assert bytes(finished[42:46]) == bytes.fromhex("aa36918a")


def test_what_cannot_be_cut() -> None:
    frame, start = packet(False, True, bytes(3000))
    for header, kind in (
        (VnetHeader(NEEDS_CSUM, UFO, 0, 1400, start, 6), "unknown-gso"),
        (VnetHeader(NEEDS_CSUM, TCPV4, 0, 0, start, 16), "unknown-gso"),
        (VnetHeader(NEEDS_CSUM, TCPV4, 0, 1400, start + 50, 16), "nested-gso"),
    ):
        with pytest.raises(Unsupported, match=kind):
            list(finish(bytearray(frame), header))


def test_header() -> None:
    assert parse_vnet_header(bytes(10)) is None
    assert parse_vnet_header(b"\2" + bytes(9)) is None, "DATA_VALID needs nothing"
    assert parse_vnet_header(struct.pack("=BBHHHH", 1, 4, 66, 1440, 54, 16)) == VnetHeader(1, 4, 66, 1440, 54, 16)


@pytest.mark.parametrize("v6", [False, True])
@pytest.mark.parametrize("tcp", [False, True])
@pytest.mark.parametrize("tags", [b"", b"\x81\0\0\5"])
@given(data=st.binary(max_size=100), padding=st.binary(max_size=6))
def test_close_checksum(v6: bool, tcp: bool, tags: bytes, data: bytes, padding: bytes) -> None:
    frame, start = packet(v6, tcp, data, tags)
    padded = frame + padding
    close_checksum(memoryview(padded))
    check(bytes(padded[: len(frame)]), start, v6, 6 if tcp else 17)
    assert padded[len(frame) :] == padding
    again = bytearray(padded)
    close_checksum(memoryview(again))
    assert again == padded, "what is finished stays as it is"


@given(st.binary(min_size=14, max_size=200))
def test_close_checksum_takes_anything(data: bytes) -> None:
    close_checksum(memoryview(bytearray(data)))
    for kind in (b"\x08\0", b"\x86\xdd"):
        close_checksum(memoryview(bytearray(data[:12] + kind + data[14:])))


def test_a_wrong_checksum_is_not_made_right() -> None:
    frame, start = packet(False, True, b"some data")
    frame[start + 16] ^= 0x55
    before = bytes(frame)
    close_checksum(memoryview(frame))
    assert frame == before
