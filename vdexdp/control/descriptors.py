# SPDX-License-Identifier: GPL-2.0-or-later
"""Descriptors that come from users other than root.

Such a descriptor may be one of a file system that its sender runs (FUSE).  Then every operation on it waits for the
sender, ``close`` and the end of the process included, for ever if he likes, and nothing in this process may do that:
neither the loop nor a thread, as all threads have to end before the daemon's lock is free.  So the daemon itself takes
none of them.  It looks at a message without taking it, and where there has to be a descriptor a process is forked that
takes it, looks what it is, and hands over what the daemon can have: taps and network namespaces.  To find that out it
asks the kernel and no file system.  Of such processes only so many may hang at a time.

What a descriptor proves: that the kernel let its sender open this tap, in whatever network namespace; or, by the user
namespace that owns it, whose a network namespace is.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import stat
import struct
from contextlib import suppress
from typing import Final

from vdexdp.control.channel import Body, Channel, Message
from vdexdp.control.forked import fork_off
from vdexdp.errors import ProtocolError
from vdexdp.plugins.tap import TUNGETIFF

DESCRIPTORS: Final = 2
"""In one message: one for each end."""
PORTERS_MAX: Final = 8
"""Processes that may hang; then no more descriptors are taken."""
PATIENCE: Final = 5.0
"""Seconds for such a process to be scheduled; it waits for nobody but the kernel."""

_TUN_DEVICE: Final = (10, 200)
_TUNGETDEVNETNS: Final = 0x54E3
_NS_GET_USERNS: Final = 0xB701
_NS_GET_OWNER_UID: Final = 0xB704
_AT_EMPTY_PATH: Final = 0x1000
_AT_STATX_DONT_SYNC: Final = 0x4000
_STATX_TYPE: Final = 1

_libc = ctypes.CDLL(None, use_errno=True)


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


class Porters:
    """The processes that take descriptors in."""

    def __init__(self) -> None:
        self._running: list[int] = []

    def recv(self, channel: Channel) -> Message | None:
        """As :meth:`Channel.recv`, of a channel to a user other than root.  Waits for a process of ours."""
        channel.fds_max = 0
        if not _has_descriptors(channel.peek()):
            return channel.recv()
        self._running = [pid for pid in self._running if not os.waitpid(pid, os.WNOHANG)[0]]
        if len(self._running) >= PORTERS_MAX:
            return channel.recv()
        pid, sock = fork_off(lambda control: _carry(Channel(control), channel), {channel.fileno()})
        self._running.append(pid)
        mine = Channel(sock, spill=True)
        try:
            carried = mine.recv() if mine.wait(PATIENCE) else None
        finally:
            mine.close()
        if carried is None:
            raise ProtocolError("message", "its descriptors could not be taken")
        if cause := carried.body.pop("refused", ""):
            raise ProtocolError("message", str(cause))
        return Message(carried.body["body"], carried.fds)


def _has_descriptors(body: Body) -> bool:
    ends = body.get("ends")
    return isinstance(ends, list) and any(isinstance(end, dict) and isinstance(end.get("fd"), int) for end in ends)


def _carry(control: Channel, channel: Channel) -> None:
    """What such a process does."""
    channel.fds_max = DESCRIPTORS
    try:
        message = channel.recv()
        if message is None:
            return
        if not all(_is_tun(fd) or _is_netns(fd) for fd in message.fds):
            control.send({"refused": "a descriptor is neither a tap nor a network namespace"})
            return
        control.send({"body": message.body}, message.fds)
    except ProtocolError as error:
        control.send({"refused": error.cause})
