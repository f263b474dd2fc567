# SPDX-License-Identifier: GPL-2.0-or-later
"""Plugs, and what the daemon builds for them.

A plug joins two ends.  Every object that it needs is entered into the plug's undo stack as soon as it exists, so that
a failure half-way and an unplug are the same thing: the stack is unwound, last first.  Shared objects (LACs, uplinks,
the exception path) count their users and go with the last one.

Nothing here knows of sockets to clients: the server hands requests in and takes replies, leases and notices out.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field

from vdexdp.control.abi import K
from vdexdp.control.channel import Body
from vdexdp.control.host import Host, close_fd
from vdexdp.control.netlink import Event
from vdexdp.control.nodes import Node, Nodes
from vdexdp.control.observe import Mirror, Observatory
from vdexdp.control.path import cut_off
from vdexdp.control.ports import Port, Ports
from vdexdp.control.protocol import Bridge, EndPath, PlugReply, PlugRequest, Visit, end_from_json, end_to_json
from vdexdp.control.tunnels import LEARN_LIMIT, OVERHEAD, Lac, Tunnels
from vdexdp.errors import HostError, KernelPathError, ProtocolError, RequestError, VdexdpError
from vdexdp.plugins.base import Inside, Netdev, Tunnel
from vdexdp.users import user_name
from vdexdp.wire.dot1q import Mapper

CABLE_EXPIRY = 128
"""Seconds; a cable does not learn, but every switch has one."""


@dataclass
class Plug:
    """One cable.  ``since`` is seconds since the epoch."""

    id: int
    request: PlugRequest
    since: float
    uid: int = 0
    ports: list[Port] = field(default_factory=list)
    lac: Lac | None = None
    node: Node | None = None  # as one of its members
    switch: int = 0
    paths: list[EndPath] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    rule: str = ""
    """The policy's, for a user other than root."""
    token: str = ""
    """What such a user's process claims the plug with, when a daemon has got it from the keeper."""
    alive: int = -1
    """The descriptor whose hang-up says that this process has ended."""
    undo: ExitStack = field(default_factory=ExitStack)

    def show(self) -> Body:
        asked = self.request
        return {
            "id": self.id,
            "pid": asked.pid,
            "user": user_name(self.uid),
            "vnls": list(asked.vnls),
            "since": self.since,
            "switch": self.switch,
            "paths": [asdict(path) for path in self.paths],
            "notes": self.notes,
        } | ({"rule": self.rule} if self.rule else {})


@dataclass(frozen=True)
class Notice:
    """Something a plug has to be told: it was unplugged, by what, and why."""

    plug: int
    subject: str
    cause: str


