# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a node sends the frames of its ports: the rules behind ``hub``, ``switch``, ``multi`` and ``bonding``.

A *policy* looks at the first bytes of a batch of frames from one station and says for each which station gets it.  It
is asked once per batch, and its usual answer is one station for the whole batch: then the frames leave with one
system call, untouched and in order.

Learning costs look-ups, so the switch remembers decisions.  A *flow* is what the first 16 bytes of a frame say
(addresses, type, VLAN tag); its decision is reused until something is learnt, somebody leaves, or a second has passed
(a quarter of the expiry time, where that is shorter).  That is also the precision of ageing: ages are compared at
look-up, and an entry that is in use has its time rewritten whenever a remembered decision runs out.

The key of the table is MAC and VLAN, all 12 bits of it, of the outermost 802.1Q or 802.1ad tag; VLAN 0 (a mere
priority) counts as untagged.  The table is bounded: the entry that was unused for longest makes room.
"""

from __future__ import annotations

import struct
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Final

from vdexdp.plugins.base import BATCH, Batch

HEADER: Final = 16
"""Bytes of a frame that policies see: destination, source, type, and the tag's TCI if there is one."""

TABLE_SIZE: Final = 4096
"""Entries of a switch's table, unless the user asks for another number."""

EXPIRY: Final = 120.0
"""Seconds until an entry that nobody refreshed is forgotten."""

_FLOW_LIFE = 1.0  # seconds at most
_FLOWS_MAX = 4096  # remembered per source
_TAGGED = (b"\x81\x00", b"\x88\xa8")

_headers = [struct.Struct(f"{HEADER}s{Batch.ROW - HEADER}x" * n) for n in range(BATCH + 1)]


class Station:
    """Somebody that frames come from and go to."""


HOST: Final = Station()
"""The other end of the node's cable."""

EVERYBODY: Final = Station()
"""As a destination: every station but the frame's source."""

NOBODY: Final = Station()
"""As a destination: the frame is dropped."""

Route = Station | list[Station]


def headers(batch: Batch, first: int, count: int) -> tuple[bytes, ...]:
    """The first ``HEADER`` bytes of ``count`` frames of a batch."""
    return _headers[count].unpack_from(batch.buffer, first * Batch.ROW)


class Policy(ABC):
    """A node's rule.  It is told the source of frames and their headers."""

    announcing = False
    """The host is another switch: a client's frame whose source is new here, or has moved, goes to everybody."""

    @abstractmethod
    def route(self, source: Station, header: bytes) -> Station:
        """The destination of one frame."""

    def route_all(self, source: Station, frames: tuple[bytes, ...]) -> Route:
        """One destination for all the frames, or a list with one for each."""
        return [self.route(source, header) for header in frames]

    def join(self, station: Station) -> None:
        """``station`` has come."""
        return

    def forget(self, station: Station) -> None:
        """``station`` has left."""
        return


class Learning(Policy):
    """A switch.  ``size`` bounds its table (0: it learns nothing and floods), ``expiry`` is in seconds."""

    def __init__(self, size: int = TABLE_SIZE, expiry: float = EXPIRY) -> None:
        self._size = size
        self._expiry = expiry
        self._flow_life = min(_FLOW_LIFE, expiry / 4)
        self._table: dict[bytes, tuple[Station, float]] = {}  # in the order of their times
        self._flows: dict[Station, _Flows] = {}
        self._flows_end = 0.0
        self._now = 0.0

    def route(self, source: Station, header: bytes) -> Station:
        return self._remembered(source)[header]

    def route_all(self, source: Station, frames: tuple[bytes, ...]) -> Route:
        flows = self._remembered(source)
        distinct = {flows[header] for header in set(frames)}
        if len(distinct) == 1:
            return distinct.pop()
        return [flows[header] for header in frames]

    def _remembered(self, source: Station) -> _Flows:
        self._now = time.monotonic()
        if self._now >= self._flows_end:
            self._flows.clear()
            self._flows_end = self._now + self._flow_life
        flows = self._flows.get(source)
        if flows is None:
            flows = self._flows[source] = _Flows(lambda header: self._decide(source, header))
        return flows

    def forget(self, station: Station) -> None:
        self._table = {key: entry for key, entry in self._table.items() if entry[0] is not station}
        self._flows.clear()

    def _decide(self, source: Station, header: bytes) -> Station:
        vlan = b""
        if header[12:14] in _TAGGED:
            vlan = bytes((header[14] & 0x0F, header[15])).lstrip(b"\0")
        news = self._learn(source, header[6:12] + vlan)
        if header[0] & 1 or (news and self.announcing and source is not HOST):
            return EVERYBODY
        key = header[:6] + vlan
        station, seen = self._table.get(key, (EVERYBODY, self._now))
        if self._now - seen > self._expiry:
            del self._table[key]
            return EVERYBODY
        return NOBODY if station is source else station

    def _learn(self, source: Station, key: bytes) -> bool:
        """Note where an address is; tell whether that is news, so that this decision holds for one batch only."""
        if key[0] & 1 or not self._size:
            return False
        known = self._table.pop(key, None)
        news = known is None or known[0] is not source
        if news:
            self._flows.clear()
        if len(self._table) >= self._size:
            del self._table[next(iter(self._table))]
        self._table[key] = (source, self._now)
        return news


class _Flows(dict[bytes, Station]):
    """Decisions for the frames of one source; a missing one is made on the way."""

    def __init__(self, decide: Callable[[bytes], Station]) -> None:
        super().__init__()
        self._decide = decide

    def __missing__(self, header: bytes) -> Station:
        if len(self) >= _FLOWS_MAX:
            self.clear()
        station = self[header] = self._decide(header)
        return station
