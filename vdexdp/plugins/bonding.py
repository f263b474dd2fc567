# SPDX-License-Identifier: GPL-2.0-or-later
"""``bonding://[directory]``: the host's frames go to the clients in turn, theirs to the host only.

Each frame takes the next client, as in stock, so frames of one connection may overtake each other on ways of unequal
length.
"""

from __future__ import annotations

from collections import deque

from vdexdp.plugins.forwarding import HOST, NOBODY, Policy, Station
from vdexdp.plugins.netnode import NetnodePlugin, NodeSpec


class _RoundRobin(Policy):
    def __init__(self) -> None:
        self._turn: deque[Station] = deque()

    def join(self, station: Station) -> None:
        self._turn.append(station)

    def forget(self, station: Station) -> None:
        self._turn.remove(station)

    def route(self, source: Station, header: bytes) -> Station:
        if source is not HOST:
            return HOST
        if not self._turn:
            return NOBODY
        self._turn.rotate(-1)
        return self._turn[-1]


class BondingPlugin(NetnodePlugin):
    scheme = "bonding"
    summary = "spreads the host's frames over all legacy clients in turn; they reach the host only"
    kernel_mode = "bonding"
    example = "bonding:///tmp/mybond"

    def policy(self, spec: NodeSpec) -> _RoundRobin:
        return _RoundRobin()
