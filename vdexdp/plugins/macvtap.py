# SPDX-License-Identifier: GPL-2.0-or-later
"""``macvtap://NAME``: a macvtap interface, that is, a MAC address of its own on the network behind another interface.

In userspace its frames go through the character device /dev/tap<ifindex>.  Where nothing makes that node (a
container, an interface in another namespace), the device number in sysfs is enough to make one for a moment, if the
caller may.

In the kernel it is a switch port on the wire: a frame from the lower device passes the macvtap's own tc ingress
before it would be queued for the descriptor, and a redirect to the macvtap leaves through the lower device as a
write would.  So ``kernel_end`` needs neither the node nor an open descriptor; with no reader, nothing is queued
either.  Either way the lower device hands over only frames for the macvtap's own address, broadcast and multicast:
it is no promiscuous port.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import struct
import tempfile
import time
from dataclasses import dataclass

from vdexdp.errors import HangUp, HostError, PrivilegeError
from vdexdp.plugins.base import Batch, Netdev, OpenContext, Parsed, Plugin
from vdexdp.plugins.tap import IFF_NO_PI, IFF_TAP, TUNGETIFF, TUNSETIFF, TapStream, interface_name

# linux/if_packet.h
_SOL_PACKET = 263
_ADD_MEMBERSHIP = 1
_MR_ALLMULTI = 2

_IFREQ = struct.Struct("16sH22x")
LOOK = 1.0
"""Seconds between looks at whether the interface still exists."""

_OPEN = os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(frozen=True)
class MacvtapSpec:
    name: str


def open_macvtap(name: str) -> int:
    """The descriptor of an existing macvtap interface, non-blocking, frames without a header.  Raises HostError."""
    try:
        index = socket.if_nametoindex(name)
    except OSError as error:
        hint = f'create it with "ip link add link eth0 name {name} type macvtap mode bridge"'
        raise HostError(name, "no such interface", hint) from error
    try:
        fd = _open_node(name, index)
    except PermissionError as error:
        raise PrivilegeError(f"/dev/tap{index}", "permission denied", "run as root, or chown the device") from error
    except FileNotFoundError as error:
        raise HostError(name, "is not a macvtap interface", "netdev:// takes any other interface") from error
    except OSError as error:
        hint = "another process has it open" if error.errno == errno.EBUSY else ""
        raise HostError.from_oserror(name, error, hint) from error
    try:
        fcntl.ioctl(fd, TUNSETIFF, _IFREQ.pack(b"", IFF_TAP | IFF_NO_PI))
    except OSError as error:
        os.close(fd)
        raise HostError.from_oserror(name, error) from error
    return fd


def _open_node(name: str, index: int) -> int:
    number = _device_number(name, index)
    try:
        fd = os.open(f"/dev/tap{index}", _OPEN)
    except FileNotFoundError:
        pass
    else:
        # Another namespace has interfaces of the same number.
        if os.fstat(fd).st_rdev == number:
            return fd
        os.close(fd)
    # In /dev, because other places are often mounted "nodev".
    with tempfile.TemporaryDirectory(prefix="vdexdp-", dir="/dev") as directory:
        node = f"{directory}/tap{index}"
        os.mknod(node, 0o600 | stat.S_IFCHR, number)
        return os.open(node, _OPEN)


def _device_number(name: str, index: int) -> int:
    with open(f"/sys/class/net/{name}/tap{index}/dev") as file:
        major, _, minor = file.read().partition(":")
    return os.makedev(int(major), int(minor))


class MacvtapStream(TapStream):
    """A TapStream that looks after its interface: the descriptor of a deleted macvtap takes frames and says nothing."""

    def __init__(self, fd: int, name: str) -> None:
        super().__init__(fd, name)
        self._look = time.monotonic() + LOOK
        self._membership = _all_multicast(name)

    def timeout(self) -> float | None:
        return max(0.0, self._look - time.monotonic())

    def recv(self, batch: Batch) -> None:
        super().recv(batch)
        now = time.monotonic()
        if now >= self._look:
            self._look = now + LOOK
            try:
                fcntl.ioctl(self.fd, TUNGETIFF, bytes(_IFREQ.size))
            except OSError as error:
                raise HangUp(f"{self.name} was deleted") from error

    singles_in = TapStream.singles_in

    def close(self) -> None:
        super().close()
        if self._membership is not None:
            self._membership.close()
            self._membership = None


def _all_multicast(name: str) -> socket.socket | None:
    """Ask for all multicast frames for as long as the socket is open; None where the caller may not.

    Else only those come that the host's own stack has subscribed to on this interface, and IPv6 finds no neighbours.
    """
    try:
        s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    except PermissionError:
        return None
    s.setsockopt(_SOL_PACKET, _ADD_MEMBERSHIP, struct.pack("=iHH8x", socket.if_nametoindex(name), _MR_ALLMULTI, 0))
    return s


class MacvtapPlugin(Plugin):
    scheme = "macvtap"
    grammar = "raw"
    summary = "a macvtap interface: an own MAC address on the network behind another interface"
    address = "interface"
    example = "macvtap://macvtap0"

    def parse(self, parsed: Parsed) -> MacvtapSpec:
        return MacvtapSpec(interface_name(parsed.vnl, parsed.address, self.example))

    def open(self, spec: MacvtapSpec, context: OpenContext) -> MacvtapStream:
        return MacvtapStream(open_macvtap(spec.name), spec.name)

    def kernel_end(self, spec: MacvtapSpec) -> Netdev:
        return Netdev(spec.name, side="wire")
