# SPDX-License-Identifier: GPL-2.0-or-later
"""The ordinary UDP sockets of a tunnel: what makes it a node of its network for everybody who is not served in the
kernel.

A LAC owns two.  The *unicast* socket is its identity: everything leaves with its port as the source (vxvde: ephemeral,
vxlan: the network's own port, shared by all LACs of that port).  The *multicast* socket is bound to the group and joins
it on the uplink; the kernel programs take most of its traffic before it gets here.  Both are bound in a way that stock
nodes on the same host can bind theirs beside them.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final, Literal

from vdexdp.errors import HostError, RequestError
from vdexdp.plugins.base import Tunnel
from vdexdp.wire.vxlan import encode_header

IP_MTU_DISCOVER: Final = 10
IPV6_MTU_DISCOVER: Final = 23
PMTUDISC_DONT: Final = 0
IP_MULTICAST_ALL: Final = 49
IPV6_MULTICAST_ALL: Final = 29
SO_RCVBUFFORCE: Final = 33

DEFAULT_RCVBUF: Final = 4 << 20
"""Bytes; a burst of fragments on a loaded host outruns the worker for some milliseconds."""


def address_family(family: Literal[4, 6]) -> socket.AddressFamily:
    return socket.AF_INET if family == 4 else socket.AF_INET6


def words(address: str) -> tuple[int, int, int, int]:
    """An address as the four 32-bit words of bpf/abi.h, each in network byte order; IPv4 as ::ffff:a.b.c.d."""
    if ":" in address:
        packed = socket.inet_pton(socket.AF_INET6, address)
    else:
        packed = bytes(10) + b"\xff\xff" + socket.inet_pton(socket.AF_INET, address)
    first, second, third, fourth = struct.unpack("=4I", packed)
    return first, second, third, fourth


def swap16(value: int) -> int:
    """Between host and network byte order."""
    return int.from_bytes(value.to_bytes(2, "little"), "big")


def text(value: tuple[int, ...] | list[int]) -> str:
    """The inverse of :func:`words`."""
    packed = struct.pack("=4I", *value)
    if packed[:12] == bytes(10) + b"\xff\xff":
        return socket.inet_ntop(socket.AF_INET, packed[12:])
    return socket.inet_ntop(socket.AF_INET6, packed)


def group_mac(group: str) -> bytes:
    """The Ethernet address of a multicast group (RFC 1112, RFC 2464)."""
    if ":" in group:
        return b"\x33\x33" + socket.inet_pton(socket.AF_INET6, group)[-4:]
    packed = socket.inet_pton(socket.AF_INET, group)
    return b"\x01\x00\x5e" + bytes([packed[1] & 0x7F]) + packed[2:]


@dataclass
class TunnelSockets:
    """The two sockets of one LAC; ``port`` is the unicast one's, in host byte order."""

    unicast: socket.socket
    multicast: socket.socket
    port: int

    def inodes(self) -> set[int]:
        """As in /proc/net/udp."""
        return {os.fstat(sock.fileno()).st_ino for sock in (self.unicast, self.multicast)}

    def close(self) -> None:
        self.unicast.close()
        self.multicast.close()


def open_sockets(tunnel: Tunnel, ifindex: int, shared: socket.socket | None = None) -> TunnelSockets:
    """Bind and join.  ``shared`` is the unicast socket of another vxlan LAC on the same port, to be duplicated.

    Raises HostError naming the port or the group.
    """
    with ExitStack() as undo:
        unicast = undo.enter_context(shared.dup() if shared is not None else _unicast(tunnel, ifindex))
        multicast = undo.enter_context(_multicast(tunnel, ifindex))
        port: int = unicast.getsockname()[1]
        undo.pop_all()
    return TunnelSockets(unicast, multicast, port)


