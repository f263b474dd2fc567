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
import termios
from dataclasses import dataclass

from vdexdp.errors import HangUp, HostError, ProtocolError, VnlError
from vdexdp.plugins.base import (
    FRAME_MAX,
    FRAME_MIN,
    Batch,
    NoKernelEnd,
    OpenContext,
    Parsed,
    Plugin,
    RecvOne,
    SendOne,
    Stream,
)
from vdexdp.plugins.mmsg import Vector, write
from vdexdp.wire.vdestream import PREFIX, Decoder, length_prefixes

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
        self._prefix = bytearray(PREFIX)
        self._vector: Vector | None = None
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
        rows, lengths = batch.rows, batch.lengths
        reads = 0
        while True:
            for frame in decoder.next_frames(len(rows) - batch.count):
                size = len(frame)
                if FRAME_MIN <= size <= FRAME_MAX:
                    rows[batch.count][:size] = frame
                    lengths[batch.count] = size
                    batch.count += 1
                else:
                    self.drops["runt" if size < FRAME_MIN else "too-big"] += 1
            if batch.full or (decoder.broken and batch.count):
                self._more = decoder.pending > 0
                return
            self._more = False
            if decoder.broken:
                cause = f"announces a frame of {decoder.broken} bytes: this is not a vdestream"
                raise ProtocolError(self.name, cause, "connect it to vde_plug, vdexdp or dpipe")
            if reads == _READS or not self._feed(batch):
                return
            reads += 1

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
        vector = self._vector
        if vector is None or vector.memory is not batch.buffer:
            vector = self._vector = Vector(batch.buffer, Batch.ROW, header=PREFIX)
        sizes = batch.lengths[start : batch.count]
        if self._stock:
            for index, size in enumerate(sizes):
                if size % 2:
                    batch.rows[start + index][size] = 0  # behind the frame, where rows have room
                    sizes[index] = size + 1
        vector.set_lengths(sizes, start)
        vector.headers[start * PREFIX : batch.count * PREFIX] = length_prefixes(sizes)
        taken = 0
        while taken < len(sizes):
            count, size = self._portion(sizes, taken)
            written = self._write(vector, start + taken, count)
            if written == size:
                taken += count
                continue
            self._full = True
            while written > 0:
                size = sizes[taken]
                record = length_prefixes((size,)) + batch.rows[start + taken][:size]
                self._rest = record[written:]
                written -= len(record)
                taken += 1
            break
        return taken

    def _portion(self, sizes: list[int], first: int) -> tuple[int, int]:
        """How many records may go in one write from ``first`` on, and their bytes."""
        total = sum(sizes[first:]) + PREFIX * (len(sizes) - first)
        if not (self._pipe and self._stock):
            return len(sizes) - first, total
        filled = fcntl.ioctl(self.sink, termios.FIONREAD, b"\0\0\0\0") != b"\0\0\0\0"
        limit = select.PIPE_BUF if filled else self._pipe
        last = len(sizes)
        while total > limit and last > first + 1:
            last -= 1
            total -= sizes[last] + PREFIX
        return last - first, total

    def flush(self) -> None:
        if self._rest:
            try:
                self._rest = self._rest[os.write(self.sink, self._rest) :]
            except BlockingIOError:
                pass
            except OSError as error:
                raise self._broken(error) from error
        self._full = False

    def singles_in(self) -> RecvOne:
        return self._recv_one

    def singles_out(self) -> SendOne:
        return self._send_one

    def _recv_one(self, row: memoryview) -> int:
        if not self._heard or self._decoder.pending:
            return 0
        prefix = self._prefix
        try:
            count = os.readv(self.source, (prefix, row))
        except OSError:
            return 0
        size = prefix[0] << 8 | prefix[1]
        if count == PREFIX + size and FRAME_MIN <= size <= FRAME_MAX:
            return size
        if count:
            self._decoder.feed(prefix[:count] + row[: max(count - PREFIX, 0)])
        return 0

    def _send_one(self, frame: memoryview) -> bool:
        size = len(frame)
        if self._rest or self._full or (self._stock and (size % 2 or (self._pipe and size + PREFIX > select.PIPE_BUF))):
            return False
        prefix = length_prefixes((size,))
        try:
            written = os.writev(self.sink, (prefix, frame))
        except OSError:
            return False
        if written < PREFIX + size:
            self._rest = (prefix + frame)[written:]
        return True

    def _write(self, vector: Vector, first: int, count: int) -> int:
        try:
            return write(self.sink, vector, first, count)
        except OSError as error:
            raise self._broken(error) from error

    def _broken(self, error: OSError) -> Exception:
        if isinstance(error, ConnectionError):
            return HangUp(f"{self.name} was closed")
        return HostError.from_oserror(self.name, error)

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
