# SPDX-License-Identifier: GPL-2.0-or-later
"""Frames of every shape, and what is different between those that were sent and those that came.

All of them have a source address that begins with ``MARK``.
"""

from __future__ import annotations

import struct
from collections import Counter

MARK = bytes((0x02, 0x4B, 0x49))
BROADCAST = b"\xff" * 6
JUMBO = 9216
"""Bytes: the largest MTU of the VDE family."""


def mac_of(number: int) -> bytes:
    """The address that test frames of end ``number`` come from."""
    return MARK + number.to_bytes(3, "big")


def checksum(*parts: bytes) -> int:
    """The Internet checksum."""
    data = b"".join(parts)
    data += b"\0" * (len(data) & 1)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def filler(size: int) -> bytes:
    return bytes(index * 7 + (index >> 8) & 0xFF for index in range(size))


def ipv4(protocol: int, payload: bytes, *, fragment: int = 0, options: bytes = b"") -> bytes:
    """A packet between two addresses that nobody has."""
    size = 20 + len(options) + len(payload)
    head = struct.pack("!BBHHHBBH", 0x45 + len(options) // 4, 0, size, 7, fragment, 9, protocol, 0)
    addresses = bytes((10, 99, 0, 1, 10, 99, 0, 2))
    check = checksum(head, addresses, options)
    return head[:10] + check.to_bytes(2, "big") + addresses + options + payload


def udp4(payload: bytes, *, summed: bool = True, damaged: bool = False) -> bytes:
    size = 8 + len(payload)
    head = struct.pack("!HHH", 5555, 6666, size)
    pseudo = bytes((10, 99, 0, 1, 10, 99, 0, 2, 0, 17)) + size.to_bytes(2, "big")
    check = checksum(pseudo, head, payload) if summed else 0
    if damaged:
        check ^= 0x1234
    return ipv4(17, head + check.to_bytes(2, "big") + payload)


def tcp4(payload: bytes) -> bytes:
    head = struct.pack("!HHIIBBH", 5555, 6666, 1, 2, 0x50, 0x10, 512)
    pseudo = bytes((10, 99, 0, 1, 10, 99, 0, 2, 0, 6)) + (20 + len(payload)).to_bytes(2, "big")
    check = checksum(pseudo, head, bytes(4), payload)
    return ipv4(6, head + check.to_bytes(2, "big") + bytes(2) + payload)


def ipv6(next_header: int, payload: bytes) -> bytes:
    source, target = (bytes.fromhex("fd99" + "00" * 13) + bytes((last,)) for last in (1, 2))
    return struct.pack("!IHBB", 0x60000000, len(payload), next_header, 9) + source + target + payload


def udp6(payload: bytes, *, summed: bool = True) -> bytes:
    size = 8 + len(payload)
    head = struct.pack("!HHH", 5555, 6666, size)
    addresses = ipv6(17, b"")[8:40]
    check = checksum(addresses, struct.pack("!II", size, 17), head, payload) if summed else 0
    return ipv6(17, head + check.to_bytes(2, "big") + payload)


IPV4, IPV6, ARP, DOT1Q, DOT1AD, LOCAL = 0x0800, 0x86DD, 0x0806, 0x8100, 0x88A8, 0x88B5
_ARP = bytes.fromhex("0001080006040001") + MARK + bytes(3) + bytes((10, 99, 0, 1)) + bytes(6) + bytes((10, 99, 0, 2))
_PAYLOADS: dict[str, tuple[int, bytes]] = {
    "arp": (ARP, _ARP),
    "arp padded": (ARP, _ARP + bytes(18)),
    "udp4": (IPV4, udp4(filler(100))),
    "udp4 without checksum": (IPV4, udp4(filler(101), summed=False)),
    "udp4 with a wrong checksum": (IPV4, udp4(filler(100), damaged=True)),
    "udp4 empty": (IPV4, udp4(b"")),
    "udp4 padded": (IPV4, udp4(b"abc") + bytes(15)),
    "tcp4": (IPV4, tcp4(filler(300))),
    "ipv4 fragment": (IPV4, ipv4(17, filler(64), fragment=0x2003)),
    "ipv4 options": (IPV4, ipv4(17, filler(64), options=b"\x94\x04\0\0")),
    "ipv4 cut": (IPV4, udp4(filler(100))[:30]),
    "ipv4 cut within the header": (IPV4, udp4(filler(100))[:9]),
    "ipv4 protocol 253": (IPV4, ipv4(253, filler(77))),
    "udp6": (IPV6, udp6(filler(100))),
    "udp6 without checksum": (IPV6, udp6(filler(100), summed=False)),
    "ipv6 hop-by-hop": (IPV6, ipv6(0, bytes((59, 0, 1, 4, 0, 0, 0, 0)))),
    "ipv6 cut": (IPV6, udp6(filler(100))[:20]),
    "mpls": (0x8847, filler(90)),
    "pppoe": (0x8864, filler(90)),
    "length field": (0x0026, b"\x42\x42\x03" + filler(43)),
    "ethertype 0": (0, filler(46)),
    "vxlan in it": (IPV4, udp4(b"\x08\0\0\0\0\0\1\0" + filler(64))),
}


def tag(tpid: int, vid: int, priority: int = 5) -> bytes:
    return struct.pack("!HH", tpid, priority << 13 | vid)


TAGS: dict[str, bytes] = {
    "802.1Q": tag(DOT1Q, 7),
    "802.1ad": tag(DOT1AD, 7),
    "QinQ": tag(DOT1AD, 7) + tag(DOT1Q, 8),
    "priority tag": tag(DOT1Q, 0),
    "three tags": tag(DOT1Q, 7) + tag(DOT1Q, 8) + tag(DOT1Q, 4094, 7),
}


def shapes(source: bytes, target: bytes, mtu: int = JUMBO) -> dict[str, bytes]:
    """Frames of every shape by name, up to the MTU (bytes) and a tag beyond."""
    addresses = target + source
    found: dict[str, bytes] = {}
    for size in (14, 15, 16, 59, 60, 64, 590, 1514, mtu + 14):
        found[f"{size} bytes"] = addresses + LOCAL.to_bytes(2, "big") + filler(size - 14)
    for name, (ethertype, payload) in _PAYLOADS.items():
        found[name] = addresses + ethertype.to_bytes(2, "big") + payload
        found[f"{name}, 802.1Q"] = addresses + TAGS["802.1Q"] + ethertype.to_bytes(2, "big") + payload
    for name, tags in TAGS.items():
        # Packet sockets allow an 802.1Q tag, and nothing else, beyond the MTU.
        longest = mtu + 18 if tags[:2] == DOT1Q.to_bytes(2, "big") else mtu + 14
        shortest = max(14 + len(tags), 20)  # the kernel drops, at any device, a tag with less behind it
        for size in (shortest, shortest + 1, 64, 1514, longest):
            body = LOCAL.to_bytes(2, "big") + filler(size - 14 - len(tags))
            found[f"{name}, {size} bytes"] = addresses + tags + body
        for inner in ("udp4", "udp6", "tcp4"):
            ethertype, payload = _PAYLOADS[inner]
            found[f"{name}, {inner}"] = addresses + tags + ethertype.to_bytes(2, "big") + payload
    big = udp4(filler(mtu - 28)), udp6(filler(mtu - 48)), tcp4(filler(mtu - 40))
    for name, ethertype, packet in zip(("udp4", "udp6", "tcp4"), (IPV4, IPV6, IPV4), big, strict=True):
        found[f"{name}, MTU"] = addresses + ethertype.to_bytes(2, "big") + packet
        found[f"{name}, MTU, 802.1Q"] = addresses + TAGS["802.1Q"] + ethertype.to_bytes(2, "big") + packet
    return found


def differences(sent: dict[str, bytes], seen: list[bytes]) -> list[str]:
    """What is wrong with what came, in words; nothing when it is what was sent, in any order."""
    came = Counter(seen)
    missing = []
    for name, data in sent.items():
        if came[data]:
            came[data] -= 1
        else:
            missing.append((name, data))
    words = []
    left = list((+came).elements())
    for name, data in missing:
        like = next((one for one in left if one[:14] == data[:14] and abs(len(one) - len(data)) < 64), None)
        if like is None:
            words.append(f"{name}: lost")
        else:
            left.remove(like)
            at = next(
                (i for i, (a, b) in enumerate(zip(data, like, strict=False)) if a != b), min(len(data), len(like))
            )
            words.append(
                f"{name}: {len(data)} bytes became {len(like)}, differ at {at}: {data[at : at + 8].hex()} became "
                f"{like[at : at + 8].hex()}"
            )
    return words + [f"came too often, or from nowhere: {one[:40].hex()}… ({len(one)} bytes)" for one in left]
