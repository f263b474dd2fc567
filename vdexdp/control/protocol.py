# SPDX-License-Identifier: GPL-2.0-or-later
"""The control protocol: JSON objects over SOCK_SEQPACKET, descriptors beside them.

One packet is one UTF-8 JSON object.  A client's request has ``"v": 1`` and ``"op"``; the daemon answers every request
with one object that has ``"ok"``: true with the result, or false with ``exit``, ``subject``, ``cause`` and ``hint`` of
the error.  Objects with ``"event"`` come from the daemon unasked, between replies.  Descriptors travel by SCM_RIGHTS in
the same packet, their names in the object's ``"fds"``.

A reply too large for one packet travels in a memfd: the packet is then ``{"spill": bytes}`` and its *last* descriptor
holds the object.  Only a :class:`Channel` made with ``spill=True`` (the client's) reads those; the daemon would be
stalled by a hostile descriptor.

What the other side sends is never trusted: everything that does not fit raises ProtocolError, with the descriptors that
came along closed and the connection still usable.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import socket
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final, get_args, get_origin, get_type_hints

from vdexdp.errors import (
    DaemonError,
    HostError,
    KernelFeatureError,
    KernelPathError,
    PrivilegeError,
    ProtocolError,
    RequestError,
    VdexdpError,
)
from vdexdp.plugins.base import Netdev, Tunnel, VlanPolicy

VERSION: Final = 1
RUN_DIR: Final = Path("/run/vdexdp")
PACKET_MAX: Final = 64 * 1024
"""Bytes of JSON in one packet, both ways; a socket's default send buffer holds it."""
SPILL_MAX: Final = 64 * 1024 * 1024
FDS_MAX: Final = 200
"""Descriptors in one packet; the kernel's own limit is 253."""
DEPTH_MAX: Final = 16

Body = dict[str, Any]


def netns_inode() -> int:
    """The inode number that identifies the caller's network namespace."""
    return os.stat("/proc/self/ns/net").st_ino


def socket_path(netns: int | None = None) -> Path:
    """The control socket of the daemon for a network namespace, the caller's own by default."""
    return RUN_DIR / f"{netns if netns is not None else netns_inode()}.sock"


@dataclass(frozen=True)
class Peer:
    """Who is at the other end of a connection, as the kernel saw it at ``connect``."""

    pid: int
    uid: int
    gid: int


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

    def fileno(self) -> int:
        return self.sock.fileno()

    def close(self) -> None:
        self.sock.close()

    def peer(self) -> Peer:
        return Peer(*struct.unpack("iII", self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)))

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

    def recv(self) -> Message | None:
        """The next object, or None when the other side has hung up.

        Raises ProtocolError for a malformed packet (the connection stays usable), BlockingIOError when a non-blocking
        socket is empty.
        """
        room = socket.CMSG_SPACE(FDS_MAX * array.array("i").itemsize)
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
                raise ProtocolError("message", f"more than {FDS_MAX} descriptors, or no room for them in this process")
            if not data and not message.fds:
                return None
            message.body = decode(data)
            if self.spill and isinstance(message.body.get("spill"), int) and message.fds:
                message.body = _read_spill(message.fds.pop())
        except ProtocolError:
            message.close()
            raise
        return message


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


# Requests and replies


def request(op: str, **parts: Any) -> Body:
    """A client's request."""
    return {"v": VERSION, "op": op, **parts}


def check_request(body: Body) -> str:
    """The operation asked for.  Raises ProtocolError for another version of the protocol."""
    version = take(body, "v", int)
    if version != VERSION:
        raise ProtocolError("request", f"protocol version {version}, this daemon speaks {VERSION}")
    op: str = take(body, "op", str)
    return op


def failure(error: VdexdpError) -> Body:
    """The reply that carries an error."""
    return {
        "ok": False,
        "exit": error.exit_code,
        "error": type(error).__name__,
        "subject": error.subject,
        "cause": error.cause,
        "hint": error.hint,
    }


_ERRORS: Final[dict[str, type[VdexdpError]]] = {
    kind.__name__: kind for kind in (PrivilegeError, KernelFeatureError, KernelPathError, ProtocolError)
}


