# SPDX-License-Identifier: GPL-2.0-or-later
"""The command behind ``=``: a child whose standard input and output carry a vdestream."""

from __future__ import annotations

import os
import signal
import time
from types import TracebackType

from vdexdp.errors import HostError, RequestError
from vdexdp.plugins.registry import End, get
from vdexdp.plugins.stream import StreamSpec

PATIENCE = 2.0
"""Seconds for the command to end after its streams were closed, and again after SIGTERM."""


class Coprocess:
    """Runs the command for the length of a ``with`` block.  Raises RequestError where it can't be found."""

    def __init__(self, argv: tuple[str, ...]) -> None:
        self.argv = argv
        self.status = 0
        """The command's exit status, once it has ended: 128 + N for signal N."""
        self._pid = 0
        self._fds: tuple[int, ...] = ()

    def __enter__(self) -> Coprocess:
        from_us, to_child = os.pipe2(os.O_CLOEXEC)
        from_child, to_us = os.pipe2(os.O_CLOEXEC)
        self._fds = (from_child, to_child)
        try:
            self._pid = os.posix_spawnp(
                self.argv[0],
                self.argv,
                os.environ,
                file_actions=[(os.POSIX_SPAWN_DUP2, from_us, 0), (os.POSIX_SPAWN_DUP2, to_us, 1)],
                setsigdef=(signal.SIGPIPE, signal.SIGXFSZ),
            )
        except OSError as error:
            self._close()
            if isinstance(error, FileNotFoundError):
                raise RequestError(self.argv[0], "command not found") from error
            raise HostError.from_oserror(self.argv[0], error) from error
        finally:
            os.close(from_us)
            os.close(to_us)
        return self

    def end(self) -> End:
        """The stream as an end of a cable."""
        source, sink = self._fds
        return End(f"= {self.argv[0]}", get("stream"), StreamSpec(source, sink))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close()
        for number in (0, signal.SIGTERM, signal.SIGKILL):
            if number:
                os.kill(self._pid, number)
            if self._ended(PATIENCE):
                return

    def _close(self) -> None:
        for fd in self._fds:
            os.close(fd)
        self._fds = ()

    def _ended(self, patience: float) -> bool:
        deadline = time.monotonic() + patience
        while True:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                code = os.waitstatus_to_exitcode(status)
                self.status = code if code >= 0 else 128 - code
                return True
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
