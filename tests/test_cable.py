# SPDX-License-Identifier: GPL-2.0-or-later
"""The pump: order, flow control, no deadlock when both directions are saturated, timeouts, and how a cable ends.

Shows it with real pipes and sockets; needs no privilege.
"""

from __future__ import annotations

import fcntl
import os
import random
import select
import signal
import socket
import threading
import time
from collections.abc import Sequence

import pytest

from vdexdp.cable import Cable, Ending
from vdexdp.errors import HangUp
from vdexdp.plugins.base import FRAME_MAX, FRAME_MIN, Batch, RecvOne, SendOne, Stream
from vdexdp.plugins.null import NullStream
from vdexdp.plugins.stream import GREETING, ByteStream
from vdexdp.signals import as_descriptor
from vdexdp.wire.vdestream import Decoder, encode


class Source(Stream):
    """Gives what it is told to, when its ``timeout`` has passed; takes everything."""

    def __init__(self, frames: Sequence[bytes] = (), every: float | None = None) -> None:
        super().__init__()
        self.frames = list(frames)
        self.taken: list[bytes] = []
        self.every = every
        self.calls = 0

    def readers(self) -> Sequence[int]:
        return ()

    def timeout(self) -> float | None:
        return self.every

    def recv(self, batch: Batch) -> None:
        self.calls += 1
        while self.frames and not batch.full:
            batch.append(self.frames.pop(0))
        if not self.frames:
            raise HangUp("nothing left")

    def send(self, batch: Batch, start: int = 0) -> int:
        self.taken += [bytes(batch[index]) for index in range(start, batch.count)]
        return batch.count - start

    def close(self) -> None:
        return


class Greedy(Source):
    """Takes one frame at a time, and only half of the times."""

    def __init__(self) -> None:
        super().__init__()
        self.reader, self.writable = os.pipe()
        self.flushes = 0
        self._full = False

    def writer(self) -> int | None:
        return self.writable if self._full else None

    def send(self, batch: Batch, start: int = 0) -> int:
        self.taken.append(bytes(batch[start]))
        self._full = start + 1 < batch.count
        return 1

    def flush(self) -> None:
        self.flushes += 1
        self._full = False

    def close(self) -> None:
        os.close(self.reader)
        os.close(self.writable)


def some_frames(count: int, seed: int = 1) -> list[bytes]:
    """Numbered frames of random content; their lengths are even, so that no vdestream pads them."""
    numbers = random.Random(seed)
    return [index.to_bytes(4, "big") + numbers.randbytes(numbers.randrange(10, 1600, 2)) for index in range(count)]


def test_all_frames_in_order_before_the_hang_up() -> None:
    frames = some_frames(1000)
    first, second = Source(frames, every=0.0), Source()
    cable = Cable(first, second)
    assert cable.run() == Ending(first, "nothing left")
    assert second.taken == frames
    assert (cable.left.frames, cable.left.bytes) == (1000, sum(map(len, frames)))
    assert (cable.right.frames, cable.right.bytes) == (0, 0)


def test_frames_that_were_not_taken_are_offered_again_in_order() -> None:
    frames = some_frames(200)
    sink = Greedy()
    Cable(Source(frames, every=0.0), sink).run()
    sink.close()
    assert sink.taken == frames
    assert sink.flushes >= 196


def test_a_full_sink_without_a_descriptor_loses_and_counts() -> None:
    class Broken(Source):
        def send(self, batch: Batch, start: int = 0) -> int:
            return min(3, batch.count - start)

    sink = Broken()
    Cable(Source(some_frames(64), every=0.0), sink).run()
    assert sink.drops["full"] == 61


def test_timeout_is_neither_early_nor_a_busy_loop() -> None:
    class Clock(Source):
        def __init__(self) -> None:
            super().__init__()
            self.due = time.monotonic() + 0.2

        def timeout(self) -> float | None:
            return max(0.0, self.due - time.monotonic())

        def recv(self, batch: Batch) -> None:
            self.calls += 1
            assert time.monotonic() >= self.due
            raise HangUp

    clock = Clock()
    cable = Cable(clock, Source())
    steps = 0
    while cable.step() is None:
        steps += 1
    assert clock.calls == 1
    assert steps <= 2


