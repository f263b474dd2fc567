# SPDX-License-Identifier: GPL-2.0-or-later
"""``record://FILE[head=BYTES]{VNL}``: writes the frames of another end into a file, in both directions.

An example of a scheme that nests, in a package of its own.  The file is in libpcap's format, which tcpdump and
wireshark read.  Recording must not disturb what is recorded: when the disk is full it ends, which ``fault`` tells, and
the frames flow on.
"""

from __future__ import annotations

import struct
import time
from dataclasses import dataclass

from vdexdp.errors import HostError, VnlError
from vdexdp.plugins import registry
from vdexdp.plugins.base import FRAME_MAX, Batch, NoKernelEnd, OpenContext, Option, Parsed, Plugin, Stream
from vdexdp.plugins.wrapper import WrapperStream
from vdexdp.vnl import integer

# The file's header: magic number, version 2.4, UTC, accuracy, the longest frame, Ethernet.  A frame's: seconds,
# microseconds, bytes kept, bytes there were.
_FILE = struct.Struct("=IHHiIII")
_FRAME = struct.Struct("=IIII")
_MAGIC = 0xA1B2C3D4


@dataclass(frozen=True)
class RecordSpec:
    path: str
    head: int  # bytes of each frame to keep
    inner: registry.End


class RecordStream(WrapperStream):
    """The inner end, and a file that hears all of it."""

    def __init__(self, inner: Stream, spec: RecordSpec) -> None:
        super().__init__(inner)
        self._spec = spec
        self._fault = ""
        self._file = open(spec.path, "wb", buffering=0)  # noqa: SIM115 - closed with the end
        self._write(_FILE.pack(_MAGIC, 2, 4, 0, 0, FRAME_MAX, 1))

    def recv(self, batch: Batch) -> None:
        first = len(batch)
        super().recv(batch)
        self._record(batch, first, len(batch))

    def send(self, batch: Batch, start: int = 0) -> int:
        taken = super().send(batch, start)
        self._record(batch, start, start + taken)
        return taken

    def fault(self) -> str:
        return self._fault or super().fault()

    def close(self) -> None:
        super().close()
        self._file.close()

    def _record(self, batch: Batch, start: int, end: int) -> None:
        seconds, nanoseconds = divmod(time.time_ns(), 10**9)
        pieces: list[bytes | memoryview] = []
        for index in range(start, end):
            frame = batch[index]
            head = frame[: self._spec.head]
            pieces += (_FRAME.pack(seconds, nanoseconds // 1000, len(head), len(frame)), head)
        if pieces and not self._fault:
            self._write(b"".join(pieces))

    def _write(self, data: bytes) -> None:
        try:
            written = self._file.write(data)
        except OSError as error:
            self._fault = f"{self._spec.path}: {error.strerror}; recording has ended"
        else:
            if written != len(data):
                self._fault = f"{self._spec.path}: cut short; recording has ended"


class RecordPlugin(Plugin):
    scheme = "record"
    grammar = "nested"
    summary = "another end, whose frames are written to a file for tcpdump"
    address = "file"
    example = "record:///tmp/net.pcap{tap://tap0}"
    options = (Option("head", "bytes of each frame to keep", str(FRAME_MAX)),)

    def parse(self, parsed: Parsed) -> RecordSpec:
        if not parsed.address or parsed.nested is None:
            raise VnlError(parsed.vnl, "needs a file and a VNL in braces", f"write for instance {self.example}")
        head = integer(parsed, "head", FRAME_MAX, 14, FRAME_MAX)
        return RecordSpec(parsed.address, head, registry.parse(parsed.nested))

    def open(self, spec: RecordSpec, context: OpenContext) -> RecordStream:
        inner = spec.inner.open(context)
        try:
            return RecordStream(inner, spec)
        except OSError as error:
            inner.close()
            raise HostError.from_oserror(spec.path, error) from error

    def kernel_end(self, spec: RecordSpec) -> NoKernelEnd:
        return NoKernelEnd("record:// has to see every frame")
