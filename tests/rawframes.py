# SPDX-License-Identifier: GPL-2.0-or-later
"""Frames made by hand, sent and received on interfaces and vdestreams, for tests of "frame in equals frame out"."""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager

from vdexdp.lab import Namespace
from vdexdp.plugins.stream import GREETING

_SOL_PACKET, _AUXDATA, _IGNORE_OUTGOING = 263, 8, 23
ETH_TEST = 0x88B5  # for local experiments


def frame(size: int, number: int = 0, *, tags: bytes = b"", dst: str = "ff:ff:ff:ff:ff:ff", src: int = 1) -> bytes:
    """A frame of ``size`` bytes whose content depends on ``number``; ``tags`` go between addresses and ethertype."""
    head = bytes.fromhex(dst.replace(":", "")) + bytes((2, 0, 0, 0, 7, src)) + tags + ETH_TEST.to_bytes(2, "big")
    body = bytes((number + index) * 7 & 0xFF for index in range(max(0, size - len(head))))
    return head + body


def dot1q(*vids: int, tpid: int = 0x8100) -> bytes:
    """VLAN tags with priority 3, the outermost first."""
    return b"".join(struct.pack("!HH", tpid, 3 << 13 | vid) for vid in vids)


class RawPort:
    """A packet socket on one interface."""

    def __init__(self, namespace: Namespace, device: str) -> None:
        with namespace.entered():
            self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            self.socket.setsockopt(_SOL_PACKET, _AUXDATA, 1)
            self.socket.setsockopt(_SOL_PACKET, _IGNORE_OUTGOING, 1)
            self.socket.bind((device, 3))

    def send(self, data: bytes) -> None:
        self.socket.send(data)

    def receive(self, count: int, timeout: float = 2.0) -> list[bytes]:
        """The next test frames, at most ``count``; what else the kernel sends is passed over."""
        found: list[bytes] = []
        end = time.monotonic() + timeout
        while len(found) < count and select.select([self.socket], [], [], max(0.0, end - time.monotonic()))[0]:
            data, ancillary, _, _ = self.socket.recvmsg(65600, 256)
            for _, _, payload in ancillary:
                status, tci, tpid = struct.unpack_from("=I12xHH", payload)
                if status & 0x10:
                    data = data[:12] + struct.pack("!HH", tpid, tci) + data[12:]
            if ETH_TEST.to_bytes(2, "big") in (data[12:14], data[16:18], data[20:22]):
                found.append(data)
        return found


class StreamPort:
    """The far side of a vdestream that says it needs no padding (see ``vdexdp.plugins.stream``)."""

    def __init__(self, write_to: int, read_from: int) -> None:
        self.write_to, self.read_from = write_to, read_from
        self._data = b""
        os.write(write_to, GREETING)

    def send(self, data: bytes) -> None:
        os.write(self.write_to, len(data).to_bytes(2, "big") + data)

    def receive(self, count: int, timeout: float = 2.0) -> list[bytes]:
        """The next test frames, at most ``count``; what else the kernel sends is passed over."""
        found: list[bytes] = []
        end = time.monotonic() + timeout
        while True:
            while len(self._data) >= 2 and len(self._data) >= 2 + (size := int.from_bytes(self._data[:2], "big")):
                data, self._data = self._data[2 : 2 + size], self._data[2 + size :]
                if ETH_TEST.to_bytes(2, "big") in (data[12:14], data[16:18], data[20:22]):
                    found.append(data)
            if len(found) >= count or not select.select([self.read_from], [], [], max(0.0, end - time.monotonic()))[0]:
                return found
            data = os.read(self.read_from, 65536)
            if not data:
                return found
            self._data += data


@contextmanager
def stream_plug(host: Namespace, *command: str) -> Iterator[StreamPort]:
    """A command whose standard input and output are a vdestream, and our end of it."""
    their_in, our_out = os.pipe()
    our_in, their_out = os.pipe()
    process = host.spawn(*command, stdin=their_in, stdout=their_out)
    os.close(their_in)
    os.close(their_out)
    try:
        process.wait_output("vdexdp:")
        yield StreamPort(our_out, our_in)
    finally:
        os.close(our_out)
        os.close(our_in)
        process.stop()
