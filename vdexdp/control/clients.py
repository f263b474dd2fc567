# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon's clients: who they are, what they are answered."""

from __future__ import annotations

from dataclasses import dataclass, field

from vdexdp.control.channel import Body, Channel, Message, Peer
from vdexdp.control.plug import Plug


@dataclass
class Client:
    """One connection.  ``waiting`` is a request that is answered later."""

    channel: Channel
    peer: Peer
    plug: Plug | None = None
    waiting: Message | None = None
    watch: int = -1
    """The slot of the observer that this connection is."""

    @property
    def guest(self) -> bool:
        """Not root: the policy says what he may."""
        return self.peer.uid != 0


@dataclass
class Reply:
    """An answer and the descriptors that go with it; ``own`` are closed once it is sent."""

    body: Body
    fds: list[int] = field(default_factory=list)
    own: list[int] = field(default_factory=list)
