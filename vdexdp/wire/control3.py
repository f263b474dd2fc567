# SPDX-License-Identifier: GPL-2.0-or-later
"""The control protocol of vde switches: one request, one reply, over the stream socket ``dir/ctl``.

Both are C structs in the host's byte order, packed:

* request, version 3: u32 magic, u32 version (3), u32 type, sockaddr_un of the client's datagram socket, description;
* request, version 1: u32 magic, u32 type, 6 bytes of MAC address (ignored), sockaddr_un, description;
* reply: sockaddr_un of the switch's datagram socket for this port.

The description has no terminator of its own: it is what comes with the same read.  ``type`` is 0 for a new port, ``port
<< 8`` for that port, 1 for port 0 (which vde_switch keeps for management).  From the reply on, each datagram is one
Ethernet frame, and the stream only says by its end that the session is over.

Paths are ``str`` as from ``os.fsdecode``.  One that starts with NUL is an abstract address of 108 bytes, one that is
empty an unnamed socket.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from socket import AF_UNIX
from typing import Literal

from vdexdp.errors import ProtocolError

MAGIC = 0xFEEDFACE
PATH_SIZE = 108
SOCKADDR_SIZE = 2 + PATH_SIZE
DESCRIPTION_MAX = 128
REQUEST_MAX = 256
"""Bytes that are enough for any request."""

_V3 = struct.Struct(f"=IIIH{PATH_SIZE}s")
_V1 = struct.Struct(f"=II6xH{PATH_SIZE}s")
_PREFIX = struct.Struct("=II")
_SOCKADDR = struct.Struct(f"=H{PATH_SIZE}s")

_NEW_PORT0 = 1
_PORT_MAX = 0xFFFFFF


@dataclass(frozen=True)
class Request:
    """What a client asks for: ``port`` None is any port, 0 is port 0."""

    path: str
    description: str = ""
    port: int | None = None
    version: Literal[1, 3] = 3


def encode_request(request: Request) -> bytes:
    """A request as the client sends it, in one piece.  The description is cut to DESCRIPTION_MAX bytes.

    Raises ValueError for a path that fits no sockaddr_un or a port over 24 bits.
    """
    if request.port is not None and not 0 <= request.port <= _PORT_MAX:
        raise ValueError(f"port {request.port} does not fit the request")
    kind = 0 if request.port is None else request.port << 8 or _NEW_PORT0
    path = _encode_path(request.path)
    description = os.fsencode(request.description)[:DESCRIPTION_MAX]
    if request.version == 1:
        return _V1.pack(MAGIC, kind, AF_UNIX, path) + description
    return _V3.pack(MAGIC, 3, kind, AF_UNIX, path) + description


def decode_request(data: bytes) -> Request | None:
    """A request as the switch gets it; None where bytes are still missing.

    Raises ProtocolError for anything else than a version 1 or 3 request.
    """
    if data[:4] != _PREFIX.pack(MAGIC, 0)[: min(4, len(data))]:
        raise ProtocolError("control socket", "the request does not start with the magic number of VDE")
    if len(data) < _PREFIX.size:
        return None
    second: int = _PREFIX.unpack_from(data)[1]
    layout = _V3 if second == 3 else _V1
    # Version 1 has the type where version 3 has its number, so that only the types below 2 can be told apart.
    if second != 3 and second > _NEW_PORT0:
        raise ProtocolError("control socket", f"version {second} of the control protocol is unknown")
    if len(data) < layout.size:
        return None
    *_, kind, family, raw = layout.unpack_from(data)
    description = os.fsdecode(data[layout.size : layout.size + DESCRIPTION_MAX].partition(b"\0")[0])
    path = _decode_path(family, raw)
    return Request(path, description, _port(kind), 3 if second == 3 else 1)


def encode_reply(path: str) -> bytes:
    """The switch's answer.  Raises ValueError for a path that fits no sockaddr_un."""
    return _SOCKADDR.pack(AF_UNIX, _encode_path(path))


def decode_reply(data: bytes) -> str | None:
    """The path of the switch's datagram socket; None where bytes are still missing.  Raises ProtocolError."""
    if len(data) < SOCKADDR_SIZE:
        return None
    return _decode_path(*_SOCKADDR.unpack_from(data))


def _port(kind: int) -> int | None:
    if kind & 0xFF == _NEW_PORT0:
        return 0
    if kind & 0xFF:
        raise ProtocolError("control socket", f"request type {kind & 0xFF} is unknown")
    return kind >> 8 or None


def _encode_path(path: str) -> bytes:
    raw = os.fsencode(path)
    # The kernel and C programs want the NUL that ends a name; an abstract address has none.
    if len(raw) > PATH_SIZE - (not path.startswith("\0")):
        raise ValueError(f"{path}: too long for a UNIX socket address")
    return raw


def _decode_path(family: int, raw: bytes) -> str:
    if family != AF_UNIX:
        raise ProtocolError("control socket", f"the peer's data socket has address family {family}, not AF_UNIX")
    if raw[0] or not any(raw):
        raw = raw.partition(b"\0")[0]
    return os.fsdecode(raw)