class Model:
    """Everything that is plugged in one network namespace."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.ports = Ports(host)
        self.tunnels = Tunnels(host)
        self.observatory = Observatory(host)
        self.plugs: dict[int, Plug] = {}
        self.cables: set[int] = set()
        self.nodes = Nodes(host.tables)
        self.next_plug = 1

    # Plugging

    def plug(self, asked: PlugRequest, fds: list[int], uid: int = 0, rule: str = "", guest_limit: int = 0) -> PlugReply:
        """Build the kernel path of one cable.  ``fds`` stay the caller's; the reply's "bridge" is the caller's, too.

        ``rule`` and ``guest_limit``, the learning limit of ports that are made, are for a user other than root.

        Raises VdexdpError, and then the host is as it was.
        """
        given = [_fd(fds, index) for index in asked.fd_index]
        with ExitStack() as undo, ExitStack() as spare:
            plug = Plug(self.next_plug, asked, time.time(), uid, rule=rule, undo=undo)
            tunnels = [end for end in asked.ends if isinstance(end, Tunnel)]
            netdevs = [end for end in asked.ends if isinstance(end, Netdev)]
            bridges = [end for end in asked.ends if isinstance(end, Bridge)]
            visits = [fd for end, fd in zip(asked.ends, given, strict=True) if isinstance(end, Visit)]
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
            extra: dict[str, int] = {}
            for one, fd in zip(asked.ends, given, strict=True):
                match one:
                    case Tunnel() | Visit():
                        continue
                    case Netdev():
                        port = self.ports.add(one, plug.switch, plug.id, fd, vlan=around)
                    case Inside():
                        port = self.ports.add_inside(one, fd, plug.switch, plug.id, around, guest_limit)
                    case Bridge():
                        port, extra["bridge"] = self.ports.add_bridge(plug.switch, plug.id, around, guest_limit)
                        spare.callback(close_fd, extra["bridge"])
                undo.callback(self.ports.remove, port)
                plug.ports.append(port)
            if plug.lac is not None and patch:
                self._patch(plug, plug.lac, vlan)
            for bridge in bridges:
                self._serve(plug, bridge)
            self._describe(plug)
            plug.undo = undo.pop_all()
            spare.pop_all()
        self.next_plug += 1
        self.plugs[plug.id] = plug
        state, held = self.lease(plug)
        return PlugReply(plug.id, plug.paths, plug.notes, state, held | extra)

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
        plug.undo.callback(self.tunnels.leave, lac, plug.id)
        plug.lac, plug.switch = lac, lac.switch
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

    # Nodes

    def _serve(self, plug: Plug, end: Bridge) -> None:
        """Make the plug's node known, if it has one that others can find."""
        if end.node and (plug.lac is None or plug.lac.switch != plug.switch):
            self.host.tables.set_first(plug.switch, next(port.index for port in plug.ports if not port.bridge))
        if end.node and plug.request.pid:
            key = (plug.request.pid, end.node)
            self._become_server(plug, self.nodes.note(key, plug.switch, end.mode, end.expiry, plug.lac))

    def _make_switch(self, plug: Plug, end: Bridge) -> None:
        """A switch of the plug's node alone."""
        plug.switch = self.nodes.make_switch(end.mode, end.expiry)
        plug.undo.callback(self.host.tables.clear_switch, plug.switch)

    def _patch(self, plug: Plug, lac: Lac, vlan: Sequence[Mapper]) -> None:
        """Join the plug's switch to a network's."""
        pair = self.ports.add_patch(plug.switch, lac.switch, plug.id, vlan, LEARN_LIMIT)
        plug.undo.callback(self.ports.remove, pair[0])
        plug.ports += pair

    def _become_server(self, plug: Plug, node: Node) -> None:
        self.nodes.serve(node, plug.id)
        plug.undo.callback(self.nodes.drop, node)

    def _visit(self, plug: Plug, node: Node) -> None:
        self._become_member(plug, node)
        if node.lac is not None:
            plug.lac = node.lac
            node.lac.plugs.add(plug.id)
            plug.undo.callback(self.tunnels.leave, node.lac, plug.id)

    def _visit_with(self, plug: Plug, node: Node, network: Tunnel) -> None:
        """Raises RequestError where the node has the network already."""
        self._join(plug, network)
        assert plug.lac is not None
        if node.switch == plug.lac.switch and network.vlan:
            raise KernelPathError(plug.lac.name, "two of its VLANs are joined in userspace")
        if not network.vlan and self.ports.patched(node.switch, plug.lac.switch):
            cause = f"joined to {plug.lac.name} already, and each frame would go round for ever"
            raise RequestError(node.name, cause, "name another network")
        self._become_member(plug, node)

    def _become_member(self, plug: Plug, node: Node) -> None:
        plug.node, plug.switch = node, node.switch
        node.members.add(plug.id)
        plug.undo.callback(node.members.discard, plug.id)

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

    def _cable(self, plug: Plug) -> None:
        plug.switch = self.host.tables.take_switch()
        self.cables.add(plug.switch)
        plug.undo.callback(self._drop_cable, plug.switch)
        self.host.tables.write_switch(plug.switch, K["MODE_CABLE"], CABLE_EXPIRY)

    def _drop_cable(self, switch: int) -> None:
        self.cables.discard(switch)
        self.host.tables.clear_switch(switch)

    def _describe(self, plug: Plug) -> None:
        ports = iter(plug.ports)
        for end in plug.request.ends:
            if isinstance(end, Visit):
                assert plug.node is not None
                plug.paths.append(EndPath(end.vnl, "tc", f"{plug.node.name} switches in the kernel"))
                continue
            if isinstance(end, Tunnel):
                assert plug.lac is not None
                uplink = plug.lac.uplink
                way = "xdp" if "xdp" in uplink.hooks else "tc"
                patch = next((f", by the patch {port.name}" for port in plug.ports if port.out), "")
                plug.paths.append(EndPath(plug.lac.name, way, f"{uplink.name}: {uplink.why}{patch}"))
                continue
            port = next(ports)
            if isinstance(end, Bridge):
                plug.paths.append(EndPath(end.vnl, "user", f"bridged into the kernel by {port.name}"))
                continue
            plug.paths.append(EndPath(port.name, port.path, port.why))
            link = self.host.netlink.link(port.ifindex)
            if link is not None and not link.up and port.kind == "wire":
                plug.notes.append(f'{port.name} is down; bring it up with "ip link set {port.name} up"')
            if port.kind == "wire" and "xdp" in port.hooks and link is not None and link.kind == "veth":
                plug.notes.append(f"{port.name}: XDP on a veth turns off segmentation offload at its far end")
        plug.notes += [_mtu_note(port, lac) for port, lac in self._tight(plug)]

    def _tight(self, plug: Plug) -> Iterator[tuple[Port, Lac]]:
        """Ports and networks that the plug has brought together, where the network's uplink is too small."""
        patch = any(port.out for port in plug.ports)
        for lac in self.tunnels.lacs.values():
            for port in self.ports.all.values():
                new = port.plug == plug.id or (patch and lac is plug.lac and port.switch == plug.switch)
                tight = port.mtu > lac.room and not (port.bridge or port.out)
                if new and tight and self.ports.patched(port.switch, lac.switch):
                    yield port, lac

    # Leases

    def lease(self, plug: Plug) -> tuple[Body, dict[str, int]]:
        """All that keeps a plug's frames flowing without a daemon, and what a new daemon needs to know of it."""
        asked = plug.request
        ends = [end_to_json(end, index) for end, index in zip(asked.ends, asked.fd_index, strict=True)]
        state: Body = {
            "plug": {"id": plug.id, "since": plug.since, "uid": plug.uid, "pid": asked.pid, "user": asked.user}
            | {"ends": ends, "vnls": list(asked.vnls), "accel": asked.accel}
            | {"paths": [asdict(path) for path in plug.paths], "notes": plug.notes, "switch": plug.switch}
            | {"rule": plug.rule, "token": plug.token},
            "ports": [port.state() for port in plug.ports],
        }
        served = self.nodes.served_by(plug.id)
        state |= {"node": served.state()} if served is not None else {}
        state |= {"member": plug.node.state()} if plug.node is not None else {}
        held = {f"map:{name}": one.fd for name, one in self.host.dataplane.maps.items()}
        if plug.alive >= 0:
            held["alive"] = plug.alive
        for port in plug.ports:
            held |= port.fds()
        if plug.lac is not None and self.tunnels.exception is not None:
            state["lac"] = plug.lac.state()
            state["uplink"] = plug.lac.uplink.state()
            state["exception"] = self.tunnels.exception.state()
            held |= plug.lac.fds() | plug.lac.uplink.fds() | self.tunnels.exception.fds()
        return state, held

    def resume(self, state: Body, fds: dict[str, int]) -> Plug:
        """Go on with a plug from its lease, taking the descriptors that are needed out of ``fds``.

        The maps must be this model's already.  Raises ProtocolError for a lease that does not fit.
        """
        try:
            about = state["plug"]
            number = about["id"] if about["id"] not in self.plugs else self.next_plug
            self._check_lease(state)
            (first, first_fd), (second, second_fd) = map(end_from_json, about["ends"])
            vnls = (str(about["vnls"][0]), str(about["vnls"][1]))
            asked = PlugRequest(
                (first, second), vnls, about["accel"], about["pid"], about["user"], (first_fd, second_fd)
            )
            paths = [EndPath(**path) for path in about["paths"]]
            with ExitStack() as undo:
                plug = Plug(number, asked, about["since"], about["uid"], paths=paths, notes=list(about["notes"]))
                plug.undo, plug.switch = undo, about["switch"]
                plug.rule, plug.token = str(about.get("rule", "")), str(about.get("token", ""))
                own = "lac" not in state or plug.switch != state["lac"]["switch"]
                if "lac" in state:
                    self.tunnels.adopt_exception(state["exception"], fds)
                    self.tunnels.adopt_uplink(state["uplink"], fds)
                    plug.lac = self.tunnels.adopt_lac(state["lac"], fds, plug.id)
                    undo.callback(self.tunnels.leave, plug.lac, plug.id)
                if own and "node" in state:
                    self.host.tables.switches_used.add(plug.switch)
                    undo.callback(self.host.tables.clear_switch, plug.switch)
                elif own and "member" not in state:
                    self.cables.add(plug.switch)
                    undo.callback(self._drop_cable, plug.switch)
                self._resume_node(plug, state)
                for one in state["ports"]:
                    port = self.ports.adopt(one | {"plug": number}, fds)
                    undo.callback(self.ports.remove, port)
                    plug.ports.append(port)
                plug.alive = fds.pop("alive", -1)
                plug.undo = undo.pop_all()
        except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
            raise ProtocolError("lease", f"malformed: {error!r}") from error
        self.plugs[plug.id] = plug
        self.next_plug = max(self.next_plug, plug.id + 1)
        return plug

    def _resume_node(self, plug: Plug, state: Body) -> None:
        """Either may come back first, the node or its member."""
        for role in ("node", "member"):
            if about := state.get(role):
                key = (about["pid"], about["path"])
                node = self.nodes.note(key, plug.switch, about["mode"], about["expiry"], plug.lac)
                if role == "node":
                    self._become_server(plug, node)
                else:
                    self._become_member(plug, node)

    def _check_lease(self, state: Body) -> None:
        """The tables still say what the lease says.  Raises HostError where its ports were given up meanwhile."""
        tables = self.host.tables
        claims = [(one["index"], one["switch"], one.get("out") or one["ifindex"]) for one in state["ports"]]
        if "lac" in state:
            claims.append((state["lac"]["index"], state["lac"]["switch"], 0))
        for index, switch, ifindex in claims:
            info = tables.port(index)
            if info is None or (info.switch_id, info.ifindex) != (switch, ifindex) or index in self.ports.all:
                raise HostError("lease", "its ports were given up meanwhile", "plug again")

    def sweep(self, ports: Iterable[int], switches: Iterable[int]) -> int:
        """Remove what adopted maps still hold of plugs that did not come back; returns how many ports that were."""
        tables = self.host.tables
        kept = set(self.ports.all) | {uplink.index for uplink in self.tunnels.uplinks.values()}
        kept |= {lac.index for lac in self.tunnels.lacs.values()}
        if self.tunnels.exception is not None:
            kept.add(self.tunnels.exception.index)
        gone = set(ports) - kept
        for index in gone:
            tables.drop_vlans_of(index)
            tables.drop_ingress_of(index)
            for key in tables.endpoints_of(index):
                tables.drop_endpoint(key)
            tables.drop_member(tables.port(index).switch_id, index)
            tables.drop_tx(index)
            tables.clear_port(index)
        nodes = {node.switch for node in self.nodes.all.values()}
        for switch in set(switches) - set(self.tunnels.lacs) - self.cables - nodes:
            tables.clear_switch(switch)
        return len(gone)

    # Mirrors

    def mirror(self, index: int, target: str) -> None:
        """Copy what passes a local port to an interface.  Raises RequestError, HostError."""
        port = self.ports.all.get(index)
        if port is None:
            raise RequestError(f"port {index}", "no such local port", 'see "vdexdp show"')
        if port.mirror:
            raise RequestError(
                port.name, f"is mirrored to {port.mirror} already", 'end that first: "vdexdp mirror --off"'
            )
        link = self.host.netlink.need(target)
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

    def unmirror(self, index: int) -> None:
        """Raises RequestError where nothing is mirrored."""
        port = self.ports.all.get(index)
        if port is None or not self.observatory.unmirror(index):
            raise RequestError(f"port {index}", "not mirrored", 'see "vdexdp mirror"')
        port.mirror = ""

    def remirror(self) -> None:
        """Ports from leases go on being mirrored, where that is possible still.

        Not before all plugs are back: it takes its time, in which those that wait would be taken for dead.
        """
        for port in self.ports.all.values():
            if port.mirror and port.index not in self.observatory.mirrors:
                target, port.mirror = port.mirror, ""
                with suppress(VdexdpError):
                    self.mirror(port.index, target)

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
        for index in [] if present else self.observatory.lose(ifindex):
            self.ports.all[index].mirror = ""
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


def _mtu_note(port: Port, lac: Lac) -> str:
    uplink, room = lac.uplink, lac.room
    enough = port.mtu + OVERHEAD[lac.spec.family]
    return (
        f"{port.name}'s MTU {port.mtu} leaves no room on {uplink.name} ({uplink.mtu}): frames over {room}+14 bytes take"
        f" the exception path; set {port.name}'s MTU to {room}, or {uplink.name}'s to {enough}"
    )


def release(fds: dict[str, int]) -> None:
    """Close what nobody took over."""
    while fds:
        close_fd(fds.popitem()[1])
