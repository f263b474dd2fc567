# SPDX-License-Identifier: GPL-2.0-or-later
"""Ethernet headers: addresses, ethertype, and the VLAN tags between them.

A tag is a TPID (0x8100 for 802.1Q, 0x88A8 for 802.1ad) and 16 bits of priority (3), drop eligibility (1) and VLAN id
(12), all big-endian.  MAC addresses are six bytes in frames, ``02:00:00:00:00:01`` in text.
"""

from __future__ import annotations

import re
from typing import NamedTuple

Buffer = bytes | bytearray | memoryview

HEADER_SIZE = 14
TAG_SIZE = 4
DOT1Q = 0x8100
DOT1AD = 0x88A8
TPIDS = frozenset({DOT1Q, DOT1AD})
VID_MASK = 0x0FFF


class Tag(NamedTuple):
    """One VLAN tag; ``tci`` is the priority, the drop eligibility and the VLAN id."""

    tpid: int
    tci: int


class Header(NamedTuple):
    """An Ethernet header with all its tags, the outermost first; the payload begins at ``size``."""

    dst: bytes
    src: bytes
    tags: tuple[Tag, ...]
    ethertype: int
    size: int


def parse_header(frame: Buffer) -> Header | None:
    """The header of ``frame``, walking as many tags as there are; None where the frame ends inside it."""
    tags: list[Tag] = []
    position = 12
    while position + 2 <= len(frame):
        ethertype = frame[position] << 8 | frame[position + 1]
        if ethertype not in TPIDS:
            return Header(bytes(frame[:6]), bytes(frame[6:12]), tuple(tags), ethertype, position + 2)
        if position + TAG_SIZE > len(frame):
            return None
        tags.append(Tag(ethertype, frame[position + 2] << 8 | frame[position + 3]))
        position += TAG_SIZE
    return None


def format_mac(mac: Buffer) -> str:
    """Six bytes as text."""
    return bytes(mac).hex(":")


def parse_mac(text: str) -> bytes:
    """Text as six bytes: pairs of hex digits between colons or dashes.  Raises ValueError."""
    if not re.fullmatch(r"[0-9A-Fa-f]{2}(?:([:-])[0-9A-Fa-f]{2})(?:\1[0-9A-Fa-f]{2}){4}", text):
        raise ValueError(f"{text} is not a MAC address")
    return bytes.fromhex(text.replace("-", "").replace(":", ""))
