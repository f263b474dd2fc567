# SPDX-License-Identifier: GPL-2.0-or-later
"""A plug: one cable, and what the daemon holds for it.

Every object that it needs is entered into the plug's undo stack as soon as it exists, so that a failure half-way and an
unplug are the same thing: the stack is unwound, last first.  Shared objects (LACs, uplinks, the exception path) count
their users and go with the last one.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict, dataclass, field

from vdexdp.control.channel import Body
from vdexdp.control.nodes import Node, Nodes
from vdexdp.control.ports import Port, Ports
from vdexdp.control.protocol import EndPath, PlugRequest
from vdexdp.control.tunnels import Lac, Tunnels
from vdexdp.users import user_name


@dataclass
class Plug:
    """One cable.  ``since`` is seconds since the epoch."""

    id: int
    request: PlugRequest
    since: float
    uid: int = 0
    ports: list[Port] = field(default_factory=list)
    lac: Lac | None = None
    node: Node | None = None  # as one of its members
    switch: int = 0
    paths: list[EndPath] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    rule: str = ""
    """The policy's, for a user other than root."""
    token: str = ""
    """What such a user's process claims the plug with, when a daemon has got it from the keeper."""
    alive: int = -1
    """The descriptor whose hang-up says that this process has ended."""
    undo: ExitStack = field(default_factory=ExitStack)

    def show(self) -> Body:
        asked = self.request
        return {
            "id": self.id,
            "pid": asked.pid,
            "user": user_name(self.uid),
            "vnls": list(asked.vnls),
            "since": self.since,
            "switch": self.switch,
            "paths": [asdict(path) for path in self.paths],
            "notes": self.notes,
        } | ({"rule": self.rule} if self.rule else {})

    def hold_ports(self, ports: Ports, *held: Port) -> None:
        """One port, or the two of a patch, which go together."""
        self.undo.callback(ports.remove, held[0])
        self.ports += held

    def hold_lac(self, tunnels: Tunnels, lac: Lac) -> None:
        """The plug counts among the LAC's users already, and does so until it is taken out."""
        self.undo.callback(tunnels.leave, lac, self.id)
        self.lac = lac

    def serve(self, nodes: Nodes, node: Node) -> None:
        nodes.serve(node, self.id)
        self.undo.callback(nodes.drop, node)

    def visit(self, node: Node) -> None:
        """Become a member of it."""
        self.node, self.switch = node, node.switch
        node.members.add(self.id)
        self.undo.callback(node.members.discard, self.id)


@dataclass(frozen=True)
class Notice:
    """Something a plug has to be told: it was unplugged, by what, and why."""

    plug: int
    subject: str
    cause: str
