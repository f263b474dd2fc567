# SPDX-License-Identifier: GPL-2.0-or-later
"""``hub://[directory]``: every client and the host hear everything that the others say."""

from __future__ import annotations

from vdexdp.plugins.forwarding import EVERYBODY, Policy, Station
from vdexdp.plugins.netnode import NetnodePlugin, NodeSpec


class _Repeat(Policy):
    def route(self, source: Station, header: bytes) -> Station:
        return EVERYBODY

    def route_all(self, source: Station, frames: tuple[bytes, ...]) -> Station:
        return EVERYBODY


class HubPlugin(NetnodePlugin):
    scheme = "hub"
    summary = "a hub that legacy clients connect to"
    kernel_mode = "hub"
    example = "hub:///tmp/myhub"

    def policy(self, spec: NodeSpec) -> _Repeat:
        return _Repeat()
