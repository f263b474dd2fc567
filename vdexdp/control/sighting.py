# SPDX-License-Identifier: GPL-2.0-or-later
"""What the observed build says of a frame, and who watches: the side that reads.

A sighting is one frame with all that it met, as ``struct sighting`` and the frame's bytes behind it (bpf/abi.h).
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Final

from vdexdp.control import client
from vdexdp.control.abi import K, enum, record
from vdexdp.control.channel import Channel
from vdexdp.control.protocol import check_reply, request
from vdexdp.control.ringbuf import Ring
from vdexdp.control.sockets import swap16, text
from vdexdp.control.wish import Wish
from vdexdp.errors import HostError, ProtocolError

_LAYOUT, _FIELDS = record("sighting")
_TAG_AT: Final = 12


def _labels(name: str) -> dict[int, str]:
    return {row.value: row.label for row in enum(name)}


_PATHS, _SOURCES, _TARGETS = _labels("frame_path"), _labels("source"), _labels("target_state")
_TOLD, _DROPS, _EXCEPTIONS = _labels("told"), _labels("drop_reason"), _labels("exception_reason")
_DETAILS: Final = {K["TOLD_DROPPED"]: _DROPS, K["TOLD_EXCEPTION"]: _EXCEPTIONS}
HELP: Final = {
    (kind, row.label): row.help
    for kind in ("drop_reason", "exception_reason", "source", "target_state")
    for row in enum(kind)
}
"""What abi.h says of an enumerator, by its enum and label."""


@dataclass(frozen=True)
class Sighting:
    """One frame.  ``time`` is ns of CLOCK_MONOTONIC, ``length`` in bytes with all tags, ``data`` the first of them.

    ``into`` and ``out`` are port indices; ``out`` is 0 where the way was not decided, EVERYWHERE for flooding.
    ``sender`` and ``endpoint`` are (address, UDP port) in a tunnel.  ``detail`` is why it was dropped, or took the
    exception path.  ``age`` is the seconds since the destination was last heard of.
    """

    time: int
    id: int
    length: int
    data: bytes
    gso_size: int
    segments: int
    path: str
    switch: int
    into: int
    out: int
    vlan: int
    source: str
    target: str
    static: bool
    age: float
    sender: tuple[str, int] | None
    endpoint: tuple[str, int] | None
    told: str
    detail: str
    copies: int
    refused: int

    @property
    def flooded(self) -> bool:
        return self.out == K["EVERYWHERE"]


def _place(address: bytes, port: int) -> tuple[str, int] | None:
    if not port:
        return None
    return text(struct.unpack("=4I", address)), swap16(port)


def decode(data: bytes, snap: int) -> Sighting:
    """A record of the ring.  Raises ProtocolError for one that is too short."""
    if len(data) < _LAYOUT.size:
        raise ProtocolError("ring", "a record is too short")
    one = dict(zip(_FIELDS, _LAYOUT.unpack_from(data), strict=True))
    frame, length = data[_LAYOUT.size :], one["len"]
    if one["tag_proto"] and len(frame) >= _TAG_AT:
        tag = swap16(one["tag_proto"]).to_bytes(2, "big") + one["tag_tci"].to_bytes(2, "big")
        frame, length = (frame[:_TAG_AT] + tag + frame[_TAG_AT:])[:snap], length + len(tag)
    return Sighting(
        time=one["time"],
        id=one["id"],
        length=length,
        data=frame,
        gso_size=one["gso_size"],
        segments=one["gso_segs"],
        path=_PATHS.get(one["path"], "?"),
        switch=one["switch_id"],
        into=one["in"],
        out=one["out"],
        vlan=one["vlan"],
        source=_SOURCES.get(one["source"], "?"),
        target=_TARGETS.get(one["target"], "?"),
        static=bool(one["entry_flags"] & K["FDB_F_STATIC"]),
        age=one["age"] / 1e9,
        sender=_place(one["from"], one["from_port"]),
        endpoint=_place(one["addr"], one["udp_port"]),
        told=_TOLD.get(one["told"], "?"),
        detail=_DETAILS.get(one["told"], {}).get(one["detail"], ""),
        copies=one["copies"],
        refused=one["refused"],
    )


class Watch:
    """A connection to the daemon that watches, as long as it is open; ``ring`` has what it sees."""

    def __init__(self, wish: Wish, netns: int | None = None) -> None:
        """Raises DaemonError, PrivilegeError, HostError, RequestError."""
        self.channel: Channel = client.open_channel(netns)
        self.wish = wish
        try:
            # The observed programs are loaded, perhaps compiled, before the answer comes.
            message = client.ask(self.channel, request("watch", **asdict(wish)), limit=client.START_LIMIT)
            try:
                check_reply(message.body)
                self._fd = message.named()["ring"]
            except BaseException:
                message.close()
                raise
        except BaseException:
            self.channel.close()
            raise
        try:
            self.ring = Ring(self._fd)
        except OSError as error:
            os.close(self._fd)
            self.channel.close()
            raise HostError.from_oserror("ring buffer", error) from error

    def counts(self) -> dict[str, Any]:
        """Frames that were ``seen`` so far, and those ``lost`` because the ring was full; and what ``ports`` there are.

        Raises DaemonError.
        """
        return check_reply(client.ask(self.channel, request("watched")).body)

    def stop(self) -> dict[str, Any]:
        """End it; the ring keeps what it has.  The last counts.  Raises DaemonError."""
        return check_reply(client.ask(self.channel, request("unwatch")).body)

    def close(self) -> None:
        self.ring.close()
        os.close(self._fd)
        self.channel.close()

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def clock_offset() -> int:
    """Nanoseconds from CLOCK_MONOTONIC to the time since the epoch, now."""
    return time.time_ns() - time.monotonic_ns()


def ports_of(shown: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """The ports of what ``show`` answered, by index."""
    return {port["index"]: port for port in shown["ports"]}


def local_port(ports: Iterable[dict[str, Any]], where: str) -> dict[str, Any] | None:
    """The local port of this interface or number."""
    return next((one for one in ports if one["kind"] != "tunnel" and where in (one["name"], str(one["index"]))), None)
