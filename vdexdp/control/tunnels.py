# SPDX-License-Identifier: GPL-2.0-or-later
"""Uplinks and LACs.

An *uplink* is an interface towards the LAN with the decapsulating program on it, shared by all LACs that use it.  A
*LAC* is one vxvde or vxlan network on one uplink: a switch with a tunnel port, two UDP sockets, and the endpoints under
which the kernel recognises its packets.  Plugs that name the same network share the LAC; it goes with the last of them.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

from vdexdp.control import hooks
from vdexdp.control.abi import K
from vdexdp.control.channel import Body
from vdexdp.control.dataplane import Link
from vdexdp.control.exception import ExceptionPath
from vdexdp.control.host import Host
from vdexdp.control.netlink import XDP_NDO_XMIT, LinkInfo, Netlink, canonical
from vdexdp.control.sockets import TunnelSockets, foreign_sockets, goodbye, group_mac, open_sockets
from vdexdp.control.tables import endpoint_key
from vdexdp.errors import HostError, KernelPathError, RequestError, VdexdpError
from vdexdp.plugins.base import Tunnel

OVERHEAD: Final = {4: 20 + 8 + 8 + 14, 6: 40 + 8 + 8 + 14}
"""Bytes that encapsulation adds to an inner IP packet: outer IP, UDP, VXLAN and the inner Ethernet header."""

LEARN_LIMIT: Final = 16384
"""New FDB entries that a tunnel may make in one expiry time: a quarter of the table."""


@dataclass
class Uplink:
    """One interface towards the LAN; ``index`` is where its counters are."""

    ifindex: int
    name: str
    index: int
    mac: bytes
    mtu: int
    hooks: list[str] = field(default_factory=list)
    why: str = ""
    xdp_out: bool = False
    links: dict[str, Link] = field(default_factory=dict)
    lacs: set[int] = field(default_factory=set)

    def state(self) -> Body:
        kept = ("ifindex", "name", "index", "mtu", "hooks", "why", "xdp_out")
        return {key: getattr(self, key) for key in kept} | {"mac": self.mac.hex(), "points": list(self.links)}

    def fds(self) -> dict[str, int]:
        return {f"uplink:{self.ifindex}:{point}": link.fd for point, link in self.links.items() if link.fd >= 0}


@dataclass
class Lac:
    """One network.  ``switch`` is its id, ``index`` the tunnel's port index, ``local`` our address in it."""

    switch: int
    index: int
    spec: Tunnel
    uplink: Uplink
    sockets: TunnelSockets
    local: str
    plugs: set[int] = field(default_factory=set)
    endpoints: set[bytes] = field(default_factory=set)
    local_peers: int = 0

    @property
    def name(self) -> str:
        group = f"[{self.spec.group}]" if self.spec.family == 6 else self.spec.group
        return f"{self.spec.kind} {group}:{self.spec.port} vni {self.spec.vni} via {self.uplink.name}"

    @property
    def room(self) -> int:
        """The largest inner MTU that needs no fragmentation, in bytes."""
        return self.uplink.mtu - OVERHEAD[self.spec.family]

    def state(self) -> Body:
        kept = ("switch", "index", "local")
        spec = asdict(self.spec)
        del spec["vlan"]  # the ports' own
        return {key: getattr(self, key) for key in kept} | {"spec": spec, "uplink": self.uplink.ifindex}

    def fds(self) -> dict[str, int]:
        sockets = {"unicast": self.sockets.unicast, "multicast": self.sockets.multicast}
        return {f"lac:{self.switch}:{name}": sock.fileno() for name, sock in sockets.items()}


def find_uplink(netlink: Netlink, spec: Tunnel) -> tuple[LinkInfo, str]:
    """The interface that leads to a tunnel's group, and our address there; touches nothing.

    Raises RequestError, KernelPathError (the interface can't be an uplink in the kernel path) or HostError.
    """
    if spec.device:
        link, source = netlink.need(spec.device), ""
    else:
        route = netlink.route(spec.group)
        link, source = netlink.need(route.ifindex), route.source
    if link.name == "lo" or not link.ethernet:
        raise KernelPathError(link.name, "not an Ethernet interface, so no uplink for the kernel path")
    if not link.up:
        raise HostError(link.name, "the uplink is down", f'bring it up with "ip link set {link.name} up"')
    if spec.bind:
        if spec.bind not in netlink.local_addresses():
            raise RequestError(spec.bind, "not an address of this host", 'see "ip address"')
        return link, spec.bind
    addresses = netlink.addresses(link.index, spec.family)
    if not addresses:
        hint = 'give it one, or name another: "/if=NAME"'
        raise HostError(link.name, f"the uplink has no IPv{spec.family} address", hint)
    return link, source if source in addresses else addresses[0]


