# SPDX-License-Identifier: GPL-2.0-or-later
"""vdestream: Ethernet frames over a byte stream (stdin and stdout, ``cmd://``, ssh, dpipe).

Each frame goes behind its length, 16 bits big-endian; length 0 is skipped; the largest is LARGEST.  A reader gets the
stream in pieces of any size, down to a lone first length byte, and keeps what is not complete yet.

There is no mark to find the next frame by: a length over LARGEST means that the other side speaks something else, and
nothing after it can be trusted.  The decoder is ``broken`` then, for ever.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from vdexdp.wire.ethernet import Buffer

LARGEST = 9236
"""Bytes of the longest frame that is accepted: the VDE family's largest frame and two more, as in libvdeplug."""

PREFIX = 2
"""Bytes of the length in front of each frame."""


class Decoder:
    """Bytes in, frames out.

    ``feed`` what was read, then call ``next_frames`` until it gives none, and look whether the stream is ``broken``.
    Frames are views of what was fed: valid for as long as they are held.
    """

    __slots__ = ("_data", "_position", "_view", "broken")

    def __init__(self) -> None:
        self.broken = 0
        """The length over LARGEST that the peer has announced: nothing comes after it."""
        self._data = b""
        self._view = memoryview(self._data)
        self._position = 0

    def feed(self, data: Buffer) -> None:
        """Take the next bytes of the stream, in order, in pieces of any size."""
        rest = self._view[self._position :]
        self._data = b"".join((rest, data)) if rest else bytes(data)
        self._view = memoryview(self._data)
        self._position = 0

    @property
    def pending(self) -> int:
        """Bytes that were fed and are no frame yet."""
        return len(self._data) - self._position

    def next_frames(self, most: int) -> list[memoryview]:
        """Up to ``most`` frames, 1 to LARGEST bytes each; fewer where more bytes have to be fed, or ``broken``."""
        data, view, position = self._data, self._view, self._position
        length = len(data)
        found: list[memoryview] = []
        while len(found) < most:
            start = position + PREFIX
            if start > length:
                break
            size = data[position] << 8 | data[position + 1]
            end = start + size
            if size > LARGEST:
                self.broken = size
                break
            if end > length:
                break
            if size:
                found.append(view[start:end])
            position = end
        self._position = position
        return found


def length_prefixes(sizes: Sequence[int]) -> bytes:
    """What goes in front of frames of these sizes, one after the other; each is a 16-bit number."""
    return struct.pack(f"!{len(sizes)}H", *sizes)


def encode(frame: Buffer) -> bytes:
    """One frame as it goes over the stream.  Raises ValueError for a size that no reader accepts."""
    size = len(frame)
    if not 0 < size <= LARGEST:
        raise ValueError(f"a vdestream carries frames of 1 to {LARGEST} bytes, not {size}")
    return b"".join((length_prefixes((size,)), frame))
