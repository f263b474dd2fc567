# SPDX-License-Identifier: GPL-2.0-or-later
"""A wire in front of a stream: the engine with its clock, its console and its blink socket.

The side that sends and receives through the filter is the left end, the stream inside is the right one.  Frames to the
right wait in the engine, not in the caller, so their time is kept by a timer among the ``chores``: it runs even while
the caller can't take frames from the right.  Where the interface speed is limited, ``writer`` is a gate that opens when
the interface is free.

Frames may leave up to SLACK early, so that a crowd of them leaves with one wake-up.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from vdexdp.errors import HostError
from vdexdp.plugins.base import Batch, Stream
from vdexdp.plugins.wrapper import WrapperStream
from vdexdp.wirefilter.commands import Interpreter, Session
from vdexdp.wirefilter.console import Console, warn
from vdexdp.wirefilter.engine import Engine
from vdexdp.wirefilter.timing import Gate, Timer
from vdexdp.wirefilter.values import LR, RL, Parameter

SLACK = 0.0005
"""Seconds."""

MODE_DEFAULT = 0o700

_NAMES = {LR: "LR", RL: "RL"}


@dataclass(frozen=True)
class FilterSpec:
    """What a wire is like at the start; paths are "" for none."""

    values: tuple[tuple[Parameter, str], ...] = ()
    nofifo: bool = False
    rc: str = ""
    mgmt: str = ""
    mgmtmode: int = MODE_DEFAULT
    blink: str = ""
    blinkid: str = ""
    pidfile: str = ""


class FilterStream(WrapperStream):
    """The stream ``inner`` at the right end of a wire.

    ``overhead`` is what a frame's length counts more than the frame; ``directions`` is 1 for a wire that carries
    nothing from right to left.  Raises HostError.
    """

    def __init__(self, inner: Stream, spec: FilterSpec, *, overhead: int = 0, directions: int = 2) -> None:
        self.engine = Engine(Random(), overhead)
        super().__init__(inner)
        self.engine.drops = inner.drops
        self._clock = time.monotonic
        self._directions = directions
        self._poller = select.epoll()
        self._timer = Timer()
        self._gate = Gate()
        self._poller.register(self._timer.fd, select.EPOLLIN)
        self.interpreter = Interpreter(self.engine, self._clock, directions)
        self.console = Console(self.interpreter, self._poller)
        self._in = Batch()
        self._in_start = 0
        self._out = Batch()
        self._out_start = 0
        self._blink: socket.socket | None = None
        self._pidfile = ""
        self._open = True
        try:
            self._configure(spec)
            self._work(self._clock())
        except BaseException:
            self._release()
            raise

    @property
    def drops(self) -> Counter[str]:
        return self.inner.drops

    @drops.setter
    def drops(self, drops: Counter[str]) -> None:
        self.inner.drops = self.engine.drops = drops

    def readers(self) -> Sequence[int]:
        if self._direct() or self.engine.blocked(RL, self._clock()) <= SLACK:
            return self.inner.readers()
        return ()

    def _direct(self) -> bool:
        """Frames from the right need no engine just now."""
        return self._in_start == self._in.count and self.engine.transparent(RL)

    def writer(self) -> int | None:
        inner = self.inner.writer()
        if inner is None and self._gate.closed:
            return self._gate.fd
        return inner

    def timeout(self) -> float | None:
        if self._direct():
            return self.inner.timeout()
        now = self._clock()
        waits: list[float] = []
        due = self.engine.next_time(RL)
        if due is not None:
            waits.append(due - SLACK - now)
        blocked = self.engine.blocked(RL, now)
        if blocked > SLACK:
            waits.append(blocked)
        elif self._in_start < self._in.count:
            waits.append(0.0)
        else:
            inner = self.inner.timeout()
            if inner is not None:
                waits.append(inner)
        return max(0.0, min(waits)) if waits else None

    def chores(self) -> Sequence[int]:
        return (self._poller.fileno(), *self.inner.chores())

    def do_chores(self) -> None:
        self.inner.do_chores()
        for fd, _ in self._poller.poll(0):
            if fd == self._timer.fd:
                self._timer.set(None)
            else:
                self.console.serve(fd)
        self._work(self._clock())

    def recv(self, batch: Batch) -> None:
        first = batch.count
        if self._direct():
            self.inner.recv(batch)
        else:
            now = self._clock()
            self._take_in(now)
            self.engine.due(RL, now + SLACK, _appender(batch))  # what is left over makes ``timeout`` 0
        if self._blink:
            self._blink_all(RL, batch, first)

    def _take_in(self, now: float) -> None:
        """Submit what the inner end has, as far as the interface takes it."""
        engine, pending = self.engine, self._in
        if engine.blocked(RL, now) > SLACK:
            return
        if self._in_start == pending.count:
            pending.clear()
            self._in_start = 0
            self.inner.recv(pending)
        while self._in_start < pending.count and engine.blocked(RL, now) <= SLACK:
            engine.submit(RL, pending[self._in_start], now)
            self._in_start += 1

    def send(self, batch: Batch, start: int = 0) -> int:
        engine = self.engine
        if engine.transparent(LR) and self._out_start == self._out.count:
            taken = self.inner.send(batch, start)
            if self._blink:
                self._blink_all(LR, batch, start, start + taken)
            return taken
        at, now = start, self._clock()
        while at < batch.count and engine.blocked(LR, now) <= SLACK:
            engine.submit(LR, batch[at], now)
            at += 1
        self._work(now)
        return at - start

    def flush(self) -> None:
        self.inner.flush()
        self._work(self._clock())

    def close(self) -> None:
        if self._open:
            self._release()
            self.inner.close()

    def _release(self) -> None:
        self._open = False
        self.console.close()
        self._poller.close()
        self._timer.close()
        self._gate.close()
        if self._blink:
            self._blink.close()
        if self._pidfile:
            try:
                os.unlink(self._pidfile)
            except OSError:
                pass

    def _work(self, now: float) -> None:
        """Move the chain, deliver what is due to the right, and set the clock for the next time."""
        engine = self.engine
        for source, target in engine.chain.step(now):
            self.console.trace(self.interpreter.moved(source, target))
        self._deliver(now)
        blocked = engine.blocked(LR, now)
        self._gate.shut(blocked > SLACK)
        times = [engine.chain.next_step, now + blocked if blocked > SLACK else None]
        if self.inner.writer() is None:  # else it is waited for
            times.append(engine.next_time(LR))
        self._timer.set(min((when for when in times if when is not None), default=None))

    def _deliver(self, now: float) -> None:
        out = self._out
        while self.inner.writer() is None:
            if self._out_start == out.count:
                out.clear()
                self._out_start = 0
                self.engine.due(LR, now + SLACK, _appender(out))
                if not out.count:
                    return
            taken = self.inner.send(out, self._out_start)
            if self._blink:
                self._blink_all(LR, out, self._out_start, self._out_start + taken)
            self._out_start += taken
            if not taken:
                return

    def _configure(self, spec: FilterSpec) -> None:
        for parameter, text in spec.values:
            self.interpreter.set(parameter, text)
        self.engine.fifo = not spec.nofifo
        if spec.blink:
            self._blink = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            self.interpreter.blink = spec.blink, spec.blinkid or f"{os.getpid():06d}"
        if spec.rc:
            self._run(spec.rc)
        if spec.mgmt:
            self.console.listen(spec.mgmt, spec.mgmtmode)
        if spec.pidfile:
            path = os.path.abspath(spec.pidfile)
            try:
                with open(path, "w", encoding="ascii") as file:
                    file.write(f"{os.getpid()}\n")
            except OSError as error:
                raise HostError.from_oserror(path, error) from error
            self._pidfile = path

    def _run(self, path: str) -> None:
        try:
            for line, answer in self.interpreter.script(path, Session()):
                if answer.error:
                    warn(f'{path}: "{line}": {os.strerror(answer.error)}')
        except OSError as error:
            raise HostError.from_oserror(path, error) from error

    def _blink_all(self, direction: int, batch: Batch, start: int, end: int | None = None) -> None:
        """One datagram per frame: id, direction, length.  Whoever does not listen misses it."""
        assert self._blink is not None
        assert self.interpreter.blink is not None
        path, name = self.interpreter.blink
        arrow = _NAMES[direction] if self._directions == 2 else "--"
        for size in batch.lengths[start : batch.count if end is None else end]:
            try:
                self._blink.sendto(f"{name} {arrow} {size + self.engine.overhead}\n".encode(), path)
            except OSError:
                return


def _appender(batch: Batch) -> Callable[[bytes], bool]:
    def take(frame: bytes) -> bool:
        if batch.full:
            return False
        batch.append(frame)
        return True

    return take
