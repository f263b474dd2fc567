# SPDX-License-Identifier: GPL-2.0-or-later
"""vxvde and vxlan in userspace: one node of the network, with its sockets and its MAC table.

A vxvde node has two sockets: one bound to the group, shared with other nodes of this host, that only receives; and one
on a port of its own that sends everything and receives unicast.  That port *is* the node: a receiver learns
(inner source MAC → outer address and source port).  A VXLAN node has one socket on the well-known port for both; a
receiver learns the address and answers to its own port, whatever the source port was.

The MAC table is a dict from (MAC, VID) to the endpoint and the time last seen.  Age is checked at look-up.  A goodbye
marks the endpoint object as gone, which forgets all its MACs at once.  The table is bounded: when it is full, what has
expired is removed at most once a second, and if that does not help, new addresses are not learnt: their frames are
flooded, and nothing that is in use is pushed out.

Peers whose frames come from a kernel (the kernel's vxlan device, our own kernel path) leave inner checksums to the NIC.
Where there is none in between (virtual machines on one bridge, a veth), frames arrive as the peer's stack left them,
and a tap behind us would carry them on so.  Hence every checksum is looked at.

Our own group traffic comes back, as other nodes on this host must hear it.  It is recognized by our port and a
local address.  Whether an address is local is asked from the routing table: the kernel chooses an address itself as the
source for talking to it exactly if it is its own.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from collections.abc import Sequence

from vdexdp.errors import HostError
from vdexdp.plugins.base import FRAME_MAX, FRAME_MIN, Batch, Stream
from vdexdp.plugins.mmsg import Reader, Writer, address_of, keep, overruns, set_receive_buffer
from vdexdp.plugins.vxnet import VxSpec, interface_index
from vdexdp.wire.offload import close_checksum
from vdexdp.wire.vxlan import HEADER_SIZE, decode_header, encode_header

# linux/in.h, linux/in6.h, linux/udp.h; missing from the socket module
_IP_MULTICAST_ALL = 49
_IPV6_MULTICAST_ALL = 29
_UDP_NO_CHECK6_RX = 102

_RCVBUF = 4 << 20
"""A TCP sender fills the system's default of 208 kB in one go, and halves its speed whenever something is lost."""

_ENDPOINTS_MAX = 4096
_LOCAL_FOR = 1.0
"""Seconds for which "this address is ours" is believed."""

_ETH_VLAN = (b"\x81\x00", b"\x88\xa8")


class Endpoint:
    """Where to send: a socket address in memory that stays in place.

    ``gone``: it said goodbye.  ``own``: it is this node itself, as found out at monotonic time ``checked``.
    """

    __slots__ = ("address", "bytes", "checked", "gone", "own")

    def __init__(self, name: bytes) -> None:
        self.bytes = bytearray(name)
        self.address = (address_of(self.bytes), len(name))
        self.gone = False
        self.own = False
        self.checked = 0.0


class MacTable:
    """(MAC, VID) → endpoint; see the module's text."""

    def __init__(self, limit: int, expiry: float) -> None:
        self.limit = limit
        self.expiry = expiry
        self._entries: dict[bytes, tuple[Endpoint, float]] = {}
        self._swept = 0.0

    def learn(self, key: bytes, endpoint: Endpoint, now: float) -> None:
        """Note that ``key`` is behind ``endpoint``, at monotonic time ``now``."""
        if len(self._entries) >= self.limit and key not in self._entries and not self._sweep(now):
            return
        self._entries[key] = (endpoint, now)

    def find(self, key: bytes, now: float) -> Endpoint | None:
        entry = self._entries.get(key)
        if entry is None or entry[0].gone or now - entry[1] > self.expiry:
            return None
        return entry[0]

    def endpoints(self) -> set[Endpoint]:
        return {endpoint for endpoint, _ in self._entries.values()}

    def _sweep(self, now: float) -> bool:
        if now - self._swept >= 1.0:
            self._swept = now
            self._entries = {
                key: (endpoint, seen)
                for key, (endpoint, seen) in self._entries.items()
                if not endpoint.gone and now - seen <= self.expiry
            }
        return len(self._entries) < self.limit


def mac_key(frame: memoryview, at: int) -> bytes:
    """The table's key for the MAC at offset ``at``: the MAC, and the VID if the frame is tagged."""
    mac = bytes(frame[at : at + 6])
    if frame[12:14] in _ETH_VLAN and len(frame) >= 16:
        return mac + bytes((frame[14] & 0x0F, frame[15]))
    return mac


