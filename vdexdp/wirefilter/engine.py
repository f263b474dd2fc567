# SPDX-License-Identifier: GPL-2.0-or-later
"""What a faulty wire does to a frame, without any input or output.

``submit`` gives the wire a frame in one direction; it may be lost, damaged, duplicated, and leaves later: ``due`` hands
out what has arrived by a given time.  The clock is the caller's, in seconds, and the random numbers come from the
caller's generator, so a run can be repeated exactly.

The order of the faults is stock wirefilter's: mtu, loss (independent, or in bursts by Gilbert's two-state model), dup,
then for each copy bufsize, speed, bandwidth, delay, noise.  Two of its habits are not kept: fifo order is per direction
(stock delays one direction behind the other), and a frame without delay does not overtake one that still waits.

* ``speed`` is the interface: while a frame is being transmitted the sender has to wait (``blocked``).
* ``bandwidth`` is a bottleneck further on: frames queue behind one another, up to ``bufsize`` bytes.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable
from math import exp
from random import Random

from vdexdp.wirefilter.markov import Chain, Lane
from vdexdp.wirefilter.values import WireValue

Buffer = bytes | bytearray | memoryview

BACKLOG = 64 << 20
"""Bytes that may wait in one direction when no bufsize is set: a bound on memory, not a model of anything."""

COPIES_MAX = 64
"""Copies of one frame at most; with ``dup 100`` stock never ends."""

_MEGABYTE = 1 << 20


class Engine:
    """One wire.

    ``overhead`` bytes are added to each frame's length wherever a length counts: stock's filter counts the two length
    bytes of the stream it reads.
    """

    def __init__(self, rng: Random, overhead: int = 0) -> None:
        self.rng = rng
        self.overhead = overhead
        self.chain = Chain(rng)
        self.fifo = True
        self.waiting_bytes = [0, 0]
        self.drops: Counter[str] = Counter()
        self._queues: list[list[tuple[float, int, bytes]]] = [[], []]
        self._order = 0
        self._last = [0.0, 0.0]
        self._in_burst = [False, False]
        self._speed_free = [0.0, 0.0]
        self._band_free = [0.0, 0.0]

    def transparent(self, direction: int) -> bool:
        """Nothing happens to frames of this direction just now, and none waits: they need not be submitted at all."""
        return self.chain.node.lanes[direction].idle and not self._queues[direction]

    def waiting(self, direction: int) -> int:
        return len(self._queues[direction])

    def blocked(self, direction: int, now: float) -> float:
        """Seconds until the interface takes the next frame; 0 when it is free."""
        if self.chain.node.lanes[direction].speed is None:
            return 0.0
        return max(0.0, self._speed_free[direction] - now)

    def next_time(self, direction: int) -> float | None:
        """When the next waiting frame arrives; None when none waits."""
        queue = self._queues[direction]
        return queue[0][0] if queue else None

    def due(self, direction: int, now: float, take: Callable[[bytes], bool]) -> None:
        """Hand out arrived frames in order until ``take`` refuses one, which then stays."""
        queue = self._queues[direction]
        while queue and queue[0][0] <= now and take(queue[0][2]):
            frame = heapq.heappop(queue)[2]
            self.waiting_bytes[direction] -= len(frame) + self.overhead

    def submit(self, direction: int, frame: Buffer, now: float) -> None:
        """Send one frame.  It is copied."""
        lane = self.chain.node.lanes[direction]
        size = len(frame) + self.overhead
        if lane.mtu is not None and size > lane.mtu.low > 0:
            self.drops["mtu"] += 1
        elif self._lost(lane, direction):
            self.drops["loss"] += 1
        else:
            for _ in range(1 if lane.dup is None else self._copies(lane.dup)):
                self._transmit(lane, direction, frame, size, now)

    def _lost(self, lane: Lane, direction: int) -> bool:
        if lane.loss is None:
            return False
        if lane.loss.low >= 100.0:
            return True
        if lane.lostburst is None:
            self._in_burst[direction] = False
            return self.rng.random() * 100.0 < lane.loss.sample(self.rng)
        loss = min(max(lane.loss.sample(self.rng) / 100.0, 0.0), 1.0 - 1e-9)
        burst = max(lane.lostburst.sample(self.rng), 1.0)
        if self._in_burst[direction]:
            self._in_burst[direction] = self.rng.random() >= 1.0 / burst
        else:
            self._in_burst[direction] = self.rng.random() < loss / (burst * (1.0 - loss))
        return self._in_burst[direction]

    def _copies(self, dup: WireValue) -> int:
        copies = 1
        while copies < COPIES_MAX and self.rng.random() * 100.0 < dup.sample(self.rng):
            copies += 1
        return copies

    def _transmit(self, lane: Lane, direction: int, frame: Buffer, size: int, now: float) -> None:
        limit = BACKLOG if lane.bufsize is None else lane.bufsize.sample(self.rng)
        if self.waiting_bytes[direction] + size > limit:
            self.drops["bufsize"] += 1
            return
        when = now
        for rate, free in ((lane.speed, self._speed_free), (lane.bandwidth, self._band_free)):
            if rate is None:
                continue
            bytes_per_second = rate.sample(self.rng)
            if bytes_per_second <= 0:
                self.drops["stopped"] += 1
                return
            when = free[direction] = max(free[direction], when) + size / bytes_per_second
        if lane.delay is not None:
            when += max(0.0, lane.delay.sample(self.rng)) / 1000.0
        if when >= self._last[direction]:
            self._last[direction] = when
        elif self.fifo:
            when = self._last[direction]
        self._order += 1
        copy = bytes(frame) if lane.noise is None else self._noisy(lane.noise, frame)
        heapq.heappush(self._queues[direction], (when, self._order, copy))
        self.waiting_bytes[direction] += size

    def _noisy(self, noise: WireValue, frame: Buffer) -> bytes:
        """The frame with a Poisson number of flipped bits, ``noise`` per megabyte in the mean."""
        mean = len(frame) * max(0.0, noise.sample(self.rng)) / _MEGABYTE
        damaged = bytearray(frame)
        for _ in range(self._poisson(mean)):
            bit = self.rng.randrange(len(damaged) * 8)
            damaged[bit >> 3] ^= 1 << (bit & 7)
        return bytes(damaged)

    def _poisson(self, mean: float) -> int:
        if mean > 500:  # exp(-mean) runs out of digits; the normal distribution is as good here
            return max(0, round(self.rng.gauss(mean, mean**0.5)))
        count, product, threshold = 0, self.rng.random(), exp(-mean)
        while product > threshold:
            count += 1
            product *= self.rng.random()
        return count
