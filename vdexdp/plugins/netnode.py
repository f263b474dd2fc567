# SPDX-License-Identifier: GPL-2.0-or-later
"""The server side of legacy VDE: a node that vde_plug, vdens, QEMU and others connect to through a directory.

``hub``, ``switch``, ``multi`` and ``bonding`` differ in their policy (``vdexdp.plugins.forwarding``) alone; this is
the rest.  To the cable a node is one stream, the *host's* end of it: what the cable sends comes from the host, what
``recv`` hands out is for the host.  Frames between clients never leave ``recv``: they are received into the caller's
batch and sent on from there, as many at once as there are, without a copy.

One client can't harm another.  The node never waits for anybody: a client that does not read loses its frames, and
they are counted.  ``vdexdp.plugins.reception`` keeps those at a distance who are not clients yet.
"""

from __future__ import annotations

import os
import socket
import time
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import compress
from typing import ClassVar, Final

from vdexdp.plugins.base import (
    DONE,
    FRAME_MAX,
    FRAME_MIN,
    Batch,
    Node,
    NodeMode,
    OpenContext,
    Option,
    Parsed,
    Plugin,
    RecvOne,
    SendOne,
    Stream,
)
from vdexdp.plugins.forwarding import (
    EVERYBODY,
    EXPIRY,
    HEADER,
    HOST,
    NOBODY,
    TABLE_SIZE,
    Policy,
    Route,
    Station,
    headers,
)
from vdexdp.plugins.mmsg import Vector, keep, reason, receive, transmit
from vdexdp.plugins.pace import Pace
from vdexdp.plugins.reception import Client, Reception, Watch
from vdexdp.plugins.sockdir import CONTROL, SocketDirectory, chosen_group, optional_mode, unlink
from vdexdp.vnl import group, integer
from vdexdp.wire.control3 import REQUEST_MAX

STANDARD_PATH: Final = "/tmp/vdenode_"
"""With the user's name behind it, the directory of a node that was given none."""

MODE: Final = 0o600
DIRECTORY_MODE: Final = 0o2700

_TAGGED_MIN = FRAME_MIN + 4
_ROUNDS = 4  # looks for input in one recv, so that the pump's other direction gets its turn
_BATCHES_MAX = 4
_NEVER_FATAL: Final[frozenset[int]] = frozenset()


@dataclass(frozen=True)
class NodeSpec:
    """``path`` is "" for STANDARD_PATH; ``expiry`` is in seconds; None means the command line's choice, or the
    default.
    """

    path: str
    mode: int | None = None
    dirmode: int | None = None
    gid: int | None = None
    hashsize: int = TABLE_SIZE
    hashseed: int = 0
    expiry: int = int(EXPIRY)


class Port(Station):
    """A client: its stream and the two ends of its datagrams."""

    def __init__(self, client: Client) -> None:
        self.control = client.control
        self.data = client.data
        self.fd = client.data.fileno()
        self.name = client.name
        self.description = client.description
        self.spoken = 0  # bytes on the stream after the request
        self.pace = Pace()


class _Vectors:
    """The system's view of one batch: for receiving, for sending, and for sending a selection of it."""

    def __init__(self, batch: Batch) -> None:
        self.read = Vector(batch.buffer, Batch.ROW, length=Batch.ROW)
        self.write = Vector(batch.buffer, Batch.ROW)
        self.pick = Vector(batch.buffer, Batch.ROW)


