# SPDX-License-Identifier: GPL-2.0-or-later
"""The control protocol: what plugs and commands ask of the daemon, and what it answers.

A client's request has ``"v": 1`` and ``"op"``; the daemon answers every request with one object that has ``"ok"``: true
with the result, or false with ``exit``, ``error``, ``subject``, ``cause`` and ``hint`` of the error.  Objects with
``"event"`` come from the daemon unasked, between replies.  How objects travel: :mod:`vdexdp.control.channel`.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final, get_args, get_origin, get_type_hints

from vdexdp.control.channel import Body, Message, take
from vdexdp.errors import (
    HostError,
    KernelFeatureError,
    KernelPathError,
    PrivilegeError,
    ProtocolError,
    RequestError,
    VdexdpError,
)
from vdexdp.plugins.base import Inside, Netdev, NodeMode, Tunnel
from vdexdp.wire.dot1q import Mapper
from vdexdp.wire.ethernet import DOT1AD, DOT1Q, VID_MASK

VERSION: Final = 1
RUN_DIR: Final = Path("/run/vdexdp")


def netns_inode() -> int:
    """The inode number that identifies the caller's network namespace."""
    return os.stat("/proc/self/ns/net").st_ino


def socket_path(netns: int | None = None) -> Path:
    """The control socket of the daemon for a network namespace, the caller's own by default."""
    return RUN_DIR / f"{netns if netns is not None else netns_inode()}.sock"


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

    The daemon makes a tap on the other end's switch and hands over its descriptor ("bridge").  A node of legacy clients
    says by which control socket it is known, ``node``: interfaces may join it then.
    """

    vnl: str
    node: str = ""
    mode: NodeMode = "switch"
    expiry: int = 0


@dataclass(frozen=True)
class Visit:
    """A port of such a node.  The end's descriptor is a connection to its control socket."""

    vnl: str


End = Netdev | Tunnel | Bridge | Inside | Visit
_KINDS: Final[dict[str, type]] = {
    "netdev": Netdev,
    "tunnel": Tunnel,
    "bridge": Bridge,
    "inside": Inside,
    "visit": Visit,
}


def end_to_json(end: End, fd: int | None = None) -> Body:
    """``fd`` is the index of the end's descriptor among those sent along.

    A Tunnel's own kind travels as ``tunnel``.
    """
    for name, cls in _KINDS.items():
        if isinstance(end, cls):
            body = asdict(end)
            if body.pop("vlan", None):
                body["vlan"] = [_mapper_to_json(mapper) for mapper in end.vlan]  # type: ignore[union-attr]
            if isinstance(end, Tunnel):
                body["tunnel"] = body.pop("kind")
            if isinstance(end, Bridge) and not end.node:
                body = {"vnl": end.vnl}
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
    if "vlan" in values:
        values["vlan"] = _mappers(take(values, "vlan", list))
    end: End = _build(_KINDS[kind], values)
    if isinstance(end, Tunnel):
        _check_tunnel(end)
    elif isinstance(end, Netdev | Inside):
        if not 0 < len(end.name.encode()) < 16 or end.name in (".", "..") or set(end.name) & set("/:%\0 \n\t"):
            raise ProtocolError("end", "not an interface name")
        if isinstance(end, Netdev) and not 0 <= end.learn_limit < 1 << 32:
            raise ProtocolError("end", '"learn_limit" is out of range')
    elif isinstance(end, Bridge) and not (len(end.node.encode()) < 108 and 0 <= end.expiry < 1 << 31):
        raise ProtocolError("end", "not a node")
    index = take(body, "fd", (int, type(None)), None)
    return end, index


def _mapper_to_json(mapper: Mapper) -> list[Any]:
    return [mapper.untagged, mapper.untag, mapper.tags, mapper.trunk, mapper.tpid]


def _mappers(body: list[Any]) -> tuple[Mapper, ...]:
    def is_vid(value: object) -> bool:
        return type(value) is int and 0 <= value <= VID_MASK

    try:
        found = tuple(Mapper(a, b, tuple((i, o) for i, o in tags), trunk, tpid) for a, b, tags, trunk, tpid in body)
    except (TypeError, ValueError) as error:
        raise ProtocolError("end", '"vlan" is malformed') from error
    for one in found:
        vids = (one.untagged, one.untag, *(vid for pair in one.tags for vid in pair))
        if not all(map(is_vid, vids)) or type(one.trunk) is not bool or one.tpid not in (DOT1Q, DOT1AD):
            raise ProtocolError("end", '"vlan" is malformed')
    return found


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
    if hint == tuple[Mapper, ...]:
        return isinstance(value, tuple)
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
        one, other = (_printable(vnl[:1024]) for vnl in vnls)
        return cls((first, second), (one, other), accel, pid, _printable(user[:64]), (first_fd, second_fd))


def _printable(text: str) -> str:
    """What others will see on their terminals."""
    return "".join(one if one.isprintable() else "?" for one in text)


@dataclass(frozen=True)
class EndPath:
    """Which way the frames of one end go, and why not a faster one."""

    end: str
    path: str  # tc, xdp, user
    why: str = ""


@dataclass
class PlugReply:
    """A plug that runs.  ``lease`` and ``fds`` are to be held, unread, and sent back in ``resume`` to a new daemon.

    Those of a user other than root hold nothing but his claim to what the keeper holds (:mod:`vdexdp.control.keeper`):
    a ``token``, and "alive", whose end says that he has ended.

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
