# SPDX-License-Identifier: GPL-2.0-or-later
"""The directory that is a VDE switch: its ``ctl`` socket and the data sockets beside it.

A switch is known by a directory.  Whoever serves it binds ``ctl`` in it and, for each client, a datagram socket;
clients bind theirs (``.PID-N``) in the same directory for the moment of the handshake.  A socket file outlives its
process, so a name says nothing about life: only a connect does, which a dead name answers with ECONNREFUSED.

Taking a directory over is safe because of three rules.  A lock on the directory, which dies with its holder, keeps
two of us apart where a connect alone would leave a gap; a connect to ``ctl`` recognises a stock server, which takes
no lock.  Only a directory of the caller's own, with nothing but VDE sockets in it, is taken: ``switch:///tmp`` as
root must not change the mode of /tmp.  And the directory is closed to others (0700) until everything in it has its
final mode and group.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
import stat
import time

from vdexdp.errors import HostError, PrivilegeError, RequestError
from vdexdp.plugins.base import OpenContext, Parsed
from vdexdp.vnl import group_id, mode

CONTROL = "ctl"

SUN_PATH_MAX = 107
"""Bytes of a socket's path name: sun_path without its closing NUL."""

_BACKLOG = 64

# The control socket, netnode's data sockets (fdN), vde_switch's (port.fd), those of clients in mid-handshake.
_VDE_SOCKET = re.compile(r"ctl|fd[0-9]+|[0-9]{3,}\.[0-9]+|(vde)?\.[0-9]{5,}-[0-9]{5,}")

_NEWBORN = 10.0
"""Seconds for which a name is left alone: between its creation and its binding a socket looks dead."""


class SocketDirectory:
    """A directory that this process serves, from construction to ``close``.

    ``path`` is absolute, ``listener`` the bound, listening and non-blocking control socket.  ``mode`` is for the
    sockets, ``dirmode`` for the directory; ``gid`` their group, None for the default.  Raises RequestError,
    PrivilegeError and HostError.
    """

    def __init__(self, path: str, mode: int, dirmode: int, gid: int | None) -> None:
        self.path = _absolute(path)
        self.mode = mode
        self._gid = gid
        self._lock = _claim(self.path)
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            os.fchmod(self._lock, 0o700)
            self.bind(self.listener, CONTROL)
            self.listener.listen(_BACKLOG)
            if gid is not None:
                os.fchown(self._lock, -1, gid)
            os.fchmod(self._lock, dirmode)
        except OSError as error:
            self.close()
            if error.errno == errno.EPERM:
                raise PrivilegeError(
                    self.path, f"may not be given to group {gid}", "only a member of the group or root can"
                ) from error
            raise HostError.from_oserror(self.path, error) from error

    def bind(self, end: socket.socket, name: str) -> str:
        """Bind a socket in the directory, with the directory's mode and group; return its path.  Raises OSError."""
        path = os.path.join(self.path, name)
        os.fchmod(end.fileno(), self.mode)  # the mode that the name is created with, less the umask
        end.bind(path)
        if self._gid is not None:
            os.chown(path, -1, self._gid)
        os.chmod(path, self.mode)
        return path

    def close(self) -> None:
        """Unlink all VDE sockets and the directory; idempotent.

        The name of a client in mid-handshake goes, too: it has nobody left to shake hands with.  What else others have
        put there stays, and the directory with it.
        """
        if self._lock < 0:
            return
        self.listener.close()
        try:
            for name in os.listdir(self._lock):
                if _is_vde_socket(self.path, name):
                    unlink(os.path.join(self.path, name))
            os.rmdir(self.path)
        except OSError:
            pass
        os.close(self._lock)
        self._lock = -1


def optional_mode(parsed: Parsed, key: str) -> int | None:
    """The option as octal permissions; None where it is absent.  Raises VnlError."""
    return mode(parsed, key, 0) if key in parsed.options else None


def chosen_group(gid: int | None, context: OpenContext) -> int | None:
    """The VNL's choice of a group, else the command line's, else None.  Raises RequestError for an unknown one."""
    if gid is not None or context.group is None:
        return gid
    found = group_id(context.group)
    if found is None:
        raise RequestError(context.group, "no such group")
    return found


def sweep(directory: str, prefix: str = "", newborn: float = _NEWBORN) -> None:
    """Unlink the VDE sockets in ``directory`` (those whose name starts with ``prefix``) that nobody has open any
    more.
    """
    try:
        names = os.listdir(directory)
    except OSError:
        return
    for name in names:
        path = os.path.join(directory, name)
        if name.startswith(prefix) and _is_vde_socket(directory, name) and _dead(path, newborn):
            unlink(path)


def unlink(path: str) -> None:
    """Remove a name that may be gone already."""
    try:
        os.unlink(path)
    except OSError:
        pass


def _is_vde_socket(directory: str, name: str) -> bool:
    try:
        return bool(_VDE_SOCKET.fullmatch(name)) and stat.S_ISSOCK(os.lstat(os.path.join(directory, name)).st_mode)
    except OSError:
        return False


def _dead(path: str, newborn: float) -> bool:
    try:
        if time.time() - os.lstat(path).st_mtime < newborn:
            return False
    except OSError:
        return False
    return _connect_error(path) == errno.ECONNREFUSED


def _connect_error(path: str) -> int:
    """What a connect to the socket ``path`` fails with, whatever its type; 0 where somebody serves it."""
    code = 0
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK) as probe:
            code = probe.connect_ex(path)
            if code != errno.EPROTOTYPE:
                return code
    return code


def _absolute(path: str) -> str:
    parent, name = os.path.split(path.rstrip("/"))
    try:
        path = os.path.join(os.path.realpath(parent or ".", strict=True), name)
    except OSError as error:
        raise HostError.from_oserror(parent, error, "create the directory first") from error
    if len(os.fsencode(path)) + len("/fd1234567") > SUN_PATH_MAX:
        raise RequestError(path, "too long for the name of a socket", f"at most {SUN_PATH_MAX - 10} bytes")
    if not name or name in (".", ".."):
        raise RequestError(path, "can't be made a switch", "give a directory of its own, like /tmp/myswitch")
    return path


def _claim(path: str) -> int:
    """Create or take over the directory; return a descriptor of it that holds its lock."""
    while True:
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            pass
        except OSError as error:
            raise HostError.from_oserror(path, error) from error
        try:
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # its last owner has just left
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP):
                raise RequestError(path, "exists and is not a directory", "give another path") from error
            raise HostError.from_oserror(path, error) from error
        try:
            if _seize(lock, path):
                return lock
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)


def _seize(lock: int, path: str) -> bool:
    """Lock and empty the directory; False where it was removed meanwhile."""
    found = os.fstat(lock)
    if found.st_uid != os.geteuid():
        raise PrivilegeError(path, f"belongs to user {found.st_uid}", "give another path, or have its owner remove it")
    served = HostError(path, "another switch is being served there", "give another path, or stop that one")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise served from None
    try:
        if not os.path.samestat(found, os.lstat(path)):
            return False
    except FileNotFoundError:
        return False
    names = os.listdir(lock)
    if CONTROL in names and _connect_error(os.path.join(path, CONTROL)) not in (errno.ECONNREFUSED, errno.ENOENT):
        raise served
    for name in names:
        if not _is_vde_socket(path, name) and os.path.lexists(os.path.join(path, name)):
            raise RequestError(path, f'holds "{name}", which is no VDE socket', "give a directory of its own")
    sweep(path, newborn=0.0)
    return True
