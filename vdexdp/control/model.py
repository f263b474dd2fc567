# SPDX-License-Identifier: GPL-2.0-or-later
"""Everything that is plugged in one network namespace: how a plug is built of ports, networks and nodes, how it is
taken out, and how it follows what changes on the host.

Nothing here knows of sockets to clients: the server hands requests in and takes plugs and notices out.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress

from vdexdp.control.abi import K
from vdexdp.control.channel import Body
from vdexdp.control.describe import describe
from vdexdp.control.host import Host, close_fd
from vdexdp.control.mirrors import Mirrors
from vdexdp.control.netlink import Event
from vdexdp.control.nodes import Node, Nodes
from vdexdp.control.observe import Observatory
from vdexdp.control.path import cut_off
from vdexdp.control.plug import Notice, Plug
from vdexdp.control.ports import Ports
from vdexdp.control.protocol import Bridge, PlugRequest, Visit
from vdexdp.control.tunnels import LEARN_LIMIT, Lac, Tunnels
from vdexdp.errors import KernelPathError, ProtocolError, RequestError, VdexdpError
from vdexdp.plugins.base import Inside, Netdev, Tunnel
from vdexdp.wire.dot1q import Mapper

CABLE_EXPIRY = 128
"""Seconds; a cable does not learn, but every switch has one."""


class Model:
    """Everything that is plugged in one network namespace."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.ports = Ports(host)
        self.tunnels = Tunnels(host)
        self.observatory = Observatory(host)
        self.mirrors = Mirrors(self.ports, self.tunnels, self.observatory)
        self.plugs: dict[int, Plug] = {}
        self.cables: set[int] = set()
        self.nodes = Nodes(host.tables)
        self.next_plug = 1

    # Plugging

    def plug(
        self, asked: PlugRequest, fds: list[int], uid: int = 0, rule: str = "", guest_limit: int = 0
    ) -> tuple[Plug, dict[str, int]]:
        """Build the kernel path of one cable.  ``fds`` stay the caller's; the descriptors beside the plug are his, too.

        ``rule`` and ``guest_limit``, the learning limit of ports that are made, are for a user other than root.

        Raises VdexdpError, and then the host is as it was.
        """
        shown = [_fd(fds, index) for index in asked.fd_index]
        with ExitStack() as undo, ExitStack() as spare:
            plug = Plug(self.next_plug, asked, time.time(), uid, rule=rule, undo=undo)
            tunnels = [end for end in asked.ends if isinstance(end, Tunnel)]
            netdevs = [end for end in asked.ends if isinstance(end, Netdev)]
            bridges = [end for end in asked.ends if isinstance(end, Bridge)]
            visits = [fd for end, fd in zip(asked.ends, shown, strict=True) if isinstance(end, Visit)]
            for end in netdevs:
                self.ports.check(end)
            vlan = tunnels[0].vlan if tunnels else ()
            if len(visits) == 1 and tunnels:
                self._visit_with(plug, self.nodes.behind(visits[0]), tunnels[0])
            elif len(visits) == 1 and not bridges:
                self._visit(plug, self.nodes.behind(visits[0]))
            elif len(tunnels) == 1 and not visits:
                self._join(plug, tunnels[0])
                if bridges and bridges[0].node and asked.pid and (bridges[0].mode != "switch" or vlan):
                    self._make_switch(plug, bridges[0])
            elif not tunnels and len(bridges) == 1 and bridges[0].node:
                self._make_switch(plug, bridges[0])
            elif not tunnels and not bridges and not visits:
                self._cable(plug)
            else:
                raise KernelPathError(" ".join(asked.vnls), "these two ends have no kernel path between them")
            self._check_roles(plug, netdevs)
            steps = sum(len(end.vlan) for end in asked.ends if isinstance(end, Netdev | Tunnel | Inside))
            if steps > K["MAX_VLAN_STEPS"]:
                raise KernelPathError(" ".join(asked.vnls), f"more than {K['MAX_VLAN_STEPS']} vlan:// on one cable")
            patch = plug.lac is not None and plug.switch != plug.lac.switch
            around = () if patch else vlan
            given: dict[str, int] = {}
            for one, fd in zip(asked.ends, shown, strict=True):
                match one:
                    case Tunnel() | Visit():
                        continue
                    case Netdev():
                        port = self.ports.add(one, plug.switch, plug.id, fd, vlan=around)
                    case Inside():
                        port = self.ports.add_inside(one, fd, plug.switch, plug.id, around, guest_limit)
                    case Bridge():
                        port, given["bridge"] = self.ports.add_bridge(plug.switch, plug.id, around, guest_limit)
                        spare.callback(close_fd, given["bridge"])
                plug.hold_ports(self.ports, port)
            if plug.lac is not None and patch:
                self._patch(plug, plug.lac, vlan)
            for bridge in bridges:
                self._serve(plug, bridge)
            describe(plug, self.ports, self.tunnels)
            plug.undo = undo.pop_all()
            spare.pop_all()
        self.next_plug += 1
        self.plugs[plug.id] = plug
        return plug, given

    def unplug(self, plug: Plug) -> list[Notice]:
        """Take a cable out, and the members of its node; those are named.  Never raises for what is gone already."""
        notices: list[Notice] = []
        if (node := self.nodes.served_by(plug.id)) is not None:
            notices += self._dismiss(node)
        if self.plugs.pop(plug.id, None) is not None:
            plug.undo.close()
            close_fd(plug.alive)
            plug.alive = -1
            with suppress(VdexdpError):  # which left the normal programs behind all links but one, perhaps
                self.observatory.keep(self.ports.all)
        return notices

    def _dismiss(self, node: Node) -> list[Notice]:
        members = [self.plugs[member] for member in sorted(node.members) if member in self.plugs]
        return self._lose(members, node.name, "has closed the port")

    def _join(self, plug: Plug, spec: Tunnel) -> None:
        lac = self.tunnels.join(spec, plug.id)
        plug.hold_lac(self.tunnels, lac)
        plug.switch = lac.switch
        for name, what in (("ttl", "TTL"), ("expiry", "expiry time"), ("bind", "source address"), ("rcvbuf", "rcvbuf")):
            if getattr(spec, name) != getattr(lac.spec, name):
                plug.notes.append(
                    f"{lac.name} is there already; its {what} is {getattr(lac.spec, name) or 'the default'}"
                )

    def _check_roles(self, plug: Plug, ends: Iterable[Netdev]) -> None:
        """No interface is a wire port and carries a network, too: the port would take the network's own packets.

        Raises RequestError.
        """
        exception = self.tunnels.exception
        for end in ends:
            ifindex = self.ports.check(end).index
            if exception is not None and ifindex == exception.ifindex:
                raise RequestError(end.name, "vdexdp's own, for the exception path", "plug another interface")
            for uplink in self.tunnels.uplinks.values() if end.side == "wire" else ():
                if self.host.netlink.stands_on(uplink.ifindex, ifindex):
                    raise cut_off(end.name, uplink.name)
        if plug.lac is None or len(plug.lac.uplink.lacs) > 1 or len(plug.lac.plugs) > 1:
            return  # the uplink was there before, and ports were compared with it when they were plugged
        uplink = plug.lac.uplink
        for port in self.ports.all.values():
            if port.kind == "wire" and self.host.netlink.stands_on(uplink.ifindex, port.ifindex):
                what = "a port" if port.name == uplink.name else f"its frames come in by {port.name}, which is a port"
                raise RequestError(
                    uplink.name, f"{what}, of plug {port.plug}, and can't be an uplink", 'name another: "/if=NAME"'
                )

    # Cables

    def _cable(self, plug: Plug) -> None:
        plug.switch = self.host.tables.take_switch()
        self.hold_cable(plug)
        self.host.tables.write_switch(plug.switch, K["MODE_CABLE"], CABLE_EXPIRY)

    def hold_cable(self, plug: Plug) -> None:
        """The plug's switch is a cable's, and goes with it."""
        self.cables.add(plug.switch)
        plug.undo.callback(self._drop_cable, plug.switch)

    def _drop_cable(self, switch: int) -> None:
        self.cables.discard(switch)
        self.host.tables.clear_switch(switch)

    # Nodes

    def _serve(self, plug: Plug, end: Bridge) -> None:
        """Make the plug's node known, if it has one that others can find."""
        if end.node and (plug.lac is None or plug.lac.switch != plug.switch):
            self.host.tables.set_first(plug.switch, next(port.index for port in plug.ports if not port.bridge))
        if end.node and plug.request.pid:
            key = (plug.request.pid, end.node)
            plug.serve(self.nodes, self.nodes.note(key, plug.switch, end.mode, end.expiry, plug.lac))

    def _make_switch(self, plug: Plug, end: Bridge) -> None:
        """A switch of the plug's node alone."""
        plug.switch = self.nodes.make_switch(end.mode, end.expiry)
        plug.undo.callback(self.host.tables.clear_switch, plug.switch)

    def _patch(self, plug: Plug, lac: Lac, vlan: Sequence[Mapper]) -> None:
        """Join the plug's switch to a network's."""
        plug.hold_ports(self.ports, *self.ports.add_patch(plug.switch, lac.switch, plug.id, vlan, LEARN_LIMIT))

    def _visit(self, plug: Plug, node: Node) -> None:
        plug.visit(node)
        if node.lac is not None:
            node.lac.plugs.add(plug.id)
            plug.hold_lac(self.tunnels, node.lac)

    def _visit_with(self, plug: Plug, node: Node, network: Tunnel) -> None:
        """Raises RequestError where the node has the network already."""
        self._join(plug, network)
        assert plug.lac is not None
        if node.switch == plug.lac.switch and network.vlan:
            raise KernelPathError(plug.lac.name, "two of its VLANs are joined in userspace")
        if not network.vlan and self.ports.patched(node.switch, plug.lac.switch):
            cause = f"joined to {plug.lac.name} already, and each frame would go round for ever"
            raise RequestError(node.name, cause, "name another network")
        plug.visit(node)

    def clients(self, plug: Plug, count: int, left: bool) -> None:
        """The plug's node has so many clients now; if one has left, what was learnt behind the bridge may be wrong."""
        node = self.nodes.served_by(plug.id)
        if node is None:
            return
        for port in plug.ports:
            if port.bridge and node.mode == "bonding":
                self.host.tables.set_turns(plug.switch, port.index, count)
            elif port.bridge and left:
                self.host.tables.forget_port(port.index)

    def dismiss_orphans(self) -> list[Notice]:
        """Members whose node has not come back with them, after a daemon died."""
        notices: list[Notice] = []
        for node in [node for node in self.nodes.all.values() if not node.plug]:
            notices += self._dismiss(node)
            self.nodes.drop(node)
            if node.lac is None:
                self.host.tables.clear_switch(node.switch)
        return notices

    # Following the host

    def follow(self, events: Iterable[Event]) -> list[Notice]:
        """Keep up with rtnetlink; plugs whose interface or uplink is gone are unplugged, and named."""
        known = set(self.tunnels.uplinks) | {port.ifindex for port in self.ports.all.values()}
        known |= self.observatory.devices()
        seen = {event.ifindex for event in events}
        notices: list[Notice] = []
        for ifindex in known if 0 in seen else known & seen:
            notices += self._look(ifindex)
        return notices

    def _look(self, ifindex: int) -> list[Notice]:
        present = self.host.netlink.link(ifindex) is not None
        notices: list[Notice] = []
        if not present:
            self.mirrors.lose(ifindex)
        port, uplink = self.ports.by_ifindex(ifindex), self.tunnels.uplinks.get(ifindex)
        if port is not None and present:
            self.ports.refresh(port)
        elif port is not None:
            notices += self._lose([self.plugs[port.plug]], port.name, "the interface is gone")
        if uplink is not None and not (present and self.tunnels.refresh(uplink)):
            lost = [plug for plug in self.plugs.values() if plug.lac is not None and plug.lac.uplink is uplink]
            notices += self._lose(lost, uplink.name, "the uplink is gone")
        return notices

    def _lose(self, plugs: list[Plug], subject: str, cause: str) -> list[Notice]:
        notices: list[Notice] = []
        for plug in plugs:
            if plug.id in self.plugs:
                notices += self.unplug(plug)
                notices.append(Notice(plug.id, subject, cause))
        return notices

    def poll_peers(self) -> None:
        """Look for nodes of our networks on this host; to be called every two seconds or so."""
        for lac in self.tunnels.lacs.values():
            self.tunnels.poll_peers(lac)

    def worker_said(self, events: Iterable[Body]) -> None:
        """React to the exception worker's events."""
        if any(event.get("event") == "local-peer" for event in events):
            self.poll_peers()

    def unplug_all(self) -> None:
        for plug in list(self.plugs.values()):
            self.unplug(plug)


def _fd(fds: list[int], index: int | None) -> int:
    if index is None:
        return -1
    if not 0 <= index < len(fds):
        raise ProtocolError("plug", f"descriptor {index} was announced, {len(fds)} came")
    return fds[index]