class VxStream(Stream):
    """What both kinds of node share.  The subclasses open the sockets and say what a sender's name and header mean."""

    def __init__(self, spec: VxSpec) -> None:
        super().__init__()
        self.tunnel = spec.tunnel
        self.header = encode_header(spec.tunnel.vni)
        self._v6 = spec.tunnel.family == 6
        self._name_size = 28 if self._v6 else 16
        self._table = MacTable(spec.table, float(spec.tunnel.expiry))
        self._endpoints: dict[bytes, Endpoint] = {}
        self._group = Endpoint(self._sockaddr(spec.tunnel.group, spec.tunnel.port))
        self._index = interface_index(self._subject(), spec.tunnel.device)
        self._sockets: list[socket.socket] = []
        try:
            sender = self._open_sockets()
        except OSError as error:
            self.close()
            raise self._explain(error) from error
        self._readers = [Reader(s.fileno(), self.drops, header=8, name=self._name_size) for s in self._sockets]
        self._writer = Writer(sender.fileno(), self.drops, header=self.header)

    def _open_sockets(self) -> socket.socket:
        """Fill ``_sockets``, in the order to read them in; return the one that sends."""
        raise NotImplementedError

    def _endpoint(self, name: bytes) -> Endpoint:
        """The endpoint behind a sender's socket address."""
        raise NotImplementedError

    def _is_ours(self, header: bytes) -> bool:
        """Whether a datagram's header is that of this network."""
        return header == self.header

    def readers(self) -> Sequence[int]:
        return [reader.fd for reader in self._readers]

    def recv(self, batch: Batch) -> None:
        start = batch.count
        for reader in self._readers:
            if batch.full:
                break
            first = batch.count
            try:
                count = reader.recv(batch)
            except OSError as error:
                raise self._explain(error) from error
            if count:
                self._take(batch, first, count, bytes(reader.vector.headers), bytes(reader.vector.names))
        for index in range(start, batch.count):
            close_checksum(batch[index])
        if batch.full and (lost := sum(map(overruns, self._sockets))):
            self.drops["overrun"] = lost

    def _take(self, batch: Batch, first: int, count: int, headers: bytes, names: bytes) -> None:
        """Check and learn what ``reader`` put into the batch, and leave what is for us."""
        now = time.monotonic()
        lengths, rows, size = batch.lengths, batch.rows, self._name_size
        wanted = [True] * count
        name = b""
        endpoint = self._group
        for index in range(first, first + count):
            length = lengths[index]
            sender = names[index * size : index * size + size]
            if sender != name:
                endpoint, name = self._endpoint(sender), sender
            if endpoint.own or not self._is_sound(length, headers[index * HEADER_SIZE : (index + 1) * HEADER_SIZE]):
                wanted[index - first] = False
            elif length == 0:
                self._goodbye(sender)
                wanted[index - first], name = False, b""
            else:
                key = mac_key(rows[index], 6)
                if not key[0] & 1:
                    self._table.learn(key, endpoint, now)
        if not all(wanted):
            keep(batch, first, wanted)

    def _is_sound(self, length: int, header: bytes) -> bool:
        if length < 0 or not self._is_ours(header):
            self.drops["bad-header"] += 1
        elif 0 < length < FRAME_MIN:
            self.drops["runt"] += 1
        elif length > FRAME_MAX:
            self.drops["too-big"] += 1
        else:
            return True
        return False

    def _goodbye(self, name: bytes) -> None:
        """An empty datagram came from ``name``."""

    def send(self, batch: Batch, start: int = 0) -> int:
        now = time.monotonic()
        find, group, rows = self._table.find, self._group.address, batch.rows
        names = []
        for index in range(start, batch.count):
            key = mac_key(rows[index], 0)
            endpoint = None if key[0] & 1 else find(key, now)
            names.append(group if endpoint is None else endpoint.address)
        try:
            return self._writer.send(batch, start, names)
        except OSError as error:
            raise self._explain(error) from error

    def close(self) -> None:
        while self._sockets:
            self._sockets.pop().close()

    # sockets

    def _socket(self) -> socket.socket:
        """A new UDP socket of the tunnel's family, set up for what every one of them needs."""
        made = socket.socket(
            socket.AF_INET6 if self._v6 else socket.AF_INET,
            socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC,
        )
        self._sockets.append(made)
        if self._v6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            made.setsockopt(socket.IPPROTO_UDP, _UDP_NO_CHECK6_RX, 1)
        set_receive_buffer(made, self.tunnel.rcvbuf or _RCVBUF)
        return made

    def _join(self, receiver: socket.socket) -> None:
        """Hear the group on the uplink, and nothing that only other sockets of this host have joined."""
        group = socket.inet_pton(receiver.family, self.tunnel.group)
        if self._v6:
            receiver.setsockopt(socket.IPPROTO_IPV6, _IPV6_MULTICAST_ALL, 0)
            request = struct.pack("=16sI", group, self._index)
            receiver.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, request)
        else:
            receiver.setsockopt(socket.IPPROTO_IP, _IP_MULTICAST_ALL, 0)
            request = struct.pack("=4s4xi", group, self._index)
            receiver.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, request)

    def _aim(self, sender: socket.socket, *, loop: bool) -> None:
        """Let group traffic leave through the uplink, with the tunnel's ttl; ``loop``: hear it on this host, too."""
        if self._v6:
            sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, self.tunnel.ttl)
            sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, int(loop))
            if self._index:
                sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, self._index)
        else:
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, self.tunnel.ttl)
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, int(loop))
            if self._index:
                sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, struct.pack("=8xi", self._index))

    def _sockaddr(self, address: str, port: int) -> bytes:
        """struct sockaddr_in or sockaddr_in6 of an address in text."""
        if self._v6:
            packed = socket.inet_pton(socket.AF_INET6, address)
            return struct.pack("=H2s4x16sI", socket.AF_INET6, port.to_bytes(2, "big"), packed, 0)
        return struct.pack(
            "=H2s4s8x", socket.AF_INET, port.to_bytes(2, "big"), socket.inet_pton(socket.AF_INET, address)
        )

    def _known(self, name: bytes) -> Endpoint:
        """The endpoint of a socket address, always the same object while it is in use."""
        endpoint = self._endpoints.get(name)
        if endpoint is None:
            if len(self._endpoints) >= _ENDPOINTS_MAX:
                used = self._table.endpoints()
                self._endpoints = {name: endpoint for name, endpoint in self._endpoints.items() if endpoint in used}
            endpoint = self._endpoints[name] = Endpoint(name)
        return endpoint

    # messages

    def _subject(self) -> str:
        tunnel = self.tunnel
        return f"{tunnel.kind}://{tunnel.group}" + (f"/if={tunnel.device}" if tunnel.device else "")

    def _explain(self, error: OSError) -> HostError:
        tunnel = self.tunnel
        if error.errno in (errno.ENODEV, errno.ENETUNREACH):
            hint = f'name one with "if=", or add one: "ip route add {tunnel.group} dev INTERFACE"'
            return HostError(self._subject(), "no route to the group tells the uplink", hint)
        if error.errno == errno.EADDRINUSE:
            cause = f"UDP port {tunnel.port} is used by another program, or the kernel's vxlan device"
            return HostError(self._subject(), cause, "end it, or choose another port")
        if error.errno == errno.EADDRNOTAVAIL and tunnel.bind:
            return HostError(self._subject(), f"{tunnel.bind} is not an address of this host", 'see "ip address"')
        if error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
            return HostError(self._subject(), f"IPv{tunnel.family} is not available here", os.strerror(error.errno))
        return HostError.from_oserror(self._subject(), error)


