# SPDX-License-Identifier: GPL-2.0-or-later
"""``tap://NAME``: the host's own network stack behind a TAP interface.

In userspace, frames are read from and written to the descriptor of /dev/net/tun.  In the kernel path the descriptor is
only held open: it is the carrier of the interface, and a non-persistent interface lives as long as it does; programs at
the interface's tc hooks do the rest.  The descriptor is opened without a virtio header, so the kernel segments and
checksums everything before it is read.

An interface that exists may have been made with several queues (``ip tuntap add … multi_queue``); then, and only then,
it has to be opened with that flag, and the first attempt fails with EINVAL.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from dataclasses import dataclass

from vdexdp.errors import HangUp, HostError, PrivilegeError, RequestError, VdexdpError, VnlError
from vdexdp.plugins.base import (
    FRAME_MAX,
    FRAME_MIN,
    Batch,
    Netdev,
    OpenContext,
    Parsed,
    Plugin,
    RecvOne,
    SendOne,
    Stream,
)
from vdexdp.users import user_name

# linux/if_tun.h
TUNSETIFF = 0x400454CA
TUNGETIFF = 0x800454D2
IFF_TAP = 0x0002
IFF_MULTI_QUEUE = 0x0100
IFF_NO_PI = 0x1000

_IFREQ = struct.Struct("16sH22x")
_NAME_MAX = 15


@dataclass(frozen=True)
class TapSpec:
    """``name`` of the interface; "" or a name with ``%d`` lets the kernel choose a free one."""

    name: str


def interface_name(vnl: str, name: str, example: str = "") -> str:
    """``name`` if it can be an interface's name (1 to 15 bytes without ``/``, ``:``, blanks).

    ``example`` is a VNL that has one.  Raises VnlError.
    """
    if not name:
        raise VnlError(vnl, "no interface name", f"write one behind ://, like {example}" if example else "")
    if len(os.fsencode(name)) > _NAME_MAX:
        raise VnlError(vnl, f'"{name}" is too long for an interface name', f"use at most {_NAME_MAX} characters")
    if name in (".", "..") or any(char in "/:" or char.isspace() for char in name):
        raise VnlError(vnl, f'"{name}" is not an interface name', "leave out blanks, / and :")
    return name


def open_tap(name: str) -> tuple[int, str]:
    """Open the TAP interface ``name``, creating it where it does not exist; return the descriptor and the final name.

    "" lets the kernel choose a name.  Raises HostError, RequestError where it is no tap.
    """
    subject = name or "tap"
    try:
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise _device_error(error) from error
    try:
        for flags in (IFF_TAP | IFF_NO_PI, IFF_TAP | IFF_NO_PI | IFF_MULTI_QUEUE):
            try:
                answer = fcntl.ioctl(fd, TUNSETIFF, _IFREQ.pack(os.fsencode(name), flags))
            except OSError as error:
                if error.errno != errno.EINVAL or flags & IFF_MULTI_QUEUE:
                    raise _interface_error(subject, error) from error
            else:
                return fd, os.fsdecode(_IFREQ.unpack(answer)[0].rstrip(b"\0"))
        raise AssertionError("the second attempt returns or raises")
    except BaseException:
        os.close(fd)
        raise


def is_attached(fd: int) -> bool:
    """Whether the descriptor still has its interface, in whatever network namespace that is."""
    try:
        fcntl.ioctl(fd, TUNGETIFF, _IFREQ.pack(b"", 0))
    except OSError:
        return False
    return True


def _device_error(error: OSError) -> HostError:
    device = "/dev/net/tun"
    if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        return HostError(device, "this kernel offers no TUN/TAP driver", 'load it with "modprobe tun"')
    if error.errno in (errno.EACCES, errno.EPERM):
        return PrivilegeError(device, "permission denied", "run as root, or ask for access to the device")
    return HostError.from_oserror(device, error)


def _interface_error(name: str, error: OSError) -> VdexdpError:
    if error.errno == errno.EBUSY:
        return HostError(name, "another process has this tap open", "end it, or use another interface")
    if error.errno in (errno.EPERM, errno.EACCES):
        user = user_name(os.geteuid())
        hint = f'create it for you with "ip tuntap add mode tap name {name} user {user}" as root, or run as root'
        return PrivilegeError(name, "you may neither create this interface nor open it", hint)
    if error.errno == errno.EINVAL:
        hint = f"use another name, or netdev://{name} to make it a switch port"
        return RequestError(name, "the interface exists and is not a tap", hint)
    return HostError.from_oserror(name, error)


class TapStream(Stream):
    """The descriptor's side of a TAP interface."""

    def __init__(self, fd: int, name: str) -> None:
        super().__init__()
        self.fd = fd
        self.name = name
        self._down = False

    def readers(self) -> tuple[int, ...]:
        return (self.fd,)

    def recv(self, batch: Batch) -> None:
        fd, rows, lengths = self.fd, batch.rows, batch.lengths
        index, end = batch.count, len(rows)
        try:
            while index < end:
                size = os.readv(fd, (rows[index],))
                if size < FRAME_MIN or size > FRAME_MAX:
                    self._odd(size)
                    continue
                lengths[index] = size
                index += 1
        except BlockingIOError:
            pass
        except OSError as error:
            if index == batch.count:
                raise self._gone(error) from error
        finally:
            batch.count = index

    def send(self, batch: Batch, start: int = 0) -> int:
        fd, lengths, rows = self.fd, batch.lengths, batch.rows
        self._down = False
        for index in range(start, batch.count):
            try:
                os.write(fd, rows[index][: lengths[index]])
            except BlockingIOError:
                self.drops["full"] += 1
            except OSError as error:
                if error.errno == errno.EIO:
                    self.drops["down"] += 1
                    self._down = True
                elif error.errno == errno.EINVAL:
                    self.drops["refused"] += 1
                else:
                    raise self._gone(error) from error
        return batch.count - start

    def singles_in(self) -> RecvOne:
        return self._recv_one

    def singles_out(self) -> SendOne:
        return self._send_one

    def _recv_one(self, row: memoryview) -> int:
        try:
            size = os.readv(self.fd, (row,))
        except OSError:
            return 0  # if that was more than nothing to read, recv meets it again
        return size if FRAME_MIN <= size <= FRAME_MAX else self._odd(size)

    def _send_one(self, frame: memoryview) -> bool:
        try:
            os.write(self.fd, frame)
        except OSError:
            return False
        self._down = False
        return True

    def _odd(self, size: int) -> int:
        self.drops["runt" if size < FRAME_MIN else "too-big"] += 1
        return 0

    def fault(self) -> str:
        return f'{self.name} is down; "ip link set {self.name} up"' if self._down else ""

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _gone(self, error: OSError) -> Exception:
        if error.errno in (errno.EBADFD, errno.EBADF):
            return HangUp(f"{self.name} was deleted")
        return HostError.from_oserror(self.name, error)


class TapPlugin(Plugin):
    """The stock scheme.  Without a name, or with ``%d`` in it, the kernel chooses one."""

    scheme = "tap"
    grammar = "raw"
    summary = "a TAP interface: the host's own network stack is the peer"
    address = "interface"
    example = "tap://tap0"

    def parse(self, parsed: Parsed) -> TapSpec:
        return TapSpec(parsed.address and interface_name(parsed.vnl, parsed.address))

    def open(self, spec: TapSpec, context: OpenContext) -> Stream:
        return TapStream(*open_tap(spec.name))

    def kernel_end(self, spec: TapSpec) -> Netdev:
        return Netdev(spec.name, side="stack", create="tap")
