# SPDX-License-Identifier: GPL-2.0-or-later
"""The pipes and processes of ``vdexdp dpipe``.

Frames pass from pipe to pipe without touching this process.  It keeps a read end of every pipe to see how full it is:
commands that write blockingly (stock vde_plug and wirefilter do) can come to wait for one another in a circle, each
with its output full and none reading.  Such a circle is broken by giving its pipes more room; that is enough because
each of them then reads at least as much as it writes.

The chain ends when a command ends: the others see the end of their input.  Those that have nothing left to read and
still do not end are sent SIGTERM after a while.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import sys
import termios
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NoReturn

import click

from vdexdp.errors import HostError

TICK = 0.1
"""Seconds between two looks at the pipes."""

STALLED_TICKS = 3
"""Looks in a row at which a pipe was filled and unchanged: its reader does not read."""

GRACE = 2.0
"""Seconds from the end of one command, with nothing left in the pipes, to SIGTERM for the others (and then SIGKILL)."""

WATCHED = (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""The signals that ``supervise`` waits for; they are blocked."""

_PIPE_MAX_FILE = "/proc/sys/fs/pipe-max-size"
_HIGH_FD = 64
_DEFAULT_SIGNALS = (signal.SIGPIPE, signal.SIGXFSZ)  # ignored by Python, which commands must not inherit

Role = Literal["end", "both", "right", "left"]
"""What a command is connected to: one neighbour; both; or as a filter of the frames that go right, or left."""


@dataclass(frozen=True)
class Stage:
    """One command of the chain."""

    argv: tuple[str, ...]
    role: Role


@dataclass
class Pipe:
    """One pipe of the chain, by the commands at its ends; ``fd`` is a read end of our own."""

    fd: int
    writer: int
    reader: int
    filled: int = 0
    ticks: int = 0

    def look(self) -> None:
        filled = self.level()
        self.ticks = self.ticks + 1 if filled and filled == self.filled else 0
        self.filled = filled

    def level(self) -> int:
        """Bytes waiting in the pipe."""
        return int.from_bytes(fcntl.ioctl(self.fd, termios.FIONREAD, b"\0\0\0\0"), sys.byteorder)

    def capacity(self) -> int:
        return fcntl.fcntl(self.fd, fcntl.F_GETPIPE_SZ)

    def grow(self, limit: int) -> bool:
        wanted = min(self.capacity() * 2, limit)
        if wanted <= self.capacity():
            return False
        try:
            fcntl.fcntl(self.fd, fcntl.F_SETPIPE_SZ, wanted)
        except OSError:  # the user's share of pipe pages is used up
            return False
        return True


def circle(pipes: Sequence[Pipe]) -> list[Pipe]:
    """Those of the stalled ``pipes`` that wait for one another: whoever should read one is stuck writing another."""
    while True:
        stuck = {pipe.writer for pipe in pipes}
        remaining = [pipe for pipe in pipes if pipe.reader in stuck]
        if len(remaining) == len(pipes):
            return remaining
        pipes = remaining


@dataclass
class Plumbing:
    """Descriptors of every command (number there → descriptor here), and the pipes."""

    descriptors: list[dict[int, int]]
    pipes: list[Pipe] = field(default_factory=list)


def connect(stages: Sequence[Stage], alternate: tuple[int, int]) -> Plumbing:
    """Make the pipes.  Raises HostError."""
    plumbing = Plumbing([{} for _ in stages])
    wires = plumbing.descriptors

    def pipe(writer: int, writer_fd: int, reader: int, reader_fd: int) -> None:
        try:
            ends = [_raise_fd(fd) for fd in os.pipe2(os.O_CLOEXEC)]
            plumbing.pipes.append(Pipe(fcntl.fcntl(ends[0], fcntl.F_DUPFD_CLOEXEC, _HIGH_FD), writer, reader))
        except OSError as error:
            raise HostError.from_oserror("pipe", error) from error
        wires[reader][reader_fd], wires[writer][writer_fd] = ends

    # Who offers data to the next command on its left side, and who takes data from it.
    source, sink = (0, 1), (0, 0)
    for index, stage in enumerate(stages[1:], 1):
        if stage.role in ("end", "both", "right"):
            pipe(*source, index, 0)
        if stage.role in ("end", "both", "left"):
            pipe(index, 1, *sink)
        if stage.role == "both":
            source, sink = (index, alternate[1]), (index, alternate[0])
        elif stage.role == "right":
            source = (index, 1)
        elif stage.role == "left":
            sink = (index, 0)
    return plumbing


def _raise_fd(fd: int) -> int:
    """Out of the way of the numbers that the commands will see."""
    high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _HIGH_FD)
    os.close(fd)
    return high


def alternate_numbers() -> tuple[int, int]:
    """The first two numbers behind stderr that no command inherits."""

    def inherited(fd: int) -> bool:
        try:
            return os.get_inheritable(fd)
        except OSError:
            return False

    free = [fd for fd in range(3, _HIGH_FD) if not inherited(fd)]
    return free[0], free[1]


