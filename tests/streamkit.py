# SPDX-License-Identifier: GPL-2.0-or-later
"""Streams without a cable: numbered frames into one, frames out of others, and what a process holds."""

from __future__ import annotations

import gc
import os
import select
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from vdexdp.errors import HangUp
from vdexdp.plugins import registry
from vdexdp.plugins.base import Batch, OpenContext, Stream


def frame(number: int, size: int = 60) -> bytes:
    """A frame of an experimental type that carries its number."""
    return (b"\2\0\0\0\0\1\2\0\0\0\0\2\x88\xb5" + number.to_bytes(4, "big")).ljust(size, b"\xa5")


def open_end(vnl: str, context: OpenContext | None = None) -> Stream:
    return registry.parse(vnl).open(context)


def offer(stream: Stream, frames: Iterable[bytes]) -> int:
    """Send frames in batches, waiting as a cable would where the stream asks for it; return how many were given."""
    given = 0
    batch = Batch()
    for each in [*frames, None]:
        if batch.full or each is None:
            start = 0
            while start < len(batch):
                start += stream.send(batch, start)
                while (fd := stream.writer()) is not None:
                    assert select.select([], [fd], [], 5)[1], "not writable for 5 s"
                    stream.flush()
                    if start < len(batch):
                        break
            given += len(batch)
            batch.clear()
        if each is not None:
            batch.append(each)
    return given


def collect(stream: Stream, seconds: float = 0.2, enough: int = 1 << 60) -> list[bytes]:
    """What the stream receives in that time, or until it is enough.  Returns early, too, when it hangs up."""
    found: list[bytes] = []
    batch = Batch()
    end = time.monotonic() + seconds
    while len(found) < enough and (left := end - time.monotonic()) > 0:
        due = stream.timeout()
        writers = [fd for fd in (stream.writer(),) if fd is not None]
        _, writable, _ = select.select(stream.readers(), writers, [], left if due is None else min(left, due))
        if writable:
            stream.flush()
        batch.clear()
        try:
            stream.recv(batch)
        except HangUp:
            break
        found += [bytes(batch[index]) for index in range(len(batch))]
    return found


def run_until(streams: Iterable[Stream], condition: Callable[[], object], seconds: float = 5.0) -> None:
    """Keep the streams going, dropping what they receive, until the condition holds."""
    end = time.monotonic() + seconds
    streams = list(streams)
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s"
        for stream in streams:
            collect(stream, 0.01)


def holdings() -> tuple[list[str], int]:
    """The descriptors that this process has open, by what they are, and its resident memory in kilobytes."""
    gc.collect()
    kinds = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            kinds.append(os.readlink(entry).split(":")[0])
        except OSError:
            continue
    resident = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return sorted(kinds), int(resident.split()[1])
