# SPDX-License-Identifier: GPL-2.0-or-later
"""The ptp wire of libvdeplug up to 4.0.1, which is what Debian has: two datagram sockets that send to each other.

The first end binds the path, the second binds the path with a "+" behind it.  There is no handshake and no
farewell: whoever has something to send connects to the other name, and learns from a refusal that nobody is there.
So an end that has a peer looks after it four times a second by connecting again, which changes nothing while the
peer lives.

That look is not only for us.  A datagram socket that is connected, be it to a dead peer, lets nobody else connect to
it: a second end that comes back would be refused until the first had noticed that the old one is gone.

Connected to each other, the two sockets know only one limit, the sender's SO_SNDBUF.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import stat

from vdexdp.errors import HostError
from vdexdp.plugins import cmodule

LOOK = 0.25
"""Seconds between looks at whether the other end is there."""

_libc = ctypes.CDLL(None)
_UNSPEC = b"\0\0"  # a sockaddr of family AF_UNSPEC: connecting to it disconnects


def spoken_here() -> bool:
    """Whether the libvdeplug installed on this host speaks this wire; the module of a newer one calls listen()."""
    path = cmodule.module_path("ptp")
    try:
        with open(path or "", "rb") as file:
            return b"\0listen\0" not in file.read()
    except OSError:
        return False


class DatagramEnd:
    """One bound socket; ``connected`` says whether the other end was there when we last looked."""

    def __init__(self, path: str, second: bool) -> None:
        self.second = second
        self._own, self._other = (path + "+", path) if second else (path, path + "+")
        self.connected = False
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            if second:
                self._bury()
            os.fchmod(self.socket.fileno(), 0o700)  # what the name is created with: never open to others
            self.socket.bind(self._own)
            self._inode = os.stat(self._own).st_ino
        except BaseException:
            self.socket.close()
            raise

    def look(self) -> bool:
        """Connect, or see that one is still connected.  False where this end has no future.

        That is so when our name was taken away, or what has the other name is no datagram socket.
        """
        code = self.socket.connect_ex(self._other)
        if code == 0:
            self.connected = True
            return True
        if self.connected:
            self.part()
        return code != errno.EPROTOTYPE and self._owns_name()

    def part(self) -> None:
        """Forget the other end, so that another one may come."""
        _libc.connect(self.socket.fileno(), _UNSPEC, len(_UNSPEC))
        self.connected = False

    def close(self) -> None:
        if self._owns_name():
            os.unlink(self._own)
        self.socket.close()

    def _owns_name(self) -> bool:
        try:
            return os.stat(self._own).st_ino == self._inode
        except OSError:
            return False

    def _bury(self) -> None:
        """Remove our name where a dead second end has left it.  Raises HostError where that one lives."""
        try:
            if not stat.S_ISSOCK(os.lstat(self._own).st_mode):
                raise HostError(self._own, "exists and is not a socket", "choose another path, or remove it")
        except FileNotFoundError:
            return
        code = self.socket.connect_ex(self._own)
        if code != errno.ECONNREFUSED:
            raise HostError(self._other, "already joins two ends", "give this pair of ends a path of its own")
        os.unlink(self._own)
