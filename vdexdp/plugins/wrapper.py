# SPDX-License-Identifier: GPL-2.0-or-later
"""Streams around a stream, for schemes that nest: ``vlan://…{VNL}``, ``agno://…{VNL}``.

The frames that leave towards the inner end are rewritten into a batch of the wrapper's own, never in place: the caller
may offer frames again that were not taken.  What the inner end does not take at once waits there, and the wrapper
reports the inner end's ``writer`` meanwhile.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence

from vdexdp.plugins.base import FRAME_MAX, FRAME_MIN, Batch, Buffer, Stream


class WrapperStream(Stream):
    """The inner end, unchanged.  The drops of both are counted in one place, the inner end's."""

    def __init__(self, inner: Stream) -> None:
        self.inner = inner

    @property
    def drops(self) -> Counter[str]:
        return self.inner.drops

    @drops.setter
    def drops(self, drops: Counter[str]) -> None:
        self.inner.drops = drops

    @property
    def stalled(self) -> bool:
        return self.inner.stalled

    @stalled.setter
    def stalled(self, stalled: bool) -> None:
        self.inner.stalled = stalled

    def readers(self) -> Sequence[int]:
        return self.inner.readers()

    def writer(self) -> int | None:
        return self.inner.writer()

    def timeout(self) -> float | None:
        return self.inner.timeout()

    def recv(self, batch: Batch) -> None:
        self.inner.recv(batch)

    def send(self, batch: Batch, start: int = 0) -> int:
        return self.inner.send(batch, start)

    def flush(self) -> None:
        self.inner.flush()

    def chores(self) -> Sequence[int]:
        return self.inner.chores()

    def do_chores(self) -> None:
        self.inner.do_chores()

    def fault(self) -> str:
        return self.inner.fault()

    def close(self) -> None:
        self.inner.close()


class RewriterStream(WrapperStream):
    """An end that turns each frame into at most one other frame."""

    def __init__(self, inner: Stream) -> None:
        super().__init__(inner)
        self._out = Batch()
        self._out_start = 0

    @abstractmethod
    def outward(self, frame: Buffer) -> Buffer | None:
        """What to send to the inner end; None where the frame is dropped (and counted)."""

    @abstractmethod
    def inward(self, frame: Buffer) -> Buffer | None:
        """What to hand out for a frame that the inner end received; None where it is dropped (and counted)."""

    def recv(self, batch: Batch) -> None:
        first = to = batch.count
        try:
            self.inner.recv(batch)
        finally:
            for index in range(first, batch.count):
                frame = self._sound(self.inward(batch[index]))
                if frame is not None:
                    size = len(frame)
                    batch.rows[to][:size] = frame
                    batch.lengths[to] = size
                    to += 1
            batch.count = to

    def send(self, batch: Batch, start: int = 0) -> int:
        out = self._out
        if self._out_start < out.count:
            return 0
        out.clear()
        self._out_start = 0
        for index in range(start, batch.count):
            frame = self._sound(self.outward(batch[index]))
            if frame is not None:
                out.append(frame)
        self._push()
        return batch.count - start

    def flush(self) -> None:
        self.inner.flush()
        self._push()

    def _push(self) -> None:
        if self._out_start < self._out.count:
            self._out_start += self.inner.send(self._out, self._out_start)

    def _sound(self, frame: Buffer | None) -> Buffer | None:
        if frame is None:
            return None
        if FRAME_MIN <= len(frame) <= FRAME_MAX:
            return frame
        self.drops["runt" if len(frame) < FRAME_MIN else "too-big"] += 1
        return None
