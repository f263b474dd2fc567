# SPDX-License-Identifier: GPL-2.0-or-later
"""The shortest Python programs that do what a cable does, for ``vdexdp bench legacy --floor``.

Between the tap eth0 and one other end they poll, read a frame and write it: no options, no counters, no errors, no
batches.  So they say what the language costs, and what a pump written in it can't undercut where frames come singly.

``bareloop.py ptp OWN OTHER``: datagrams between two sockets of these names.  ``bareloop.py cmd COMMAND…``: a vdestream
through the command's pipes; without a command, through standard input and output.
"""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import time
from contextlib import suppress

from vdexdp.plugins.tap import open_tap

_ROW = 2048  # more than a frame here, and with its length less than PIPE_BUF: a pipe takes it whole or not at all


def datagrams(tap: int, own: str, other: str) -> None:
    """Between the tap and a socket of that name; never returns."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(own)
        while end.connect_ex(other):
            time.sleep(0.05)
        end.setblocking(False)
        fd = end.fileno()
        to = {tap: fd, fd: tap}
        poll, row = _poll(tap, fd), memoryview(bytearray(_ROW))
        rows = (row,)
        while True:
            for source, _ in poll.poll():
                with suppress(OSError):
                    os.write(to[source], row[: os.readv(source, rows)])


def records(tap: int, source: int, sink: int) -> None:
    """Between the tap and a vdestream; returns at its end."""
    os.set_blocking(source, False)
    os.set_blocking(sink, False)
    poll, row, rest = _poll(tap, source), memoryview(bytearray(_ROW)), b""
    rows = (row,)
    while True:
        for fd, _ in poll.poll():
            with suppress(OSError):
                if fd == tap:
                    size = os.readv(tap, rows)
                    os.writev(sink, (size.to_bytes(2, "big"), row[:size]))
                    continue
                heard = os.read(source, 1 << 16)
                if not heard:
                    return
                rest = write_frames(tap, rest + heard)


def write_frames(tap: int, data: bytes) -> bytes:
    """The frames of a vdestream to the tap; what is left of it.

    By hand: with the general decoder this is slower, and no floor any more.
    """
    start, view = 0, memoryview(data)
    while start + 2 <= len(data):
        end = start + 2 + (data[start] << 8 | data[start + 1])
        if end > len(data):
            break
        os.write(tap, view[start + 2 : end])
        start = end
    return data[start:]


def _poll(*descriptors: int) -> select.poll:
    poll = select.poll()
    for fd in descriptors:
        poll.register(fd, select.POLLIN)
    return poll


def main(kind: str, *words: str) -> None:
    tap, _ = open_tap("eth0")
    if kind == "ptp":
        datagrams(tap, *words)
    elif words:
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as command:
            assert command.stdin is not None
            assert command.stdout is not None
            records(tap, command.stdout.fileno(), command.stdin.fileno())
    else:
        records(tap, 0, 1)


if __name__ == "__main__":
    main(*sys.argv[1:])
