# SPDX-License-Identifier: GPL-2.0-or-later
"""VXLAN and vxvde: the 8-byte header (RFC 7348), and whole outer packets for the exception path.

Header: flags ``08`` (only the I bit), three reserved bytes, the VNI (24 bits, big-endian), one reserved byte.  vxvde
nodes compare all eight bytes; VXLAN (RFC 7348, section 5) ignores the reserved ones.  A vxvde datagram with nothing
behind the header is a goodbye: forget what was learnt from its sender.

The exception worker and the programs in ``bpf/`` exchange complete Ethernet frames through a tap.  What the worker
reads from the tap is made by the kernel and has right checksums; what it writes is rebuilt from a datagram by
``build_outer`` and is only ever read by ``uplink_tc``: its checksums are zero, its source MAC is ``02:00`` and the
uplink's ifindex, its destination MAC does not matter.  Addresses are text, as the socket module has them; ports are in
host order.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from typing import Literal, NamedTuple

from vdexdp.wire.ethernet import Buffer

HEADER_SIZE = 8
FLAG_VNI = 0x08
VNI_MAX = 0xFFFFFF

_VNI = struct.Struct("!II")
_ETHERNET = struct.Struct("!6sHIH")
_IPV4 = struct.Struct("!BBHHHBBH4s4s")
_IPV6 = struct.Struct("!IHBB16s16s")
_UDP = struct.Struct("!HHHH")

_TO_UPLINK = bytes.fromhex("020000000000")
_FROM_UPLINK = 0x0200
_ETH_IPV4 = 0x0800
_ETH_IPV6 = 0x86DD
_UDP_PROTOCOL = 17
_PAYLOAD_MAX = 65535 - 20 - 8


def encode_header(vni: int) -> bytes:
    """The eight bytes in front of an inner frame.  Raises ValueError for a VNI over 24 bits."""
    if not 0 <= vni <= VNI_MAX:
        raise ValueError(f"VNI {vni} has more than 24 bits")
    return _VNI.pack(FLAG_VNI << 24, vni << 8)


def decode_header(payload: Buffer) -> int | None:
    """The VNI of a VXLAN datagram, reserved bits ignored; None where it is too short or has no VNI."""
    if len(payload) < HEADER_SIZE or not payload[0] & FLAG_VNI:
        return None
    vni: int = _VNI.unpack_from(payload)[1]
    return vni >> 8


def is_vxvde(payload: Buffer, header: bytes) -> bool:
    """Whether a vxvde datagram belongs to the network whose ``encode_header`` is given: every bit counts."""
    return payload[:HEADER_SIZE] == header


class Outer(NamedTuple):
    """An outer packet taken apart.  ``payload`` is that of UDP, VXLAN header included: a view of the packet."""

    family: Literal[4, 6]
    src: str
    sport: int
    dst: str
    dport: int
    ttl: int
    payload: memoryview


def build_outer(src: str, sport: int, dst: str, dport: int, uplink_ifindex: int, payload: Buffer) -> bytes:
    """The Ethernet frame in which a datagram that a socket received would have come over the uplink.

    A scope behind an IPv6 address (``%eth0``) is ignored.  Raises ValueError where the payload fits no IPv4 datagram.
    """
    size = len(payload)
    if size > _PAYLOAD_MAX:
        raise ValueError(f"{size} bytes fit no datagram")
    source, target = _packed(src), _packed(dst)
    if len(target) == 4:
        ethertype = _ETH_IPV4
        network = _IPV4.pack(0x45, 0, 28 + size, 0, 0x4000, 64, _UDP_PROTOCOL, 0, source, target)
    else:
        ethertype = _ETH_IPV6
        network = _IPV6.pack(0x60000000, 8 + size, _UDP_PROTOCOL, 64, source, target)
    ethernet = _ETHERNET.pack(_TO_UPLINK, _FROM_UPLINK, uplink_ifindex, ethertype)
    return b"".join((ethernet, network, _UDP.pack(sport, dport, 8 + size, 0), payload))


def parse_outer(packet: Buffer) -> Outer | None:
    """Take an untagged Ethernet frame with one whole UDP datagram apart; None where it is something else, or cut short.

    The ends of IP and UDP are found by their lengths, so Ethernet padding does not matter; checksums are not looked at.
    """
    view = memoryview(packet)
    if len(view) < 42:
        return None
    ethertype = view[12] << 8 | view[13]
    family: Literal[4, 6]
    if ethertype == _ETH_IPV4:
        family = 4
        start, total, ttl, protocol, source, target = _ipv4(view)
    elif ethertype == _ETH_IPV6 and len(view) >= 62:
        family = 6
        start, total, ttl, protocol, source, target = _ipv6(view)
    else:
        return None
    if protocol != _UDP_PROTOCOL or total > len(view) or start + 8 > total:
        return None
    sport, dport, length, _ = _UDP.unpack_from(view, start)
    if length < 8 or start + length > total:
        return None
    return Outer(family, source, sport, target, dport, ttl, view[start + 8 : start + length])


def _ipv4(view: memoryview) -> tuple[int, int, int, int, str, str]:
    version, _, length, _, fragment, ttl, protocol, _, source, target = _IPV4.unpack_from(view, 14)
    header = (version & 0xF) * 4
    if version >> 4 != 4 or header < 20 or fragment & 0x3FFF:
        protocol = -1
    return 14 + header, 14 + length, ttl, protocol, inet_ntop(AF_INET, source), inet_ntop(AF_INET, target)


def _ipv6(view: memoryview) -> tuple[int, int, int, int, str, str]:
    version, length, protocol, ttl, source, target = _IPV6.unpack_from(view, 14)
    if version >> 28 != 6:
        protocol = -1
    return 54, 54 + length, ttl, protocol, inet_ntop(AF_INET6, source), inet_ntop(AF_INET6, target)


@lru_cache(maxsize=4096)
def _packed(address: str) -> bytes:
    plain = address.partition("%")[0]
    return inet_pton(AF_INET6 if ":" in plain else AF_INET, plain)
