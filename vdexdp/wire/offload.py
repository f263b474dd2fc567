# SPDX-License-Identifier: GPL-2.0-or-later
"""Unfinished frames: what a network stack leaves to its NIC, done here.

The kernel hands a frame to a packet socket as the sender left it.  A local sender (a container behind a veth, a guest
behind a tap) leaves checksums to the NIC, and sends TCP and UDP in *super-packets* of up to 64 kB that the NIC would
cut.  ``struct virtio_net_hdr`` in front of the frame says what is missing (PACKET_VNET_HDR, linux/virtio_net.h; ten
bytes in the host's byte order).  ``finish`` turns such a frame into the frames that would have been on the wire.

The checksum of the Internet protocols is a sum modulo 0xFFFF of 16-bit words.  As 2**16 is 1 modulo 0xFFFF, it is also
the remainder of the whole text taken as one big number, which Python computes at memory speed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

from vdexdp.wire.ethernet import parse_header

VNET_HEADER_SIZE = 10

_VNET = struct.Struct("=BBHHHH")
_NEEDS_CSUM = 1
_GSO_TCPV4 = 1
_GSO_TCPV6 = 4
_GSO_UDP_L4 = 5
_GSO_ECN = 0x80

_SCTP_CSUM_OFFSET = 8
_CHECKSUM_AT = {6: 16, 17: 6}  # by protocol, in the TCP or UDP header
_DOT1Q, _IPV4, _IPV6 = b"\x81\x00", b"\x08\x00", b"\x86\xdd"
_FIN_PSH = 0x09
_CWR = 0x80


class Unsupported(Exception):
    """A super-packet of a kind that can't be cut here; the text names the kind, for a drop counter."""


class VnetHeader(NamedTuple):
    """What is missing; offsets in bytes from the start of the frame."""

    flags: int
    gso_type: int
    header_size: int
    gso_size: int
    csum_start: int
    csum_offset: int


def parse_vnet_header(data: bytes | bytearray) -> VnetHeader | None:
    """The ten bytes taken apart; None for the usual case of a frame that is finished."""
    if not data[0] & _NEEDS_CSUM and not data[1]:
        return None
    return VnetHeader(*_VNET.unpack(data))


def checksum(data: bytes | bytearray | memoryview, initial: int = 0) -> int:
    """The Internet checksum (RFC 1071) of ``data``, to be stored big-endian."""
    number = int.from_bytes(data, "big")
    if len(data) & 1:
        number <<= 8
    return 0xFFFF - ((number + initial) % 0xFFFF or 0xFFFF)


def finish(frame: bytearray, header: VnetHeader) -> Iterator[bytearray]:
    """The finished frames of one unfinished frame.  Changes ``frame``.  Raises Unsupported."""
    if not header.gso_type:
        _fill_checksum(frame, header)
        yield frame
        return
    kind = header.gso_type & ~_GSO_ECN
    if kind not in (_GSO_TCPV4, _GSO_TCPV6, _GSO_UDP_L4) or not header.gso_size:
        raise Unsupported("unknown-gso")
    ethernet = parse_header(frame)
    if ethernet is None:
        raise Unsupported("unknown-gso")
    network = ethernet.size
    v4 = frame[network] >> 4 == 4
    transport = header.csum_start if header.flags & _NEEDS_CSUM else network + _network_size(frame, network)
    if v4 and transport != network + _network_size(frame, network):
        raise Unsupported("nested-gso")
    if not v4 and frame[network + 6] == 17 and kind != _GSO_UDP_L4:
        raise Unsupported("nested-gso")
    if kind == _GSO_UDP_L4:
        protocol, payload, sum_at = 17, transport + 8, transport + 6
    else:
        protocol, payload, sum_at = 6, transport + (frame[transport + 12] >> 4) * 4, transport + 16
    yield from _cut(frame, header.gso_size, _Layout(network, transport, payload, sum_at, protocol, v4))


class _Layout(NamedTuple):
    """Offsets in a super-packet: IP header, TCP or UDP header, data, its checksum field."""

    network: int
    transport: int
    payload: int
    sum_at: int
    protocol: int
    v4: bool


def _network_size(frame: bytearray, network: int) -> int:
    return (frame[network] & 0xF) * 4 if frame[network] >> 4 == 4 else 40


