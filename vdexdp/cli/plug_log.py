# SPDX-License-Identifier: GPL-2.0-or-later
"""What ``vde_plug -l`` and ``-L`` write to syslog, in stock's words: programs exist that read them.

-L looks at what comes out of the stream, as that is what a remote user sends: each source address once.  How many are
remembered is bounded, so that a user who makes up addresses fills the log, and not our memory.
"""

from __future__ import annotations

import os
import socket
import syslog
from collections.abc import Iterator
from contextlib import contextmanager

from vdexdp.plugins.base import Batch, Stream
from vdexdp.plugins.wrapper import WrapperStream
from vdexdp.users import user_name

ADDRESSES_MAX = 1 << 16

_VLAN = b"\x81\x00"


def _who() -> tuple[str, str]:
    """The caller's login name, and where they come from by ssh."""
    remote = os.environ.get("SSH_CLIENT", "").split()
    return user_name(os.getuid()), remote[0] if remote else "UNKNOWN_IP_ADDRESS"


def _say(what: str) -> None:
    user, remote = _who()
    syslog.openlog("vde_plug", 0, syslog.LOG_USER)
    syslog.syslog(syslog.LOG_INFO, f"{what}: user {user} IP {remote}")


def refused() -> None:
    """Somebody wanted to run something else in our login shell."""
    _say("FAILED")


@contextmanager
def session() -> Iterator[None]:
    """Log the beginning and the end of a ``with`` block."""
    _say("START")
    try:
        yield
    finally:
        _say("STOP")


def is_member(group: str) -> bool:
    """Whether the caller is in a group of this name."""
    import grp

    try:
        return grp.getgrnam(group).gr_gid in {os.getgid(), *os.getgroups()}
    except KeyError:
        return False


def source_address(frame: memoryview) -> tuple[str, int] | None:
    """The IP source of a frame, in text, and its VLAN (0 without); None where there is none."""
    vlan, at = 0, 12
    if frame[12:14] == _VLAN and len(frame) >= 18:
        vlan, at = (frame[14] << 8 | frame[15]) & 0xFFF, 16
    kind, body = bytes(frame[at : at + 2]), frame[at + 2 :]
    if kind == b"\x08\x00" and len(body) >= 20 and body[0] >> 4 == 4:
        return socket.inet_ntop(socket.AF_INET, body[12:16]), vlan
    if kind == b"\x86\xdd" and len(body) >= 40 and body[0] >> 4 == 6:
        return socket.inet_ntop(socket.AF_INET6, body[8:24]), vlan
    return None


class AddressLog(WrapperStream):
    """A stream whose frames' source addresses are logged, each once."""

    def __init__(self, inner: Stream) -> None:
        super().__init__(inner)
        self._seen: set[str] = set()
        self._user, self._remote = _who()

    def recv(self, batch: Batch) -> None:
        first = batch.count
        self.inner.recv(batch)
        for index in range(first, batch.count):
            found = source_address(batch[index])
            if found is not None and found[0] not in self._seen and len(self._seen) < ADDRESSES_MAX:
                self._seen.add(found[0])
                family = "IP6" if ":" in found[0] else "IP4"
                text = f"user {self._user} Real-IP {self._remote} has got VDE-{family} {found[0]} on vlan {found[1]}"
                syslog.syslog(syslog.LOG_INFO, text)
