# SPDX-License-Identifier: GPL-2.0-or-later
"""Time as descriptors: a timer that becomes readable, and a gate that becomes writable.

Python has no timerfd before 3.13, so it is called through libc.
"""

from __future__ import annotations

import ctypes
import os
import time

_TFD_NONBLOCK = os.O_NONBLOCK
_TFD_CLOEXEC = os.O_CLOEXEC
_TFD_ABSTIME = 1
_EVENTFD_FULL = 2**64 - 2

_libc = ctypes.CDLL(None, use_errno=True)


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Interval(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


class Timer:
    """Readable from a given time of ``time.monotonic()`` on, until it is ``set`` again."""

    def __init__(self) -> None:
        self.fd: int = _libc.timerfd_create(time.CLOCK_MONOTONIC, _TFD_NONBLOCK | _TFD_CLOEXEC)
        if self.fd < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        self._when: float | None = None
        self._setting = _Interval()

    def set(self, when: float | None) -> None:
        """``when`` in seconds; None for never."""
        if when == self._when:
            return
        self._when = when
        nanoseconds = 0 if when is None else max(1, int(when * 1e9))
        value = self._setting.value
        value.seconds, value.nanoseconds = divmod(nanoseconds, 1_000_000_000)
        _libc.timerfd_settime(self.fd, _TFD_ABSTIME, ctypes.byref(self._setting), None)

    def close(self) -> None:
        os.close(self.fd)


class Gate:
    """Writable while open.  An eventfd whose counter is at its maximum is not writable."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.closed = False

    def shut(self, closed: bool) -> None:
        if closed != self.closed:
            self.closed = closed
            if closed:
                os.eventfd_write(self.fd, _EVENTFD_FULL)
            else:
                os.eventfd_read(self.fd)

    def close(self) -> None:
        os.close(self.fd)
