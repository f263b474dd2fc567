# SPDX-License-Identifier: GPL-2.0-or-later
"""The pump: two streams joined in this process.

A cable is two *flows*, one for each direction, each with a batch of its own.  A flow is in one of two states:

* reading: its batch is empty; it waits for input of its source;
* blocked: its sink took less than it was given, or something it took is still unwritten (``Stream.writer`` names a
  descriptor); it waits for that descriptor alone and leaves its source unread, so that the source's own queue fills and
  its sender feels the pressure.

The flows share nothing but the call to poll.  So when both sinks are full, as in a dpipe whose ends are both saturated,
each goes on as soon as its own sink does: nothing waits in a circle.  Frames of one flow leave in the order they came,
for a batch is finished before the next one is read.

Only what is waited for is polled: a descriptor that hangs up behind a blocked flow is noticed when that flow has
delivered what it holds, and costs nothing meanwhile.

Where frames come singly, the round trip is made of what happens between two calls to poll, in caches that others have
used since.  So what to poll and what it means is worked out only when an answer of the streams has changed, and the
ordinary case, one readable descriptor, takes the shortest way: where both streams have one, a single frame goes from
the source's system call to the sink's, past the batch (``Stream.singles_in``, ``Stream.singles_out``), and nothing is
worked out anew until something else happens.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from vdexdp.errors import HangUp
from vdexdp.plugins.base import DONE, Batch, RecvOne, SendOne, Stream
from vdexdp.plugins.pace import Pace
from vdexdp.signals import received


@dataclass
class Flow:
    """One direction of a cable, with its counters since the start."""

    source: Stream
    sink: Stream
    frames: int = 0
    bytes: int = 0
    _batch: Batch = field(default_factory=Batch, repr=False)
    _start: int = 0  # the first frame of the batch that the sink has not taken
    _ended: HangUp | None = None  # the source hung up behind the frames of this batch

    def __post_init__(self) -> None:
        # Most streams leave most of their methods as they are in the base class, and need not be asked each time.
        self._may_block = type(self.sink).writer is not Stream.writer
        self._has_timer = type(self.source).timeout is not Stream.timeout
        self._has_chores = type(self.source).chores is not Stream.chores
        self._short = _defines(self.source, "singles_in", "recv") and _defines(self.sink, "singles_out", "send")
        self._pace = Pace()

    def state(self) -> _State:
        """What there is to wait for, and the short ways there are."""
        source = self.source
        writer = self.sink.writer() if self._may_block else None
        source.stalled = writer is not None
        chores = tuple(source.chores()) if self._has_chores else ()
        readers = tuple(source.readers()) if writer is None else ()
        short = (source.singles_in(), self.sink.singles_out()) if self._short and readers else _NO_SHORT_WAY
        return writer, readers, chores, short

    def read(self) -> Ending | None:
        """Move one batch, or what the short way has left in it."""
        batch = self._batch
        if self._may_block and self.sink.writer() is not None:
            return None
        if self._start < batch.count:
            return self._send()
        batch.clear()
        self._start = 0
        if self._ended is not None:
            return Ending(self.source, str(self._ended))
        try:
            self.source.recv(batch)
        except HangUp as end:
            if not batch.count:
                return Ending(self.source, str(end))
            self._ended = end
        if batch.count:
            self._pace.found(batch.count)
        return self._send() if batch.count else None

    def mover(self, recv_one: RecvOne, send_one: SendOne) -> Mover:
        """The short way from one system call to the other; for a flow that is not blocked, as long as nothing else of
        it is called.
        """
        row, single = self._batch.rows[0], self._pace.single
        writer = self.sink.writer if self._may_block else None

        def move(now: float) -> bool:
            if not single(now):
                return False
            length = recv_one(row)
            if length <= 0:
                return length == DONE
            if not send_one(row[:length]):
                self._batch.lengths[0] = length
                self._batch.count = 1
                self._start = 0
                return False
            self.frames += 1
            self.bytes += length
            return writer is None or writer() is None

        return move

    def resume(self) -> Ending | None:
        """Go on with a blocked flow, whose descriptor is writable."""
        try:
            self.sink.flush()
        except HangUp as end:
            return Ending(self.sink, str(end))
        return self._send() if self._start < self._batch.count else None

    def _send(self) -> Ending | None:
        batch, start = self._batch, self._start
        try:
            taken = self.sink.send(batch, start)
        except HangUp as end:
            return Ending(self.sink, str(end))
        self._start = start + taken
        self.frames += taken
        self.bytes += sum(batch.lengths[start : self._start])
        if self._start < batch.count and self.sink.writer() is None:
            # The sink broke its contract: it is full, but there is nothing to wait for.
            self.sink.drops["full"] += batch.count - self._start
            self._start = batch.count
        return None

    def timeout(self) -> float | None:
        """Seconds until the source wants to be read even without input."""
        return 0.0 if self._ended is not None else self.source.timeout()

    def timed(self) -> bool:
        """Whether ``timeout`` may have something to say."""
        return self._has_timer or self._ended is not None


def _defines(stream: Stream, one: str, many: str) -> bool:
    """Whether a stream has the short way ``one``, and no class derived since has its own ``many`` but not ``one``."""
    owner = next(kind for kind in type(stream).__mro__ if one in vars(kind) or many in vars(kind))
    return owner is not Stream and one in vars(owner)


@dataclass(frozen=True)
class Ending:
    """Why a cable ended: the stream that hung up (None: it was stopped), and what there is to say about it."""

    stream: Stream | None
    cause: str = ""


Watcher = Callable[[], Ending | None]

Mover = Callable[[float], bool]
"""Moves one frame at a time by time.monotonic(); tells whether that was all."""

# Of a flow: its sink's writer, its source's readers and chores, and the two ends of its short way.
_State = tuple[int | None, tuple[int, ...], tuple[int, ...], tuple[RecvOne | None, SendOne | None]]


@dataclass(frozen=True)
class _Plan:
    """What to wait for, and what it means."""

    watched: tuple[tuple[int, Watcher], ...]
    reading: tuple[tuple[Flow, tuple[int, ...]], ...]
    writing: tuple[tuple[Flow, int], ...]
    chores: tuple[tuple[Stream, int], ...]
    only_read: dict[int, tuple[Flow, Mover | None]]
    """Descriptors that mean nothing else than: read this flow; and a short way to do it."""


_NO_SHORT_WAY = (None, None)
_NOTHING_PLANNED: tuple[_State, _State] = ((-1, (), (), _NO_SHORT_WAY),) * 2


class Cable:
    """Two streams and the frames between them.

    ``left`` and ``right`` are the flows out of the first and out of the second stream.  The streams belong to the
    caller, who closes them after the cable.
    """

    def __init__(self, first: Stream, second: Stream) -> None:
        self.left = Flow(first, second)
        self.right = Flow(second, first)
        self._watched: dict[int, Watcher] = {}
        self._poll = select.poll()
        self._polled: dict[int, int] = {}
        self._planned = _NOTHING_PLANNED
        self._plan = _Plan((), (), (), (), {})

    def watch(self, fd: int, callback: Watcher) -> None:
        """Call ``callback`` whenever ``fd`` is readable or hung up.  If it returns an Ending, the cable ends."""
        self._watched[fd] = callback
        self._planned = _NOTHING_PLANNED

    def unwatch(self, fd: int) -> None:
        """Forget a watched descriptor; call it before the descriptor is closed."""
        self._watched.pop(fd, None)
        self._planned = _NOTHING_PLANNED

    def stop_on(self, signals: int) -> None:
        """End the cable when ``signals``, from ``vdexdp.signals.as_descriptor``, reports one; its name is the cause."""

        def stop() -> Ending | None:
            numbers = received(signals)
            return Ending(None, numbers[0].name) if numbers else None

        self.watch(signals, stop)

    def run(self) -> Ending:
        """Pump until an end hangs up or a watcher says so.  Raises what the streams raise (HostError)."""
        while True:
            ending = self.step()
            if ending is not None:
                return ending

    def step(self, timeout: float | None = None) -> Ending | None:
        """Move what can be moved, until there is something else to wait for, or ``timeout`` seconds are over."""
        due = self._settle()
        plan, wait, monotonic = self._plan, self._poll.poll, time.monotonic
        now = monotonic()
        end = None if timeout is None else now + timeout
        alarm = end if due is None or (end is not None and end < due) else due
        while True:
            # A millisecond more: a wait that ends a fraction of one early would be a busy loop.
            events = wait(None if alarm is None else int((alarm - now) * 1000) + 1 if alarm > now else 0)
            now = monotonic()
            if len(events) != 1 or (due is not None and now >= due):
                return self._answer(plan, dict(events))
            fd, what = events[0]
            found = plan.only_read.get(fd)
            if found is None or not what & ~select.POLLOUT:
                return self._answer(plan, dict(events))
            flow, move = found
            if move is None or not move(now):
                return flow.read()
            if end is not None and now >= end:
                return None

    def _settle(self) -> float | None:
        """Find out what there is to wait for; return when a source wants to be read anyway, by time.monotonic()."""
        left, right = self.left.state(), self.right.state()
        if left != self._planned[0] or right != self._planned[1]:
            self._plan = self._make_plan(left, right)
            self._planned = (left, right)
        due: float | None = None
        for flow, _ in self._plan.reading:
            if flow.timed():
                limit = flow.timeout()
                if limit is not None:
                    then = time.monotonic() + limit
                    due = then if due is None else min(then, due)
        return due

    def _answer(self, plan: _Plan, ready: dict[int, int]) -> Ending | None:
        ending = None
        for fd, callback in plan.watched:
            if fd in ready:
                ending = ending or callback()
        for stream, fd in plan.chores:
            if fd in ready:
                ending = ending or self._do_chores(stream)
        for flow, writer in plan.writing:
            if ready.get(writer, 0) & ~select.POLLIN:
                ending = ending or flow.resume()
        for flow, readers in plan.reading:
            if any(ready.get(fd, 0) & ~select.POLLOUT for fd in readers):
                ending = ending or flow.read()
            elif flow.timed():
                limit = flow.timeout()
                if limit is not None and limit <= 0.0:
                    ending = ending or flow.read()
        return ending

    def _make_plan(self, *states: _State) -> _Plan:
        wanted: dict[int, int] = dict.fromkeys(self._watched, select.POLLIN)
        reading: list[tuple[Flow, tuple[int, ...]]] = []
        writing: list[tuple[Flow, int]] = []
        chores: list[tuple[Stream, int]] = []
        others = set(wanted)
        sole: dict[int, tuple[Flow, Mover | None]] = {}
        for flow, (writer, readers, tasks, (recv_one, send_one)) in zip((self.left, self.right), states, strict=True):
            for fd in tasks:
                wanted[fd] = wanted.get(fd, 0) | select.POLLIN
                chores.append((flow.source, fd))
                others.add(fd)
            if writer is not None:
                wanted[writer] = wanted.get(writer, 0) | select.POLLOUT
                writing.append((flow, writer))
                others.add(writer)
                continue
            for fd in readers:
                wanted[fd] = wanted.get(fd, 0) | select.POLLIN
            reading.append((flow, readers))
            mover = flow.mover(recv_one, send_one) if recv_one is not None and send_one is not None else None
            sole.update(dict.fromkeys(readers, (flow, mover)))
        for fd in self._polled.keys() - wanted.keys():
            self._poll.unregister(fd)
        for fd, events in wanted.items():
            if self._polled.get(fd) != events:
                self._poll.register(fd, events)
        self._polled = wanted
        only_read = {fd: found for fd, found in sole.items() if fd not in others}
        return _Plan(tuple(self._watched.items()), tuple(reading), tuple(writing), tuple(chores), only_read)

    @staticmethod
    def _do_chores(stream: Stream) -> Ending | None:
        try:
            stream.do_chores()
        except HangUp as end:
            return Ending(stream, str(end))
        return None
