# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon's clients: who they are, what they may do, what they are answered."""

from __future__ import annotations

from dataclasses import dataclass, field

from vdexdp.control.channel import Body, Channel, Message, Peer
from vdexdp.control.model import Plug
from vdexdp.control.protocol import End
from vdexdp.errors import PrivilegeError


def authorize(peer: Peer, ends: tuple[End, ...]) -> None:
    """Whether a caller may use these ends (or, with none, look and change).  Raises PrivilegeError.  Root only."""
    if peer.uid != 0:
        raise PrivilegeError("daemon", f"user {peer.uid} may not use it", "run as root")


@dataclass
class Client:
    """One connection.  ``waiting`` is a request that is answered later."""

    channel: Channel
    peer: Peer
    plug: Plug | None = None
    waiting: Message | None = None


@dataclass
class Reply:
    """An answer and the descriptors that go with it; ``own`` are closed once it is sent."""

    body: Body
    fds: list[int] = field(default_factory=list)
    own: list[int] = field(default_factory=list)
