# SPDX-License-Identifier: GPL-2.0-or-later
"""The exception worker: the frames that the kernel programs can't carry, through ordinary UDP sockets.

Outwards it reads whole outer packets from the exception tap, where the kernel has segmented them and filled in their
checksums, and sends their UDP payload through the socket of the LAC that they belong to; the host's IP stack fragments
them, or delivers them on this host.  An outer TTL of 0 stands for a copy of group traffic that only nodes on this host
are to get.  Inwards it reads those sockets (whole datagrams: the host's stack has reassembled them) and writes the
outer packet, rebuilt, to the tap, where the kernel program treats it like one from the uplink.  A frame with the
bounce tag only had to be segmented and goes back as it is.

The worker is a process forked by the daemon, so that a busy exception path delays nobody, and it outlives the daemon:
it ends when the last copy of the other end of its control socket is closed, and every plug of a tunnel holds one.
"""

from __future__ import annotations

import os
import select
import socket
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from vdexdp.control.channel import Channel, Message, take
from vdexdp.control.forked import fork_off
from vdexdp.errors import DaemonError, ProtocolError
from vdexdp.wire.vxlan import HEADER_SIZE, build_outer, decode_header, encode_header, is_vxvde, parse_outer

BURST: Final = 64
"""Packets taken from one descriptor before the others get their turn."""
PACKET_MAX: Final = (1 << 16) + 64
BOUNCE: Final = b"\x88\xa8"
IP_PKTINFO: Final = 8
CACHED_MAX: Final = 4096
"""Flows, and senders of each LAC, whose headers are remembered instead of being taken apart or built each time."""


_LENGTH: Final = struct.Struct("!H")


@dataclass(frozen=True)
class Layout:
    """Where things are in an outer packet without IP options: offsets in bytes."""

    udp: int
    payload: int
    ip_length: int
    ip_counts: int
    """What the IP length says besides the payload's bytes."""


LAYOUT: Final = {4: Layout(34, 42, 16, 28), 6: Layout(54, 62, 18, 8)}


@dataclass
class Node:
    """One LAC as the worker sees it."""

    lac: int
    kind: Literal["vxvde", "vxlan"]
    family: Literal[4, 6]
    group: str
    port: int
    vni: int
    ttl: int
    src_port: int
    uplink: int
    local: str
    unicast: socket.socket
    multicast: socket.socket
    header: bytes = b""
    told: bool = False
    counters: Counter[str] = field(default_factory=Counter)
    headers: dict[tuple[str, int, str], bytes] = field(default_factory=dict)
    """Outer headers by sender, its port and our address, all but the lengths."""

    def __post_init__(self) -> None:
        self.header = encode_header(self.vni)
        self.use(self.local, self.uplink)

    def use(self, local: str, uplink: int) -> None:
        """Send from this address; group traffic through this interface."""
        self.local, self.uplink = local, uplink
        self.headers.clear()
        if self.family == 4:
            packed = socket.inet_pton(socket.AF_INET, local)
            self.to_group = (socket.IPPROTO_IP, IP_PKTINFO, struct.pack("=i4s4s", uplink, packed, b""))
            self.to_one = (socket.IPPROTO_IP, IP_PKTINFO, struct.pack("=i4s4s", 0, packed, b""))
        else:
            packed = socket.inet_pton(socket.AF_INET6, local)
            self.to_group = (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, packed + struct.pack("=I", uplink))
            self.to_one = (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, packed + struct.pack("=I", 0))

    def close(self) -> None:
        self.unicast.close()
        self.multicast.close()


@dataclass(frozen=True)
class Flow:
    """What is done with packets of one outer header.  ``hops`` is -1 for what does not go to the group."""

    node: Node
    layout: Layout
    ancillary: tuple[int, int, bytes]
    name: tuple[Any, ...]
    hops: int


