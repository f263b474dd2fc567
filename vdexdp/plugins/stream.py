# SPDX-License-Identifier: GPL-2.0-or-later
"""A vdestream on two descriptors: standard input and output, a coprocess, any pair of pipes or sockets.

This is what the tools use where a VNL is missing or ``-``.  A byte stream can't lose a frame's second half, so this end
never drops: it takes whole frames while there is room, keeps the unwritten rest of the last one, and then asks to be
left alone until its descriptor is writable again.

O_NONBLOCK belongs to the open file, which we share with whoever started us, and perhaps with their terminal.  It is put
back on close.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from vdexdp.errors import HangUp, HostError, ProtocolError, VnlError
from vdexdp.plugins.base import FRAME_MAX, FRAME_MIN, Batch, NoKernelEnd, OpenContext, Parsed, Plugin, Stream
from vdexdp.wire.vdestream import Decoder, TooLong, length_prefix

_READ = 65536
_READS = 8
"""Reads in one ``recv``, so that a peer that sends no frames can't hold the pump."""


class ByteStream(Stream):
    """Frames over ``source`` and ``sink``, which may be the same descriptor.

    With ``own`` the descriptors are closed at the end, otherwise left open with O_NONBLOCK as it was.  ``name`` is for
    messages.
    """

    def __init__(self, source: int, sink: int, name: str, *, own: bool = False) -> None:
        super().__init__()
        self.source = source
        self.sink = sink
        self.name = name
        self._own = own
        self._decoder = Decoder()
        self._more = False  # the decoder may hold whole frames
        self._rest = b""  # what is unwritten of the last frame taken
        self._full = False
        self._open = True
        self._blocking = {fd: os.get_blocking(fd) for fd in (source, sink)}
        for fd in self._blocking:
            os.set_blocking(fd, False)

    def readers(self) -> tuple[int, ...]:
        return (self.source,)

    def writer(self) -> int | None:
        return self.sink if self._full or self._rest else None

    def timeout(self) -> float | None:
        return 0.0 if self._more else None

    def recv(self, batch: Batch) -> None:
        decoder = self._decoder
        reads = 0
        while not batch.full:
            event = decoder.next_event()
            if event is None:
                self._more = False
                if reads == _READS or not self._feed(batch):
                    return
                reads += 1
            elif isinstance(event, TooLong):
                cause = f"announces a frame of {event.size} bytes: this is not a vdestream"
                raise ProtocolError(self.name, cause, "connect it to vde_plug, vdexdp or dpipe")
            elif FRAME_MIN <= len(event) <= FRAME_MAX:
                batch.append(event)
            else:
                self.drops["runt" if len(event) < FRAME_MIN else "too-big"] += 1
        self._more = True

    def _feed(self, batch: Batch) -> bool:
        try:
            data = os.read(self.source, _READ)
        except BlockingIOError:
            return False
        except ConnectionError:
            data = b""
        except OSError as error:
            raise HostError.from_oserror(self.name, error) from error
        if data:
            self._decoder.feed(data)
        elif not batch.count:
            raise HangUp(f"{self.name} was closed")
        return bool(data)

    def send(self, batch: Batch, start: int = 0) -> int:
        self.flush()
        if self._rest:
            return 0
        pieces: list[bytes | memoryview] = []
        for index in range(start, batch.count):
            frame = batch[index]
            pieces += (length_prefix(len(frame)), frame)
        written = self._write(pieces)
        taken = start
        while written > 0:
            size = batch.lengths[taken] + 2
            if written < size:
                self._rest = b"".join(pieces[2 * (taken - start) : 2 * (taken - start) + 2])[written:]
            written -= size
            taken += 1
        self._full = taken < batch.count
        return taken - start

    def flush(self) -> None:
        if self._rest:
            self._rest = self._rest[self._write([self._rest]) :]
        self._full = False

    def _write(self, pieces: list[bytes | memoryview]) -> int:
        try:
            return os.writev(self.sink, pieces)
        except BlockingIOError:
            return 0
        except (BrokenPipeError, ConnectionError) as error:
            raise HangUp(f"{self.name} was closed") from error
        except OSError as error:
            raise HostError.from_oserror(self.name, error) from error

    def close(self) -> None:
        if not self._open:
            return
        self._open = False
        for fd, blocking in self._blocking.items():
            if self._own:
                os.close(fd)
            else:
                os.set_blocking(fd, blocking)


@dataclass(frozen=True)
class StreamSpec:
    source: int = 0
    sink: int = 1


class StreamPlugin(Plugin):
    """``stream://`` is the same as ``-``; ``stream://5,6`` uses other inherited descriptors."""

    scheme = "stream"
    grammar = "raw"
    summary = "a vdestream on standard input and output, or on two other descriptors"
    address = "[in,out]"
    example = "stream://"

    def parse(self, parsed: Parsed) -> StreamSpec:
        if not parsed.address:
            return StreamSpec()
        match = re.fullmatch(r"(\d{1,6}),(\d{1,6})", parsed.address)
        if match is None:
            raise VnlError(parsed.vnl, f'"{parsed.address}" is not a pair of descriptors', "write stream://5,6")
        return StreamSpec(int(match[1]), int(match[2]))

    def open(self, spec: StreamSpec, context: OpenContext) -> Stream:
        for fd in (spec.source, spec.sink):
            try:
                os.fstat(fd)
            except OSError as error:
                raise HostError(f"descriptor {fd}", "is not open", "redirect it to a pipe or a socket") from error
        return ByteStream(spec.source, spec.sink, "standard input" if spec.source == 0 else f"descriptor {spec.source}")

    def kernel_end(self, spec: StreamSpec) -> NoKernelEnd:
        return NoKernelEnd("a byte stream is cut into frames in userspace")
