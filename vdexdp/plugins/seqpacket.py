# SPDX-License-Identifier: GPL-2.0-or-later
"""``seqpacket://fd``: frames through a socket that this process was born with, one in each packet.

The parent makes a socketpair, keeps one end and leaves the other open at a number that it names in the VNL.  The
socket is never made non-blocking, because that would be seen by everyone who shares it: each call asks for that
itself.  A full socket loses the frame.  Closing the plug closes the descriptor.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Sequence

from vdexdp.errors import HangUp, HostError, VnlError
from vdexdp.plugins.base import Batch, NoKernelEnd, OpenContext, Parsed, Plugin, Stream
from vdexdp.plugins.mmsg import FATAL, Reader, Writer
from vdexdp.vnl import c_integer

FD_MAX = 0x7FFFFFFF

SEND_BUFFER = 1 << 20
"""Bytes asked for; the kernel gives at most net.core.wmem_max.  Room for a burst: what does not fit is lost."""


class SeqpacketStream(Stream):
    def __init__(self, fd: int) -> None:
        super().__init__()
        subject = f"seqpacket://{fd}"
        try:
            self._socket = socket.socket(fileno=fd)
        except OSError as error:
            hint = "the parent has to leave it open for this process" if error.errno == errno.EBADF else ""
            raise HostError.from_oserror(subject, error, hint) from error
        if self._socket.type not in (socket.SOCK_SEQPACKET, socket.SOCK_DGRAM):
            self._socket.detach()
            raise HostError(subject, "is a socket that does not keep packets apart", "give a SOCK_SEQPACKET")
        os.set_inheritable(fd, False)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        sequenced = self._socket.type == socket.SOCK_SEQPACKET
        self._reader = Reader(fd, self.drops, sequenced=sequenced)
        self._writer = Writer(fd, self.drops, fatal=FATAL if sequenced else FATAL | {errno.ECONNREFUSED})

    def readers(self) -> Sequence[int]:
        return (self._socket.fileno(),)

    def recv(self, batch: Batch) -> None:
        try:
            self._reader.recv(batch)
        except OSError as error:
            raise HangUp(error.strerror) from error

    def send(self, batch: Batch, start: int = 0) -> int:
        try:
            return self._writer.send(batch, start)
        except OSError as error:
            raise HangUp(error.strerror) from error

    def close(self) -> None:
        self._socket.close()


class SeqpacketPlugin(Plugin):
    scheme = "seqpacket"
    grammar = "raw"
    summary = "an open socket inherited from the parent process"
    address = "descriptor"
    example = "seqpacket://3"

    def parse(self, parsed: Parsed) -> int:
        fd = c_integer(parsed.address, 0)
        if fd is None or fd > FD_MAX:
            raise VnlError(
                parsed.vnl, f'"{parsed.address}" is no descriptor number', f"write for instance {self.example}"
            )
        return fd

    def open(self, spec: int, context: OpenContext) -> SeqpacketStream:
        return SeqpacketStream(spec)

    def kernel_end(self, spec: int) -> NoKernelEnd:
        return NoKernelEnd("seqpacket:// is a UNIX socket")
