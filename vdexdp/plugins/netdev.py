# SPDX-License-Identifier: GPL-2.0-or-later
"""``netdev://NAME``: an existing interface as a port of a switch, as if it were enslaved to a bridge.

What is on the other side of the interface (the far end of a veth, the QEMU that holds a tap, the cable of a NIC) is the
peer; the host's own stack is not.  The userspace end is in ``vdexdp.plugins.netstream``.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass

from vdexdp.errors import VnlError
from vdexdp.plugins.base import HOOK, Hook, Netdev, OpenContext, Option, Parsed, Plugin, Stream, parse_hook
from vdexdp.plugins.tap import interface_name
from vdexdp.vnl import integer

LEARN_LIMIT = 4096


@dataclass(frozen=True)
class NetdevSpec:
    """``limit``: addresses that may be learnt on this port per expiry time, 0 for any number."""

    name: str
    hook: Hook = "auto"
    limit: int = LEARN_LIMIT


class NetdevPlugin(Plugin):
    """Ours; libvdeplug has nothing like it."""

    scheme = "netdev"
    grammar = "slash"
    summary = "an existing interface as a switch port: the near end of a veth, a guest's tap, a NIC"
    address = "interface"
    example = "netdev://veth0"
    options = (
        HOOK,
        Option("limit", "MAC addresses that may be learnt here per expiry time; 0 for any number", str(LEARN_LIMIT)),
    )

    def parse(self, parsed: Parsed) -> NetdevSpec:
        return NetdevSpec(
            interface_name(parsed.vnl, parsed.address, self.example),
            parse_hook(parsed),
            integer(parsed, "limit", LEARN_LIMIT, 0, 0xFFFFFFFF),
        )

    def open(self, spec: NetdevSpec, context: OpenContext) -> Stream:
        from vdexdp.plugins.netstream import NetdevStream

        self.kernel_end(spec)
        return NetdevStream(spec.name)

    def kernel_end(self, spec: NetdevSpec) -> Netdev:
        try:
            socket.if_nametoindex(spec.name)
        except OSError:
            hint = 'see "ip link" for their names; tap:// makes an interface that does not exist'
            raise VnlError(f"netdev://{spec.name}", "no such interface", hint) from None
        return Netdev(spec.name, side="wire", hook=spec.hook, learn_limit=spec.limit)
