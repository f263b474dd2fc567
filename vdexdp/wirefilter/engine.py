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

from vdexdp.wirefilter.markov import Chain
from vdexdp.wirefilter.values import LR, RL, Parameter

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
        return self.chain.node.transparent[direction] and not self._queues[direction]

    def waiting(self, direction: int) -> int:
        return len(self._queues[direction])

    def blocked(self, direction: int, now: float) -> float:
        """Seconds until the interface takes the next frame; 0 when it is free."""
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
        size = len(frame) + self.overhead
        mtu = self._low(Parameter.MTU, direction)
        if mtu > 0 and size > mtu:
            self.drops["mtu"] += 1
        elif self._lost(direction):
            self.drops["loss"] += 1
        else:
            for _ in range(self._copies(direction)):
                self._transmit(direction, frame, size, now)

    def _low(self, parameter: Parameter, direction: int) -> float:
        return self.chain.node.get(parameter, direction).low

    def _high(self, parameter: Parameter, direction: int) -> float:
        return self.chain.node.get(parameter, direction).high

    def _sample(self, parameter: Parameter, direction: int) -> float:
        return self.chain.node.get(parameter, direction).sample(self.rng)

    def _lost(self, direction: int) -> bool:
        if self._low(Parameter.LOSS, direction) >= 100.0:
            return True
        if self._high(Parameter.LOSTBURST, direction) <= 0:
            self._in_burst[direction] = False
            return self._high(Parameter.LOSS, direction) > 0 and self._chance(Parameter.LOSS, direction)
        loss = min(self._sample(Parameter.LOSS, direction) / 100.0, 1.0 - 1e-9)
        burst = max(self._sample(Parameter.LOSTBURST, direction), 1.0)
        if self._in_burst[direction]:
            self._in_burst[direction] = self.rng.random() >= 1.0 / burst
        else:
            self._in_burst[direction] = self.rng.random() < loss / (burst * (1.0 - loss))
        return self._in_burst[direction]

    def _chance(self, parameter: Parameter, direction: int) -> bool:
        return self.rng.random() * 100.0 < self._sample(parameter, direction)

    def _copies(self, direction: int) -> int:
        copies = 1
        if self._high(Parameter.DUP, direction) > 0:
            while copies < COPIES_MAX and self._chance(Parameter.DUP, direction):
                copies += 1
        return copies

    def _transmit(self, direction: int, frame: Buffer, size: int, now: float) -> None:
        limit = BACKLOG
        if self._high(Parameter.BUFSIZE, direction) > 0:
            limit = int(self._sample(Parameter.BUFSIZE, direction))
        if self.waiting_bytes[direction] + size > limit:
            self.drops["bufsize"] += 1
            return
        when = now
        for parameter, free in ((Parameter.SPEED, self._speed_free), (Parameter.BANDWIDTH, self._band_free)):
            if self._high(parameter, direction) > 0:
                rate = self._sample(parameter, direction)
                if rate <= 0:
                    self.drops[parameter.name.lower()] += 1
                    return
                free[direction] = max(free[direction], when) + size / rate
                when = free[direction]
        if self._high(Parameter.DELAY, direction) > 0:
            when += max(0.0, self._sample(Parameter.DELAY, direction)) / 1000.0
        if self.fifo:
            when = max(when, self._last[direction])
        self._last[direction] = max(when, self._last[direction])
        self._order += 1
        heapq.heappush(self._queues[direction], (when, self._order, self._noisy(direction, frame)))
        self.waiting_bytes[direction] += size

    def _noisy(self, direction: int, frame: Buffer) -> bytes:
        """The frame with a Poisson number of flipped bits, ``noise`` per megabyte in the mean."""
        if self._high(Parameter.NOISE, direction) <= 0:
            return bytes(frame)
        mean = len(frame) * max(0.0, self._sample(Parameter.NOISE, direction)) / _MEGABYTE
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


__all__ = ["BACKLOG", "COPIES_MAX", "LR", "RL", "Engine"]
