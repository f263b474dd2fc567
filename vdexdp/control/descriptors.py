# SPDX-License-Identifier: GPL-2.0-or-later
"""Descriptors that come from users other than root.

Such a descriptor may be one of a file system that its sender runs (FUSE).  Then every operation on it waits for the
sender, ``close`` included, and a daemon that waits serves nobody.  So nothing is done with one before the kernel alone,
without asking the file system, has said what it is; and what it is not known to be is closed by a thread, of which
there may be so many and no more.

What a descriptor proves: that the kernel let its sender open this tap, in whatever network namespace; or, by the user
namespace that owns it, whose a network namespace is.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import stat
import struct
import threading
from contextlib import suppress
from typing import Final

from vdexdp.plugins.tap import TUNGETIFF

CLOSERS_MAX: Final = 8
"""Threads that may be waiting for a file system; then no more descriptors are taken."""

_TUN_DEVICE: Final = (10, 200)
_TUNGETDEVNETNS: Final = 0x54E3
_NS_GET_USERNS: Final = 0xB701
_NS_GET_OWNER_UID: Final = 0xB704
_AT_EMPTY_PATH: Final = 0x1000
_AT_STATX_DONT_SYNC: Final = 0x4000
_STATX_TYPE: Final = 1

_libc = ctypes.CDLL(None, use_errno=True)
_closers: list[threading.Thread] = []


def _is_tun(fd: int) -> bool:
    """By what the kernel has cached of the inode: a file system of a user's can claim to have a device, but who opens
    it gets the device.
    """
    answer = ctypes.create_string_buffer(256)
    if _libc.statx(fd, b"", _AT_EMPTY_PATH | _AT_STATX_DONT_SYNC, _STATX_TYPE, answer):
        return False
    (mode,) = struct.unpack_from("=H", answer, 28)
    return stat.S_ISCHR(mode) and struct.unpack_from("=II", answer, 128) == _TUN_DEVICE


def _is_netns(fd: int) -> bool:
    """By the name that only the kernel's own file system of namespaces gives."""
    with suppress(OSError):
        return os.readlink(f"/proc/self/fd/{fd}").startswith("net:[")
    return False


def tap_of(fd: int) -> tuple[str, int]:
    """A tap's name and the inode of its network namespace; ("", 0) where the descriptor is none that has a tap."""
    if not _is_tun(fd):
        return "", 0
    try:
        answer = fcntl.ioctl(fd, TUNGETIFF, bytes(40))
        namespace = fcntl.ioctl(fd, _TUNGETDEVNETNS, 0)
    except OSError:
        return "", 0
    try:
        return os.fsdecode(answer[:16].split(b"\0")[0]), os.fstat(namespace).st_ino
    finally:
        os.close(namespace)


def netns_owner(fd: int) -> int | None:
    """The user who made the user namespace that owns a network namespace, and so may do anything in it.

    Root's for those of the system; None where the descriptor is no network namespace's.
    """
    if not _is_netns(fd):
        return None
    try:
        owner = fcntl.ioctl(fd, _NS_GET_USERNS, 0)
    except OSError:
        return None
    try:
        uid = ctypes.c_uint32()
        fcntl.ioctl(owner, _NS_GET_OWNER_UID, uid)
        return uid.value
    except OSError:
        return None
    finally:
        os.close(owner)


def discard(fd: int) -> None:
    """Close a descriptor that may be anything, without waiting."""
    if _is_tun(fd) or _is_netns(fd):
        os.close(fd)
        return
    closer = threading.Thread(target=_close, args=(fd,), daemon=True)
    _closers.append(closer)
    closer.start()
    closer.join(0.01)  # nearly always: it has ended


def _close(fd: int) -> None:
    with suppress(OSError):
        os.close(fd)


def may_take() -> bool:
    """Whether descriptors that may be anything can be taken still."""
    _closers[:] = [closer for closer in _closers if closer.is_alive()]
    return len(_closers) < CLOSERS_MAX
