# SPDX-License-Identifier: GPL-2.0-or-later
"""Legacy VDE from the outside: a client and a node for tests.

The client speaks the control protocol from its description, not through vdexdp's codec, and can be told to do it badly.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from vdexdp.lab import wait_until
from vdexdp.plugins import registry
from vdexdp.plugins.base import Batch, OpenContext
from vdexdp.plugins.netnode import NetnodeStream

MAGIC = 0xFEEDFACE
BROADCAST = b"\xff" * 6


def mac(number: int) -> bytes:
    """A locally administered unicast address."""
    return b"\x02\0\0\0" + number.to_bytes(2, "big")


def frame(to: bytes, source: bytes, payload: bytes = b"", *, vlan: int | None = None, tpid: int = 0x8100) -> bytes:
    """An Ethernet frame of an experimental type, at least 60 bytes long."""
    tag = b"" if vlan is None else struct.pack("!HH", tpid, vlan)
    return (to + source + tag + b"\x88\xb5" + payload).ljust(60, b"\0")


def request_v3(path: str, kind: int = 0, description: bytes = b"test") -> bytes:
    return struct.pack("=IIIH108s", MAGIC, 3, kind, socket.AF_UNIX, os.fsencode(path)) + description


def request_v1(path: str, kind: int = 0, description: bytes = b"test") -> bytes:
    return struct.pack("=II6sH108s", MAGIC, kind, bytes(6), socket.AF_UNIX, os.fsencode(path)) + description


class Client:
    """A legacy client.  ``pieces`` are what it writes to the control socket, one after the other."""

    _count = 0

    def __init__(self, directory: str, pieces: list[bytes] | None = None, request: bytes | None = None) -> None:
        Client._count += 1
        self.name = f"{directory}/.{os.getpid():05d}-{Client._count:05d}"
        self.data = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.data.bind(self.name)
        self.control = connect(directory)
        self.control.settimeout(5)
        for piece in pieces or [request or request_v3(self.name)]:
            self.control.sendall(piece)
            time.sleep(0.01 if pieces else 0)
        answer = self.control.recv(110, socket.MSG_WAITALL)
        assert len(answer) == 110, "the node refused the client"
        self.peer = os.fsdecode(answer[2:].partition(b"\0")[0])
        self.data.connect(self.peer)
        os.unlink(self.name)
        self.data.setblocking(False)

    def send(self, *frames: bytes) -> None:
        """Blocks while the node is behind, as stock clients do."""
        self.data.setblocking(True)
        for one in frames:
            self.data.send(one)
        self.data.setblocking(False)

    def received(self, count: int | None = None, timeout: float = 3.0, quiet: float = 0.08) -> list[bytes]:
        """``count`` frames, or without a number all that come until nothing does for ``quiet`` seconds."""
        found: list[bytes] = []
        end = time.monotonic() + timeout
        while count is None or len(found) < count:
            wait = quiet if count is None else max(end - time.monotonic(), 0.0)
            if not select.select([self.data], [], [], wait)[0]:
                break
            found.append(self.data.recv(65536))
        return found

    def close(self) -> None:
        self.control.close()
        self.data.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def connect(directory: str) -> socket.socket:
    """The control stream alone."""
    control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    control.connect(f"{directory}/ctl")
    return control


class Node:
    """One of our nodes, pumped by a thread; ``heard`` are the frames that reached the host."""

    def __init__(self, vnl: str, context: OpenContext | None = None) -> None:
        stream = registry.parse(vnl).open(context)
        assert isinstance(stream, NetnodeStream)
        self.stream = stream
        self.directory = stream.path
        self.heard: list[bytes] = []
        self.failure: BaseException | None = None
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._pump)
        self._thread.start()

    def _pump(self) -> None:
        batch = Batch()
        try:
            while not self._stop.is_set():
                wait = self.stream.timeout()
                select.select(self.stream.readers(), [], [], 0.05 if wait is None else min(wait, 0.05))
                with self._lock:
                    batch.clear()
                    self.stream.recv(batch)
                    self.heard += [bytes(one) for one in batch]
        except BaseException as error:
            self.failure = error

    def send(self, *frames: bytes) -> None:
        """Frames from the host, in one batch."""
        batch = Batch()
        for one in frames:
            batch.append(one)
        with self._lock:
            assert self.stream.send(batch) == len(frames)

    def settle(self, ports: int) -> None:
        """Wait until so many clients are plugged."""
        wait_until(lambda: len(self.stream.ports) == ports, what=f"{ports} ports")

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self.stream.close()
        if self.failure:
            raise self.failure


@contextmanager
def node(vnl: str, context: OpenContext | None = None) -> Iterator[Node]:
    made = Node(vnl, context)
    try:
        yield made
    finally:
        made.close()


@contextmanager
def clients(at: Node, count: int) -> Iterator[list[Client]]:
    """So many clients, plugged."""
    made = [Client(at.directory) for _ in range(count)]
    try:
        yield made
    finally:
        for client in made:
            with suppress(OSError):
                client.close()


def introduce(members: list[Client], at: Node) -> None:
    """Let the switch learn mac(i) behind client i, and empty all queues."""
    for number, member in enumerate(members):
        member.send(frame(BROADCAST, mac(number)))
    wait_until(lambda: len(at.heard) >= len(members))
    for member in members:
        member.received()
    at.heard.clear()
