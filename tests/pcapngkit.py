# SPDX-License-Identifier: GPL-2.0-or-later
"""A reader of pcapng files, written from the specification (draft-ietf-opsawg-pcapng) and from nothing else."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any

_SECTION, _INTERFACE, _STATISTICS, _PACKET = 0x0A0D0D0A, 1, 5, 6


@dataclass
class Packet:
    """``time`` in seconds since the epoch; options by code."""

    interface: int
    time: float
    data: bytes
    length: int
    options: dict[int, bytes]

    @property
    def comment(self) -> str:
        return self.options.get(1, b"").decode()

    @property
    def direction(self) -> str:
        """The lowest two bits of epb_flags."""
        (flags,) = struct.unpack("=I", self.options.get(2, bytes(4)))
        return ("", "in", "out", "?")[flags & 3]

    @property
    def lost(self) -> int:
        return int(struct.unpack("=Q", self.options.get(4, bytes(8)))[0])


@dataclass
class Capture:
    section: dict[int, bytes] = field(default_factory=dict)
    interfaces: list[dict[int, bytes]] = field(default_factory=list)
    packets: list[Packet] = field(default_factory=list)
    statistics: dict[int, dict[int, bytes]] = field(default_factory=dict)

    def names(self) -> list[str]:
        return [one[2].decode() for one in self.interfaces]

    def total(self, code: int) -> int:
        """The sum of one of the counters of all interfaces."""
        return sum(struct.unpack("=Q", one[code])[0] for one in self.statistics.values() if code in one)


def _options(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    while data:
        code, size = struct.unpack_from("=HH", data)
        if code == 0:
            assert size == 0
            return found
        assert len(data) >= 4 + size
        found[code] = data[4 : 4 + size]
        data = data[4 + size + -size % 4 :]
    return found


def parse(data: bytes) -> Capture:
    """All blocks; an AssertionError or struct.error where something is wrong with them."""
    found = Capture()
    readers: dict[int, Any] = {_SECTION: _section, _INTERFACE: _interface, _STATISTICS: _statistics, _PACKET: _packet}
    assert data[:4] == struct.pack("=I", _SECTION)
    at = 0
    while at < len(data):
        kind, size = struct.unpack_from("=II", data, at)
        assert size % 4 == 0
        assert struct.unpack_from("=I", data, at + size - 4)[0] == size, "both lengths of a block agree"
        readers[kind](found, data[at + 8 : at + size - 4])
        at += size
    return found


def _section(found: Capture, body: bytes) -> None:
    assert struct.unpack_from("=IHH", body) == (0x1A2B3C4D, 1, 0)
    found.section = _options(body[16:])


def _interface(found: Capture, body: bytes) -> None:
    assert struct.unpack_from("=H", body) == (1,), "Ethernet"
    found.interfaces.append(_options(body[8:]))


def _statistics(found: Capture, body: bytes) -> None:
    found.statistics[struct.unpack_from("=I", body)[0]] = _options(body[12:])


def _packet(found: Capture, body: bytes) -> None:
    number, high, low, held, length = struct.unpack_from("=5I", body)
    assert found.interfaces[number][9] == b"\x09", "nanoseconds"
    end = 20 + held + -held % 4
    found.packets.append(Packet(number, (high << 32 | low) / 1e9, body[20 : 20 + held], length, _options(body[end:])))
