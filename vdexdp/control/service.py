# SPDX-License-Identifier: GPL-2.0-or-later
"""What a service manager and a service tell each other: sd_listen_fds(3) and sd_notify(3), without libsystemd."""

from __future__ import annotations

import os
import socket
from typing import Final

from vdexdp.errors import RequestError

FIRST_FD: Final = 3


def listener() -> socket.socket | None:
    """The listening socket that the service manager has made for this process, if there is one.

    Raises RequestError where it is of no use.
    """
    pid, count = (os.environ.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS"))
    os.environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdecimal() or int(count) < 1:
        return None
    if int(count) > 1:
        raise RequestError("LISTEN_FDS", f"{count} sockets", "one ListenSequentialPacket= is needed")
    sock = socket.socket(fileno=FIRST_FD)
    kind = (sock.family, sock.type & ~socket.SOCK_NONBLOCK, sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    if kind != (socket.AF_UNIX, socket.SOCK_SEQPACKET, 1):
        raise RequestError("LISTEN_FDS", "not a listening SOCK_SEQPACKET socket", "use ListenSequentialPacket=")
    sock.setblocking(False)
    sock.set_inheritable(False)
    return sock


def notify(state: str) -> None:
    """Tell the service manager, if there is one, for instance "READY=1"."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.sendto(state.encode(), address)
    except OSError:  # it only misses a message
        pass
