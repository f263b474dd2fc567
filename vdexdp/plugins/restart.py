# SPDX-License-Identifier: GPL-2.0-or-later
"""``restart://[seconds]{VNL}``: an end that comes back.

The end inside may hang up or fail; the cable stays.  The end is then opened again, at most once in each period: at
once where it had lasted longer than that, so that a switch that was only restarted is back without delay, and a
switch that is gone costs one attempt per period.  Frames for the end while it is away are dropped and counted as
"away"; what the end itself had counted before it went is kept.

Libvdeplug's module gives up where the first attempt fails.  Here the first attempt may fail, too, because the point
is not to care who starts first; only what waiting can't mend (a mistake in the VNL, a missing privilege) ends the
plug.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from vdexdp.errors import HangUp, PrivilegeError, RequestError, VdexdpError, VnlError
from vdexdp.plugins import registry
from vdexdp.plugins.base import Batch, NoKernelEnd, OpenContext, Parsed, Plugin, Stream
from vdexdp.vnl import c_integer

PERIOD_DEFAULT = 20
PERIOD_MAX = 7 * 24 * 60 * 60
"""Seconds; a longer period is taken for this one, and 0 for 1, as libvdeplug's module does."""


@dataclass(frozen=True)
class RestartSpec:
    period: int  # seconds
    inner: registry.End


class RestartStream(Stream):
    """The end inside while there is one, and the clock of the next attempt while there is none."""

    def __init__(self, spec: RestartSpec, context: OpenContext) -> None:
        self._inner: Stream | None = None
        super().__init__()
        self._spec = spec
        self._context = context
        self._opened = 0.0  # monotonic seconds of the last attempt
        self._next = 0.0
        self._fault = ""
        self._open()

    @property
    def drops(self) -> Counter[str]:
        """What this end lost, what all inner ends before lost, and what the present one has lost."""
        return self._drops if self._inner is None else self._drops + self._inner.drops

    @drops.setter
    def drops(self, drops: Counter[str]) -> None:
        self._drops = drops

    def readers(self) -> Sequence[int]:
        return self._inner.readers() if self._inner is not None else ()

    def writer(self) -> int | None:
        return self._inner.writer() if self._inner is not None else None

    def timeout(self) -> float | None:
        if self._inner is not None:
            return self._inner.timeout()
        return max(0.0, self._next - time.monotonic())

    def recv(self, batch: Batch) -> None:
        if self._inner is None:
            if time.monotonic() >= self._next:
                self._open()
            return
        try:
            self._inner.recv(batch)
        except (HangUp, VdexdpError, OSError) as error:
            self._lost(error)

    def send(self, batch: Batch, start: int = 0) -> int:
        if self._inner is not None:
            try:
                return self._inner.send(batch, start)
            except (HangUp, VdexdpError, OSError) as error:
                self._lost(error)
        self._drops["away"] += len(batch) - start
        return len(batch) - start

    def flush(self) -> None:
        if self._inner is not None:
            try:
                self._inner.flush()
            except (HangUp, VdexdpError, OSError) as error:
                self._lost(error)

    def chores(self) -> Sequence[int]:
        return self._inner.chores() if self._inner is not None else ()

    def do_chores(self) -> None:
        if self._inner is not None:
            try:
                self._inner.do_chores()
            except (HangUp, VdexdpError, OSError) as error:
                self._lost(error)

    def fault(self) -> str:
        return self._inner.fault() if self._inner is not None else self._fault

    def close(self) -> None:
        if self._inner is not None:
            self._inner.close()
            self._inner = None
        self._next = float("inf")

    def _open(self) -> None:
        self._opened = time.monotonic()
        try:
            inner = self._spec.inner.open(self._context)
        except (RequestError, PrivilegeError):
            raise
        except VdexdpError as error:
            self._next = time.monotonic() + self._spec.period
            self._say(str(error), f"trying again every {self._spec.period} s")
            return
        self._inner = inner
        if self._fault:
            self._fault = ""
            print(f"{self._spec.inner.vnl}: is back", file=sys.stderr)

    def _lost(self, error: Exception) -> None:
        if self._inner is not None:
            self._drops.update(self._inner.drops)
            self._inner.close()
            self._inner = None
        self._next = max(time.monotonic(), self._opened + self._spec.period)
        cause = str(error) or "hung up"
        self._say(cause if isinstance(error, VdexdpError) else f"{self._spec.inner.vnl}: {cause}", "opening it again")

    def _say(self, cause: str, step: str) -> None:
        if cause != self._fault:
            print(f"{cause}; {step}", file=sys.stderr)
        self._fault = cause


class RestartPlugin(Plugin):
    scheme = "restart"
    grammar = "nested-slash"
    summary = "another end, opened again whenever it fails or hangs up"
    address = "[seconds]"
    example = "restart://3{vde:///tmp/sw}"

    def parse(self, parsed: Parsed) -> RestartSpec:
        if parsed.nested is None:
            raise VnlError(parsed.vnl, "no VNL in braces", f"write for instance {self.example}")
        period = c_integer(parsed.address, 0) if parsed.address else PERIOD_DEFAULT
        if period is None:
            raise VnlError(parsed.vnl, f'"{parsed.address}" is not a number of seconds', f"write {self.example}")
        return RestartSpec(min(max(period, 1), PERIOD_MAX), registry.parse(parsed.nested))

    def open(self, spec: RestartSpec, context: OpenContext) -> RestartStream:
        return RestartStream(spec, context)

    def kernel_end(self, spec: RestartSpec) -> NoKernelEnd:
        return NoKernelEnd("restart:// watches over its inner end from userspace")