class NetnodeStream(Stream):
    """A node and its clients, from the host's end.  Raises RequestError, PrivilegeError and HostError."""

    def __init__(self, spec: NodeSpec, context: OpenContext, policy: Policy) -> None:
        super().__init__()
        self._policy = policy
        self._ports: dict[int, Port] = {}
        self._now = 0.0
        self._company = False  # a client had several frames in this round
        self._spare: Batch | None = None
        self._ready: deque[int] = deque()
        self._vectors: dict[int, _Vectors] = {}
        self._watch = Watch()
        self._tell: Callable[[int, bool], None] | None = None
        self._directory = _directory(spec, context)
        self._reception = Reception(self._directory, self._watch, self._plug, verbose=context.verbose)

    @property
    def ports(self) -> Sequence[Port]:
        """The clients that are plugged, in the order of their coming."""
        return tuple(self._ports.values())

    @property
    def path(self) -> str:
        """The directory, as clients name it."""
        return self._directory.path

    @property
    def control_path(self) -> str:
        """The name of the control socket."""
        return os.path.join(self._directory.path, CONTROL)

    def join_switch(self, tell: Callable[[int, bool], None]) -> None:
        """The host is a switch with ports of its own from now on.

        It hears of new addresses here by the frames themselves, and by ``tell`` how many clients there are, and whether
        one has left.
        """
        self._tell = tell
        self._policy.announcing = True
        tell(len(self._ports), False)

    def readers(self) -> Sequence[int]:
        return (self._watch.fileno(),)

    def timeout(self) -> float | None:
        deadline = self._reception.deadline()
        return None if deadline is None else max(deadline - time.monotonic(), 0.0)

    def recv(self, batch: Batch) -> None:
        ready = self._ready
        self._now = time.monotonic()
        for _ in range(_ROUNDS):
            self._company = False
            if not ready:
                ready.extend(self._watch.ready())
                if not ready:
                    break
            while ready and not batch.full:
                handler = self._watch.handler(ready.popleft())
                if handler is not None:
                    handler(batch)
            if batch.count or not self._company:
                break
        if self._reception.deadline() is not None:
            self._reception.expire()

    def singles_in(self) -> RecvOne:
        return self._recv_one

    def singles_out(self) -> SendOne:
        return self._send_one

    def _recv_one(self, row: memoryview) -> int:
        ready = self._ready
        if not ready:
            ready.extend(self._watch.ready())
        port = self._ports.get(ready[0]) if len(ready) == 1 else None
        if port is None or not port.pace.single(time.monotonic()):
            return 0
        ready.clear()
        try:
            length = port.data.recv_into(row)
        except OSError:
            return DONE  # nothing, or an error that is over with its report; the stream says when a client leaves
        to = self._deliver(port, row, length)
        if to is HOST:
            return length
        if to is None or to is EVERYBODY:
            spare = self._emptied_spare()
            spare.rows[0][:length] = row[:length]
            spare.lengths[0] = length
            spare.count = 1
            kept = self._forward(port, spare, 0, 1, to)
            if kept is True or (kept and kept[0]):
                return length
        return DONE

    def _send_one(self, frame: memoryview) -> bool:
        to = self._deliver(HOST, frame, len(frame))
        return to is not None and to is not EVERYBODY

    def chores(self) -> Sequence[int]:
        # Clients go on talking to each other while the host is too slow for its frames.
        return self.readers() if self.stalled else ()

    def do_chores(self) -> None:
        spare = self._emptied_spare()
        self.recv(spare)
        self.drops["full"] += spare.count

    def _emptied_spare(self) -> Batch:
        if self._spare is None:
            self._spare = Batch()
        self._spare.clear()
        return self._spare

    def send(self, batch: Batch, start: int = 0) -> int:
        count = batch.count - start
        to = self._deliver(HOST, batch.rows[start], batch.lengths[start]) if count == 1 else None
        if count > 1 or (count and (to is None or to is EVERYBODY)):
            self._forward(HOST, batch, start, count, to)
        return count

    def fault(self) -> str:
        return "no descriptors left for new clients" if self._reception.exhausted else ""

    def close(self) -> None:
        for port in self.ports:
            self._leave(port)
        self._reception.close()
        self._directory.close()
        self._watch.close()

    # Frames

    def _data_in(self, port: Port, batch: Batch) -> bool:
        """Frames of one client; tell whether there were any."""
        first = batch.count
        to = None
        if not port.pace.single(self._now):
            port.pace.found(self._burst_in(port, batch))
            self._company |= port.pace.company
        else:
            row = batch.rows[first]
            try:
                length = batch.lengths[first] = port.data.recv_into(row)
            except OSError:
                return False  # nothing, or an error that is over with its report; the stream says when a client leaves
            to = self._deliver(port, row, length)
            if to is not None and to is not EVERYBODY:
                batch.count = first + (to is HOST)
                return True
            batch.count = first + 1
        count = batch.count - first
        if count:
            kept = self._forward(port, batch, first, count, to)
            if kept is False:
                batch.count = first
            elif kept is not True:
                keep(batch, first, kept)
        return count > 0

    def _burst_in(self, port: Port, batch: Batch) -> int:
        """Append to the batch what a client has sent; return how many frames that is."""
        first = batch.count
        vectors = self._vectors.get(id(batch.buffer)) or self._adopt(batch)
        try:
            count = receive(port.fd, vectors.read, first)
        except OSError:
            return 0
        batch.lengths[first : first + count] = vectors.read.received(first, count)
        batch.count = first + count
        return count

    def _deliver(self, source: Station, row: memoryview, length: int) -> Station | None:
        """Send a frame on if it is an ordinary one for a single station.

        The policy's answer; None where it was not asked.
        """
        if not _TAGGED_MIN <= length <= FRAME_MAX:
            return None
        to = self._policy.route(source, bytes(row[:HEADER]))
        if isinstance(to, Port):
            try:
                to.data.send(row[:length], socket.MSG_NOSIGNAL)
            except OSError as error:
                self.drops[reason(error.errno)] += 1
        return to

    def _forward(
        self, source: Station, batch: Batch, first: int, count: int, route: Route | None = None
    ) -> bool | list[bool]:
        """Send frames to the clients they are for; tell which ones are for the host: all, none, or which.

        ``route`` is the policy's answer, where it was asked already.
        """
        lengths = batch.lengths[first : first + count]
        if route is None:
            route = self._route(source, batch, first, lengths)
        if route is HOST:
            return True
        if route is NOBODY:
            return False
        vectors = self._vectors.get(id(batch.buffer)) or self._adopt(batch)
        vectors.write.set_lengths(lengths, first)
        if isinstance(route, list):
            return self._forward_each(source, route, vectors, first)
        if route is EVERYBODY:
            for port in self._ports.values():
                if port is not source:
                    transmit(port.fd, vectors.write, first, count, self.drops, _NEVER_FATAL)
            return True
        assert isinstance(route, Port)
        transmit(route.fd, vectors.write, first, count, self.drops, _NEVER_FATAL)
        return False

    def _forward_each(self, source: Station, route: list[Station], vectors: _Vectors, first: int) -> list[bool]:
        wanted: dict[Station, list[int]] = {}
        if EVERYBODY in route:
            for port in self._ports.values():
                if port is not source:
                    wanted[port] = [i for i, to in enumerate(route, first) if to is port or to is EVERYBODY]
        else:
            for index, to in enumerate(route, first):
                wanted.setdefault(to, []).append(index)
        for to, indices in wanted.items():
            if not isinstance(to, Port) or not indices:
                continue
            count = len(indices)
            if indices[-1] - indices[0] + 1 == count:
                transmit(to.fd, vectors.write, indices[0], count, self.drops, _NEVER_FATAL)
            else:
                vectors.pick.select(vectors.write, indices)
                transmit(to.fd, vectors.pick, 0, count, self.drops, _NEVER_FATAL)
        return [to is HOST or to is EVERYBODY for to in route]

    def _route(self, source: Station, batch: Batch, first: int, lengths: list[int]) -> Route:
        """The policy's answer; NOBODY for frames that are too short or too long, which it does not get to see."""
        shortest = min(lengths)
        if shortest < _TAGGED_MIN:
            # Nor shall it take for a VLAN tag what an earlier frame left in the row.
            for row, length in zip(batch.rows[first:], lengths, strict=False):
                row[length:_TAGGED_MIN] = bytes(max(_TAGGED_MIN - length, 0))
        frames = headers(batch, first, len(lengths))
        if shortest >= FRAME_MIN and max(lengths) <= FRAME_MAX:
            return self._policy.route_all(source, frames)
        sound = [FRAME_MIN <= length <= FRAME_MAX for length in lengths]
        for length in lengths:
            if not FRAME_MIN <= length <= FRAME_MAX:
                self.drops["runt" if length < FRAME_MIN else "too-big"] += 1
        routes = (self._policy.route(source, header) for header in compress(frames, sound))
        return [next(routes) if good else NOBODY for good in sound]

    def _adopt(self, batch: Batch) -> _Vectors:
        # A cable has two batches for life; vectors keep theirs alive, so that an id means one buffer.
        if len(self._vectors) >= _BATCHES_MAX:
            self._vectors.clear()
        vectors = self._vectors[id(batch.buffer)] = _Vectors(batch)
        return vectors

    # Clients

    def _plug(self, client: Client) -> None:
        port = Port(client)
        self._ports[port.fd] = port
        self._policy.join(port)
        self._watch.tell(port.control, partial(self._stream_in, port))
        self._watch.add(port.data, partial(self._data_in, port))
        if self._tell is not None:
            self._tell(len(self._ports), False)

    def _stream_in(self, port: Port, batch: Batch) -> None:
        """A plugged client has nothing to say any more, except the rest of a long description, and its end."""
        try:
            heard = len(port.control.recv(REQUEST_MAX))
        except BlockingIOError:
            return
        except OSError:
            heard = 0
        port.spoken += heard
        if heard and port.spoken <= REQUEST_MAX:
            return
        # What it sent before it left is still to be delivered; if that does not end, its port does.
        for _ in range(_ROUNDS):
            if batch.full:
                return  # the end of the stream will be there the next time
            if not self._data_in(port, batch):
                break
        self._leave(port)

    def _leave(self, port: Port) -> None:
        self._watch.remove(port.data)
        self._watch.remove(port.control)
        del self._ports[port.fd]
        self._policy.forget(port)
        unlink(port.name)
        port.data.close()
        port.control.close()
        if self._tell is not None:
            self._tell(len(self._ports), True)


