# SPDX-License-Identifier: GPL-2.0-or-later
"""Which port may be mirrored where, and what becomes of that when interfaces go and daemons change.

The copying itself is :mod:`vdexdp.control.observe`'s.  A port knows its mirror, as its lease has to.
"""

from __future__ import annotations

from contextlib import suppress

from vdexdp.control.observe import Mirror, Observatory
from vdexdp.control.ports import Ports
from vdexdp.control.tunnels import Tunnels
from vdexdp.errors import RequestError, VdexdpError


class Mirrors:
    """The mirrors of one model's ports."""

    def __init__(self, ports: Ports, tunnels: Tunnels, observatory: Observatory) -> None:
        self.ports = ports
        self.tunnels = tunnels
        self.observatory = observatory

    def add(self, index: int, target: str) -> None:
        """Copy what passes a local port to an interface.  Raises RequestError, HostError."""
        port = self.ports.all.get(index)
        if port is None:
            raise RequestError(f"port {index}", "no such local port", 'see "vdexdp show"')
        if port.mirror:
            raise RequestError(
                port.name, f"is mirrored to {port.mirror} already", 'end that first: "vdexdp mirror --off"'
            )
        link = self.ports.host.netlink.need(target)
        exception = self.tunnels.exception
        if link.index == port.ifindex:
            raise RequestError(target, "a port can't be mirrored to itself", "name another interface")
        if not link.ethernet or link.name == "lo":
            raise RequestError(target, "not an Ethernet interface", "name another one")
        if link.index in self.tunnels.uplinks or (exception is not None and link.index == exception.ifindex):
            raise RequestError(target, "the uplink of a network, where copies would stray", "name another interface")
        if not link.up:
            raise RequestError(target, "it is down", f'bring it up with "ip link set {target} up"')
        to = self.ports.by_ifindex(link.index)
        up = to is not None and to.kind == "stack"
        self.observatory.mirror(Mirror(index, port.switch, link.name, link.index, up))
        port.mirror = link.name

    def remove(self, index: int) -> None:
        """Raises RequestError where nothing is mirrored."""
        port = self.ports.all.get(index)
        if port is None or not self.observatory.unmirror(index):
            raise RequestError(f"port {index}", "not mirrored", 'see "vdexdp mirror"')
        port.mirror = ""

    def restore(self) -> None:
        """Ports from leases go on being mirrored, where that is possible still.

        Not before all plugs are back: it takes its time, in which those that wait would be taken for dead.
        """
        for port in self.ports.all.values():
            if port.mirror and port.index not in self.observatory.mirrors:
                target, port.mirror = port.mirror, ""
                with suppress(VdexdpError):
                    self.add(port.index, target)

    def lose(self, ifindex: int) -> None:
        """An interface is gone: nothing is copied to it any more."""
        for index in self.observatory.lose(ifindex):
            self.ports.all[index].mirror = ""
