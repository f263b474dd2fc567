# SPDX-License-Identifier: GPL-2.0-or-later
"""Helper processes that the daemon forks, and that outlive it: the exception worker and the keeper."""

from __future__ import annotations

import gc
import os
import signal
import socket
import traceback
from collections.abc import Callable


def fork_off(work: Callable[[socket.socket], None], kept: set[int]) -> tuple[int, socket.socket]:
    """Fork a process that does its work and ends; ``kept`` are the descriptors that it needs.

    ``work`` gets one end of a non-blocking socketpair; the process's pid and the other end are returned.
    """
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    pid = os.fork()
    if pid:
        its.close()
        return pid, ours
    try:
        os.setsid()  # a Ctrl-C for the daemon is none for the worker
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        keep_only({0, 1, 2, its.fileno(), *kept})
        gc.freeze()  # what the daemon left here must not be finalised: its descriptors' numbers are free for others
        work(its)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def keep_only(wanted: set[int]) -> None:
    """Close every other descriptor: nothing of the daemon's may live on in here."""
    last = -1
    for fd in sorted(wanted):
        if fd > last + 1:  # an empty range makes CPython 3.11 close everything
            os.closerange(last + 1, fd)
        last = fd
    os.closerange(last + 1, 1 << 20)
