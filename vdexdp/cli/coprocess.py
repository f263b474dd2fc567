# SPDX-License-Identifier: GPL-2.0-or-later
"""The command behind ``=``: a child whose standard input and output carry a vdestream.

Unlike that of ``cmd://`` it stays at our terminal, as with stock vde_plug: ``vde_plug = ssh host vde_plug`` may ask
for a password, and Ctrl-C reaches both.
"""

from __future__ import annotations

import os
import select
import signal
from types import TracebackType

from vdexdp.plugins.base import NoKernelEnd, OpenContext, Parsed, Plugin, Stream
from vdexdp.plugins.cmd import FAREWELL, PATIENCE, start
from vdexdp.plugins.registry import End
from vdexdp.plugins.stream import ByteStream


class Coprocess(Plugin):
    """Runs the command for the length of a ``with`` block.  Raises RequestError, HostError."""

    scheme = "="
    grammar = "raw"
    summary = "the command behind ="

    def __init__(self, argv: tuple[str, ...]) -> None:
        self.argv = argv
        self.status = 0
        """The command's exit status after the block: 128 + N for signal N."""
        self._pid = 0
        self._fds: tuple[int, int] = (-1, -1)

    def __enter__(self) -> Coprocess:
        self._pid, *fds = start(self.argv, session=False)
        self._fds = (fds[0], fds[1])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for fd in self._fds:
            os.close(fd)
        pidfd = os.pidfd_open(self._pid)
        ended = select.poll()
        ended.register(pidfd, select.POLLIN)
        for number, patience in ((0, FAREWELL), (signal.SIGTERM, PATIENCE), (signal.SIGKILL, PATIENCE)):
            signal.pidfd_send_signal(pidfd, number)
            if ended.poll(patience * 1000):
                break
        os.close(pidfd)
        code = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        self.status = code if code >= 0 else 128 - code

    def end(self) -> End:
        """The stream as an end of a cable."""
        return End(f"= {self.argv[0]}", self, None)

    def closed(self, cause: str) -> bool:
        """Whether a cable that ended for this ``cause`` did so because the command closed its side."""
        return cause == f"{self.argv[0]} was closed"

    def parse(self, parsed: Parsed) -> None:
        return None

    def open(self, spec: None, context: OpenContext) -> Stream:
        return ByteStream(*self._fds, self.argv[0], greet=True)

    def kernel_end(self, spec: None) -> NoKernelEnd:
        return NoKernelEnd("a byte stream is cut into frames in userspace")
