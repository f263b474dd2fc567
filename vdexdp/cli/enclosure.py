# SPDX-License-Identifier: GPL-2.0-or-later
"""The inside of ``vdexdp vdens``: a user, network and host name namespace for one command, made without privileges.

A child enters it and waits for orders: to make a TAP interface there and hand over its descriptor, or to become the
command.  The parent stays outside, where the VDE ends are opened and pumped with the rights and the paths that the user
expects.  Users keep their uid, and get the capabilities that networking needs, for this
namespace alone, as ambient ones, which survive the exec.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import signal
import socket
import struct
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NoReturn

from vdexdp.errors import HostError, PrivilegeError, VdexdpError
from vdexdp.plugins.tap import open_tap

_CLONE_NEWNS, _CLONE_NEWUTS, _CLONE_NEWUSER, _CLONE_NEWNET = 0x20000, 0x4000000, 0x10000000, 0x40000000
_MS_BIND = 4096
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE = 47, 2
_CAPABILITY_VERSION_3 = 0x20080522
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1
_IFREQ = struct.Struct("16sH22x")

CAP_NET_BIND_SERVICE, CAP_NET_BROADCAST, CAP_NET_ADMIN, CAP_NET_RAW, CAP_SYS_ADMIN = 10, 11, 12, 13, 21
NETWORKING = (CAP_NET_BIND_SERVICE, CAP_NET_BROADCAST, CAP_NET_ADMIN, CAP_NET_RAW)

RESOLV_CONF = "/etc/resolv.conf"

_TAP, _GO, _DONE = b"tap ", b"go", b"done"
_MESSAGE_MAX = 65536

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Wishes:
    """What the inside is like.  ``resolvers`` are addresses and win over the file ``resolvconf``; "" for none."""

    argv: tuple[str, ...]
    hostname: str = ""
    resolvconf: str = ""
    resolvers: tuple[str, ...] = ()
    sysadm: bool = False

    @property
    def mounts(self) -> bool:
        return self.sysadm or bool(self.resolvconf or self.resolvers)


class Enclosure:
    """The child, seen from outside; ``go`` or ``abandon`` it in the end.  All methods raise VdexdpError."""

    def __init__(self, wishes: Wishes) -> None:
        self._channel, inside = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.pid = os.fork()
        if not self.pid:
            self._channel.close()
            _live(wishes, inside)
        inside.close()
        self._answer()

    def tap(self, name: str) -> int:
        """The descriptor of a new TAP interface inside."""
        self._channel.send(_TAP + os.fsencode(name))
        (fd,) = self._answer()
        return fd

    def network(self) -> int:
        """A descriptor of the network namespace inside."""
        try:
            return os.open(f"/proc/{self.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise HostError.from_oserror("vdens", error) from error

    def go(self) -> None:
        """Let the command run."""
        self._channel.send(_GO)
        failure = self._channel.recv(_MESSAGE_MAX)  # the exec closes the other end
        self._channel.close()
        if failure:
            self.abandon()
            raise _unpack(failure)

    def _answer(self) -> list[int]:
        text, fds, _, _ = socket.recv_fds(self._channel, _MESSAGE_MAX, 1)
        if text != _DONE:
            self.abandon()
            raise _unpack(text)
        for fd in fds:
            os.set_inheritable(fd, False)
        return fds

    def abandon(self) -> None:
        """End the child before it has become the command; idempotent."""
        self._channel.close()
        if self.pid:
            os.waitpid(self.pid, 0)
            self.pid = 0


def _pack(error: VdexdpError) -> bytes:
    return "\0".join((type(error).__name__, error.subject, error.cause, error.hint)).encode()


def _unpack(text: bytes) -> HostError:
    kind, subject, cause, hint = (text.decode() or "HostError\0vdens\0ended early\0").split("\0")
    return (PrivilegeError if kind == PrivilegeError.__name__ else HostError)(subject, cause, hint)


def _live(wishes: Wishes, channel: socket.socket) -> NoReturn:
    """The child.  Errors go to the parent, which reports them."""
    try:
        _enter(wishes)
        channel.send(_DONE)
        while order := channel.recv(_MESSAGE_MAX):
            if order == _GO:
                _become(wishes)
            fd, _ = open_tap(os.fsdecode(order.removeprefix(_TAP)))
            socket.send_fds(channel, [_DONE], [fd])
            os.close(fd)
    except VdexdpError as error:
        channel.send(_pack(error))
    except OSError as error:
        channel.send(_pack(HostError.from_oserror("vdens", error)))
    finally:
        os._exit(1)


def _check(result: int, subject: str) -> None:
    if result:
        raise HostError.from_oserror(subject, OSError(ctypes.get_errno(), ""))


def _enter(wishes: Wishes) -> None:
    uid, gid = os.geteuid(), os.getegid()
    flags = _CLONE_NEWUSER | _CLONE_NEWNET | _CLONE_NEWUTS | (_CLONE_NEWNS if wishes.mounts else 0)
    if _libc.unshare(flags):
        raise _refused(ctypes.get_errno())
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(text)
    _loopback_up()
    if wishes.hostname:
        try:
            socket.sethostname(wishes.hostname)
        except OSError as error:
            raise HostError.from_oserror(f"host name {wishes.hostname}", error) from error
    if wishes.resolvers:
        with tempfile.NamedTemporaryFile("w", prefix="vdens-", encoding="ascii") as file:
            file.writelines(f"nameserver {address}\n" for address in wishes.resolvers)
            file.flush()
            _bind(file.name)
    elif wishes.resolvconf:
        _bind(wishes.resolvconf)


def _refused(code: int) -> HostError:
    if code in (errno.EPERM, errno.EACCES):
        hint = "see sysctl kernel.unprivileged_userns_clone and kernel.apparmor_restrict_unprivileged_userns"
        return PrivilegeError("vdens", "user namespaces are not allowed here", hint)
    if code == errno.ENOSPC:
        return HostError("vdens", "there are no more user namespaces to be had", "see sysctl user.max_user_namespaces")
    return HostError.from_oserror("vdens", OSError(code, ""))


def _bind(path: str) -> None:
    result = _libc.mount(os.fsencode(path), RESOLV_CONF.encode(), b"", _MS_BIND, None)
    _check(result, f"{path} as {RESOLV_CONF}")


def _loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        flags = _IFREQ.unpack(fcntl.ioctl(control, _SIOCGIFFLAGS, _IFREQ.pack(b"lo", 0)))[1]
        fcntl.ioctl(control, _SIOCSIFFLAGS, _IFREQ.pack(b"lo", flags | _IFF_UP))


def _become(wishes: Wishes) -> NoReturn:
    _raise_ambient((*NETWORKING, CAP_SYS_ADMIN) if wishes.sysadm else NETWORKING)
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvp(wishes.argv[0], wishes.argv)
    except OSError as error:
        raise HostError.from_oserror(wishes.argv[0], error) from error


def _raise_ambient(capabilities: Iterable[int]) -> None:
    """Make capabilities inheritable and ambient: what is executed has them without being root."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; then their upper halves
    _check(_libc.capget(header, sets), "capget")
    wanted = list(capabilities)
    for capability in wanted:
        sets[2] |= 1 << capability
    _check(_libc.capset(header, sets), "capset")
    for capability in wanted:
        _check(_libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, capability, 0, 0), "ambient capabilities")


def shell(environment: Mapping[str, str]) -> tuple[str, ...]:
    """The user's shell, as a command.  Raises HostError."""
    found = environment.get("SHELL")
    if not found:
        raise HostError("SHELL", "is not set", "set it, or name a command")
    return (found,)
