# SPDX-License-Identifier: GPL-2.0-or-later
"""``null://``: never readable, and what is written vanishes."""

from __future__ import annotations

from vdexdp.plugins.base import Batch, NoKernelEnd, OpenContext, Parsed, Plugin, SendOne, Stream


def _swallow(_: memoryview) -> bool:
    return True


class NullStream(Stream):
    """Takes everything, gives nothing."""

    def readers(self) -> tuple[int, ...]:
        return ()

    def recv(self, batch: Batch) -> None:
        return

    def send(self, batch: Batch, start: int = 0) -> int:
        return batch.count - start

    def singles_out(self) -> SendOne:
        return _swallow

    def close(self) -> None:
        return


class NullPlugin(Plugin):
    """Whatever stands behind ``null://`` is ignored, as in libvdeplug."""

    scheme = "null"
    grammar = "raw"
    summary = "a sink: never readable, what is written vanishes"
    example = "null://"

    def parse(self, parsed: Parsed) -> None:
        return None

    def open(self, spec: None, context: OpenContext) -> Stream:
        return NullStream()

    def kernel_end(self, spec: None) -> NoKernelEnd:
        return NoKernelEnd("null:// has nothing to forward to")
