# SPDX-License-Identifier: GPL-2.0-or-later
"""``cmd://words``: frames as a vdestream through the standard input and output of a command.

The words are split as a shell does it (quotes, backslashes), without anything else that a shell does; no shell
runs. The typical command is ``ssh host vde_plug VNL``.

The command gets a session of its own, for two reasons.  It and whatever it starts form a process group that can be
ended as a whole; and without a terminal, an ssh that has a question to ask fails with a clear message, where it
would otherwise stop in the background and wait for ever.  Its standard error is ours.

The end is over when the command ends: what it had written before is still delivered, then the status is told.  A
command that only closes its output gets a second to end of its own accord.  At close it loses its input, has
a moment to notice, and is then terminated with its group.  Nothing is left behind: no zombie, no member of the group.
"""

from __future__ import annotations

import fcntl
import os
import select
import shlex
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass

from vdexdp.errors import HangUp, HostError, PrivilegeError, RequestError, VnlError
from vdexdp.plugins.base import Batch, NoKernelEnd, OpenContext, Parsed, Plugin
from vdexdp.plugins.stream import ByteStream

FAREWELL = 0.5
"""Seconds for the command to end once its input is closed, before SIGTERM."""

PATIENCE = 2.0
"""Seconds from SIGTERM to SIGKILL."""

AFTER_OUTPUT = 1.0
"""Seconds for a command that has closed its output to end, so that its status can be told."""

PIPE_SIZE = 1 << 20
"""Bytes of either pipe; the usual 64 kB do not hold a batch of large frames.  No more needs no privilege."""


@dataclass(frozen=True)
class CmdSpec:
    argv: tuple[str, ...]


class CommandStream(ByteStream):
    """A running command as a plug end."""

    def __init__(self, argv: tuple[str, ...], name: str) -> None:
        self._pid, source, sink = start(argv)
        self._pidfd = os.pidfd_open(self._pid)
        self._deaf = False  # the command reads no more
        self._silent_until: float | None = None  # monotonic seconds; it writes no more, and should have ended by then
        self._told = False
        super().__init__(source, sink, name, own=True, greet=True)

    def readers(self) -> tuple[int, ...]:
        return (self._pidfd,) if self._silent_until is not None else (self.source, self._pidfd)

    def writer(self) -> int | None:
        return None if self._deaf else super().writer()

    def timeout(self) -> float | None:
        if self._silent_until is not None:
            return max(0.0, self._silent_until - time.monotonic())
        return super().timeout()

    def recv(self, batch: Batch) -> None:
        if self._silent_until is None:
            before = batch.count
            try:
                super().recv(batch)
            except HangUp:
                self._silent_until = time.monotonic() + AFTER_OUTPUT
            if batch.count > before:
                return
        if self._has_ended(0.0):
            raise HangUp(self._epitaph())
        if self._silent_until is not None and time.monotonic() >= self._silent_until:
            raise HangUp(f"{self.name} has closed its end of the stream")

    def send(self, batch: Batch, start: int = 0) -> int:
        if not self._deaf:
            try:
                return super().send(batch, start)
            except HangUp:
                self._deaf = True
        self.drops["no-peer"] += len(batch) - start
        return len(batch) - start

    # Where these meet the command's end, recv and send are called and say so.
    singles_in = ByteStream.singles_in
    singles_out = ByteStream.singles_out

    def flush(self) -> None:
        try:
            super().flush()
        except HangUp:
            self._deaf = True

    def close(self) -> None:
        super().close()
        if not self._pid:
            return
        self._has_ended(FAREWELL)
        # Not reaped yet, so the group's number is still the command's.
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self._pid, number)
            except PermissionError:
                pass  # it has become another user (sudo), and ends when it sees its input closed, or not
            self._has_ended(PATIENCE)
        os.waitpid(self._pid, os.WNOHANG)
        os.close(self._pidfd)
        self._pid = 0

    def _has_ended(self, patience: float) -> bool:
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return bool(poll.poll(patience * 1000))

    def _epitaph(self) -> str:
        """How the command ended; a failure is also told to the user, as its own messages may not have been."""
        result = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOWAIT)
        assert result is not None
        if result.si_code == os.CLD_EXITED:
            text = f"{self.name} ended with status {result.si_status}"
        else:
            text = f"{self.name} was ended by signal {result.si_status}, {signal.strsignal(result.si_status)}"
        if result.si_status and not self._told:
            print(text, file=sys.stderr)
        self._told = True
        return text


def start(argv: tuple[str, ...], *, session: bool = True) -> tuple[int, int, int]:
    """Start the command; return its pid, and our ends of its output and of its input.  Raises HostError.

    Without a ``session`` of its own it stays at our terminal, for instance to ask for a password.
    """
    their_input, sink = os.pipe2(os.O_CLOEXEC)
    source, their_output = os.pipe2(os.O_CLOEXEC)
    for fd in (sink, source):
        with suppress(OSError):  # the user's share of pipe pages is used up
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
    try:
        pid = os.posix_spawnp(
            argv[0],
            argv,
            os.environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, their_input, 0), (os.POSIX_SPAWN_DUP2, their_output, 1)],
            setsid=session,
            setsigmask=(),
            setsigdef=(signal.SIGPIPE, signal.SIGXFSZ),
        )
    except OSError as error:
        os.close(sink)
        os.close(source)
        if isinstance(error, FileNotFoundError):
            raise RequestError(argv[0], "command not found") from error
        if isinstance(error, PermissionError):
            raise PrivilegeError(argv[0], "may not be executed") from error
        raise HostError.from_oserror(argv[0], error) from error
    finally:
        os.close(their_input)
        os.close(their_output)
    return pid, source, sink


class CmdPlugin(Plugin):
    scheme = "cmd"
    grammar = "raw"
    summary = "a command whose standard input and output carry a vdestream"
    address = "command and arguments"
    example = "cmd://ssh host vde_plug vxvde://"

    def parse(self, parsed: Parsed) -> CmdSpec:
        try:
            argv = tuple(shlex.split(parsed.address))
        except ValueError as error:
            raise VnlError(
                parsed.vnl, str(error).lower(), "close the quotes, or protect them by a backslash"
            ) from error
        if not argv:
            raise VnlError(parsed.vnl, "no command", f"write for instance {self.example}")
        return CmdSpec(argv)

    def open(self, spec: CmdSpec, context: OpenContext) -> CommandStream:
        return CommandStream(spec.argv, f"cmd://{spec.argv[0]}")

    def kernel_end(self, spec: CmdSpec) -> NoKernelEnd:
        return NoKernelEnd("cmd:// is a byte stream to another process")
