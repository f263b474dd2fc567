# SPDX-License-Identifier: GPL-2.0-or-later
"""How clients come to a node: the control socket, and the connections that have not asked for a port yet.

Nobody can keep others out.  A connection that asks for nothing, or for nonsense, is closed, after HANDSHAKE_TIMEOUT at
the latest; of the silent ones only HALF_OPEN_MAX are kept, the newest.  Where descriptors run out, no new client is
taken for a while, and those that are plugged go on.

A client names its data socket by a path.  That it is the client's own is proved before it is connected to: else a
client could make a node that runs as root send frames to any socket of the system.

The data socket on our side is called ``fdN``, as by stock's netnode, after the descriptor of the client's stream.  Port
numbers mean nothing to a node: a client that asks for one, 0 included, gets a port like any other.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from vdexdp.errors import ProtocolError
from vdexdp.plugins.base import BATCH, Batch
from vdexdp.plugins.sockdir import SocketDirectory, unlink
from vdexdp.wire.control3 import REQUEST_MAX, Request, decode_request, encode_reply

HANDSHAKE_TIMEOUT: Final = 5.0
"""Seconds that a client has for its request."""

HALF_OPEN_MAX: Final = 32
"""Connections without a request; one more closes the oldest."""

PAUSE: Final = 1.0
"""Seconds without new clients when descriptors have run out."""

SEND_BUFFER: Final = 1 << 19
"""Bytes asked for each client; the kernel doubles them, and gives at most net.core.wmem_max without privilege."""

_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_UCRED = struct.Struct("=iII")  # struct ucred: pid, uid, gid

Handler = Callable[[Batch], object]


class Watch:
    """Sockets that are waited for together, and who is told when one is readable or hung up."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}

    def fileno(self) -> int:
        """A descriptor that is readable when one of the sockets is."""
        return self._epoll.fileno()

    def add(self, end: socket.socket, handler: Handler) -> None:
        """Wait for a socket."""
        self._epoll.register(end.fileno(), select.EPOLLIN)
        self._handlers[end.fileno()] = handler

    def tell(self, end: socket.socket, handler: Handler) -> None:
        """Somebody else is told from now on."""
        self._handlers[end.fileno()] = handler

    def remove(self, end: socket.socket) -> None:
        """Wait no more; call it before the socket is closed."""
        self._epoll.unregister(end.fileno())
        del self._handlers[end.fileno()]

    def ready(self) -> list[int]:
        """The descriptors that have something, without waiting."""
        return [fd for fd, _ in self._epoll.poll(0, BATCH)]

    def handler(self, fd: int) -> Handler | None:
        """Who is told about a descriptor; None where it was removed meanwhile."""
        return self._handlers.get(fd)

    def close(self) -> None:
        """Idempotent."""
        self._epoll.close()


@dataclass(frozen=True)
class Client:
    """A client that has its port: its stream, our end of its datagrams, the name of that, what it says of itself."""

    control: socket.socket
    data: socket.socket
    name: str
    description: str


@dataclass
class _Visitor:
    control: socket.socket
    deadline: float
    heard: bytes = b""


class Reception:
    """Accepts connections, reads requests, hands each new client to ``welcome``.  With ``verbose`` refusals are told
    on stderr.
    """

    def __init__(
        self, directory: SocketDirectory, watch: Watch, welcome: Callable[[Client], None], *, verbose: bool
    ) -> None:
        self._directory = directory
        self._watch = watch
        self._welcome = welcome
        self._verbose = verbose
        self._visitors: dict[int, _Visitor] = {}
        self._paused_until = 0.0
        watch.add(directory.listener, self._accept)

    @property
    def exhausted(self) -> bool:
        """Whether no new clients are taken for want of descriptors."""
        return self._paused_until > 0

    def deadline(self) -> float | None:
        """When ``expire`` has something to do, by time.monotonic(); None for never."""
        if not self._visitors:
            return self._paused_until or None
        first = next(iter(self._visitors.values())).deadline  # the oldest
        return min(first, self._paused_until) if self._paused_until else first

    def expire(self) -> None:
        """Close what has been silent for too long, and open again after a pause."""
        now = time.monotonic()
        for visitor in [visitor for visitor in self._visitors.values() if visitor.deadline <= now]:
            self._turn_away(visitor, f"no request within {HANDSHAKE_TIMEOUT:g} s")
        if self._paused_until and self._paused_until <= now:
            self._paused_until = 0.0
            self._watch.add(self._directory.listener, self._accept)

    def close(self) -> None:
        """Turn everybody away; idempotent."""
        for visitor in list(self._visitors.values()):
            self._turn_away(visitor)

    def _accept(self, _: Batch) -> None:
        try:
            control, _address = self._directory.listener.accept()
        except (BlockingIOError, ConnectionAbortedError, InterruptedError):
            return
        except OSError as error:
            if error.errno not in _EXHAUSTED:
                raise
            self._watch.remove(self._directory.listener)
            self._paused_until = time.monotonic() + PAUSE
            return
        control.setblocking(False)
        if len(self._visitors) >= HALF_OPEN_MAX:
            self._turn_away(next(iter(self._visitors.values())), "too many connections without a request")
        visitor = _Visitor(control, time.monotonic() + HANDSHAKE_TIMEOUT)
        self._visitors[control.fileno()] = visitor
        self._watch.add(control, partial(self._listen, visitor))

    def _listen(self, visitor: _Visitor, _: Batch) -> None:
        try:
            heard = visitor.control.recv(REQUEST_MAX)
        except BlockingIOError:
            return
        except OSError:
            heard = b""
        visitor.heard += heard
        try:
            request = decode_request(visitor.heard)
            if request is not None:
                client = self._seat(visitor, request)
                del self._visitors[visitor.control.fileno()]
                self._welcome(client)
            elif not heard or len(visitor.heard) >= REQUEST_MAX:
                self._turn_away(visitor)
        except (ProtocolError, OSError) as error:
            self._turn_away(visitor, str(error))

    def _seat(self, visitor: _Visitor, request: Request) -> Client:
        """Give the client its port.  Raises ProtocolError and OSError."""
        data = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        name = f"fd{visitor.control.fileno()}"
        path = os.path.join(self._directory.path, name)
        try:
            data.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
            _connect_own(data, request.path, visitor.control)
            unlink(path)
            self._directory.bind(data, name)
            visitor.control.send(encode_reply(path))
        except BaseException:
            data.close()
            unlink(path)
            raise
        return Client(visitor.control, data, path, request.description)

    def _turn_away(self, visitor: _Visitor, why: str = "") -> None:
        if why and self._verbose:
            print(f"{self._directory.path}: refused a client: {why}", file=sys.stderr)
        self._watch.remove(visitor.control)
        del self._visitors[visitor.control.fileno()]
        visitor.control.close()


def _connect_own(data: socket.socket, path: str, control: socket.socket) -> None:
    """Connect to the data socket that a client has named.  Raises ProtocolError, if it is not the client's, and
    OSError.

    The proof and the connection are about the same inode, however the path changes meanwhile.
    """
    if not path or path.startswith("\0"):
        raise ProtocolError("control socket", "the client's data socket has no name in the file system")
    _, uid, _ = _UCRED.unpack(control.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    inode = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        owner = os.fstat(inode).st_uid
        if uid not in (0, owner):
            raise ProtocolError(path, f"belongs to user {owner}, but the client is user {uid}")
        data.connect(f"/proc/self/fd/{inode}")
    finally:
        os.close(inode)
