# SPDX-License-Identifier: GPL-2.0-or-later
"""JSON objects over SOCK_SEQPACKET, descriptors beside them.

One packet is one UTF-8 JSON object.  Descriptors travel by SCM_RIGHTS in the same packet, their names in the object's
``"fds"``.

An object too large for one packet travels in a memfd: the packet is then ``{"spill": bytes}`` and its *last* descriptor
holds the object.  Only a :class:`Channel` made with ``spill=True`` (the client's) reads those; the daemon would be
stalled by a hostile descriptor.

What the other side sends is never trusted: everything that does not fit raises ProtocolError, with the descriptors that
came along closed and the connection still usable.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import json
import os
import select
import socket
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from vdexdp.errors import DaemonError, ProtocolError

PACKET_MAX: Final = 64 * 1024
"""Bytes of JSON in one packet, both ways; a socket's default send buffer holds it."""
SPILL_MAX: Final = 64 * 1024 * 1024
FDS_MAX: Final = 200
"""Descriptors in one packet; the kernel's own limit is 253."""
DEPTH_MAX: Final = 16
_SO_PEERGROUPS: Final = 59

_libc = ctypes.CDLL(None)

Body = dict[str, Any]


@dataclass(frozen=True)
class Peer:
    """Who is at the other end of a connection, as the kernel saw it at ``connect``."""

    pid: int
    uid: int
    gid: int
    groups: frozenset[int] = frozenset()
    """Supplementary groups."""


@dataclass
class Message:
    """One object and the descriptors that came with it; whoever takes the message owns them."""

    body: Body
    fds: list[int] = field(default_factory=list)

    def close(self) -> None:
        """Close the descriptors that nobody took over."""
        while self.fds:
            with contextlib.suppress(OSError):
                os.close(self.fds.pop())

    def named(self) -> dict[str, int]:
        """The descriptors by the names in ``body["fds"]``.  Raises ProtocolError when they don't match one to one."""
        names = take(self.body, "fds", list, [])
        if len(names) != len(self.fds) or not all(isinstance(name, str) for name in names):
            raise ProtocolError("message", f"{len(names)} descriptor names for {len(self.fds)} descriptors")
        if len(set(names)) != len(names):
            raise ProtocolError("message", "a descriptor name is repeated")
        return dict(zip(names, self.fds, strict=True))


