# SPDX-License-Identifier: GPL-2.0-or-later
"""``vlan://`` in the kernel: what its tables say, and in which order.

A table is what a :class:`~vdexdp.wire.dot1q.Mapper` does to a frame of each VLAN, found out by asking it.  A port has
one for each ``vlan://`` around either end of its cable: those around the network, which other ports share, are this
port's just as well, the other way round.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vdexdp.control.abi import K, S
from vdexdp.control.sockets import swap16
from vdexdp.control.tables import Tables
from vdexdp.wire.dot1q import Mapper

_ADDRESSES = bytes(12)
_REST = b"\x88\xb5" + bytes(46)
VIDS = K["VLAN_VIDS"]


def table(mapper: Mapper, port: int, *, outward: bool) -> Any:
    """What ``mapper`` does to frames in one direction; ``port`` is where drops are counted."""
    rule = mapper.outward if outward else mapper.inward
    made = S["vlan_table"](port=port, tpid=swap16(mapper.tpid))
    plain = rule(_ADDRESSES + _REST)
    made.untagged = K["VLAN_DROP"] if plain is None else _vid(plain, len(_REST), K["VLAN_PASS"])
    tpid = mapper.tpid.to_bytes(2, "big")
    for vid in range(VIDS):
        frame = rule(_ADDRESSES + tpid + vid.to_bytes(2, "big") + _REST)
        made.tagged[vid] = K["VLAN_DROP"] if frame is None else _vid(frame, len(_REST), K["VLAN_POP"])
    return made


def _vid(frame: bytes | bytearray | memoryview, rest: int, without: int) -> int:
    return int.from_bytes(frame[14:16], "big") if len(frame) > len(_ADDRESSES) + rest else without


def write(
    tables: Tables, index: int, ifindex: int, own: Sequence[Mapper], other: Sequence[Mapper], *, stack: bool
) -> int:
    """Write a port's tables; ``own`` is around the port's end, ``other`` around the cable's other end, each outermost
    first.  Returns how many there are in each direction.
    """
    inward = [table(one, index, outward=False) for one in reversed(own)]
    inward += [table(one, index, outward=True) for one in other]
    outward = [table(one, index, outward=False) for one in reversed(other)]
    outward += [table(one, index, outward=True) for one in own]
    for way, egress in ((inward, stack), (outward, not stack)):
        for step, one in enumerate(way):
            tables.set_vlan(ifindex, egress, step, one)
    return len(inward)


def drop(tables: Tables, ifindex: int, steps: int) -> None:
    """Remove what ``write`` wrote."""
    for step in range(steps):
        for egress in (False, True):
            tables.drop_vlan(ifindex, egress, step)