def _cut(frame: bytearray, gso_size: int, at: _Layout) -> Iterator[bytearray]:
    headers, data = frame[: at.payload], memoryview(frame)[at.payload :]
    first, last_byte = (12, 20) if at.v4 else (8, 40)
    addresses = int.from_bytes(frame[at.network + first : at.network + last_byte], "big") + at.protocol
    tcp = at.protocol == 6
    identification = int.from_bytes(headers[at.network + 4 : at.network + 6], "big")
    sequence = int.from_bytes(headers[at.transport + 4 : at.transport + 8], "big")
    flags = headers[at.transport + 13] if tcp else 0
    for number, start in enumerate(range(0, len(data), gso_size)):
        segment = headers + data[start : start + gso_size]
        last = start + gso_size >= len(data)
        transport_size = len(segment) - at.transport
        if at.v4:
            segment[at.network + 2 : at.network + 4] = (len(segment) - at.network).to_bytes(2, "big")
            segment[at.network + 4 : at.network + 6] = ((identification + number) & 0xFFFF).to_bytes(2, "big")
            segment[at.network + 10 : at.network + 12] = b"\0\0"
            ip_sum = checksum(segment[at.network : at.transport])
            segment[at.network + 10 : at.network + 12] = ip_sum.to_bytes(2, "big")
        else:
            segment[at.network + 4 : at.network + 6] = (len(segment) - at.network - 40).to_bytes(2, "big")
        if tcp:
            place = (sequence + start) & 0xFFFFFFFF
            segment[at.transport + 4 : at.transport + 8] = place.to_bytes(4, "big")
            segment[at.transport + 13] = flags & (0xFF if last else ~_FIN_PSH) & (0xFF if number == 0 else ~_CWR)
        else:
            segment[at.transport + 4 : at.transport + 6] = transport_size.to_bytes(2, "big")
        segment[at.sum_at : at.sum_at + 2] = b"\0\0"
        total = checksum(memoryview(segment)[at.transport :], addresses + transport_size)
        segment[at.sum_at : at.sum_at + 2] = (total or 0xFFFF).to_bytes(2, "big")
        yield segment


def _fill_checksum(frame: bytearray, header: VnetHeader) -> None:
    """Finish a checksum whose field holds the sum of the pseudo-header so far."""
    start, field = header.csum_start, header.csum_start + header.csum_offset
    if field + 2 > len(frame):
        return
    if header.csum_offset == _SCTP_CSUM_OFFSET:
        frame[field : field + 4] = bytes(4)
        frame[field : field + 4] = _crc32c(frame[start:]).to_bytes(4, "little")
        return
    total = checksum(memoryview(frame)[start:])
    frame[field : field + 2] = (total or 0xFFFF).to_bytes(2, "big")


def close_checksum(frame: memoryview) -> None:
    """Finish the TCP or UDP checksum of a frame, in place, if it looks as if nobody had done that.

    For frames that come without a virtio header, out of a tunnel over a virtual link.  An unfinished checksum is the
    pseudo-header's sum.  If a finished one happens to be the same, finishing it again changes nothing: the sum over
    everything is then the same, too.
    """
    size = len(frame)
    at = 16 if frame[12:14] == _DOT1Q else 12
    if size < at + 22:
        return
    kind, network = frame[at : at + 2], at + 2
    if kind == _IPV4 and not frame[network + 6] & 0x3F and not frame[network + 7]:
        transport = network + (frame[network] & 0xF) * 4
        end = network + (frame[network + 2] << 8 | frame[network + 3])
        protocol, first, last = frame[network + 9], 12, 20
    elif kind == _IPV6 and size >= network + 40:
        transport, protocol, first, last = network + 40, frame[network + 6], 8, 40
        end = transport + (frame[network + 4] << 8 | frame[network + 5])
    else:
        return
    field = transport + _CHECKSUM_AT.get(protocol, size)
    if field + 2 > end or end > size:
        return
    addresses = int.from_bytes(frame[network + first : network + last], "big")
    pseudo = (addresses + protocol + end - transport) % 0xFFFF
    present = frame[field] << 8 | frame[field + 1]
    if present and present % 0xFFFF == pseudo:
        total = checksum(frame[transport:end]) or 0xFFFF
        frame[field : field + 2] = total.to_bytes(2, "big")


@cache
def _crc32c_table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return tuple(table)


def _crc32c(data: bytearray) -> int:
    """The CRC of SCTP (RFC 9260, appendix A)."""
    table, crc = _crc32c_table(), 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF
