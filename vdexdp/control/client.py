# SPDX-License-Identifier: GPL-2.0-or-later
"""A plug's side of the control connection: find the daemon or start it, plug, hold the lease, outlive the daemon.

The connection *is* the plug: when it closes, the daemon unplugs.  The lease is the reverse: descriptors of everything
the plug's frames need, held here and never used, so that the kernel keeps forwarding when the daemon is gone.  A plug
that loses the connection looks for a new daemon, or starts one where the old one had been started on demand, and hands
the lease back to it.

Starting: the first plug takes a lock on the run directory, looks again, and starts ``vdexdp daemon --auto``; the others
wait until somebody answers.  Waiting is a matter of the caller's loop (``timeout`` and ``tick``), since frames of a
bridged plug must not stop meanwhile; only ``connect`` itself waits.
"""

from __future__ import annotations

import errno
import fcntl
import grp
import os
import signal
import socket
import stat
import struct
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from vdexdp.control.channel import Channel, Message
from vdexdp.control.protocol import (
    RUN_DIR,
    PlugReply,
    PlugRequest,
    check_reply,
    is_event,
    request,
    resume_request,
    socket_path,
)
from vdexdp.errors import DaemonError, HangUp, HostError, PrivilegeError, VdexdpError

CONNECT_LIMIT = 0.05
"""Seconds that a plug whose frames may pass through this process lets a busy daemon keep it waiting."""

START_LIMIT = 30.0
"""Seconds for a daemon to answer after its start; compiling the programs is the long part, the first time."""

REPLY_LIMIT = 30.0
"""Seconds for a reply."""

_INSIST = 3.0
_POLL = 0.02
_RETRY = 1.0


class NotRunning(DaemonError):
    """Nobody listens on the control socket."""


def open_channel(netns: int | None = None, limit: float = REPLY_LIMIT) -> Channel:
    """A connection to the daemon of a network namespace (its inode number), by default the caller's.

    Raises NotRunning, PrivilegeError, HostError; DaemonError where it does not take the connection within ``limit``
    seconds.
    """
    path = str(socket_path(netns))
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(limit), int(limit % 1 * 1e6)))
    try:
        sock.connect(path)
    except OSError as error:
        sock.close()
        if error.errno == errno.EAGAIN:
            raise DaemonError("daemon", f"took no connection within {limit:g} s", 'see "vdexdp doctor"') from error
        if error.errno in (errno.ENOENT, errno.ECONNREFUSED, errno.ENOTDIR):
            hint = 'start it with "vdexdp daemon" as root'
            raise NotRunning("daemon", "no vdexdp daemon runs in this network namespace", hint) from error
        if error.errno in (errno.EACCES, errno.EPERM):
            raise PrivilegeError(path, "you may not talk to the daemon", _how_to_be_let_in(path)) from error
        raise HostError.from_oserror(path, error) from error
    return Channel(sock, spill=True)


def _how_to_be_let_in(path: str) -> str:
    try:
        info = os.stat(path)
        group = grp.getgrgid(info.st_gid).gr_name
    except (OSError, KeyError):
        return "run as root"
    if not info.st_mode & stat.S_IWGRP:
        return "run as root, or ask root for a policy (docs/policy.md)"
    return f'ask root for "usermod -aG {group} {os.environ.get("USER", os.getuid())}", and log in again'


def ask(channel: Channel, body: Mapping[str, Any], fds: list[int] | None = None, limit: float = REPLY_LIMIT) -> Message:
    """Send a request and wait for its reply at most ``limit`` seconds, passing over events.

    Raises DaemonError; the reply may be a failure.
    """
    try:
        channel.send(body, fds or [])
    except DaemonError:
        if not channel.wait(0):  # else it has said why it hung up
            raise
    deadline = time.monotonic() + limit
    while True:
        if not channel.wait(deadline - time.monotonic()):
            raise DaemonError("daemon", f"gave no answer within {limit:g} s", 'see "vdexdp doctor"')
        message = channel.recv()
        if message is None:
            raise DaemonError("daemon", "ended before it answered", "try again")
        if not is_event(message.body):
            return message
        message.close()


def call(op: str, netns: int | None = None, limit: float = REPLY_LIMIT, **parts: Any) -> dict[str, Any]:
    """One request to a daemon that runs already, for the commands that look or change something.

    ``netns`` and ``limit`` as for ``open_channel``.

    Raises NotRunning, PrivilegeError, and what the daemon answers (RequestError, HostError).
    """
    channel = open_channel(netns, limit)
    try:
        message = ask(channel, request(op, **parts), limit=limit)
        message.close()
        return check_reply(message.body)
    finally:
        channel.close()


def may_run() -> bool:
    """Whether there may be a daemon in the caller's network namespace, as far as a look at its socket tells."""
    return socket_path().exists()