class VxvdeStream(VxStream):
    """A vxvde node."""

    def _open_sockets(self) -> socket.socket:
        tunnel = self.tunnel
        multicast, unicast = self._socket(), self._socket()
        multicast.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        multicast.bind((tunnel.group, tunnel.port, 0, self._index) if self._v6 else (tunnel.group, tunnel.port))
        self._join(multicast)
        unicast.bind((tunnel.bind, 0))
        self._aim(unicast, loop=True)
        self._unicast = unicast
        self._port = unicast.getsockname()[1].to_bytes(2, "big")
        return unicast

    def _endpoint(self, name: bytes) -> Endpoint:
        endpoint = self._known(name)
        if name[2:4] == self._port:
            now = time.monotonic()
            if now - endpoint.checked >= _LOCAL_FOR:
                endpoint.own, endpoint.checked = is_local(name), now
        return endpoint

    def _goodbye(self, name: bytes) -> None:
        endpoint = self._endpoints.pop(name, None)
        if endpoint is not None:
            endpoint.gone = True

    def close(self) -> None:
        if self._sockets and hasattr(self, "_unicast"):
            try:
                self._unicast.sendto(self.header, (self.tunnel.group, self.tunnel.port))
            except OSError:
                pass
        super().close()


class VxlanStream(VxStream):
    """A VXLAN node."""

    def _open_sockets(self) -> socket.socket:
        only = self._socket()
        only.bind(("", self.tunnel.port))
        self._join(only)
        self._aim(only, loop=False)
        self._port = self.tunnel.port.to_bytes(2, "big")
        return only

    def _endpoint(self, name: bytes) -> Endpoint:
        return self._known(name[:2] + self._port + name[4:])

    def _is_ours(self, header: bytes) -> bool:
        return decode_header(header) == self.tunnel.vni


def is_local(name: bytes) -> bool:
    """Whether the address in a struct sockaddr_in or sockaddr_in6 is one of this host's.

    The unspecified address is: what leaves through an interface without an address comes back with it.
    """
    v6 = len(name) == 28
    packed, scope = (name[8:24], struct.unpack_from("=I", name, 24)[0]) if v6 else (name[4:8], 0)
    if not any(packed):
        return True
    family = socket.AF_INET6 if v6 else socket.AF_INET
    address = socket.inet_ntop(family, packed)
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
        try:
            probe.connect((address, 9, 0, scope) if v6 else (address, 9))
        except OSError:
            return False
        return bool(probe.getsockname()[0].partition("%")[0] == address)
