# SPDX-License-Identifier: GPL-2.0-or-later
"""pcapng files, as far as a writer of Ethernet frames needs them (draft-ietf-opsawg-pcapng).

Each function returns one whole block.  Blocks are in this host's byte order, which the section header's magic number
tells readers; times are nanoseconds since the epoch.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final

LINKTYPE_ETHERNET: Final = 1

INBOUND: Final = 1
OUTBOUND: Final = 2
"""The direction bits of epb_flags."""

VERDICT_TC: Final = 1
"""The kind of an epb_verdict that has a TC_ACT code."""

_SECTION, _INTERFACE, _STATISTICS, _PACKET = 0x0A0D0D0A, 1, 5, 6
_MAGIC: Final = 0x1A2B3C4D
_TEXT_MAX: Final = 0xFFFF

Option = tuple[int, bytes]


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _text(code: int, text: str) -> list[Option]:
    data = text.encode()[:_TEXT_MAX]
    return [(code, data)] if data else []


def _options(options: Iterable[Option]) -> bytes:
    found = b"".join(struct.pack("=HH", code, len(data)) + _padded(data) for code, data in options)
    return found + bytes(4) if found else b""


def _block(kind: int, body: bytes) -> bytes:
    size = len(body) + 12
    return struct.pack("=II", kind, size) + body + struct.pack("=I", size)


def _time(nanoseconds: int) -> bytes:
    """A 64-bit time as two words, the upper one first."""
    return struct.pack("=II", nanoseconds >> 32, nanoseconds & 0xFFFFFFFF)


def section(program: str, system: str = "") -> bytes:
    """The start of a file: who wrote it, on what."""
    options = [*_text(3, system), *_text(4, program)]
    return _block(_SECTION, struct.pack("=IHHq", _MAGIC, 1, 0, -1) + _options(options))


def interface(name: str, description: str = "", *, snap: int = 0, expression: str = "") -> bytes:
    """An interface; the first one in a file is number 0.

    ``snap`` is the limit of a frame's bytes, 0 for none; ``expression`` is the filter in libpcap's language.
    """
    options = [*_text(2, name), *_text(3, description), (9, b"\x09")]
    if expression:
        options.append((11, b"\0" + expression.encode()))
    return _block(_INTERFACE, struct.pack("=HHI", LINKTYPE_ETHERNET, 0, snap) + _options(options))


def packet(
    number: int,
    time: int,
    data: bytes,
    length: int,
    *,
    direction: int = 0,
    comment: str = "",
    verdict: int | None = None,
    lost: int = 0,
    id: int | None = None,
) -> bytes:
    """A frame, of ``length`` bytes, on interface ``number``; ``data`` is what was captured of it.

    ``verdict`` is a TC_ACT code, ``lost`` how many frames were lost before this one.
    """
    options = _text(1, comment)
    if direction:
        options.append((2, struct.pack("=I", direction)))
    if lost:
        options.append((4, struct.pack("=Q", lost)))
    if id is not None:
        options.append((5, struct.pack("=Q", id)))
    if verdict is not None:
        options.append((7, struct.pack("=Bq", VERDICT_TC, verdict)))
    head = struct.pack("=I", number) + _time(time) + struct.pack("=II", len(data), length)
    return _block(_PACKET, head + _padded(data) + _options(options))


def statistics(
    number: int, time: int, *, began: int, received: int, dropped: int, delivered: int, comment: str = ""
) -> bytes:
    """An interface's statistics at ``time``: frames that were seen, lost, and written."""
    options = [*_text(1, comment), (2, _time(began)), (3, _time(time)), (4, struct.pack("=Q", received))]
    options += [(7, struct.pack("=Q", dropped)), (8, struct.pack("=Q", delivered))]
    return _block(_STATISTICS, struct.pack("=I", number) + _time(time) + _options(options))