class Worker:
    """The loop.  ``control`` is the worker's end of the socketpair, ``tap`` the exception tap's descriptor."""

    def __init__(self, control: Channel, tap: int) -> None:
        self.control = control
        self.tap = tap
        self.nodes: dict[int, Node] = {}
        self.by_source: dict[tuple[int, int, int], Node] = {}
        self.flows: dict[bytes, Flow] = {}
        self.addresses: frozenset[str] = frozenset()
        self.counters: Counter[str] = Counter()
        self.buffer = bytearray(PACKET_MAX)
        self.view = memoryview(self.buffer)
        self.poll = select.epoll()
        self.handlers: dict[int, Callable[[], None]] = {}
        self.running = True
        self._watch(control.fileno(), self._command)
        self._watch(tap, self._outwards)

    def run(self) -> None:
        """Until the control socket is closed by everybody."""
        while self.running:
            for fd, _ in self.poll.poll():
                if handler := self.handlers.get(fd):
                    handler()

    def _watch(self, fd: int, handler: Callable[[], None]) -> None:
        self.handlers[fd] = handler
        self.poll.register(fd, select.EPOLLIN)

    def _forget(self, fd: int) -> None:
        del self.handlers[fd]
        self.poll.unregister(fd)

    # From the tap to the sockets

    def _outwards(self) -> None:
        for _ in range(BURST):
            try:
                size = os.readv(self.tap, [self.buffer])
            except BlockingIOError:
                return
            except OSError:  # the tap is down or was deleted: the daemon will notice and say so
                self.counters["tap-gone"] += 1
                self._forget(self.tap)
                return
            packet = self.view[:size]
            if bytes(packet[12:14]) == BOUNCE:
                self._to_tap(packet, self.counters, "bounced")
            elif size >= LAYOUT[4].payload + HEADER_SIZE:
                self._send(packet)
            else:
                self.counters["drop-unknown"] += 1

    def _send(self, packet: memoryview) -> None:
        # TTL and protocol, addresses and ports, and the VNI
        if packet[12] == 0x08:
            key = bytes(packet[22:24]) + bytes(packet[26:38]) + bytes(packet[46:49])
        else:
            key = bytes(packet[20:58]) + bytes(packet[66:69])
        flow = self.flows.get(key) or self._flow(key, packet)
        if flow is None:
            self.counters["drop-unknown"] += 1
            return
        node, at = flow.node, flow.layout.udp
        payload = packet[at + 8 : at + (packet[at + 4] << 8 | packet[at + 5])]
        try:
            if flow.hops >= 0:
                self._hops(node, flow.hops)
            node.unicast.sendmsg((payload,), (flow.ancillary,), 0, flow.name)
            node.counters["sent"] += 1
        except BlockingIOError:
            node.counters["drop-full"] += 1
        except OSError as error:
            node.counters[f"drop-{os.strerror(error.errno or 0).lower().replace(' ', '-')}"] += 1
        finally:
            if flow.hops == 0:
                self._hops(node, node.ttl)

    def _flow(self, key: bytes, packet: memoryview) -> Flow | None:
        outer = parse_outer(packet)
        vni = decode_header(outer.payload) if outer else None
        node = self.by_source.get((outer.family, outer.sport, vni)) if outer and vni is not None else None
        if outer is None or node is None or outer.payload.nbytes == 0:
            return None
        grouped = outer.dst == node.group
        scoped = node.family == 6 and outer.dst.startswith("fe80:")
        name = (outer.dst, outer.dport, 0, node.uplink) if scoped else (outer.dst, outer.dport)
        flow = Flow(
            node, LAYOUT[node.family], node.to_group if grouped else node.to_one, name, outer.ttl if grouped else -1
        )
        if len(self.flows) >= CACHED_MAX:
            self.flows.clear()
        self.flows[key] = flow
        return flow

    @staticmethod
    def _hops(node: Node, hops: int) -> None:
        if node.family == 4:
            node.unicast.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, hops)
        else:
            node.unicast.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, hops)

    # From the sockets to the tap

    def _inwards(self, sock: socket.socket, node: Node, to: str, port: int) -> None:
        room = self.view[LAYOUT[node.family].payload :]
        for _ in range(BURST):
            try:
                size, sender = sock.recvfrom_into(room)
            except BlockingIOError:
                return
            except OSError:  # an ICMP error that came back for something sent
                node.counters["socket-errors"] += 1
                continue
            self._receive(node, room[:size], sender[0], sender[1], to, port)

    def _receive(self, node: Node, payload: memoryview, source: str, sport: int, to: str, port: int) -> None:
        """``payload`` stands in the buffer, with room for the outer headers before it."""
        if node.kind == "vxlan":
            vni = decode_header(payload)
            other = self.by_source.get((node.family, node.src_port, vni)) if vni is not None else None
            if other is None:
                node.counters["drop-foreign"] += 1
                return
            if to != node.group:
                to = other.local
            node = other
        elif not is_vxvde(payload, node.header):
            node.counters["drop-foreign"] += 1
            return
        if source == node.local and sport == node.src_port:
            node.counters["own-copies"] += 1
            return
        if source in self.addresses and not node.told:
            node.told = self._tell({"event": "local-peer", "lac": node.lac})
        headers = node.headers.get((source, sport, to))
        if headers is None:
            if len(node.headers) >= CACHED_MAX:
                node.headers.clear()
            headers = node.headers[source, sport, to] = build_outer(source, sport, to, port, node.uplink, b"")
        layout, size = LAYOUT[node.family], len(payload)
        self.buffer[: layout.payload] = headers
        _LENGTH.pack_into(self.buffer, layout.ip_length, layout.ip_counts + size)
        _LENGTH.pack_into(self.buffer, layout.udp + 4, 8 + size)
        self._to_tap(self.view[: layout.payload + size], node.counters, "received")

    def _to_tap(self, packet: memoryview, counters: Counter[str], name: str) -> None:
        try:
            os.write(self.tap, packet)
            counters[name] += 1
        except OSError:
            counters["drop-tap"] += 1

    # The daemon's commands

    def _tell(self, body: dict[str, Any]) -> bool:
        try:
            self.control.send(body)
        except (DaemonError, BlockingIOError):
            return False
        return True

    def _command(self) -> None:
        try:
            message = self.control.recv()
        except BlockingIOError:
            return
        except ProtocolError:
            return
        if message is None:
            self.running = False
            return
        try:
            self._obey(message)
        finally:
            message.close()

    def _obey(self, message: Message) -> None:
        body = message.body
        match take(body, "op", str):
            case "add":
                if body["lac"] in self.nodes:
                    self._remove(body["lac"])
                unicast, multicast = (socket.socket(fileno=message.fds.pop(0)) for _ in range(2))
                self._add(Node(**body["node"], lac=body["lac"], unicast=unicast, multicast=multicast))
            case "use":
                if node := self.nodes.get(body["lac"]):
                    node.use(body["local"], body["uplink"])
                    self.flows.clear()
                    self._watch_sockets(node)
            case "remove":
                if body["lac"] in self.nodes:
                    self._remove(body["lac"])
            case "addresses":
                self.addresses = frozenset(body["addresses"])
            case "peers":
                if node := self.nodes.get(body["lac"]):
                    node.told = body["present"]
            case "quit":
                self.running = False
            case "stats":
                lacs = {str(node.lac): dict(node.counters) for node in self.nodes.values()}
                self._tell({"event": "stats", "pid": os.getpid(), "counters": dict(self.counters), "lacs": lacs})

    def _add(self, node: Node) -> None:
        self.nodes[node.lac] = node
        self.by_source[node.family, node.src_port, node.vni] = node
        self.flows.clear()
        for sock in (node.unicast, node.multicast):
            self.poll.register(sock.fileno(), select.EPOLLIN)
        self._watch_sockets(node)

    def _watch_sockets(self, node: Node) -> None:
        self.handlers[node.unicast.fileno()] = lambda: self._inwards(node.unicast, node, node.local, node.src_port)
        self.handlers[node.multicast.fileno()] = lambda: self._inwards(node.multicast, node, node.group, node.port)

    def _remove(self, lac: int) -> None:
        node = self.nodes.pop(lac)
        self.by_source.pop((node.family, node.src_port, node.vni), None)
        self.flows.clear()
        for sock in (node.unicast, node.multicast):
            self._forget(sock.fileno())
        node.close()


def spawn(tap: int) -> tuple[int, socket.socket]:
    """Fork a worker on the exception tap; return its pid and the daemon's end of its control socket."""
    return fork_off(lambda control: Worker(Channel(control), tap).run(), {tap})
