# SPDX-License-Identifier: GPL-2.0-or-later
"""``mirror://[/delay=MILLISECONDS/keep]``: sends every frame back to where it came from.

An example of a plugin: all that a scheme needs, and everything that differs from scheme to scheme.  ``vdexdp vde_plug
tap://tap0 mirror://`` shows the host its own frames, with source and destination exchanged.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from vdexdp.plugins.base import Batch, NoKernelEnd, OpenContext, Option, Parsed, Plugin, Stream
from vdexdp.vnl import integer

ROOM = 1024
"""Frames that are kept until somebody reads them; more are dropped."""


@dataclass(frozen=True)
class MirrorSpec:
    """What a VNL says: comparable, hashable, and made without touching anything."""

    delay: float  # seconds
    keep: bool


class MirrorStream(Stream):
    """The open end.  It never waits; the descriptor tells the cable when there is something to receive."""

    def __init__(self, spec: MirrorSpec) -> None:
        super().__init__()  # makes self.drops
        self._spec = spec
        self._frames: deque[tuple[float, bytes]] = deque()  # when it is due (monotonic seconds), the frame
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def readers(self) -> Sequence[int]:
        return (self._event,)

    def timeout(self) -> float | None:
        return max(0.0, self._frames[0][0] - time.monotonic()) if self._frames else None

    def recv(self, batch: Batch) -> None:
        try:
            os.eventfd_read(self._event)
        except BlockingIOError:
            pass
        now = time.monotonic()
        while self._frames and self._frames[0][0] <= now and not batch.full:
            batch.append(self._frames.popleft()[1])

    def send(self, batch: Batch, start: int = 0) -> int:
        due = time.monotonic() + self._spec.delay
        for index in range(start, len(batch)):
            if len(self._frames) >= ROOM:
                self.drops["full"] += 1
                continue
            frame = bytes(batch[index])  # the batch is used again as soon as we return
            self._frames.append((due, frame if self._spec.keep else frame[6:12] + frame[:6] + frame[12:]))
        os.eventfd_write(self._event, 1)
        return len(batch) - start

    def close(self) -> None:
        if self._event >= 0:
            os.close(self._event)
            self._event = -1


class MirrorPlugin(Plugin):
    scheme = "mirror"
    grammar = "slash"
    summary = "sends every frame back"
    example = "mirror:///delay=10"
    options = (
        Option("delay", "milliseconds until a frame comes back", "0"),
        Option("keep", "leave the addresses as they are", flag=True),
    )

    def parse(self, parsed: Parsed) -> MirrorSpec:
        return MirrorSpec(integer(parsed, "delay", 0, 0, 60_000) / 1000, "keep" in parsed.options)

    def open(self, spec: MirrorSpec, context: OpenContext) -> MirrorStream:
        return MirrorStream(spec)

    def kernel_end(self, spec: MirrorSpec) -> NoKernelEnd:
        return NoKernelEnd("mirror:// keeps its frames in this process")