def check_reply(body: Body) -> Body:
    """The reply itself if it is a success.

    Raises what the daemon raised: RequestError and its kind where the user has to change something, HostError and its
    kind (KernelPathError, KernelFeatureError, PrivilegeError, ProtocolError) where the system refused.
    """
    if body.get("ok") is True:
        return body
    default = RequestError if body.get("exit") == RequestError.exit_code else HostError
    kind = _ERRORS.get(str(body.get("error")), default)
    raise kind(str(body.get("subject", "daemon")), str(body.get("cause", "no cause given")), str(body.get("hint", "")))


def is_event(body: Body) -> bool:
    """Whether this object is an event and no reply."""
    return "event" in body


# Ends


@dataclass(frozen=True)
class Bridge:
    """An end that stays in userspace.

    The daemon makes a tap on the other end's switch and hands over its descriptor ("bridge").
    """

    vnl: str


End = Netdev | Tunnel | Bridge
_KINDS: Final[dict[str, type]] = {"netdev": Netdev, "tunnel": Tunnel, "bridge": Bridge}


def end_to_json(end: End, fd: int | None = None) -> Body:
    """``fd`` is the index of the end's descriptor among those sent along.

    A Tunnel's own kind travels as ``tunnel``.
    """
    for name, cls in _KINDS.items():
        if isinstance(end, cls):
            body = asdict(end)
            if isinstance(end, Tunnel):
                body["tunnel"] = body.pop("kind")
            return body | {"kind": name} | ({"fd": fd} if fd is not None else {})
    raise TypeError(f"not an end: {end!r}")


def end_from_json(body: object) -> tuple[End, int | None]:
    """The end and the index of its descriptor.

    Raises ProtocolError; values are checked here, existence by the daemon.
    """
    if not isinstance(body, dict):
        raise ProtocolError("end", "not an object")
    kind = take(body, "kind", str)
    if kind not in _KINDS:
        raise ProtocolError("end", f'unknown kind "{kind[:40]}"')
    values = {key: value for key, value in body.items() if key not in ("kind", "fd")}
    if kind == "tunnel":
        values["kind"] = values.pop("tunnel", None)
    end: End = _build(_KINDS[kind], values)
    if isinstance(end, Tunnel):
        _check_tunnel(end)
    elif isinstance(end, Netdev):
        if not 0 < len(end.name.encode()) < 16 or "/" in end.name or "\0" in end.name or end.name in (".", ".."):
            raise ProtocolError("end", "not an interface name")
        if not 0 <= end.learn_limit < 1 << 32:
            raise ProtocolError("end", '"learn_limit" is out of range')
        if end.vlan is not None:
            raise ProtocolError("end", "VLAN policies are not known to this version")
    index = take(body, "fd", (int, type(None)), None)
    return end, index


def _check_tunnel(tunnel: Tunnel) -> None:
    family = socket.AF_INET if tunnel.family == 4 else socket.AF_INET6
    try:
        packed = socket.inet_pton(family, tunnel.group)
        if tunnel.bind:
            socket.inet_pton(family, tunnel.bind)
    except (OSError, ValueError) as error:
        raise ProtocolError("end", f"not an IPv{tunnel.family} address") from error
    multicast = packed[0] & 0xF0 == 0xE0 if tunnel.family == 4 else packed[0] == 0xFF
    if not multicast:
        raise RequestError(tunnel.group, "not a multicast address", "a group is in 224.0.0.0/4 or ff00::/8")
    if len(tunnel.device.encode()) > 15 or "/" in tunnel.device or "\0" in tunnel.device:
        raise ProtocolError("end", "not an interface name")
    ranges = {"port": 1 << 16, "vni": 1 << 24, "ttl": 256, "rcvbuf": 1 << 31, "expiry": 1 << 31}
    for name, limit in ranges.items():
        if not (name in ("port", "ttl", "expiry")) <= getattr(tunnel, name) < limit:
            raise ProtocolError("end", f'"{name}" is out of range')


