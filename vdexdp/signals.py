# SPDX-License-Identifier: GPL-2.0-or-later
"""Signals as a readable descriptor, for loops that poll.

A Python signal handler runs between two bytecodes, but a poll that waits is not one of them for long: between the test
"was I told to stop?" and the system call a signal would be lost.  The wake-up descriptor closes that gap: the C handler
writes the signal's number into it.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What ends a foreground tool."""


def _ignore(number: int, frame: FrameType | None) -> None:
    """Being there is enough: with a handler of Python's the wake-up descriptor is written to."""


@contextmanager
def as_descriptor(*numbers: signal.Signals) -> Iterator[int]:
    """A descriptor that becomes readable when one of the signals arrives; ``received`` reads it.  Main thread only.

    A SIGHUP that was ignored before stays so: that is what nohup asks for.
    """
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        numbers = tuple(number for number in numbers if number != signal.SIGHUP)
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    before = {number: signal.signal(number, _ignore) for number in numbers}
    previous = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield reader
    finally:
        signal.set_wakeup_fd(previous)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(reader)
        os.close(writer)


def received(reader: int) -> list[signal.Signals]:
    """The signals that have arrived since the last call, in order."""
    try:
        return [signal.Signals(number) for number in os.read(reader, 512)]
    except BlockingIOError:
        return []
