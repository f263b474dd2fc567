# SPDX-License-Identifier: GPL-2.0-or-later
"""Nodes of legacy clients (``switch://`` and its like) whose interfaces switch in the kernel.

The process that serves a node plugs an interface, or a network, into a kernel switch, and with it a bridge, behind
which are all its clients.  Others that plug an interface or a network into the node (``netdev://… vde://…``) become its
*members*: their ports join the same kernel switch, those of networks by a patch (:mod:`vdexdp.control.ports`) to the
network's own switch.  That one is the node's, too, where it serves a network and does as the network's switch does.  A
member shows a connection to the node's control socket: the system tells who listens there and by which name, and having
it proves that the caller may use the node.

Two switches that learn are one only if each hears where addresses are.  Either half sends a frame whose source is new
or has moved to everybody, the other half included (``SWITCH_F_ANNOUNCE`` here, ``Policy.announcing`` there); and when a
client goes, the kernel forgets what it had learnt behind the bridge.  With ``bonding`` the bridge has as many turns as
there are clients.
"""

from __future__ import annotations

import os
import socket
import struct
from dataclasses import dataclass, field
from typing import Final

from vdexdp.control.abi import K
from vdexdp.control.channel import Body
from vdexdp.control.tables import Tables
from vdexdp.control.tunnels import Lac
from vdexdp.errors import KernelPathError, ProtocolError
from vdexdp.plugins.base import NodeMode

Key = tuple[int, str]
"""Who serves a node, by its pid, and the name of the control socket."""

_UCRED: Final = struct.Struct("3i")
_MODES: Final[dict[NodeMode, str]] = {
    "switch": "MODE_SWITCH",
    "hub": "MODE_HUB",
    "multi": "MODE_MULTI",
    "bonding": "MODE_BONDING",
}


@dataclass
class Node:
    """``plug`` is 0 as long as the server has not come back after a restart.  With a ``lac``, ``switch`` is that of the
    LAC; a node that has another one is patched to its LAC, if any.
    """

    key: Key
    switch: int
    mode: NodeMode
    expiry: int
    lac: Lac | None = None
    plug: int = 0
    members: set[int] = field(default_factory=set)

    @property
    def name(self) -> str:
        return f"{self.mode} {os.path.dirname(self.key[1])}"

    def state(self) -> Body:
        return {"pid": self.key[0], "path": self.key[1], "mode": self.mode, "expiry": self.expiry}


class Nodes:
    """All nodes, by their keys."""

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        self.all: dict[Key, Node] = {}

    def make_switch(self, mode: NodeMode, expiry: int) -> int:
        """A kernel switch for a node of its own; ``expiry`` in seconds.  Raises HostError."""
        switch = self.tables.take_switch()
        self.tables.write_switch(switch, K[_MODES[mode]], expiry)
        return switch

    def note(self, key: Key, switch: int, mode: NodeMode, expiry: int, lac: Lac | None) -> Node:
        """The node of this key, known from now on."""
        node = self.all.setdefault(key, Node(key, switch, mode, expiry))
        if lac is not None and lac.switch == switch:
            node.lac = lac
        return node

    def serve(self, node: Node, plug: int) -> None:
        """From now on ``plug`` serves it."""
        node.plug = plug
        if node.mode == "switch":
            self.tables.switch_flag(node.switch, K["SWITCH_F_ANNOUNCE"], True)

    def served_by(self, plug: int) -> Node | None:
        return next((node for node in self.all.values() if node.plug == plug), None)

    def drop(self, node: Node) -> None:
        """Forget a node; its switch stays."""
        self.all.pop(node.key, None)
        if not any(one.switch == node.switch for one in self.all.values()):
            self.tables.switch_flag(node.switch, K["SWITCH_F_ANNOUNCE"], False)

    def behind(self, connection: int) -> Node:
        """The node that a descriptor is connected to.  Raises ProtocolError; KernelPathError for none of ours."""
        key = key_of(connection)
        node = self.all.get(key)
        if node is None:
            raise KernelPathError(key[1] or "vde://", "nobody here serves it with a kernel switch")
        return node

    def learning(self) -> set[int]:
        """The switches of nodes that learn."""
        return {node.switch for node in self.all.values() if node.mode == "switch"}


def key_of(connection: int) -> Key:
    """Of the node that a descriptor is connected to.  Raises ProtocolError."""
    try:
        with socket.socket(fileno=os.dup(connection)) as control:
            credentials = control.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
            return _UCRED.unpack(credentials)[0], os.fsdecode(control.getpeername())
    except (OSError, TypeError, struct.error) as error:
        raise ProtocolError("plug", "the descriptor is no connection to a node") from error