def _new(tunnel: Tunnel) -> socket.socket:
    sock = socket.socket(address_family(tunnel.family), socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    if tunnel.family == 6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, PMTUDISC_DONT)
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_MULTICAST_ALL, 0)
    else:
        sock.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, PMTUDISC_DONT)
        sock.setsockopt(socket.IPPROTO_IP, IP_MULTICAST_ALL, 0)
    wanted = tunnel.rcvbuf or DEFAULT_RCVBUF
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, wanted)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, wanted)
    return sock


def _unicast(tunnel: Tunnel, ifindex: int) -> socket.socket:
    sock = _new(tunnel)
    port = tunnel.port if tunnel.kind == "vxlan" else 0
    try:
        if tunnel.kind == "vxlan":  # its own multicast socket binds the same port
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((tunnel.bind or ("::" if tunnel.family == 6 else "0.0.0.0"), port))
        if tunnel.family == 6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, ifindex)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, tunnel.ttl)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, 64)
        else:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, struct.pack("4s4si", b"", b"", ifindex))
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, tunnel.ttl)
    except OSError as error:
        sock.close()
        raise _bind_error(tunnel, error) from error
    return sock


def _multicast(tunnel: Tunnel, ifindex: int) -> socket.socket:
    sock = _new(tunnel)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((tunnel.group, tunnel.port))
        packed = socket.inet_pton(address_family(tunnel.family), tunnel.group)
        if tunnel.family == 6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, packed + struct.pack("=I", ifindex))
        else:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, struct.pack("4s4si", packed, b"", ifindex))
    except OSError as error:
        sock.close()
        raise _bind_error(tunnel, error) from error
    return sock


def _bind_error(tunnel: Tunnel, error: OSError) -> HostError | RequestError:
    if error.errno == errno.EADDRINUSE:
        return HostError(
            f"UDP port {tunnel.port}",
            "held by another socket",
            f'see "ss -lunp sport = {tunnel.port}"; a kernel vxlan device on that port must go first',
        )
    if error.errno == errno.EADDRNOTAVAIL and tunnel.bind:
        return RequestError(tunnel.bind, "not an address of this host", 'see "ip address"')
    if error.errno == errno.ENOBUFS:
        return HostError(
            tunnel.group, "too many groups joined", "raise net.ipv4.igmp_max_memberships, or net.core.optmem_max"
        )
    return HostError.from_oserror(
        tunnel.group, error, 'the uplink may be unable to multicast; name another: "/if=NAME"'
    )


def goodbye(sockets: TunnelSockets, tunnel: Tunnel) -> None:
    """Tell a vxvde network that this node leaves: a header without a frame.  Best effort."""
    try:
        sockets.unicast.sendto(encode_header(tunnel.vni), (tunnel.group, tunnel.port))
    except OSError:
        pass


def _udp_table(family: Literal[4, 6]) -> list[tuple[str, int, int]]:
    """The UDP sockets of this namespace: address and port as the kernel prints them, inode, datagrams lost."""
    with open("/proc/net/udp6" if family == 6 else "/proc/net/udp") as table:
        next(table)
        rows = [line.split() for line in table]
    return [(row[1], int(row[9]), int(row[12])) for row in rows]


def foreign_sockets(family: Literal[4, 6], group: str, port: int, own: set[int]) -> int:
    """How many sockets of other processes in this namespace listen to a group: nodes of the network on this host."""
    packed = socket.inet_pton(address_family(family), group)
    spelt = struct.pack(f"<{len(packed) // 4}I", *struct.unpack(f">{len(packed) // 4}I", packed)).hex().upper()
    accepted = {f"{spelt}:{port:04X}", f"{'0' * len(spelt)}:{port:04X}"}
    return sum(bound in accepted and inode not in own for bound, inode, _ in _udp_table(family))


def lost_datagrams(inodes: set[int]) -> int:
    """Datagrams that sockets had no room for."""
    return sum(lost for _, inode, lost in _udp_table(4) + _udp_table(6) if inode in inodes)