class Chain:
    """The running commands."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        self.stages = stages
        self._alternate = alternate_numbers()
        self.plumbing = connect(stages, self._alternate)
        self.pids: dict[int, int] = {}
        self.statuses: dict[int, int] = {}
        self.order: list[int] = []
        self._signalled: set[int] = set()
        self._warned = False
        self._limit = _pipe_limit()

    def environment(self, stage: Stage) -> Mapping[str, str]:
        env = {key: value for key, value in os.environ.items() if not key.startswith("ALTERNATE_STD")}
        if stage.role == "both":
            env["ALTERNATE_STDIN"], env["ALTERNATE_STDOUT"] = map(str, self._alternate)
        return env

    def spawn(self, index: int) -> None:
        """Start one command.  Where it can't be run, it counts as ended with 127 (not found) or 126, as in a shell."""
        stage = self.stages[index]
        wires = self.plumbing.descriptors[index].items()
        actions = [(os.POSIX_SPAWN_DUP2, here, there) for there, here in wires]
        try:
            self.pids[index] = os.posix_spawnp(
                stage.argv[0],
                stage.argv,
                self.environment(stage),
                file_actions=actions,
                setsigdef=_DEFAULT_SIGNALS,
                setsigmask=(),
            )
        except OSError as error:
            click.echo(str(HostError.from_oserror(stage.argv[0], error)), err=True)
            self._ended(index, 127 if error.errno == errno.ENOENT else 126)

    def start(self) -> None:
        for index in range(len(self.stages)):
            self.spawn(index)
        for wires in self.plumbing.descriptors:
            for fd in wires.values():
                os.close(fd)

    def become_last(self) -> NoReturn:
        """Start all but the last command, and replace this process by that one.  Raises HostError."""
        last = len(self.stages) - 1
        for index in range(last):
            self.spawn(index)
        for there, here in self.plumbing.descriptors[last].items():
            os.dup2(here, there)
        for number in _DEFAULT_SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        stage = self.stages[last]
        try:
            os.execvpe(stage.argv[0], stage.argv, self.environment(stage))
        except OSError as error:
            raise HostError.from_oserror(stage.argv[0], error) from error

    def _ended(self, index: int, status: int) -> None:
        self.pids.pop(index, None)
        self.statuses[index] = status
        self.order.append(index)
        for pipe in [pipe for pipe in self.plumbing.pipes if pipe.reader == index]:
            os.close(pipe.fd)  # now its writer gets EPIPE
            self.plumbing.pipes.remove(pipe)

    def reap(self) -> None:
        for index, pid in list(self.pids.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                code = os.waitstatus_to_exitcode(status)
                self._ended(index, code if code >= 0 else 128 - code)

    def terminate(self, number: signal.Signals) -> None:
        """Signal all commands, and what they have started in our process group."""
        self._signalled.update(self.pids)
        for pid in self.pids.values():
            os.kill(pid, number)
        if number in WATCHED:
            os.killpg(0, number)
            signal.sigtimedwait((number,), 0)  # our own share

    def unblock(self) -> None:
        """Look at the pipes; give those that wait in a circle more room."""
        for pipe in self.plumbing.pipes:
            pipe.look()
        waiting = [pipe for pipe in self.plumbing.pipes if pipe.ticks >= STALLED_TICKS]
        stuck = [pipe for pipe in circle(waiting) if pipe.filled * 2 >= pipe.capacity()]
        if stuck and not sum(pipe.grow(self._limit) for pipe in stuck) and not self._warned:
            self._warned = True
            names = ", ".join(dict.fromkeys(self.stages[pipe.writer].argv[0] for pipe in stuck))
            click.echo(f"dpipe: {names} wait for one another, and their pipes can't grow any more", err=True)

    def idle(self) -> bool:
        """Nothing is left to read."""
        return not any(pipe.level() for pipe in self.plumbing.pipes)

    def status(self) -> int:
        """That of the first command which failed of its own accord; 0 where none did."""
        own = [self.statuses[index] for index in self.order if index not in self._signalled]
        broken_pipe = 128 + signal.SIGPIPE
        return next((status for status in own if status not in (0, broken_pipe)), 0)


def _pipe_limit() -> int:
    try:
        with open(_PIPE_MAX_FILE, encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return 1 << 20


def supervise(chain: Chain) -> int:
    """Run the chain to its end; the exit status.  The watched signals have to be blocked."""
    chain.start()
    patience = GRACE
    last_words = signal.SIGTERM
    received: signal.Signals | None = None
    while chain.pids:
        info = signal.sigtimedwait(WATCHED, TICK)
        if info is not None and info.si_signo != signal.SIGCHLD:
            received = signal.Signals(info.si_signo)
            chain.terminate(signal.SIGTERM)
        chain.reap()
        chain.unblock()
        if info is not None:
            continue
        if received or (chain.order and chain.idle()):
            patience -= TICK
        if patience <= 0:
            chain.terminate(last_words)
            last_words, patience = signal.SIGKILL, GRACE
    return 128 + received if received else chain.status()
