# SPDX-License-Identifier: GPL-2.0-or-later
"""The plugin interface: what a scheme has to say and do.

A scheme is one :class:`Plugin`.  It does three things, each useful alone:

* ``parse`` turns the text behind ``scheme://`` into a frozen *spec*, without touching the system;
* ``open`` turns a spec into a :class:`Stream`: frames in and out in this process, with no more privilege than the
  scheme itself needs.  A scheme that has only this is complete;
* ``kernel_end`` may describe the same end as data (:class:`Netdev`, :class:`Tunnel`), from which the daemon builds the
  kernel path.  Where there is none it says why, and ``vdexdp explain`` repeats that.

Frames travel in :class:`Batch` objects: up to ``BATCH`` frames received with one wake-up.  Ethernet frames are bytes
as on the wire, from the destination MAC on, without FCS.

Flow control.  ``Stream.send`` takes frames from the front of a batch and says how many it took.  Ends that are allowed
to lose frames (sockets, taps) take everything and count what the receiver had no room for in ``drops``.  Byte streams,
where a half-written frame can't be taken back, stop when they are full; the pump then stops reading the other end until
the stream's ``writer`` is writable again.  Each direction is independent, so two saturated ends never wait for one
another.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from vdexdp.vnl import Grammar, Option, Parsed
from vdexdp.wire.dot1q import Mapper

__all__ = [
    "BATCH",
    "FRAME_MAX",
    "FRAME_MIN",
    "HOOK",
    "Batch",
    "Buffer",
    "Grammar",
    "Hook",
    "Inside",
    "KernelEnd",
    "Member",
    "Netdev",
    "NoKernelEnd",
    "Node",
    "NodeMode",
    "OpenContext",
    "Option",
    "Parsed",
    "Plugin",
    "Stream",
    "Tunnel",
    "parse_hook",
]

FRAME_MIN = 14
"""Bytes of an Ethernet header; anything shorter is dropped silently, as everywhere in the VDE family."""

FRAME_MAX = 9216 + 14 + 4
"""Largest frame in bytes: a jumbo payload, an Ethernet header and one VLAN tag."""

BATCH = 64
"""Frames handled per wake-up."""

DONE = -1
"""See ``RecvOne``."""

Buffer = bytes | bytearray | memoryview
Hook = Literal["auto", "tc", "xdp"]


@dataclass(frozen=True)
class Netdev:
    """A network interface as a kernel port.

    ``side`` is "stack" where the peer is the host's own protocol stack behind the interface (``tap://``: input at the
    interface's tc egress), "wire" where the interface itself is the switch port (``netdev://``: input at its ingress).
    ``create`` asks the caller to open the interface through /dev/net/tun and keep the descriptor for as long as it is
    plugged.  ``vlan`` are the policies of ``vlan://`` in front of it, outermost first.
    """

    name: str
    side: Literal["stack", "wire"]
    create: Literal["", "tap"] = ""
    hook: Hook = "auto"
    learn_limit: int = 4096  # new FDB entries per expiry time; 0 = no limit
    vlan: tuple[Mapper, ...] = ()


@dataclass(frozen=True)
class Tunnel:
    """A vxvde or vxlan network as a kernel port.

    ``group`` is a multicast address in text, ``family`` 4 or 6, ``port`` the group's UDP port, ``vni`` 24 bits, ``ttl``
    of group traffic, ``device`` the uplink's name or "" for the route towards the group, ``rcvbuf`` bytes or 0 for the
    default, ``expiry`` seconds, ``hook`` the uplink's, ``vlan`` as for :class:`Netdev`.
    """

    kind: Literal["vxvde", "vxlan"]
    group: str
    family: Literal[4, 6]
    port: int
    vni: int
    ttl: int = 1
    device: str = ""
    rcvbuf: int = 0
    expiry: int = 128
    bind: str = ""
    hook: Hook = "auto"
    vlan: tuple[Mapper, ...] = ()


@dataclass(frozen=True)
class Inside:
    """An interface that the daemon makes in another network namespace, for as long as it is plugged.

    ``netns`` is the descriptor of that namespace in the calling process, ``vlan`` as for :class:`Netdev`.
    """

    name: str
    netns: int = -1
    vlan: tuple[Mapper, ...] = ()


KernelEnd = Netdev | Tunnel | Inside


@dataclass(frozen=True)
class NoKernelEnd:
    """This end has no kernel path; ``reason`` completes the sentence "runs in userspace: …"."""

    reason: str


NodeMode = Literal["switch", "hub", "multi", "bonding"]


@dataclass(frozen=True)
class Node(NoKernelEnd):
    """A node of legacy clients, which userspace carries.

    A kernel switch can do the same for the interfaces that are plugged into it, with all the clients behind one of its
    ports; ``expiry`` in seconds.  The stream is a :class:`vdexdp.plugins.netnode.NetnodeStream`.
    """

    mode: NodeMode
    expiry: int


@dataclass(frozen=True)
class Member(NoKernelEnd):
    """A port of a node that another process serves, at ``path`` ("" is the default switch).

    An interface at the other end of the cable joins that node's kernel switch, if it has one.
    """

    path: str


@dataclass(frozen=True)
class OpenContext:
    """What the command line says to every end: stock vde_plug's -d, -p, -g, -m and so on.  ``None`` is "not given"."""

    description: str = "vdexdp"
    port: int | None = None
    group: str | None = None
    mode: int | None = None
    verbose: bool = False


HOOK = Option("hook", "where the kernel path takes frames: tc keeps large TCP packets whole, xdp is for NICs", "auto")


