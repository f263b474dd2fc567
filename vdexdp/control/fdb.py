# SPDX-License-Identifier: GPL-2.0-or-later
"""The FDB as it stands: what a program would still find in the map.

Nothing walks the map to forget: an entry that has expired, or whose switch, port or endpoint has another generation by
now, stays until it is overwritten or evicted.  Who reads the map has to judge as ``fdb_find`` in bpf/fdb.h does.  The
metrics read tens of thousands of entries at every scrape: in batches, as tuples, and judged once for all that have
everything but the MAC address in common.
"""

from __future__ import annotations

import errno
import math
import struct
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from operator import itemgetter
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from vdexdp.control.abi import K, record
from vdexdp.control.sockets import swap16, text
from vdexdp.wire.ethernet import format_mac

if TYPE_CHECKING:
    from vdexdp.control.tables import MapLike, Tables

SECOND = 1_000_000_000


@dataclass(frozen=True)
class FdbRow:
    """One FDB entry.  ``endpoint`` is (address, UDP port) behind a tunnel, ``age`` seconds since it was last seen."""

    switch: int
    vlan: int
    mac: str
    port: int
    endpoint: tuple[str, int] | None
    age: float
    static: bool
    local: bool


@dataclass(frozen=True)
class Census:
    """Entries and distinct tunnel endpoints by switch.  ``slots``: used of the map, what has expired included."""

    entries: Counter[int]
    endpoints: Counter[int]
    slots: int


_KEY, _KEY_FIELDS = record("fdb_key")
_ENTRY, _ENTRY_FIELDS = record("fdb_entry")
_SWITCH_ID = _KEY_FIELDS.index("switch_id")
_LAST_SEEN = _ENTRY_FIELDS.index("last_seen")
_where = itemgetter(*(_ENTRY_FIELDS.index(name) for name in ("generation", "port", "flags", "addr", "udp_port")))
_Place = tuple[int, tuple[Any, ...]]
"""Switch, and what an entry has in common with many others."""


def _place(key: tuple[Any, ...], entry: tuple[Any, ...]) -> _Place:
    return key[_SWITCH_ID], _where(entry)


def _item(key: tuple[Any, ...], entry: tuple[Any, ...]) -> Any:
    """The members of both by their names."""
    return SimpleNamespace(**dict(zip((*_KEY_FIELDS, *_ENTRY_FIELDS), (*key, *entry), strict=True)))


def _items(fdb: MapLike) -> Iterator[tuple[tuple[Any, ...], tuple[Any, ...]]]:
    """Keys and entries, as the tuples of their members; thousands of them in a few system calls."""
    try:
        for keys, entries in fdb.bytes_batch():
            yield from zip(_KEY.iter_unpack(keys), _ENTRY.iter_unpack(entries), strict=True)
    except OSError as error:  # a kernel before 5.6
        if error.errno != errno.EINVAL:
            raise
        for key, entry in fdb.items():
            yield _KEY.unpack(bytes(key)), _ENTRY.unpack(bytes(entry))


def items(fdb: MapLike) -> Iterator[Any]:
    """All entries of the map, each an object with the members of its key and its value."""
    for key, entry in _items(fdb):
        yield _item(key, entry)


def rows(tables: Tables, switch: int | None = None) -> Iterator[FdbRow]:
    """Entries as they stand, expired and forgotten ones left out."""
    now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    judge = _Judge(tables, now)
    for key, entry in _items(tables.maps["fdb"]):
        at = _item(key, entry)
        if (switch is not None and at.switch_id != switch) or at.last_seen < judge.since(_place(key, entry)):
            continue
        tunnel = judge.port(at.port).kind == K["PORT_TUNNEL"]
        yield FdbRow(
            switch=at.switch_id,
            vlan=at.vlan,
            mac=format_mac(at.mac),
            port=at.port,
            endpoint=(text(struct.unpack("=4I", at.addr)), swap16(at.udp_port)) if tunnel else None,
            age=max(0.0, (now - at.last_seen) / SECOND),
            static=bool(at.flags & K["FDB_F_STATIC"]),
            local=bool(at.flags & K["FDB_F_LOCAL"]),
        )


def census(tables: Tables) -> Census:
    """How many entries and distinct endpoints each switch has; a millisecond for 1000 entries."""
    judge = _Judge(tables, time.clock_gettime_ns(time.CLOCK_MONOTONIC))
    since: dict[_Place, float] = {}
    live: Counter[_Place] = Counter()
    slots = 0
    for key, entry in _items(tables.maps["fdb"]):
        slots += 1
        place = _place(key, entry)
        if place not in since:
            since[place] = judge.since(place)
        if entry[_LAST_SEEN] >= since[place]:
            live[place] += 1
    entries: Counter[int] = Counter()
    endpoints: dict[int, set[Any]] = {}
    for place, count in live.items():
        switch, (_, port, _, addr, udp_port) = place
        entries[switch] += count
        if judge.port(port).kind == K["PORT_TUNNEL"]:
            endpoints.setdefault(switch, set()).add((addr, udp_port))
    return Census(entries, Counter({switch: len(found) for switch, found in endpoints.items()}), slots)


class _Judge:
    """Says, as ``fdb_find`` in bpf/fdb.h does, which entries a program would still find, at one moment."""

    def __init__(self, tables: Tables, now: int) -> None:
        self.now = now
        self.switch = cache(tables.switch)
        self.port = cache(tables.port)
        self.generation = cache(lambda slot: tables.maps["generations"].lookup(slot).value)

    def since(self, place: _Place) -> float:
        """Entries of this place are live if they were seen since then (ns)."""
        switch, (generation, index, flags, addr, udp_port) = place
        info, port = self.switch(switch), self.port(index)
        if not info.mode or port.switch_id != switch:
            return math.inf
        if flags & K["FDB_F_STATIC"]:
            return 0
        current = info.generation + port.generation
        if port.kind == K["PORT_TUNNEL"]:
            current += self.generation(endpoint_slot(struct.unpack("=4I", addr), udp_port))
        return float(self.now - info.expiry) if generation == current & 0xFFFFFFFF else math.inf


def endpoint_slot(addr: Sequence[int], udp_port: int) -> int:
    """The slot of an endpoint's generation, as ``endpoint_generation`` in bpf/fdb.h computes it."""
    slot = addr[0] ^ addr[1] ^ addr[2] ^ addr[3] ^ (udp_port * 0x9E3779B1 & 0xFFFFFFFF)
    slot = slot * 0x85EBCA6B & 0xFFFFFFFF
    return (slot ^ slot >> 16) & (K["GEN_SLOTS"] - 1)
