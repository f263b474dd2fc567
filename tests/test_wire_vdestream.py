# SPDX-License-Identifier: GPL-2.0-or-later
"""Shows that a vdestream survives any fragmentation, and says the same as stock libvdeplug's reader and writer.

Exempt: what is broken in stock, a lone length byte at the end of a read.
"""

from __future__ import annotations

import ctypes
import os

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests import stock
from vdexdp.wire import vdestream
from vdexdp.wire.vdestream import LARGEST, Decoder

SIZES = st.one_of(st.integers(1, 300), st.sampled_from([1, 2, 13, 14, 60, 255, 256, 1514, LARGEST - 1, LARGEST]))
FRAMES = st.lists(SIZES.map(lambda size: bytes((size + i) & 0xFF for i in range(size))), max_size=12)
quick = settings(deadline=None)


def frames_of(decoder: Decoder) -> list[bytes]:
    """One by one, so that every place to stop at is tried."""
    found: list[bytes] = []
    while views := decoder.next_frames(1):
        found += map(bytes, views)
    return found


def cut(data: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({place % (len(data) + 1) for place in places} | {len(data)})
    return [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]


@quick
@given(FRAMES, st.lists(st.integers(0, 2**20), max_size=20))
def test_any_pieces(frames: list[bytes], places: list[int]) -> None:
    decoder = Decoder()
    got: list[bytes] = []
    for piece in cut(b"".join(map(vdestream.encode, frames)), places):
        decoder.feed(bytearray(piece))
        got += frames_of(decoder)
    assert got == frames
    assert not decoder.broken


@quick
@given(FRAMES)
def test_byte_by_byte(frames: list[bytes]) -> None:
    decoder = Decoder()
    for frame in frames[:3]:
        stream = b"\0\0" + vdestream.encode(frame)
        for index, byte in enumerate(stream):
            decoder.feed(bytes((byte,)))
            assert frames_of(decoder) == ([frame] if index == len(stream) - 1 else [])


@quick
@given(FRAMES, st.integers(0, 200))
def test_frames_may_be_left_for_later(frames: list[bytes], taken: int) -> None:
    """A reader whose batch is full feeds more before it has taken all; views that were given out stay as they are."""
    decoder = Decoder()
    half = len(frames) // 2
    decoder.feed(b"".join(map(vdestream.encode, frames[:half])))
    early = decoder.next_frames(min(taken, half))
    assert len(early) == min(taken, half)
    decoder.feed(b"".join(map(vdestream.encode, frames[half:])))
    late = frames_of(decoder)
    assert [*map(bytes, early), *late] == frames


@pytest.mark.parametrize("size", [LARGEST + 1, 65535])
def test_too_long_is_final(size: int) -> None:
    decoder = Decoder()
    decoder.feed(vdestream.encode(b"good") + size.to_bytes(2, "big"))
    assert (frames_of(decoder), decoder.broken) == ([b"good"], size)
    decoder.feed(vdestream.encode(b"lost"))
    assert (frames_of(decoder), decoder.broken) == ([], size)


@pytest.mark.parametrize("size", [0, LARGEST + 1])
def test_local_mistake(size: int) -> None:
    with pytest.raises(ValueError, match=f"1 to {LARGEST} bytes, not {size}"):
        vdestream.encode(bytes(size))


RECEIVE = ctypes.CFUNCTYPE(ctypes.c_ssize_t, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


def stock_read(pieces: list[bytes]) -> list[bytes]:
    lib = stock.library("libvdeplug.so.2")
    lib.vdestream_open.restype = ctypes.c_void_p
    got: list[bytes] = []

    def receive(_: int | None, where: int, size: int) -> int:
        got.append(ctypes.string_at(where, size))
        return size

    callback = RECEIVE(receive)
    stream = ctypes.c_void_p(lib.vdestream_open(None, -1, callback, None))
    for piece in pieces:
        lib.vdestream_recv(stream, piece, ctypes.c_size_t(len(piece)))
    lib.vdestream_close(stream)
    return got


def splits_length(frames: list[bytes], pieces: list[bytes]) -> bool:
    """Whether a piece ends between the two bytes of a length."""
    position = 0
    seams = set()
    for frame in frames:
        seams.add(position + 1)
        position += 2 + len(frame)
    ends = set()
    position = 0
    for piece in pieces:
        position += len(piece)
        ends.add(position)
    return bool(seams & ends)


@quick
@given(FRAMES, st.lists(st.integers(0, 2**20), max_size=20))
@example([b"x" * LARGEST], [5])
def test_stock_reads_ours(frames: list[bytes], places: list[int]) -> None:
    pieces = cut(b"".join(map(vdestream.encode, frames)), places)
    if not splits_length(frames, pieces):
        assert stock_read(pieces) == frames


@quick
@given(FRAMES)
def test_we_read_stock(frames: list[bytes]) -> None:
    lib = stock.library("libvdeplug.so.2")
    lib.vdestream_open.restype = ctypes.c_void_p
    lib.vdestream_send.restype = ctypes.c_ssize_t
    decoder = Decoder()
    reader, writer = os.pipe()
    stream = ctypes.c_void_p(lib.vdestream_open(None, writer, RECEIVE(), None))
    try:
        for frame in frames:
            assert lib.vdestream_send(stream, frame, ctypes.c_size_t(len(frame))) == 2 + len(frame)
            decoder.feed(os.read(reader, 65536))
            assert frames_of(decoder) == [frame]
    finally:
        lib.vdestream_close(stream)
        os.close(reader)
        os.close(writer)