class NetnodePlugin(Plugin):
    """What the four schemes share; each adds its names and its policy."""

    grammar = "bracket"
    address = "directory"
    path = "kernel between interfaces and networks, user to clients"
    kernel_mode: ClassVar[NodeMode]
    """What a kernel switch has to be to do the same for interfaces."""
    options = (
        Option("mode", "octal permissions of the sockets", "0600"),
        Option("dirmode", "octal permissions of the directory", "mode, with x where it has r or w, and setgid"),
        Option("grp", "group of sockets and directory", "the caller's"),
        Option("hashsize", "entries of the table of MAC addresses", str(TABLE_SIZE)),
        Option("hashseed", "accepted for compatibility, without effect", "0"),
        Option("expiretime", "seconds until an unused address is forgotten", f"{EXPIRY:g}"),
    )

    @abstractmethod
    def policy(self, spec: NodeSpec) -> Policy:
        """The rule of this node."""

    def parse(self, parsed: Parsed) -> NodeSpec:
        return NodeSpec(
            parsed.address,
            optional_mode(parsed, "mode"),
            optional_mode(parsed, "dirmode"),
            group(parsed, "grp"),
            integer(parsed, "hashsize", TABLE_SIZE, 0, 1 << 20),
            integer(parsed, "hashseed", 0, 0, (1 << 64) - 1),
            integer(parsed, "expiretime", int(EXPIRY), 0, (1 << 31) - 1),
        )

    def open(self, spec: NodeSpec, context: OpenContext) -> NetnodeStream:
        return NetnodeStream(spec, context, self.policy(spec))

    def kernel_end(self, spec: NodeSpec) -> Node:
        return Node("the clients of a legacy node are UNIX sockets", self.kernel_mode, spec.expiry)


def _directory(spec: NodeSpec, context: OpenContext) -> SocketDirectory:
    """The node's directory, with what the VNL says, else the command line, else the defaults."""
    chosen = context.mode if spec.mode is None else spec.mode
    bits = MODE if chosen is None else chosen & ~0o111
    dirmode = spec.dirmode
    if dirmode is None:
        dirmode = DIRECTORY_MODE if chosen is None else 0o2000 | bits | (bits & 0o444) >> 2 | (bits & 0o222) >> 1
    return SocketDirectory(spec.path or STANDARD_PATH + _user(), bits, dirmode, chosen_group(spec.gid, context))


def _user() -> str:
    import pwd

    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return f"u{os.geteuid()}"
