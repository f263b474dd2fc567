# SPDX-License-Identifier: GPL-2.0-or-later
"""``udp://[source:]port->host:port``: a point-to-point cable, one frame in each datagram, nothing else.

The socket is connected, so the kernel passes only the other end's datagrams; and where nobody listens there yet, it
reports that by an error on a later call, which is a lost frame and not the end of the cable.  Datagrams over the
path's MTU are fragmented by the kernel.  What the receive buffer had no room for is counted as "overrun".
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from vdexdp.errors import HostError, VnlError
from vdexdp.plugins.base import Batch, NoKernelEnd, OpenContext, Parsed, Plugin, RecvOne, SendOne, Stream
from vdexdp.plugins.mmsg import Reader, Writer

BUFFER = 4 << 20
"""Bytes asked for each way; the kernel gives at most net.core.rmem_max and wmem_max."""

_SO_MEMINFO = 55  # asm-generic/socket.h: nine u32, of which the last counts the datagrams that were dropped
_MEMINFO = struct.Struct("=9I")


@dataclass(frozen=True)
class UdpSpec:
    source: str  # "" for any address
    source_port: str  # a number or a service name; "" for any port
    host: str
    port: str


class UdpStream(Stream):
    def __init__(self, spec: UdpSpec) -> None:
        super().__init__()
        self._socket = _connected(spec)
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            self._socket.setsockopt(socket.SOL_SOCKET, option, BUFFER)
        self._reader = Reader(self._socket.fileno(), self.drops)
        self._writer = Writer(self._socket.fileno(), self.drops)
        self._overrun = 0

    def readers(self) -> Sequence[int]:
        return (self._socket.fileno(),)

    def recv(self, batch: Batch) -> None:
        try:
            self._reader.recv(batch)
        except OSError as error:
            if error.errno not in (errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EMSGSIZE):
                raise HostError.from_oserror("udp", error) from error
            self.drops["refused"] += 1
        if batch.full:
            # A queue that overflows is a queue that fills batches: no need to look more often.
            *_, overrun = _MEMINFO.unpack(self._socket.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size))
            if overrun != self._overrun:
                self.drops["overrun"] += (overrun - self._overrun) & 0xFFFFFFFF
                self._overrun = overrun

    def send(self, batch: Batch, start: int = 0) -> int:
        try:
            return self._writer.send(batch, start)
        except OSError as error:
            raise HostError.from_oserror("udp", error) from error

    def singles_in(self) -> RecvOne:
        return self._reader.recv_one

    def singles_out(self) -> SendOne:
        return self._writer.send_one

    def close(self) -> None:
        self._socket.close()


def _connected(spec: UdpSpec) -> socket.socket:
    """A bound and connected socket.  Raises HostError."""
    shown = f"{spec.host}:{spec.port}"
    try:
        family, kind, protocol, _, peer = socket.getaddrinfo(spec.host, spec.port, type=socket.SOCK_DGRAM)[0]
        shown = f"{spec.source}:{spec.source_port}"
        here = socket.getaddrinfo(
            spec.source or None, spec.source_port or 0, family, socket.SOCK_DGRAM, 0, socket.AI_PASSIVE
        )[0][4]
    except socket.gaierror as error:
        raise HostError(shown, error.strerror or str(error), "see the name and the port") from error
    s = socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol)
    try:
        s.bind(here)
        shown = f"{spec.host}:{spec.port}"
        s.connect(peer)
    except OSError as error:
        s.close()
        hint = "another process has this port" if error.errno == errno.EADDRINUSE else ""
        raise HostError.from_oserror(shown, error, hint) from error
    return s


def _split(text: str) -> tuple[str, str]:
    """Host and port at the last colon; an IPv6 address may stand in brackets."""
    host, _, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    return host, port


class UdpPlugin(Plugin):
    scheme = "udp"
    grammar = "raw"
    summary = "a point-to-point cable of UDP datagrams, in clear"
    address = "[source:]port->host:port"
    example = "udp://2000->192.0.2.7:3000"

    def parse(self, parsed: Parsed) -> UdpSpec:
        here, arrow, there = parsed.address.partition("->")
        source, source_port = _split(here)
        host, port = _split(there)
        if not arrow or not host or not port:
            raise VnlError(parsed.vnl, "does not say from which port to which host and port", f"like {self.example}")
        for number in (source_port, port):
            if number.isdecimal() and int(number) > 0xFFFF:
                raise VnlError(parsed.vnl, f"port {number} is out of range", "give 1 to 65535, or a service's name")
        return UdpSpec(source, source_port, host, port)

    def open(self, spec: UdpSpec, context: OpenContext) -> UdpStream:
        return UdpStream(spec)

    def kernel_end(self, spec: UdpSpec) -> NoKernelEnd:
        return NoKernelEnd("udp:// has no header by which the kernel could tell its frames from other datagrams")
