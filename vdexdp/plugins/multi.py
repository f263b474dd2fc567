# SPDX-License-Identifier: GPL-2.0-or-later
"""``multi://[directory]``: the host's frames go to all clients, theirs to the host only.

Made for handing a cable over: the new way is plugged before the old one is unplugged, and meanwhile frames come twice.
"""

from __future__ import annotations

from vdexdp.plugins.forwarding import EVERYBODY, HOST, Policy, Station
from vdexdp.plugins.netnode import NetnodePlugin, NodeSpec


class _Copy(Policy):
    def route(self, source: Station, header: bytes) -> Station:
        return EVERYBODY if source is HOST else HOST

    def route_all(self, source: Station, frames: tuple[bytes, ...]) -> Station:
        return EVERYBODY if source is HOST else HOST


class MultiPlugin(NetnodePlugin):
    scheme = "multi"
    summary = "copies the host's frames to all legacy clients, which reach the host only"
    kernel_mode = "multi"
    example = "multi:///tmp/mymulti"

    def policy(self, spec: NodeSpec) -> _Copy:
        return _Copy()
