# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon's place under /run/vdexdp: one socket and one lock for each network namespace.

The lock is held for the daemon's life, so whoever has it may remove a socket file that a dead daemon left.  In the lock
file stand the processes whose plugs a daemon served: the next one knows whom to wait for before it makes maps of its
own.

A killed daemon leaves its files, and its namespace may be gone for ever: what neither a daemon nor a living plug needs
is abandoned, does not count as a daemon that is down, and is removed by the next daemon that starts anywhere on the
host.  Whoever looks holds the lock for that moment; a daemon that starts tries for longer.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from vdexdp.control import service
from vdexdp.control.protocol import RUN_DIR, netns_inode, socket_path
from vdexdp.errors import DaemonError, HostError, PrivilegeError

BACKLOG: Final = 128
LOCK_PATIENCE: Final = 0.5
"""Seconds that a daemon tries to get its lock: somebody may only be looking."""


def started(pid: int) -> int:
    """When a process started, in clock ticks since boot; 0 where there is no such process (a zombie is none)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in "ZX" else int(fields[19])


def _living(lock: int) -> Counter[int]:
    """The processes that held plugs of the daemon before, as far as they live, and how many each."""
    try:
        known = json.loads(os.pread(lock, 1 << 20, 0) or b"{}")
        return Counter({int(pid): int(n) for pid, (start, n) in known.items() if started(int(pid)) == start != 0})
    except (ValueError, AttributeError, TypeError):
        return Counter()


def abandoned(netns: int, *, remove: bool = False) -> bool:
    """Whether nobody needs the files of this namespace any more; with ``remove`` they are gone then.

    What may not be looked at, and the socket of a service manager (ours is a link to it), is in use.
    """
    path, lock_path = socket_path(netns), RUN_DIR / f"{netns}.lock"
    if path.is_symlink():
        return False
    try:
        # Without a lock file nobody has ever had it; and a daemon that starts now makes one before its socket.
        lock = os.open(lock_path, os.O_RDONLY | os.O_CLOEXEC | (os.O_CREAT if remove else 0), 0o600)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _living(lock) or not os.path.samestat(os.fstat(lock), os.stat(lock_path)):
            return False
        if remove:
            path.unlink(missing_ok=True)
            lock_path.unlink()
    except OSError:  # a daemon has the lock, or somebody else has removed it
        return False
    finally:
        os.close(lock)
    return True


def places() -> list[int]:
    """The namespaces of which there are files, in use or not.  Raises HostError."""
    try:
        stems = {path.stem for path in RUN_DIR.iterdir() if path.suffix in (".sock", ".lock")}
    except FileNotFoundError:
        return []
    except OSError as error:
        raise HostError.from_oserror(str(RUN_DIR), error) from error
    return sorted(int(stem) for stem in stems if stem.isascii() and stem.isdecimal())


def remove_abandoned() -> list[int]:
    """Remove what dead daemons left; returns the namespaces.  Raises HostError."""
    return [netns for netns in places() if abandoned(netns, remove=True)]


class RunDir:
    """Lock and listening socket.  Raises DaemonError when another daemon serves this namespace."""

    def __init__(self) -> None:
        self._inherited = service.listener()
        self._bound: os.stat_result | None = None
        netns = netns_inode()
        self.path = socket_path(netns)
        self._lock_path = RUN_DIR / f"{netns}.lock"
        try:
            RUN_DIR.mkdir(mode=0o755, parents=True, exist_ok=True)
            self._lock = self._take_lock()
        except PermissionError as error:
            raise PrivilegeError(str(RUN_DIR), "permission denied", "run the daemon as root") from error
        except OSError as error:
            raise HostError.from_oserror(str(RUN_DIR), error) from error
        self.orphans = _living(self._lock)

    def _take_lock(self) -> int:
        deadline = time.monotonic() + LOCK_PATIENCE
        while True:
            fd = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(fd), os.stat(self._lock_path)):
                    return fd
            except FileNotFoundError:  # removed by a daemon that left between our open and our lock
                pass
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    os.close(fd)
                    cause, hint = "another one serves this network namespace", 'see "vdexdp show"'
                    raise DaemonError("daemon", cause, hint) from error
                time.sleep(0.01)
            os.close(fd)

    def listen(self, gid: int | None = None) -> socket.socket:
        """The listening socket, readable and writable for root only, and a group.

        One that the service manager made listens at its own place; ours is then a link to it, for as long as it lives.
        """
        if self._inherited is not None:
            self._link(self._inherited.getsockname())
            return self._inherited
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            with suppress(FileNotFoundError):
                self.path.unlink()
            mask = os.umask(0o177)
            try:
                sock.bind(str(self.path))
            finally:
                os.umask(mask)
            self._bound = os.lstat(self.path)
            with suppress(HostError):  # which the next call tells
                self.open_to(gid)
            sock.listen(BACKLOG)
        except OSError as error:
            sock.close()
            raise HostError.from_oserror(str(self.path), error) from error
        return sock

    def open_to(self, gid: int | None) -> None:
        """Let a group talk to the daemon, beside root, or nobody else (None).

        Raises HostError where this process may not: without CAP_CHOWN, a service manager has to do it.
        """
        mode = 0o600 if gid is None else 0o660
        try:
            info = os.stat(self.path)
            if gid is not None and info.st_gid != gid:
                os.chmod(self.path, 0o600)
                os.chown(self.path, -1, gid)
            if info.st_mode & 0o777 != mode:
                os.chmod(self.path, mode)
        except OSError as error:
            hint = "set SocketGroup= and SocketMode=0660 in vdexdp.socket" if self._inherited is not None else ""
            raise HostError.from_oserror(str(self.path), error, hint) from error

    def _link(self, place: str | bytes) -> None:
        place = os.fsdecode(place)
        try:
            if place == str(self.path) or os.path.realpath(self.path) == os.path.realpath(place):
                return
            with suppress(FileNotFoundError):
                self.path.unlink()
            self.path.symlink_to(place)
        except OSError as error:
            raise HostError.from_oserror(str(self.path), error) from error

    def write(self, pids: Mapping[int, int]) -> None:
        """Note whose plugs are served, and how many each has."""
        data = json.dumps({str(pid): (started(pid), count) for pid, count in pids.items()}).encode()
        with suppress(OSError):
            os.ftruncate(self._lock, 0)
            os.pwrite(self._lock, data, 0)

    def close(self, *, keep: bool) -> None:
        """Remove the socket if it is ours still, and the lock file unless plugs live on (``keep``)."""
        with suppress(OSError):
            if self._bound is not None and os.path.samestat(self._bound, os.lstat(self.path)):
                self.path.unlink()
        if not keep:
            with suppress(OSError):
                self._lock_path.unlink()
        os.close(self._lock)
