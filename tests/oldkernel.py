# SPDX-License-Identifier: GPL-2.0-or-later
"""A command on a kernel that lacks something: ``python tests/oldkernel.py LACKS COMMAND…``.

The command, and all that it starts, runs under a seccomp filter.  What an older kernel would not know is answered with
that kernel's errno: a type of link, a helper in a program, a flag, a netlink family.  Everything else, and with it all
of the data path, is the real kernel's.  ``LACKS`` are names of :data:`LACKS` with commas.

bpf(2) passes its arguments in memory, which a filter can't read.  It asks a supervisor (SECCOMP_RET_USER_NOTIF), a
child process that reads them there and ends when the last of the filtered processes has ended.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import select
import struct
import sys
from collections.abc import Callable
from typing import Final

_libc = ctypes.CDLL(None, use_errno=True)

_BPF_PROG_LOAD, _BPF_LINK_CREATE = 5, 28
_TCX = (46, 47)
_SYS_BPF, _SYS_SOCKET, _SYS_SECCOMP, _SYS_PIDFD_OPEN, _SYS_PIDFD_GETFD = 321, 41, 317, 434, 438  # x86-64
_AF_NETLINK, _NETLINK_GENERIC = 16, 16
_ALLOW, _ASK, _ERRNO = 0x7FFF0000, 0x7FC00000, 0x00050000
_RECEIVE, _SEND, _CONTINUE = 0xC0502100, 0xC0182101, 1  # ioctls of the listener; let the kernel go on
_NOTICE = struct.Struct("=QIIiIQ6Q")  # struct seccomp_notif with its struct seccomp_data


class Call:
    """One bpf(2) that waits for its verdict."""

    def __init__(self, pid: int, arguments: tuple[int, ...]) -> None:
        self.command, self._address, self._size = arguments[0], arguments[1], min(arguments[2], 128)
        self._memory = f"/proc/{pid}/mem"
        self.attr = self._read(self._address, self._size).ljust(128, b"\0")

    def _read(self, address: int, size: int) -> bytes:
        with open(self._memory, "rb", buffering=0) as memory:
            memory.seek(address)
            return memory.read(size)

    def field(self, offset: int) -> int:
        return int.from_bytes(self.attr[offset : offset + 4], "little")

    def links(self, *types: int) -> bool:
        """Whether it makes a link of one of these types."""
        return self.command == _BPF_LINK_CREATE and self.field(8) in types

    def flagged(self, flag: int) -> bool:
        """Whether it loads a program with this flag."""
        return self.command == _BPF_PROG_LOAD and bool(self.field(44) & flag)

    def calls(self, helper: int) -> bool:
        """Whether it loads a program that calls this helper."""
        if self.command != _BPF_PROG_LOAD:
            return False
        code = self._read(int.from_bytes(self.attr[8:16], "little"), 8 * self.field(4))
        return any(
            code[at] == 0x85 and code[at + 1] >> 4 == 0 and code[at + 4 : at + 8] == helper.to_bytes(4, "little")
            for at in range(0, len(code), 8)
        )


LACKS: Final[dict[str, Callable[[Call], bool]]] = {
    "tcx": lambda call: call.links(*_TCX),
    "xdp_link": lambda call: call.links(37),
    "redirect_peer": lambda call: call.calls(155),
    "coarse_clock": lambda call: call.calls(160),
    "frags": lambda call: call.flagged(1 << 5) or call.calls(188),
    "xdp_features": lambda call: False,  # the filter's own: no generic netlink at all
}


def _filter(lacks: list[str]) -> int:
    """Install the filter in this process; the listener's descriptor."""
    load, equal, leave = 0x20, 0x15, 0x06
    rows = [(load, 0, 0, 0), (equal, 0, 1, _SYS_BPF), (leave, 0, 0, _ASK)]
    if "xdp_features" in lacks:
        rows += [
            (equal, 0, 5, _SYS_SOCKET),
            (load, 0, 0, 16),
            (equal, 0, 3, _AF_NETLINK),
            (load, 0, 0, 32),
            (equal, 0, 1, _NETLINK_GENERIC),
            (leave, 0, 0, _ERRNO | errno.EPROTONOSUPPORT),
        ]
    rows.append((leave, 0, 0, _ALLOW))
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *row) for row in rows))
    program = ctypes.create_string_buffer(struct.pack("@HP", len(rows), ctypes.addressof(code)))
    fd: int = _libc.syscall(_SYS_SECCOMP, 1, 8, program)  # SECCOMP_SET_MODE_FILTER, …_FLAG_NEW_LISTENER
    if fd < 0:
        raise OSError(ctypes.get_errno(), "seccomp")
    return fd


def _supervise(listener: int, missing: list[Callable[[Call], bool]]) -> None:
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    while all(events & select.POLLIN for _, events in poll.poll()):  # else it hangs up: nobody is left
        notice = bytearray(_NOTICE.size)
        try:
            fcntl.ioctl(listener, _RECEIVE, notice)
            number, pid, _, _, _, _, *arguments = _NOTICE.unpack(notice)
            refused = any(lacks(Call(pid, tuple(arguments))) for lacks in missing)
            answer = (number, 0, -errno.EINVAL, 0) if refused else (number, 0, 0, _CONTINUE)
            fcntl.ioctl(listener, _SEND, struct.pack("=QqiI", *answer))
        except OSError:  # who asked has been killed meanwhile
            continue


def main(lacks: list[str], command: list[str]) -> None:
    """Become the command."""
    reader, writer = os.pipe()
    ready, go = os.pipe()
    parent = os.getpid()
    if os.fork() == 0:
        os.setsid()
        os.close(writer)
        number = int(os.read(reader, 16))
        pidfd = _libc.syscall(_SYS_PIDFD_OPEN, parent, 0)
        listener = _libc.syscall(_SYS_PIDFD_GETFD, pidfd, number, 0)
        os.close(pidfd)
        os.write(go, b"x")
        os.closerange(0, min(listener, 3))
        _supervise(listener, [LACKS[one] for one in lacks])
        os._exit(0)
    listener = _filter(lacks)
    os.write(writer, str(listener).encode())
    os.read(ready, 1)
    for fd in (listener, reader, writer, ready, go):
        os.close(fd)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1].split(","), sys.argv[2:])