class Starter:
    """Finds the daemon or starts it, step by step."""

    _children: ClassVar[list[int]] = []
    """Daemons that this process has started, to be reaped when they have ended."""

    def __init__(self) -> None:
        self._directory = -1
        self._process: tuple[int, int] | None = None  # pid, descriptor of what it says

    def attempt(self, limit: float = REPLY_LIMIT) -> Channel | None:
        """One step: the connection, or None when it is worth trying again soon.  ``limit`` as for ``open_channel``.

        Raises what stands in the way for good: PrivilegeError, and DaemonError where the daemon could not start.
        """
        self._children[:] = [pid for pid in self._children if not os.waitpid(pid, os.WNOHANG)[0]]
        try:
            return open_channel(limit=limit)
        except NotRunning:
            if self._process is not None:
                return self._check()
            if self._lock():
                # Somebody may have started one between our look and our lock.
                try:
                    return open_channel(limit=limit)
                except NotRunning:
                    self._spawn()
        return None

    def finish(self) -> None:
        """Let others try; a daemon that was started goes on by itself."""
        if self._directory >= 0:
            os.close(self._directory)
            self._directory = -1
        if self._process is not None:
            os.close(self._process[1])
            if self._process[0]:
                self._children.append(self._process[0])
            self._process = None

    def _lock(self) -> bool:
        if self._directory < 0:
            if os.geteuid() != 0:
                hint = 'ask root for "systemctl enable --now vdexdp.socket", or for "vdexdp daemon" here'
                raise PrivilegeError("daemon", "none runs in this network namespace, and only root may start it", hint)
            try:
                RUN_DIR.mkdir(mode=0o755, exist_ok=True)
                self._directory = os.open(RUN_DIR, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except OSError as error:
                raise HostError.from_oserror(str(RUN_DIR), error) from error
        try:
            fcntl.flock(self._directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _spawn(self) -> None:
        said = os.memfd_create("vdexdp-daemon", os.MFD_CLOEXEC)
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
            (os.POSIX_SPAWN_DUP2, said, 2),
        ]
        # -P: the current directory may be anybody's, and must not be where a daemon with privileges imports from.
        argv = [sys.executable, "-P", "-m", "vdexdp", "daemon", "--auto"]
        package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        pid = os.posix_spawn(
            sys.executable,
            argv,
            os.environ | {"PYTHONPATH": package},
            file_actions=actions,
            setsid=True,
            setsigmask=(),
            setsigdef=(signal.SIGPIPE, signal.SIGINT, signal.SIGTERM, signal.SIGHUP),
        )
        self._process = (pid, said)

    def _check(self) -> Channel | None:
        """Whether the daemon that was started still lives; if it does not, raises DaemonError with what it said."""
        assert self._process is not None
        pid, said = self._process
        ended, status = os.waitpid(pid, os.WNOHANG)
        if not ended:
            return None
        self._process = (0, said)
        try:
            return open_channel()  # a daemon that somebody else has just started may be the reason
        except NotRunning:
            pass
        text = os.pread(said, 65536, 0).decode(errors="replace").strip()
        self.finish()
        code = os.waitstatus_to_exitcode(status)
        cause = text.splitlines()[-1].removeprefix("vdexdp: ") if text else f"ended with status {code}"
        raise DaemonError("daemon", f"did not start: {cause}")


def connect() -> Channel:
    """A connection to the daemon, which is started if need be.  Waits.  Raises DaemonError, PrivilegeError."""
    starter = Starter()
    deadline = time.monotonic() + START_LIMIT
    try:
        while (channel := starter.attempt()) is None:
            if time.monotonic() > deadline:
                raise DaemonError("daemon", f"did not answer within {START_LIMIT:.0f} s of its start")
            time.sleep(_POLL)
        return channel
    finally:
        starter.finish()


@dataclass
class Plug:
    """A plug that runs, and the connection that keeps it.  Made by ``plug``."""

    channel: Channel | None
    reply: PlugReply
    auto: bool
    """Whether the daemon was started on demand, and may be again."""
    bridge: int = -1
    """The descriptor of the bridge tap, if the plug asked for one."""
    state: Literal["plugged", "orphaned", "resuming"] = "plugged"
    """Orphaned: without a daemon.  Resuming: a new one has the lease, and has not answered yet."""
    _starter: Starter = field(default_factory=Starter)
    _next: float = 0.0
    _said: str = ""
    _news: tuple[int, bool] | None = None
    _telling: bool = False

    def fileno(self) -> int:
        """The descriptor to poll for ``serve``; -1 while there is no daemon."""
        return -1 if self.channel is None else self.channel.fileno()

    def timeout(self) -> float | None:
        """Seconds until ``tick`` wants to be called, or None."""
        return None if self.state == "plugged" else max(0.0, self._next - time.monotonic())

    def serve(self) -> None:
        """Handle what the daemon sent.  Raises HangUp when the plug is over, ProtocolError, HostError when refused."""
        if self.channel is None:
            return
        message = self.channel.recv()
        if message is None:
            self._lost()
            return
        event = message.body.get("event")
        if event == "lease":
            self._replace_lease(message)
            return
        if event is None and self.state == "resuming":
            self._resumed(message)
            self._tell()
            return
        if event is None:
            self._tell()
        message.close()
        if event == "unplugged":
            raise HangUp(f"{message.body.get('subject', 'the plug')}: {message.body.get('cause', 'unplugged')}")
        if event == "bye" and not message.body.get("restart", False):
            raise HangUp("the daemon was stopped")

    def clients(self, count: int, left: bool) -> None:
        """Tell the daemon how many clients the node behind the bridge has now, and whether one has left.

        Never waits: there is one message on its way at most, and the next one has all that happened meanwhile.
        """
        self._news = (count, left or (self._news is not None and self._news[1]))
        if not self._telling:
            self._tell()

    def _tell(self) -> None:
        self._telling = False
        if self._news is None or self.channel is None or self.state != "plugged":
            return
        (count, left), self._news = self._news, None
        with suppress(DaemonError, OSError):
            self.channel.send(request("clients", count=count, left=left))
            self._telling = True

    def tick(self) -> None:
        """Look for a daemon, when ``timeout`` has passed.  Frames flow meanwhile."""
        if self.state == "plugged" or time.monotonic() < self._next:
            return
        if self.state == "resuming":
            self._say(f"daemon: gave no answer within {REPLY_LIMIT:g} s; frames flow on without it")
            self._lost()
        self._next = time.monotonic() + _RETRY
        try:
            channel = self._starter.attempt(CONNECT_LIMIT) if self.auto else open_channel(limit=CONNECT_LIMIT)
        except (NotRunning, PrivilegeError, DaemonError) as error:
            self._say(f"{error.subject}: {error.cause}; frames flow on without it")
            return
        if channel is None:
            self._next = time.monotonic() + _POLL
            return
        self._starter.finish()
        self._resume(channel)

    def close(self) -> None:
        """Unplug: hang up and let go of the lease; idempotent."""
        self._starter.finish()
        if self.channel is not None:
            self.channel.close()
            self.channel = None
        while self.reply.fds:
            os.close(self.reply.fds.popitem()[1])
        if self.bridge >= 0:
            os.close(self.bridge)
            self.bridge = -1

    def _lost(self) -> None:
        if self.channel is not None:
            self.channel.close()
        self._next = time.monotonic() + (_RETRY if self.state == "resuming" else 0.0)
        self.channel, self.state = None, "orphaned"

    def _resume(self, channel: Channel) -> None:
        """Hand the lease back; the answer, for which frames need not wait, comes to ``serve``."""
        fds = {} if "token" in self.reply.lease else self.reply.fds  # a claim says all
        try:
            channel.send(resume_request(self.reply.lease, fds), list(fds.values()))
        except (DaemonError, OSError) as error:
            channel.close()
            self._say(str(error))
            return
        self.channel, self.state = channel, "resuming"
        self._next = time.monotonic() + REPLY_LIMIT

    def _resumed(self, message: Message) -> None:
        try:
            check_reply(message.body)
        except DaemonError as error:
            message.close()
            self._say(str(error))
            self._lost()
            return
        except VdexdpError:
            message.close()
            raise
        self.state, self._said = "plugged", ""
        if "lease" in message.body:
            self._replace_lease(message)
        else:
            message.close()

    def _replace_lease(self, message: Message) -> None:
        old = self.reply.fds
        self.reply.lease, self.reply.fds = message.body["lease"], message.named()
        for fd in old.values():
            os.close(fd)

    def _say(self, text: str) -> None:
        if text != self._said:
            print(f"vdexdp: {text}", file=sys.stderr)
        self._said = text


def plug(wanted: PlugRequest, fds: list[int], *, start: bool = True, channel: Channel | None = None) -> Plug:
    """Ask the daemon, started if need be and ``start``, for a plug.  ``fds`` are the ends', and stay the caller's.

    ``channel`` is a connection that there is already; it is taken over.
    Raises PrivilegeError and DaemonError where there is no daemon to be had, and what the daemon answers.
    """
    begin = time.monotonic()
    while True:
        channel = channel or (connect() if start else open_channel())
        try:
            auto = bool(check_reply(ask(channel, request("hello")).body).get("auto", False))
            reply = PlugReply.from_message(ask(channel, wanted.to_json(), fds))
        except DaemonError:
            # A daemon that leaves after its last plug may have let us in on its way out.
            channel.close()
            channel = None
            if time.monotonic() - begin > _INSIST:
                raise
        except BaseException:
            channel.close()
            raise
        else:
            return Plug(channel, reply, auto, bridge=reply.fds.pop("bridge", -1))