def _build(cls: type, values: Mapping[str, Any]) -> Any:
    """A frozen dataclass from JSON values; literals and scalar types are checked, unknown keys refused."""
    hints = get_type_hints(cls)
    known = {item.name: item for item in fields(cls)}
    if unknown := set(values) - set(known):
        raise ProtocolError("end", f'unknown key "{sorted(unknown)[0][:40]}"')
    for name, item in known.items():
        if name not in values:
            if item.default is MISSING:
                raise ProtocolError("end", f'the key "{name}" is missing')
        elif not _fits(values[name], hints[name]):
            raise ProtocolError("end", f'"{name}" has the wrong type or value')
    return cls(**values)


def _fits(value: object, hint: Any) -> bool:
    if hint == VlanPolicy | None:
        return value is None
    if get_origin(hint) is not None and str(get_origin(hint)) == "typing.Literal":
        return any(value == choice and type(value) is type(choice) for choice in get_args(hint))
    return type(value) is hint


# The messages of a plug


@dataclass(frozen=True)
class PlugRequest:
    """What ``vde_plug`` asks for.

    ``fd_index[i]`` is the index of end ``i``'s tap descriptor among those sent along.
    """

    ends: tuple[End, End]
    vnls: tuple[str, str]
    accel: str = "auto"
    pid: int = 0
    user: str = ""
    fd_index: tuple[int | None, int | None] = (None, None)

    def to_json(self) -> Body:
        ends = [end_to_json(end, index) for end, index in zip(self.ends, self.fd_index, strict=True)]
        return request("plug", ends=ends, vnls=list(self.vnls), accel=self.accel, pid=self.pid, user=self.user)

    @classmethod
    def from_json(cls, body: Body) -> PlugRequest:
        """Raises ProtocolError or RequestError."""
        ends, vnls = take(body, "ends", list), take(body, "vnls", list)
        if len(ends) != 2 or len(vnls) != 2 or not all(isinstance(vnl, str) for vnl in vnls):
            raise ProtocolError("plug", "two ends and two VNLs were expected")
        accel = take(body, "accel", str, "auto")
        if accel not in ("auto", "require"):
            raise ProtocolError("plug", '"accel" must be "auto" or "require"')
        (first, first_fd), (second, second_fd) = map(end_from_json, ends)
        pid, user = take(body, "pid", int, 0), take(body, "user", str, "")
        return cls((first, second), (vnls[0][:1024], vnls[1][:1024]), accel, pid, user[:64], (first_fd, second_fd))


@dataclass(frozen=True)
class EndPath:
    """Which way the frames of one end go, and why not a faster one."""

    end: str
    path: str  # tc, xdp, user
    why: str = ""


@dataclass
class PlugReply:
    """A plug that runs.  ``lease`` and ``fds`` are to be held, unread, and sent back in ``resume`` to a new daemon.

    The descriptor named "bridge", if there is one, is the tap on which the plug pumps its userspace end; it is not part
    of the lease.
    """

    plug: int
    paths: list[EndPath]
    notes: list[str]
    lease: Body
    fds: dict[str, int] = field(default_factory=dict)

    def to_json(self) -> Body:
        body: Body = {
            "ok": True,
            "plug": self.plug,
            "paths": [asdict(path) for path in self.paths],
            "notes": self.notes,
        }
        return body | {"lease": self.lease, "fds": list(self.fds)}

    @classmethod
    def from_message(cls, message: Message) -> PlugReply:
        """Takes the descriptors over.  Raises what the daemon raised, or ProtocolError, with the descriptors closed."""
        try:
            body = check_reply(message.body)
            paths = [EndPath(str(p["end"]), str(p["path"]), str(p.get("why", ""))) for p in take(body, "paths", list)]
            notes = [str(note) for note in take(body, "notes", list, [])]
            return cls(take(body, "plug", int), paths, notes, take(body, "lease", dict), message.named())
        except (VdexdpError, KeyError, TypeError, AttributeError) as error:
            message.close()
            if isinstance(error, VdexdpError):
                raise
            raise ProtocolError("daemon", "a malformed reply") from error


def resume_request(lease: Body, names: Iterable[str]) -> Body:
    """What a plug sends, with the lease's descriptors in the order of ``names``, to a daemon that is new."""
    return request("resume", lease=lease, fds=list(names))
