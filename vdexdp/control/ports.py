# SPDX-License-Identifier: GPL-2.0-or-later
"""Local ports: network interfaces plugged into a switch.

Order under traffic.  In: tables first, programs last, so that no frame meets half a port.  Out: programs first, then
the members list, then the port itself, whose generation makes the FDB forget it.

A *patch* joins two switches: a tap for each, and a port that sends into the ingress of the other's tap, where the
program of the other's port is.  Nobody reads the taps; they vanish with their descriptors, which a veth would not.  To
the programs such a port is like the host's end of a tap://, super-packets and all.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Final

from vdexdp.control import hooks, vlans
from vdexdp.control.abi import K
from vdexdp.control.channel import Body
from vdexdp.control.dataplane import Link
from vdexdp.control.host import BRIDGE_TAP, INSIDE_VETH, PATCH_TAP, Host, close_fd, promiscuous, tun_offloads
from vdexdp.control.netlink import XDP_NDO_XMIT, LinkInfo
from vdexdp.errors import HostError, KernelPathError, RequestError, VdexdpError
from vdexdp.plugins.base import Inside, Netdev
from vdexdp.plugins.tap import open_tap
from vdexdp.wire.dot1q import Mapper

ETH_HEADER: Final = 14
PATCH_MTU: Final = 65521
"""The largest that a tap takes: no frame is too big for a patch."""


@dataclass
class Port:
    """One local port.  ``tap`` and ``promisc`` are descriptors or -1; ``links`` by attach point; ``vlan`` is how many
    tables of vlan:// it has in each direction.
    """

    index: int
    switch: int
    plug: int
    name: str
    kind: str  # wire, stack, patch
    ifindex: int
    mtu: int
    hooks: list[str] = field(default_factory=list)
    why: str = ""
    bridge: bool = False
    vlan: int = 0
    out: int = 0
    """Of a patch: the other half's interface, at whose ingress comes out what goes out by this port."""
    owned: bool = False
    """Whether the interface is to be deleted with the port."""
    mirror: str = ""
    """The interface that all its traffic is copied to."""
    tap: int = -1
    promisc: int = -1
    links: dict[str, Link] = field(default_factory=dict)

    @property
    def path(self) -> str:
        return "xdp" if "xdp" in self.hooks else "tc"

    def state(self) -> Body:
        """What a lease keeps, beside the descriptors."""
        skipped = ("links", "tap", "promisc")
        values = {key: getattr(self, key) for key in self.__dataclass_fields__ if key not in skipped}
        return values | {"points": list(self.links)}

    def fds(self) -> dict[str, int]:
        """The descriptors that keep this port working."""
        prefix = f"port:{self.index}"
        found = {f"{prefix}:{point}": link.fd for point, link in self.links.items() if link.fd >= 0}
        found |= {f"{prefix}:{name}": fd for name, fd in (("tap", self.tap), ("promisc", self.promisc)) if fd >= 0}
        return found