def parse_hook(parsed: Parsed) -> Hook:
    """The value of the option ``HOOK``.  Raises VnlError."""
    match parsed.options.get("hook", "auto"):
        case "auto" | "tc" | "xdp" as hook:
            return hook
        case _:
            raise parsed.error("hook", "is none of auto, tc and xdp")


class Batch:
    """Up to ``BATCH`` frames over one preallocated buffer.

    Iterating gives a :class:`memoryview` per frame, valid until the next ``clear``.  ``recvmmsg`` users fill the rows
    of ``buffer`` directly and then set ``lengths`` and ``count``; everyone else appends.
    """

    __slots__ = ("buffer", "count", "lengths", "rows", "view")

    ROW = 9344  # FRAME_MAX rounded up to a multiple of 64, so that rows start on cache lines

    def __init__(self) -> None:
        self.buffer = bytearray(BATCH * self.ROW)
        self.view = memoryview(self.buffer)
        self.rows = [self.view[i * self.ROW : (i + 1) * self.ROW] for i in range(BATCH)]
        self.lengths = [0] * BATCH
        self.count = 0

    def clear(self) -> None:
        self.count = 0

    @property
    def full(self) -> bool:
        return self.count >= BATCH

    def append(self, frame: Buffer) -> None:
        """Copy one frame in.  The caller looks at ``full`` first.  Raises ValueError for frames over ``ROW`` bytes."""
        size = len(frame)
        self.rows[self.count][:size] = frame
        self.lengths[self.count] = size
        self.count += 1

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> memoryview:
        return self.rows[index][: self.lengths[index]]

    def __iter__(self) -> Iterator[memoryview]:
        for index in range(self.count):
            yield self.rows[index][: self.lengths[index]]


RecvOne = Callable[[memoryview], int]
"""Reads one frame into a row, when one of ``Stream.readers`` is readable, and returns its length; 0 where ``recv`` has
to be called instead, DONE where what there was needed nothing of the other end.
"""

SendOne = Callable[[memoryview], bool]
"""Takes one frame; False where ``send`` has to be called instead."""


class Stream(ABC):
    """A plug end in userspace.  All descriptors are non-blocking; no method waits."""

    def __init__(self) -> None:
        self.drops: Counter[str] = Counter()
        """Frames lost at this end, by reason ("full", "runt", "too-big", …)."""
        self.stalled = False
        """Set by the pump: ``recv`` is not wanted just now, because the other end takes no frames."""

    @abstractmethod
    def readers(self) -> Sequence[int]:
        """Descriptors to poll for input, which may change between calls.

        Any of them readable (or hung up) means: call ``recv``.
        """

    def writer(self) -> int | None:
        """The descriptor to poll for output while something waits to be written, else None.

        That is the case after ``send`` took less than it was given, or took a frame that it could not write completely.
        """
        return None

    def timeout(self) -> float | None:
        """Seconds until ``recv`` wants to be called even without input; None for never."""
        return None

    @abstractmethod
    def recv(self, batch: Batch) -> None:
        """Append what is there, at most until ``batch.full``.  Nothing there is not an error.

        Raises HangUp when the peer is gone for good, HostError when the system failed.
        """

    @abstractmethod
    def send(self, batch: Batch, start: int = 0) -> int:
        """Take frames from ``start`` on; return how many were taken (sent, or dropped and counted in ``drops``)."""

    def flush(self) -> None:
        """Push out what ``send`` took but could not write yet.  Called when ``writer`` is writable."""
        return

    def singles_in(self) -> RecvOne | None:
        """The short way in for frames that come singly, if there is one just now.

        Asked for only where no derived class overrides ``recv`` alone, and again after every other call; the same
        function (by ==) means that nothing has changed.
        """
        return None

    def singles_out(self) -> SendOne | None:
        """The short way out; see ``singles_in``."""
        return None

    def chores(self) -> Sequence[int]:
        """Descriptors to poll for input all the time, even while ``recv`` is not wanted; readable: call ``do_chores``.

        For timers and management, whose work must not wait until the other direction flows.
        """
        return ()

    def do_chores(self) -> None:
        """See ``chores``.  Raises as ``recv``."""
        return

    def fault(self) -> str:
        """What is wrong with the end just now, for ``show``; "" when all is well."""
        return ""

    @abstractmethod
    def close(self) -> None:
        """Release everything; idempotent."""


class Plugin(ABC):
    """One scheme.  Instances hold no state.

    Third parties register the class under the entry point group ``vdexdp.plugins``.
    """

    scheme: ClassVar[str]
    grammar: ClassVar[Grammar]
    summary: ClassVar[str]
    address: ClassVar[str] = ""
    """What stands behind ``://`` in one or two words, for help texts."""
    example: ClassVar[str] = ""
    options: ClassVar[tuple[Option, ...]] = ()
    path: ClassVar[str] = ""
    """Which way frames travel, for the documentation, where ``kernel_end`` alone does not say it."""

    @abstractmethod
    def parse(self, parsed: Parsed) -> Any:
        """A frozen, comparable spec.  Touches nothing.  Raises VnlError."""

    @abstractmethod
    def open(self, spec: Any, context: OpenContext) -> Stream:
        """The userspace end.  Raises HostError."""

    def kernel_end(self, spec: Any) -> KernelEnd | NoKernelEnd:
        """The kernel's view of the same end, as data; may look at the system, never changes it."""
        return NoKernelEnd("the scheme has no kernel path")
