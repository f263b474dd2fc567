# SPDX-License-Identifier: GPL-2.0-or-later
"""All daemons of a host, and what each of them says of itself.

Every network namespace has its own daemon and its own control socket, named by the namespace's inode number.  People
know namespaces by name: "host" is that of process 1 (where we may not look: our own, if it has no other name), the
others are called as ``ip netns`` calls them; one without a name keeps its number.
"""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vdexdp.control import client, rundir
from vdexdp.control.channel import Body
from vdexdp.control.protocol import socket_path
from vdexdp.errors import PrivilegeError, RequestError, VdexdpError

HOST: Final = "host"
NAMED: Final = Path("/run/netns")
ANSWER_LIMIT: Final = 5.0
"""Seconds for a daemon's answer: half of the time that Prometheus gives a scrape by default."""
_AT_ONCE: Final = 8


@dataclass(frozen=True)
class Answer:
    """What a daemon said to ``show``, and how long that took, in seconds.  ``error`` where it said nothing."""

    netns: str
    shown: Body | None
    seconds: float
    error: VdexdpError | None = None


def _inode(path: Path | str) -> int | None:
    try:
        return os.stat(path).st_ino
    except OSError:
        return None


def names() -> dict[int, str]:
    """The names of this host's network namespaces by inode number; no two have the same."""
    found: dict[int, str] = {}
    with suppress(OSError):
        for path in sorted(NAMED.iterdir()):
            inode = _inode(path)
            if inode is not None and path.name != HOST:
                found.setdefault(inode, path.name)
    first, own = _inode("/proc/1/ns/net"), _inode("/proc/self/ns/net")
    if first is not None:
        found[first] = HOST
    elif own is not None:
        found.setdefault(own, HOST)
    return found


def find_netns(name: str) -> int:
    """The inode number of a namespace given by name or number.  Raises RequestError."""
    if name.isascii() and name.isdecimal():
        return int(name)
    for inode, known in names().items():
        if known == name:
            return inode
    raise RequestError(name, "no such network namespace", 'see "ip netns", or give its inode number')


def daemons() -> list[int]:
    """The namespaces in which a daemon listens, or where plugs live that miss one.  Raises HostError."""
    return [netns for netns in rundir.places() if socket_path(netns).exists() and not rundir.abandoned(netns)]


def _ask(inode: int, netns: str, sample: int) -> Answer:
    start = time.perf_counter()
    try:
        shown = client.call("show", inode, ANSWER_LIMIT, sample=sample)
    except VdexdpError as error:
        return Answer(netns, None, time.perf_counter() - start, error)
    return Answer(netns, shown, time.perf_counter() - start)


def ask_all(only: str = "", sample: int = 0) -> list[Answer]:
    """What the daemons say, or one of them (``only`` as for ``find_netns``).

    One that hangs does not keep the others waiting.  With ``sample``, they have one frame in so many timed.
    """
    try:
        wanted = [find_netns(only)] if only else daemons()
    except VdexdpError as error:  # the namespace, or the directory, is gone for the moment
        return [Answer(only or HOST, None, 0.0, error)]
    known = names()
    labels = [known.get(inode, str(inode)) for inode in wanted]
    samples = [sample] * len(wanted)
    if len(wanted) < 2:
        return list(map(_ask, wanted, labels, samples))
    with ThreadPoolExecutor(min(len(wanted), _AT_ONCE)) as pool:
        return list(pool.map(_ask, wanted, labels, samples))


def check_access(only: str = "") -> None:
    """Raises PrivilegeError where a daemon may not be asked, RequestError where there is no such namespace."""
    if only:
        find_netns(only)
    for answer in ask_all(only):
        if isinstance(answer.error, PrivilegeError):
            raise answer.error