class Ports:
    """All local ports of the daemon, by index."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.all: dict[int, Port] = {}

    def by_ifindex(self, ifindex: int) -> Port | None:
        return next((port for port in self.all.values() if port.ifindex == ifindex), None)

    def check(self, end: Netdev) -> LinkInfo:
        """The interface, if it can become a port.  Raises RequestError or KernelPathError."""
        link = self.host.netlink.need(end.name)
        if not link.ethernet or link.name == "lo":
            raise KernelPathError(end.name, "not an Ethernet interface, so not in the kernel path")
        if owner := self.by_ifindex(link.index):
            raise RequestError(end.name, f"already plugged, by plug {owner.plug}", 'see "vdexdp show"')
        return link

    def add(
        self,
        end: Netdev,
        switch: int,
        plug: int,
        tap: int = -1,
        *,
        bridge: bool = False,
        owned: bool = False,
        vlan: Sequence[Mapper] = (),
    ) -> Port:
        """Plug an interface in; ``tap`` is duplicated; ``vlan`` is around the other end of the cable.

        Raises VdexdpError, with nothing left behind.
        """
        link = self.check(end)
        stack = end.side == "stack"
        features = self.host.netlink.xdp_features(link.index)
        choice = hooks.choose(end.hook, link, features, stack=stack, vlan=bool(end.vlan or vlan))
        tables = self.host.tables
        with ExitStack() as undo:
            port = Port(tables.take_port(), switch, plug, link.name, end.side, link.index, link.mtu)
            port.bridge, port.owned = bridge, owned
            undo.callback(self.remove, port)
            self.all[port.index] = port
            port.vlan = vlans.write(tables, port.index, link.index, end.vlan, vlan, stack=stack)
            tables.write_port(
                port.index,
                ifindex=link.index,
                learn_limit=end.learn_limit,
                mtu=link.mtu + ETH_HEADER,
                switch_id=switch,
                kind=K["PORT_STACK"] if stack else K["PORT_WIRE"],
                flags=self._flags(port, link, features),
            )
            tables.set_ingress(link.index, port.index)
            tables.add_member(switch, port.index)
            if tap >= 0:
                port.tap = os.dup(tap)
                tun_offloads(port.tap, stack)
            if not stack and link.kind not in ("tun", "veth"):
                port.promisc = promiscuous(link.index)
            self._attach(port, choice)
            undo.pop_all()
        return port

    def _flags(self, port: Port, link: LinkInfo, features: int | None) -> int:
        """What the port can do.  Both faster ways to put frames out would pass by the program of a vlan://."""
        flags = K["PORT_F_BRIDGE"] if port.bridge else 0
        if port.kind != "wire" or port.vlan:
            return flags
        if link.far_elsewhere:
            flags |= K["PORT_F_PEER"]
        if features is not None and features & XDP_NDO_XMIT and self.host.tables.set_tx(port.index, link.index):
            flags |= K["PORT_F_XDP_OUT"]
        return flags

    def add_bridge(self, switch: int, plug: int, vlan: Sequence[Mapper] = (), guest_limit: int = 0) -> tuple[Port, int]:
        """A tap whose descriptor (returned, the caller's) is the other side: a plug pumps a userspace end on it.

        ``guest_limit``, the learning limit, is that of a user other than root, who may do things to the tap by its
        descriptor: make it outlive that, for instance.
        """
        host = self.host
        with ExitStack() as undo:
            fd, name = open_tap(f"{BRIDGE_TAP}%d")
            undo.callback(close_fd, fd)
            host.private(name)
            if guest_limit:
                host.isolate(name)
            host.netlink.set_link(host.netlink.need(name).index, mtu=K["FRAME_MAX"] - ETH_HEADER - 4, state="up")
            end = Netdev(name, "wire", "tap")
            if guest_limit:
                end = replace(end, learn_limit=guest_limit)
            port = self.add(end, switch, plug, bridge=True, owned=bool(guest_limit), vlan=vlan)
            undo.pop_all()
        return port, fd

    def add_inside(
        self, end: Inside, netns: int, switch: int, plug: int, vlan: Sequence[Mapper] = (), guest_limit: int = 0
    ) -> Port:
        """A veth whose far end is in another network namespace, left down there; it goes with the port."""
        netlink = self.host.netlink
        with ExitStack() as undo:
            name, index = netlink.make_veth_into(INSIDE_VETH, end.name, netns)
            undo.callback(netlink.delete_link, index)
            self.host.private(name)
            self.host.isolate(name)
            netlink.set_link(index, state="up")
            near = Netdev(name, "wire", vlan=end.vlan)
            if guest_limit:
                near = replace(near, learn_limit=guest_limit)
            port = self.add(near, switch, plug, owned=True, vlan=vlan)
            undo.pop_all()
        return port

    def add_patch(self, switch: int, network: int, plug: int, vlan: Sequence[Mapper], learn_limit: int) -> list[Port]:
        """Join a switch to a network's; ``vlan`` and ``learn_limit`` are the network's.  A port of each, in this order.

        Raises VdexdpError, with nothing left behind.
        """
        tables = self.host.tables
        with ExitStack() as undo:
            near, far = pair = [self._half_patch(one, plug, undo) for one in (switch, network)]
            for port, other, own, around, limit in (
                (near, far, vlan, (), learn_limit),
                (far, near, (), vlan, Netdev.learn_limit),
            ):
                port.out = other.ifindex
                port.vlan = vlans.write(tables, port.index, port.ifindex, own, around, stack=False)
                tables.write_port(
                    port.index,
                    ifindex=port.out,
                    learn_limit=limit,
                    mtu=port.mtu + ETH_HEADER,
                    switch_id=port.switch,
                    kind=K["PORT_STACK"],
                )
                tables.set_ingress(port.ifindex, port.index)
            for port, other in ((near, far), (far, near)):
                self._attach(port, hooks.Choice(False, f"patched to switch {other.switch}"))
            for port in pair:
                tables.add_member(port.switch, port.index)
            undo.pop_all()
        return pair

    def _half_patch(self, switch: int, plug: int, undo: ExitStack) -> Port:
        host = self.host
        fd, name = open_tap(f"{PATCH_TAP}%d")
        with ExitStack() as here:
            here.callback(close_fd, fd)
            host.private(name)
            host.isolate(name)
            link = host.netlink.need(name)
            host.netlink.set_link(link.index, mtu=PATCH_MTU, state="up")
            port = Port(host.tables.take_port(), switch, plug, name, "patch", link.index, PATCH_MTU, tap=fd)
            here.pop_all()
        self.all[port.index] = port
        undo.callback(self.remove, port)
        return port

    def other_half(self, port: Port) -> Port | None:
        """Of a patch."""
        return self.by_ifindex(port.out) if port.out else None

    def patched(self, one: int, other: int) -> bool:
        """Whether frames get from one switch to another, perhaps by others still, with their tags as they are."""
        reached, new = {one}, [one]
        while new:
            switch = new.pop()
            for port in self.all.values():
                far = self.other_half(port) if port.switch == switch and not port.vlan else None
                if far is not None and far.switch not in reached:
                    reached.add(far.switch)
                    new.append(far.switch)
        return other in reached

    def _attach(self, port: Port, choice: hooks.Choice) -> None:
        host = self.host
        point = "port_egress" if port.kind == "stack" else "port_ingress"
        for name in ("vlan_ingress", "vlan_egress") if port.vlan else ():
            port.links[name] = host.attach(port.ifindex, name)
        port.links[point] = host.attach(port.ifindex, point)
        port.hooks, port.why = ["tc"], choice.why
        if choice.xdp:
            try:
                port.links["port_xdp"], port.why = host.attach_xdp(port.ifindex, "port_xdp", choice)
                port.hooks = ["xdp", "tc"]
            except VdexdpError as error:
                port.why = f"{error.cause}: tc"

    def remove(self, port: Port) -> None:
        """Unplug, a patch as a whole; the interface may be gone already.  Idempotent."""
        both = [one for one in (port, self.other_half(port)) if one is not None]
        gone = [one for one in both if self.all.pop(one.index, None) is not None]
        for one in gone:
            self._remove(one)

    def _remove(self, port: Port) -> None:
        tables = self.host.tables
        for link in reversed(port.links.values()):
            link.close()
        port.links.clear()
        vlans.drop(tables, port.ifindex, port.vlan)
        tables.drop_ingress(port.ifindex)
        tables.drop_member(port.switch, port.index)
        tables.drop_tx(port.index)
        tables.clear_port(port.index)
        if port.tap >= 0:
            if port.kind == "stack":
                tun_offloads(port.tap, False)
            close_fd(port.tap)
        close_fd(port.promisc)
        port.tap = port.promisc = -1
        if port.owned:
            with suppress(HostError):
                self.host.netlink.delete_link(port.ifindex)

    def refresh(self, port: Port) -> None:
        """Follow what changed at the interface: MTU, far end, whether it takes XDP redirects."""
        link = self.host.netlink.link(port.ifindex)
        if link is None or port.kind != "wire":
            features: int | None = None
        else:
            features = self.host.netlink.xdp_features(port.ifindex)
        if link is None:
            return
        tables, flags = self.host.tables, self._flags(port, link, features)
        port.mtu, port.name = link.mtu, link.name
        current: Any = tables.port(port.index)
        if (current.flags, current.mtu) != (flags, link.mtu + ETH_HEADER):
            tables.write_port(port.index, flags=flags, mtu=link.mtu + ETH_HEADER)
            if not flags & K["PORT_F_XDP_OUT"]:
                tables.drop_tx(port.index)

    def adopt(self, state: Mapping[str, Any], fds: dict[str, int]) -> Port:
        """A port from a lease, taking its descriptors over; its tables stand already."""
        values = {key: state[key] for key in Port.__dataclass_fields__ if key in state}
        port = Port(**values)
        prefix = f"port:{port.index}"
        self.all[port.index] = port
        for point in state["points"]:
            port.links[point] = self.host.adopt_link(fds.pop(f"{prefix}:{point}", None), port.ifindex, point)
        port.tap = fds.pop(f"{prefix}:tap", -1)
        port.promisc = fds.pop(f"{prefix}:promisc", -1)
        self.refresh(port)
        return port