class Channel:
    """One connection.  Works with blocking and non-blocking sockets; keeps no state but the socket."""

    def __init__(self, sock: socket.socket, *, spill: bool = False) -> None:
        self.sock = sock
        self.spill = spill
        self.fds_max = FDS_MAX
        """How many descriptors are taken in one packet; 0 leaves them all to the kernel."""

    def fileno(self) -> int:
        return self.sock.fileno()

    def close(self) -> None:
        self.sock.close()

    def peer(self) -> Peer:
        pid, uid, gid = struct.unpack("iII", self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return Peer(pid, uid, gid, _groups(self.fileno()))

    def wait(self, seconds: float) -> bool:
        """Whether there is something to receive, a hang-up included, within this time.  Any number of descriptors may
        be open in this process, as ``select`` would not have it.
        """
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        return bool(poll.poll(max(0.0, seconds) * 1000))

    def send(self, body: Mapping[str, Any], fds: Sequence[int] = ()) -> None:
        """Send one object; the descriptors are duplicated, the caller keeps its own.

        Raises DaemonError when the other side is gone, BlockingIOError when a non-blocking socket is full.
        """
        data = json.dumps(body, separators=(",", ":")).encode()
        if len(fds) > FDS_MAX - 1:
            raise ProtocolError("message", f"{len(fds)} descriptors are more than one packet holds ({FDS_MAX - 1})")
        if len(data) <= PACKET_MAX:
            self._send(data, fds)
            return
        memfd = os.memfd_create("vdexdp-message", os.MFD_CLOEXEC)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(memfd, view) :]
            self._send(b'{"spill":%d}' % len(data), [*fds, memfd])
        finally:
            os.close(memfd)

    def _send(self, data: bytes, fds: Sequence[int]) -> None:
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            self.sock.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)
        except (BrokenPipeError, ConnectionError) as error:
            raise DaemonError.from_oserror("control socket", error) from error

    def peek(self) -> Body:
        """The object that ``recv`` would return; none of its descriptors is made ours.  Empty for what is no object.

        Raises BlockingIOError.
        """
        try:
            data, _, _, _ = self.sock.recvmsg(PACKET_MAX + 1, 0, socket.MSG_PEEK)
            return decode(data)
        except (ConnectionError, ProtocolError):
            return {}

    def recv(self) -> Message | None:
        """The next object, or None when the other side has hung up.

        Raises ProtocolError for a malformed packet (the connection stays usable), BlockingIOError when a non-blocking
        socket is empty.
        """
        room = socket.CMSG_LEN(self.fds_max * array.array("i").itemsize) if self.fds_max else 0
        try:
            data, ancillary, flags, _ = self.sock.recvmsg(PACKET_MAX + 1, room, socket.MSG_CMSG_CLOEXEC)
        except ConnectionError:
            return None
        message = Message({})
        for level, kind, payload in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                received = array.array("i")
                received.frombytes(payload[: len(payload) - len(payload) % received.itemsize])
                message.fds.extend(received)
        try:
            if flags & socket.MSG_TRUNC or len(data) > PACKET_MAX:
                raise ProtocolError("message", f"longer than {PACKET_MAX} bytes")
            if flags & socket.MSG_CTRUNC:
                raise ProtocolError(
                    "message", f"more than {self.fds_max} descriptors, or no room for them in this process"
                )
            if not data and not message.fds:
                return None
            message.body = decode(data)
            if self.spill and isinstance(message.body.get("spill"), int) and message.fds:
                message.body = _read_spill(message.fds.pop())
        except ProtocolError:
            message.close()
            raise
        return message


def _groups(fd: int) -> frozenset[int]:
    """The other side's supplementary groups; none where the kernel (before 4.13) does not tell."""
    size = ctypes.c_uint32(64 * 4)
    while True:
        groups = (ctypes.c_uint32 * (size.value // 4))()
        if not _libc.getsockopt(fd, socket.SOL_SOCKET, _SO_PEERGROUPS, groups, ctypes.byref(size)):
            return frozenset(groups[: size.value // 4])
        if size.value <= ctypes.sizeof(groups):  # not ERANGE, which tells how many there are
            return frozenset()


def _read_spill(memfd: int) -> Body:
    with os.fdopen(memfd, "rb") as file:
        file.seek(0)
        data = file.read(SPILL_MAX + 1)
    if len(data) > SPILL_MAX:
        raise ProtocolError("message", f"longer than {SPILL_MAX} bytes")
    return decode(data)


def decode(data: bytes) -> Body:
    """One packet's JSON object.  Raises ProtocolError for anything else."""
    try:
        body = json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise ProtocolError("message", f"not a JSON object: {str(error)[:80]}") from error
    if not isinstance(body, dict):
        raise ProtocolError("message", f"a JSON object was expected, not {type(body).__name__}")
    if _depth(body) > DEPTH_MAX:
        raise ProtocolError("message", f"nested deeper than {DEPTH_MAX} levels")
    return body


def _depth(value: object) -> int:
    depth, level = 0, [value]
    while level and depth <= DEPTH_MAX:
        depth += 1
        inner: list[object] = []
        for item in level:
            if isinstance(item, dict):
                inner.extend(item.values())
            elif isinstance(item, list):
                inner.extend(item)
        level = inner
    return depth


def take(body: Mapping[str, Any], key: str, kind: type | tuple[type, ...], *default: Any) -> Any:
    """``body[key]`` if it is of the right type (a bool is no int); the default where the key is missing.

    Raises ProtocolError naming the key.
    """
    if key not in body:
        if default:
            return default[0]
        raise ProtocolError("message", f'the key "{key}" is missing')
    value = body[key]
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise ProtocolError("message", f'"{key}" must be {" or ".join(k.__name__ for k in kinds)}')
    return value
