# SPDX-License-Identifier: GPL-2.0-or-later
"""Batched datagrams: content and order, headers, addresses, runts, oversize, full sockets, the end of a sequence.

Shows it with real sockets; needs no privilege.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections import Counter
from collections.abc import Iterator

import pytest

from vdexdp.errors import HangUp
from vdexdp.plugins.base import BATCH, FRAME_MAX, FRAME_MIN, Batch
from vdexdp.plugins.mmsg import Reader, Writer, address_of, keep

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Two connected UNIX sockets that keep datagrams apart."""
    first, second = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for one in (first, second):
        one.setblocking(False)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    yield first, second
    first.close()
    second.close()


def batch_of(frames: list[bytes]) -> Batch:
    batch = Batch()
    for frame in frames:
        batch.append(frame)
    return batch


def content(batch: Batch, start: int = 0) -> list[bytes]:
    return [bytes(batch[index]) for index in range(start, batch.count)]


FRAMES = [os.urandom(size) for size in (FRAME_MIN, 15, 60, 61, 590, 1514, 4096, 9018, FRAME_MAX)]


def test_there_and_back_again(pair: Pair) -> None:
    drops: Counter[str] = Counter()
    writer, reader = Writer(pair[0].fileno(), drops), Reader(pair[1].fileno(), drops)
    batch = Batch()
    assert reader.recv(batch) == 0
    for _ in range(3):  # the arrays are reused
        assert writer.send(batch_of(FRAMES)) == len(FRAMES)
        batch.clear()
        assert reader.recv(batch) == len(FRAMES)
        assert content(batch) == FRAMES
    assert not drops


def test_from_the_middle_into_the_middle(pair: Pair) -> None:
    drops: Counter[str] = Counter()
    writer, reader = Writer(pair[0].fileno(), drops), Reader(pair[1].fileno(), drops)
    assert writer.send(batch_of(FRAMES), 4) == len(FRAMES) - 4
    batch = batch_of(FRAMES[:2])
    assert reader.recv(batch) == len(FRAMES) - 4
    assert content(batch) == FRAMES[:2] + FRAMES[4:]


def test_another_batch_gets_arrays_of_its_own(pair: Pair) -> None:
    drops: Counter[str] = Counter()
    writer, reader = Writer(pair[0].fileno(), drops), Reader(pair[1].fileno(), drops)
    for frames in (FRAMES[:3], FRAMES[3:]):
        writer.send(batch_of(frames))
        batch = Batch()
        reader.recv(batch)
        assert content(batch) == frames


def test_no_more_than_fits(pair: Pair) -> None:
    for index in range(BATCH + 5):
        pair[0].send(bytes([index]) * 20)
    reader = Reader(pair[1].fileno(), Counter())
    batch = Batch()
    assert reader.recv(batch) == BATCH
    assert batch.full
    batch.clear()
    assert reader.recv(batch) == 5
    assert content(batch)[0] == bytes([BATCH]) * 20


def test_runts_and_oversize_are_dropped_and_counted(pair: Pair) -> None:
    drops: Counter[str] = Counter()
    good = [b"A" * 20, b"B" * 30, b"C" * FRAME_MAX]
    for data in (b"x" * 13, good[0], b"y", b"z" * (FRAME_MAX + 1), good[1], b"t" * 20000, good[2], b"u" * 5):
        pair[0].send(data)
    batch = batch_of([b"first" * 4])
    assert Reader(pair[1].fileno(), drops).recv(batch) == 3
    assert content(batch, 1) == good
    assert drops == {"runt": 3, "too-big": 2}


def test_a_full_socket_drops_the_rest_and_counts(pair: Pair) -> None:
    pair[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 20000)
    drops: Counter[str] = Counter()
    frames = [bytes([index]) * 1500 for index in range(BATCH)]
    assert Writer(pair[0].fileno(), drops).send(batch_of(frames)) == BATCH
    batch = Batch()
    arrived = Reader(pair[1].fileno(), drops).recv(batch)
    assert 0 < arrived < BATCH
    assert content(batch) == frames[:arrived]
    assert drops == {"full": BATCH - arrived}


def test_one_bad_datagram_does_not_stop_the_others() -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as two,
    ):
        two.bind(("127.0.0.1", 0))
        two.setblocking(False)
        drops: Counter[str] = Counter()
        port = two.getsockname()[1]
        good = bytearray(struct.pack("=HH4s8x", socket.AF_INET, socket.htons(port), b"\x7f\0\0\1"))
        bad = bytearray(struct.pack("=HH4s8x", socket.AF_INET, socket.htons(port), b"\xff\xff\xff\xff"))
        names = [(address_of(name), 16) for name in (good, bad, good)]
        assert Writer(one.fileno(), drops, header=b"head").send(batch_of(FRAMES[:3]), 0, names) == 3
        batch = Batch()
        reader = Reader(two.fileno(), drops, header=4, name=16)
        assert reader.recv(batch) == 2
        assert content(batch) == [FRAMES[0], FRAMES[2]]
        assert bytes(reader.vector.headers[:8]) == b"headhead"
        sender = struct.pack("=HH4s8x", socket.AF_INET, socket.htons(one.getsockname()[1]), b"\x7f\0\0\1")
        assert bytes(reader.vector.names[:32]) == sender * 2
        assert sum(drops.values()) == 1
        assert "full" not in drops


def test_refused_is_counted_and_fatal_is_raised() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.connect(("127.0.0.1", 9))
        drops: Counter[str] = Counter()
        writer = Writer(one.fileno(), drops)
        for _ in range(3):
            writer.send(batch_of(FRAMES[:2]))
        assert drops["refused"] >= 1
        strict = Writer(one.fileno(), drops, fatal=frozenset({errno.ECONNREFUSED}))
        with pytest.raises(ConnectionRefusedError):  # noqa: PT012 -- the error of one datagram meets the next
            for _ in range(3):
                strict.send(batch_of(FRAMES[:2]))


def test_the_end_of_a_sequenced_socket(pair: Pair) -> None:
    pair[0].send(FRAMES[2])
    pair[0].close()
    drops: Counter[str] = Counter()
    reader = Reader(pair[1].fileno(), drops, sequenced=True)
    batch = Batch()
    assert reader.recv(batch) == 1
    assert content(batch) == [FRAMES[2]]
    with pytest.raises(HangUp):
        reader.recv(batch)
    assert not drops


def test_keep() -> None:
    batch = batch_of(FRAMES)
    assert keep(batch, 2, [index % 2 == 0 for index in range(len(FRAMES) - 2)]) == 4
    assert content(batch) == FRAMES[:2] + FRAMES[2::2]
