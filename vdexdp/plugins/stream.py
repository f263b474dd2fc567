# SPDX-License-Identifier: GPL-2.0-or-later
"""A vdestream on two descriptors: standard input and output, a coprocess, any pair of pipes or sockets.

This is what the tools use where a VNL is missing or ``-``.  A byte stream can't lose a frame's second half, so this
end never drops: it takes whole frames while there is room, keeps the unwritten rest of the last one, and then asks
to be left alone until its descriptor is writable again.

O_NONBLOCK belongs to the open file, which we share with whoever started us, and perhaps with their terminal.  It is
put back on close.

Two readers of libvdeplug lose the frame boundaries for good when a read ends in the wrong place, and what is written
here keeps them from it:

* its ``cmd://`` wants length and frame in one go.  Into a pipe, records go whole: up to PIPE_BUF bytes the kernel
  takes all or nothing, and an empty pipe takes as much as it holds.
* its vde_plug forgets a lone first length byte at the end of a read.  That can't happen where everything has an even
  length, because its buffer has one, too.  So a frame of odd length is padded with a zero byte, which every protocol
  over Ethernet bears, as short frames always have some.

Two of us need neither, and know one another by a ``GREETING``.  The side that started the other (``cmd://``)
begins with it; this is safe, for stock's vde_plug skips an empty record, while some readers that may have started
*us* take it for the end. So the other side only answers.
"""

from __future__ import annotations

import fcntl
import os
import re
import select
import stat
import sys
import termios
from dataclasses import dataclass

from vdexdp.errors import HangUp, HostError, ProtocolError, VnlError
from vdexdp.plugins.base import FRAME_MAX, FRAME_MIN, Batch, NoKernelEnd, OpenContext, Parsed, Plugin, Stream
from vdexdp.wire.vdestream import Decoder, TooLong, length_prefix

_READ = 65536
_READS = 8
"""Reads in one ``recv``, so that a peer that sends no frames can't hold the pump."""

GREETING = b"\0\0"
"""The first bytes of a peer that takes any fragmentation: an empty record."""


class ByteStream(Stream):
    """Frames over ``source`` and ``sink``, which may be the same descriptor.

    With ``own`` the descriptors are closed at the end, otherwise left open with O_NONBLOCK as it was.  ``name`` is for
    messages.  ``greet`` is for the side that has started the other.
    """

    def __init__(self, source: int, sink: int, name: str, *, own: bool = False, greet: bool = False) -> None:
        super().__init__()
        self.source = source
        self.sink = sink
        self.name = name
        self._own = own
        self._decoder = Decoder()
        self._more = False  # the decoder may hold whole frames
        self._rest = GREETING if greet else b""  # what is unwritten of the last frame taken
        self._full = False
        self._greeted = greet
        self._heard = False
        self._stock = True  # the peer may be one of those readers
        self._pipe = _pipe_capacity(sink)  # bytes; 0 where the sink is no pipe
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
            if not self._heard:
                self._hear(data)
            self._decoder.feed(data)
        elif not batch.count:
            raise HangUp(f"{self.name} was closed")
        return bool(data)

    def _hear(self, data: bytes) -> None:
        self._heard = True
        if data.startswith(GREETING):
            self._stock = False
            if not self._greeted:
                self._greeted = True
                self._rest += GREETING

    def send(self, batch: Batch, start: int = 0) -> int:
        self.flush()
        if self._rest:
            return 0
        taken = start
        while taken < batch.count:
            upto, pieces, size = self._records(batch, taken)
            written = self._write(pieces)
            if written == size:
                taken = upto
                continue
            self._full = True
            while written > 0:
                record = b"".join(pieces[:2])
                self._rest = record[written:]
                written -= len(record)
                del pieces[:2]
                taken += 1
            break
        return taken - start

    def _records(self, batch: Batch, start: int) -> tuple[int, list[bytes | memoryview], int]:
        """The records that may go in one write: the index behind the last, two pieces for each, and all their bytes."""
        limit = sys.maxsize
        if self._pipe and self._stock:
            filled = fcntl.ioctl(self.sink, termios.FIONREAD, b"\0\0\0\0") != b"\0\0\0\0"
            limit = select.PIPE_BUF if filled else self._pipe
        pieces: list[bytes | memoryview] = []
        total = 0
        for index in range(start, batch.count):
            frame: bytes | memoryview = batch[index]
            if self._stock and len(frame) % 2:
                frame = b"".join((frame, b"\0"))
            if pieces and total + 2 + len(frame) > limit:
                return index, pieces, total
            total += 2 + len(frame)
            pieces += (length_prefix(len(frame)), frame)
        return batch.count, pieces, total

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


def _pipe_capacity(fd: int) -> int:
    return fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ) if stat.S_ISFIFO(os.fstat(fd).st_mode) else 0


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