class Tunnels:
    """All uplinks by ifindex, all LACs by switch id, and the exception path that they share."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.uplinks: dict[int, Uplink] = {}
        self.lacs: dict[int, Lac] = {}
        self.exception: ExceptionPath | None = None

    # Joining and leaving

    def join(self, spec: Tunnel, plug: int) -> Lac:
        """The LAC of a tunnel, made if this is its first plug.  Raises VdexdpError, with nothing left behind."""
        spec = replace(spec, group=canonical(spec.group), bind=canonical(spec.bind) if spec.bind else "", vlan=())
        link, local = find_uplink(self.host.netlink, spec)
        for lac in self.lacs.values():
            if lac.uplink.ifindex == link.index and _network(lac.spec) == _network(spec):
                _check_hook(lac.uplink, spec)
                lac.plugs.add(plug)
                return lac
        with ExitStack() as undo:
            self._need_exception()
            undo.callback(self._drop_exception)
            uplink = self._need_uplink(link, spec)
            undo.callback(self._drop_uplink, uplink)
            lac = self._new_lac(spec, uplink, local, undo)
            lac.plugs.add(plug)
            undo.pop_all()
        return lac

    def leave(self, lac: Lac, plug: int) -> None:
        """The last plug takes the LAC with it: a goodbye to its network, then everything in reverse."""
        lac.plugs.discard(plug)
        if lac.plugs or self.lacs.get(lac.switch) is not lac:
            return
        if lac.spec.kind == "vxvde":
            goodbye(lac.sockets, lac.spec)
        self._drop_lac(lac)
        self._drop_uplink(lac.uplink)
        self._drop_exception()

    # The three parts; each is dropped only when nobody uses it any more

    def _need_exception(self) -> ExceptionPath:
        if self.exception is None:
            self.exception = ExceptionPath.open(self.host)
        return self.exception

    def _drop_exception(self) -> None:
        if self.exception is not None and not self.lacs:
            self.exception.close()
            self.exception = None

    def _need_uplink(self, link: LinkInfo, spec: Tunnel) -> Uplink:
        if link.index in self.uplinks:
            _check_hook(self.uplinks[link.index], spec)
            return self.uplinks[link.index]
        tables, host = self.host.tables, self.host
        features = host.netlink.xdp_features(link.index)
        choice = hooks.choose(spec.hook, link, features)
        with ExitStack() as undo:
            uplink = Uplink(link.index, link.name, tables.take_port(), link.mac, link.mtu, ["tc"], choice.why)
            self.uplinks[link.index] = uplink
            undo.callback(self._drop_uplink, uplink)
            uplink.xdp_out = features is not None and bool(features & XDP_NDO_XMIT)
            tables.write_port(uplink.index, ifindex=link.index, kind=K["PORT_UPLINK"])
            tables.set_ingress(link.index, uplink.index, uplink=True)
            uplink.links["uplink_ingress"] = host.attach(link.index, "uplink_ingress")
            if choice.xdp:
                try:
                    uplink.links["uplink_xdp"], uplink.why = host.attach_xdp(link.index, "uplink_xdp", choice)
                    uplink.hooks = ["xdp", "tc"]
                except VdexdpError as error:
                    if spec.hook == "xdp":
                        raise
                    uplink.why = f"{error.cause}: tc"
            undo.pop_all()
        return uplink

    def _drop_uplink(self, uplink: Uplink) -> None:
        if uplink.lacs or self.uplinks.pop(uplink.ifindex, None) is None:
            return
        for link in uplink.links.values():
            link.close()
        self.host.tables.drop_ingress(uplink.ifindex, uplink=True)
        self.host.tables.clear_port(uplink.index)

    def _new_lac(self, spec: Tunnel, uplink: Uplink, local: str, undo: ExitStack) -> Lac:
        tables = self.host.tables
        like = (lac for lac in self.lacs.values() if spec.kind == "vxlan" and _listens(lac.spec) == _listens(spec))
        sockets = open_sockets(spec, uplink.ifindex, next((lac.sockets.unicast for lac in like), None))
        undo.callback(sockets.close)
        index = tables.take_port()
        undo.callback(tables.clear_port, index)
        lac = Lac(tables.take_switch(), index, spec, uplink, sockets, local)
        self.lacs[lac.switch] = lac
        uplink.lacs.add(lac.switch)
        undo.callback(self._drop_lac, lac)
        tables.write_switch(lac.switch, K["MODE_SWITCH"], spec.expiry)
        tables.write_port(index, switch_id=lac.switch, kind=K["PORT_TUNNEL"], learn_limit=LEARN_LIMIT)
        tables.set_tunnel(lac.switch, index)
        self._write_tunnel(lac)
        self._tell_worker(lac)
        self._write_endpoints(lac)
        self.poll_peers(lac)
        return lac

    def _drop_lac(self, lac: Lac) -> None:
        if self.lacs.pop(lac.switch, None) is None:
            return
        lac.uplink.lacs.discard(lac.switch)
        tables = self.host.tables
        for key in lac.endpoints:
            tables.drop_endpoint(key)
        if self.exception is not None:
            self.exception.tell("remove", lac=lac.switch)
        tables.clear_switch(lac.switch)
        tables.drop_tx(lac.index)
        tables.clear_port(lac.index)
        lac.sockets.close()

    # What the kernel and the worker know of a LAC

    def _write_tunnel(self, lac: Lac) -> None:
        spec, uplink, tables = lac.spec, lac.uplink, self.host.tables
        flags = K["TUNNEL_F_V6"] if spec.family == 6 else 0
        if lac.local_peers:
            flags |= K["TUNNEL_F_LOCAL_PEERS"]
        link = self.host.netlink.link(uplink.ifindex)
        if link is None or not hooks.finishes_checksums(link):
            flags |= K["TUNNEL_F_VIRTUAL"]
        if uplink.xdp_out and tables.set_tx(lac.index, uplink.ifindex):
            flags |= K["TUNNEL_F_XDP_OUT"]
        tables.write_tunnel(
            lac.index,
            local=lac.local,
            group=spec.group,
            uplink=uplink.ifindex,
            exception=self._need_exception().ifindex,
            mtu=uplink.mtu,
            vni=spec.vni,
            src_port=lac.sockets.port,
            group_port=spec.port,
            uplink_mac=uplink.mac,
            group_mac=group_mac(spec.group),
            kind=K["TUNNEL_VXVDE"] if spec.kind == "vxvde" else K["TUNNEL_VXLAN"],
            flags=flags,
            ttl=spec.ttl,
            uplink_port=uplink.index,
        )

    def _write_endpoints(self, lac: Lac) -> None:
        """Make every address of the uplink, and the group, ours.

        Raises RequestError where another LAC has one.
        """
        tables, spec = self.host.tables, lac.spec
        addresses = self.host.netlink.addresses(lac.uplink.ifindex, spec.family)
        wanted = {endpoint_key(spec.group, spec.port, spec.vni, lac.uplink.ifindex)}
        for address in {*addresses, lac.local}:
            wanted.add(endpoint_key(address, lac.sockets.port, spec.vni, lac.uplink.ifindex))
        for key in wanted - lac.endpoints:
            owner = tables.endpoint_owner(key)
            if owner is not None and owner != lac.index:
                other = next((one.name for one in self.lacs.values() if one.index == owner), "another network")
                raise RequestError(f"vni {spec.vni}", f"in use by {other}", "use another vni or port")
        for key in wanted - lac.endpoints:
            tables.set_endpoint(key, lac.index)
            lac.endpoints.add(key)
        for key in lac.endpoints - wanted:
            tables.drop_endpoint(key)
        lac.endpoints &= wanted

    def _tell_worker(self, lac: Lac) -> None:
        exception = self._need_exception()
        sockets = (lac.sockets.unicast.fileno(), lac.sockets.multicast.fileno())
        exception.add(lac.switch, lac.spec, lac.sockets.port, lac.uplink.ifindex, lac.local, sockets)
        exception.tell("addresses", addresses=sorted(self.host.netlink.local_addresses()))

    def restart_worker(self) -> None:
        """The worker died: a new one takes over its sockets, which have kept what arrived meanwhile."""
        if self.exception is not None:
            self.exception.restarts += 1
            self.exception.start_worker()
            for lac in self.lacs.values():
                self._tell_worker(lac)

    # Following the host

    def inodes(self) -> set[int]:
        """All our UDP sockets, as in /proc/net/udp."""
        return {inode for lac in self.lacs.values() for inode in lac.sockets.inodes()}

    def poll_peers(self, lac: Lac) -> None:
        """Look for nodes of a network on this host.

        Group traffic is copied to the exception path while there are any.
        """
        found = foreign_sockets(lac.spec.family, lac.spec.group, lac.spec.port, self.inodes())
        if bool(found) != bool(lac.local_peers):
            self.host.tables.tunnel_flag(lac.index, K["TUNNEL_F_LOCAL_PEERS"], bool(found))
            if self.exception is not None:
                self.exception.tell("peers", lac=lac.switch, present=bool(found))
        lac.local_peers = found

    def refresh(self, uplink: Uplink) -> bool:
        """Follow a change of the uplink's MAC, MTU or addresses; False when the uplink is gone."""
        link = self.host.netlink.link(uplink.ifindex)
        if link is None:
            return False
        uplink.mac, uplink.mtu, uplink.name = link.mac, link.mtu, link.name
        for lac in [self.lacs[switch] for switch in uplink.lacs]:
            self._refresh_address(lac)
            self._write_tunnel(lac)
            self._write_endpoints(lac)
        if self.exception is not None:
            self.exception.tell("addresses", addresses=sorted(self.host.netlink.local_addresses()))
        return True

    def _refresh_address(self, lac: Lac) -> None:
        addresses = self.host.netlink.addresses(lac.uplink.ifindex, lac.spec.family)
        if lac.local in addresses or lac.spec.bind or not addresses:
            return
        try:
            source = self.host.netlink.route(lac.spec.group, lac.uplink.ifindex).source
        except RequestError:
            source = ""
        lac.local = source if source in addresses else addresses[0]
        if self.exception is not None:
            self.exception.tell("use", lac=lac.switch, local=lac.local, uplink=lac.uplink.ifindex)

    # Going on from a lease

    def adopt_exception(self, state: Body, fds: dict[str, int]) -> None:
        if self.exception is None:
            self.exception = ExceptionPath.adopt(self.host, state, fds)

    def adopt_uplink(self, state: Mapping[str, Any], fds: dict[str, int]) -> None:
        if state["ifindex"] in self.uplinks:
            return
        kept = ("ifindex", "name", "index", "mtu", "hooks", "why", "xdp_out")
        uplink = Uplink(**{key: state[key] for key in kept}, mac=bytes.fromhex(state["mac"]))
        self.uplinks[uplink.ifindex] = uplink
        for point in state["points"]:
            fd = fds.pop(f"uplink:{uplink.ifindex}:{point}", None)
            uplink.links[point] = self.host.adopt_link(fd, uplink.ifindex, point)

    def adopt_lac(self, state: Mapping[str, Any], fds: dict[str, int], plug: int) -> Lac:
        """Join a LAC from a lease; the first lease of a LAC brings it back."""
        lac = self.lacs.get(state["switch"])
        if lac is None:
            unicast, multicast = (
                socket.socket(fileno=fds.pop(f"lac:{state['switch']}:{name}")) for name in ("unicast", "multicast")
            )
            uplink = self.uplinks[state["uplink"]]
            sockets = TunnelSockets(unicast, multicast, unicast.getsockname()[1])
            lac = Lac(state["switch"], state["index"], Tunnel(**state["spec"]), uplink, sockets, state["local"])
            self.lacs[lac.switch] = lac
            uplink.lacs.add(lac.switch)
            lac.endpoints = self.host.tables.endpoints_of(lac.index)
            lac.local_peers = int(bool(self.host.tables.tunnel_flags(lac.index) & K["TUNNEL_F_LOCAL_PEERS"]))
        lac.plugs.add(plug)
        return lac


def _check_hook(uplink: Uplink, spec: Tunnel) -> None:
    """One uplink serves all its networks by the same hooks.  Raises RequestError where this one wants others."""
    if spec.hook != "auto" and (spec.hook == "xdp") != ("xdp" in uplink.hooks):
        raise RequestError(
            uplink.name,
            f"is in use as an uplink with {uplink.hooks[0]} already",
            "leave out hook=, or unplug the others",
        )


def _network(spec: Tunnel) -> tuple[str, int, str, int, int]:
    """What makes two tunnels on one uplink the same network."""
    return spec.kind, spec.family, spec.group, spec.port, spec.vni


def _listens(spec: Tunnel) -> tuple[str, int, int, str]:
    """What makes two vxlan networks use one unicast socket."""
    return spec.kind, spec.family, spec.port, spec.bind
