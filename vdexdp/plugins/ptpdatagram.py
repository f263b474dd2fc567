# SPDX-License-Identifier: GPL-2.0-or-later
"""The ptp wire of libvdeplug up to 4.0.1, which is what Debian has: two datagram sockets that send to each other.

The first end binds the path, the second binds the path with a "+" behind it and connects to the first.  There is no
handshake and no farewell: whoever sends to a name learns from a refusal that nobody is there, and looks again four
times a second.

Stock's first end connects, too, when it first sends something.  Ours does not, because a datagram socket that is
connected, be it to a dead peer, lets nobody else connect to it: a second end that was restarted would be refused
until the first had noticed.  It puts the name on each frame instead.  Without that connection the kernel queues no
more than net.unix.max_dgram_qlen (10) frames from the second end; stock waits then, and we read fast.  A second end
of ours would not wait but lose, so it marks its name (the sticky bit, which means nothing on a socket): to that one
the first end does connect, and only the sender's SO_SNDBUF is a limit.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import stat
import struct

from vdexdp.errors import HostError, RequestError
from vdexdp.plugins import cmodule
from vdexdp.plugins.base import OpenContext
from vdexdp.plugins.mmsg import address_of
from vdexdp.vnl import group_id

LOOK = 0.25
"""Seconds between looks at whether the other end is there."""

_libc = ctypes.CDLL(None)
_FAMILY = struct.Struct("=H")
_UNSPEC = b"\0\0"  # a sockaddr of family AF_UNSPEC: connecting to it disconnects


def spoken_here() -> bool:
    """Whether the libvdeplug installed on this host speaks this wire; the module of a newer one calls listen()."""
    path = cmodule.module_path("ptp")
    try:
        with open(path or "", "rb") as file:
            return b"\0listen\0" not in file.read()
    except OSError:
        return False


def bind(end: socket.socket, path: str, context: OpenContext, mark: int = 0) -> None:
    """Give the socket its name: for the owner only, or with the group and the mode of the command line.

    ``mark`` are mode bits to add.  Raises OSError, RequestError.
    """
    gid = None
    if context.group is not None:
        gid = group_id(context.group)
        if gid is None:
            raise RequestError(f"-g {context.group}", "names no group of this system")
    os.fchmod(end.fileno(), 0o700 | mark)  # what the name is created with, so that it is never open to others
    end.bind(path)
    try:
        if gid is not None:
            os.chown(path, -1, gid)
        if context.mode is not None:
            os.chmod(path, context.mode | mark)
    except OSError:
        os.unlink(path)
        raise


class DatagramEnd:
    """One bound socket; ``alive`` says whether the other end was there when we last looked.

    ``target`` is what to send to where the socket is not connected: address and size of a socket address in memory.
    """

    def __init__(self, path: str, second: bool, context: OpenContext) -> None:
        self.second = second
        self._own, self._other = (path + "+", path) if second else (path, path + "+")
        self._address = bytearray(_FAMILY.pack(socket.AF_UNIX) + os.fsencode(self._other) + b"\0")
        self.target: tuple[int, int] | None = (address_of(self._address), len(self._address))
        self.alive = False
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            if second:
                self._bury()
            bind(self.socket, self._own, context, stat.S_ISVTX if second else 0)
            self._inode = os.stat(self._own).st_ino
        except BaseException:
            self.socket.close()
            raise

    def look(self) -> bool:
        """See whether the other end is there; False where this end has no future.

        That is so when our name was taken away, or what has the other name is no datagram socket.
        """
        code = self.socket.connect_ex(self._other) if self._may_connect() else _probe(self._other)
        self.alive = code in (0, errno.EPERM)
        if code:
            self.part()
        elif self._may_connect():
            self.target = None
        return code != errno.EPROTOTYPE and self._owns_name()

    def send_one(self, frame: memoryview) -> bool:
        """Send one frame to the name of the other end; tell whether that has worked."""
        try:
            self.socket.sendto(frame, self._other)
        except OSError:
            return False
        return True

    def part(self) -> None:
        """The other end is gone: let another one come."""
        if self.target is None:
            _libc.connect(self.socket.fileno(), _UNSPEC, len(_UNSPEC))
            self.target = (address_of(self._address), len(self._address))

    def close(self) -> None:
        if self._owns_name():
            try:
                os.unlink(self._own)
            except OSError:
                pass
        self.socket.close()

    def _may_connect(self) -> bool:
        if self.second:
            return True
        try:
            return bool(os.stat(self._other).st_mode & stat.S_ISVTX)
        except OSError:
            return False

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
        if _probe(self._own) != errno.ECONNREFUSED:
            raise HostError(self._other, "already joins two ends", "give this pair of ends a path of its own")
        os.unlink(self._own)


def _probe(path: str) -> int:
    """The errno with which a datagram socket is refused there, or 0; EPERM means that it is alive and connected."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as s:
        return s.connect_ex(path)