def feed(fd: int, data: bytes, numbers: random.Random) -> None:
    """Write slowly, in pieces of any size."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view[: numbers.choice((1, 2, 3, 1000, 60000))]) :]


def drain(fd: int, frames: list[bytes], numbers: random.Random, count: int) -> None:
    decoder = Decoder()
    while len(frames) < count:
        data = os.read(fd, numbers.choice((1, 7, 100000)))
        assert data
        decoder.feed(data)
        frames += map(bytes, decoder.next_frames(len(data)))
        assert not decoder.broken


def test_both_directions_saturated_do_not_deadlock() -> None:
    """Two vdestreams over pipes; both writers write blockingly, and read only what has piled up when they are done."""
    ends = [os.pipe() for _ in range(4)]  # in and out of the left, in and out of the right stream
    left = ByteStream(ends[0][0], ends[1][1], "left", own=True)
    right = ByteStream(ends[2][0], ends[3][1], "right", own=True)
    cable = Cable(left, right)
    stop_reader, stop_writer = os.pipe()
    cable.watch(stop_reader, lambda: Ending(None, "enough"))
    pump = threading.Thread(target=cable.run)
    pump.start()
    frames = [some_frames(3000, seed) for seed in (1, 2)]
    arrived: list[list[bytes]] = [[], []]
    threads = []
    for index, (write_to, read_from) in enumerate(((ends[0][1], ends[3][0]), (ends[2][1], ends[1][0]))):
        data = GREETING + b"".join(map(encode, frames[index]))
        numbers = random.Random(index)
        threads.append(threading.Thread(target=feed, args=(write_to, data, numbers)))
        threads.append(threading.Thread(target=drain, args=(read_from, arrived[index], numbers, 3000)))
    threads[0].start()
    threads[2].start()
    time.sleep(0.3)  # all four pipes are full now
    assert cable.left.frames < 3000
    threads[1].start()
    threads[3].start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive(), "deadlock"
    os.write(stop_writer, b"x")
    pump.join(5)
    assert arrived == frames
    left.close()
    right.close()
    for fd in (ends[0][1], ends[1][0], ends[2][1], ends[3][0], stop_reader, stop_writer):
        os.close(fd)


def test_hang_up_behind_a_blocked_flow_waits_for_delivery() -> None:
    source, feeder = os.pipe()
    drain_end, sink = os.pipe()
    nothing, keep_open = os.pipe()
    first = ByteStream(source, sink, "first")
    second = ByteStream(nothing, sink, "second", own=False)
    frame = os.urandom(1500)
    os.write(feeder, GREETING + encode(frame) * 40)
    os.close(feeder)
    cable = Cable(first, second)
    while select.select([], [sink], [], 0)[1]:
        os.write(sink, bytes(4096))
    assert cable.step(0.05) is None
    assert cable.step(0.05) is None
    assert cable.step(0.05) is None, "the hang-up must wait until the frames are delivered"
    os.read(drain_end, 1 << 20)
    ending = None
    for _ in range(10):
        ending = ending or cable.step(0.05)
    assert ending is not None
    assert ending.stream is first
    assert cable.left.frames == 40
    for fd in (source, drain_end, sink, nothing, keep_open):
        os.close(fd)


def test_a_signal_ends_the_cable_and_is_named() -> None:
    cable = Cable(Source(), Source())
    with as_descriptor(signal.SIGTERM) as fd:
        cable.stop_on(fd)
        assert cable.step(0.01) is None
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
        assert cable.run() == Ending(None, "SIGTERM")
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_watchers_can_come_and_go() -> None:
    cable = Cable(Source(), Source())
    reader, writer = os.pipe()
    seen: list[bytes] = []

    def watcher() -> Ending | None:
        seen.append(os.read(reader, 10))
        return Ending(None, "told") if seen[-1] == b"end" else None

    cable.watch(reader, watcher)
    os.write(writer, b"go on")
    assert cable.step(0.1) is None
    cable.unwatch(reader)
    os.write(writer, b"end")
    assert cable.step(0.02) is None
    cable.watch(reader, watcher)
    assert cable.run() == Ending(None, "told")
    assert seen == [b"go on", b"end"]
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize("size", [FRAME_MIN, 1514, FRAME_MAX])
def test_sizes(size: int) -> None:
    frames = [bytes([index]) * size for index in range(65)]
    sink = Source()
    Cable(Source(frames, every=0.0), sink).run()
    assert sink.taken == frames


class Wire(Stream):
    """One end of a socket that keeps frames apart; counts which way each frame goes."""

    def __init__(self, end: socket.socket, timeout: float | None = None) -> None:
        super().__init__()
        self.end = end
        self.short = self.long = self.calls = 0
        self._due = None if timeout is None else time.monotonic() + timeout

    def readers(self) -> Sequence[int]:
        return (self.end.fileno(),)

    def timeout(self) -> float | None:
        return None if self._due is None else max(0.0, self._due - time.monotonic())

    def recv(self, batch: Batch) -> None:
        self.calls += 1
        if self._due is not None and time.monotonic() >= self._due:
            raise HangUp("time is up")
        try:
            while not batch.full:
                batch.append(self.end.recv(FRAME_MAX))
                self.long += 1
        except BlockingIOError:
            pass

    def singles_in(self) -> RecvOne:
        return self._recv_one

    def singles_out(self) -> SendOne:
        return self._send_one

    def _recv_one(self, row: memoryview) -> int:
        try:
            size = self.end.recv_into(row)
        except BlockingIOError:
            return 0
        self.short += 1
        return size

    def send(self, batch: Batch, start: int = 0) -> int:
        for index in range(start, batch.count):
            self.end.send(batch[index])
        return batch.count - start

    def _send_one(self, frame: memoryview) -> bool:
        return len(frame) < 1000 and self.end.send(frame) > 0

    def close(self) -> None:
        self.end.close()


def sockets() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)


def test_singles_and_bursts_change_the_way_and_keep_their_order() -> None:
    (guest, near), (far, peer) = sockets(), sockets()
    first, second = Wire(near), Wire(far)
    cable = Cable(first, second)
    frames = some_frames(400)
    arrived: list[bytes] = []
    numbers = random.Random(3)
    waiting = list(frames)
    while waiting:
        count = numbers.choice((1, 1, 1, 30))
        for frame in waiting[:count]:
            guest.send(frame)
        del waiting[:count]
        time.sleep(0.0003)
        while cable.step(0.0) is None and select.select([near], [], [], 0)[0]:
            pass
        while select.select([peer], [], [], 0)[0]:
            arrived.append(peer.recv(FRAME_MAX))
    assert arrived == frames
    assert (cable.left.frames, cable.left.bytes) == (400, sum(map(len, frames)))
    assert first.short > 0
    assert first.long > 100, "bursts go by the batch"
    for end in (guest, near, far, peer):
        end.close()


def test_a_timer_is_heard_through_frames_that_come_singly() -> None:
    (guest, near), (far, peer) = sockets(), sockets()
    first, second = Wire(near, timeout=0.1), Wire(far)
    cable = Cable(first, second)
    end = time.monotonic() + 5
    ending = None
    while ending is None and time.monotonic() < end:
        guest.send(bytes(60))
        time.sleep(0.0005)
        ending = cable.step(0.0)
        if select.select([peer], [], [], 0)[0]:
            peer.recv(FRAME_MAX)
    assert ending == Ending(first, "time is up")
    assert first.short > 10
    for one in (guest, near, far, peer):
        one.close()


def test_a_single_frame_that_is_cut_blocks_its_flow_until_the_rest_is_out() -> None:
    guest, near = sockets()
    outlet, sink = os.pipe()
    nothing, feeder = os.pipe()
    stream = ByteStream(nothing, sink, "stream")
    cable = Cable(Wire(near), stream)
    os.write(feeder, GREETING)  # who says so takes a frame in pieces
    for _ in range(3):
        assert cable.step(0.05) is None
    assert os.read(outlet, 100) == GREETING
    room = fcntl.fcntl(sink, fcntl.F_GETPIPE_SZ) - select.PIPE_BUF
    os.write(sink, bytes(room))
    frames = [bytes([number]) * 900 for number in range(20)]
    got = b""
    for frame in frames:
        guest.send(frame)
        time.sleep(0.0003)
        cable.step(0.0)
    assert cable.left.frames < len(frames), "the pipe was to be too small"
    assert stream.writer() is not None
    while len(got) < room + sum(len(frame) + 2 for frame in frames):
        got += os.read(outlet, 1 << 20)
        for _ in range(3):
            assert cable.step(0.01) is None
    assert got[room:] == b"".join(map(encode, frames))
    assert cable.left.frames == len(frames)
    for one in (guest, near):
        one.close()
    stream.close()
    for fd in (outlet, sink, nothing, feeder):
        os.close(fd)


def test_a_derived_class_with_a_recv_or_send_of_its_own_is_asked() -> None:
    class Deaf(Wire):
        def recv(self, batch: Batch) -> None:
            self.end.recv(FRAME_MAX)

    class Mute(Wire):
        def send(self, batch: Batch, start: int = 0) -> int:
            self.drops["mute"] += batch.count - start
            return batch.count - start

    for kinds in ((Deaf, Wire), (Wire, Mute)):
        (guest, near), (far, peer) = sockets(), sockets()
        cable = Cable(kinds[0](near), kinds[1](far))
        guest.send(bytes(60))
        cable.step(0.1)
        assert not select.select([peer], [], [], 0.05)[0]
        for end in (guest, near, far, peer):
            end.close()


def test_what_to_wait_for_is_worked_out_once() -> None:
    (guest, near), (far, peer) = sockets(), sockets()
    for sink in (Wire(far), NullStream()):
        cable = Cable(Wire(near), sink)
        plans = []
        for count in (1, 1, 20, 20):
            for _ in range(count):
                guest.send(bytes(60))
            cable.step(0.05)
            plans.append(cable._plan)
        assert cable.left.frames == 42
        assert all(plan is plans[0] for plan in plans)
    for end in (guest, near, far, peer):
        end.close()
