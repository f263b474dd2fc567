# SPDX-License-Identifier: GPL-2.0-or-later
"""The keeper: holds what lets frames flow on without a daemon, for plugs that must not hold it themselves.

Who has the descriptor of a map may write into the map, who has that of a link may detach it or put another program
there, privileged or not.  So a plug of a user other than root gets none of them.  Its lease is here instead, in a
process that the daemon forks, and that does nothing while the daemon lives.

When the daemon is gone, the keeper behaves like so many plugs of root's: it looks for the next daemon, or starts it
where the old one had been started on demand, and hands the leases back.  Then the users come back to that daemon and
claim what is theirs.  What the kernel would have cleaned up after a plug of root's, the keeper does: each user's plug
has one end of a pipe, and when that is closed, by whatever death, the keeper removes its interfaces and lets go of the
rest.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import select
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from vdexdp.control import client, leases
from vdexdp.control.channel import Body, Channel
from vdexdp.control.forked import fork_off
from vdexdp.control.model import Model
from vdexdp.control.netlink import Netlink
from vdexdp.control.plug import Plug
from vdexdp.control.protocol import PlugReply
from vdexdp.errors import DaemonError, HangUp, HostError, VdexdpError

ALIVE: Final = "alive"
"""The name of the descriptor that says, by its hang-up, that a user's plug has ended."""


@dataclass
class Keeper:
    """The keeper as the daemon sees it.  It is forked when there is something to hold."""

    auto: bool
    """Whether it may start a daemon."""
    pid: int = 0
    channel: Channel | None = None
    _children: list[int] = field(default_factory=list)

    def hold(self, plug: int, lease: Body, fds: Mapping[str, int]) -> None:
        """Hold a plug's lease, in place of what was held of it before.  Raises HostError."""
        if self.channel is None:
            self._start()
        assert self.channel is not None
        body = {"op": "hold", "plug": plug, "lease": lease, "fds": list(fds)}
        try:
            try:
                self.channel.send(body, list(fds.values()))
            except BlockingIOError:  # many at once, as after a restart of the worker
                poll = select.poll()
                poll.register(self.channel.sock, select.POLLOUT)
                poll.poll(1000)
                self.channel.send(body, list(fds.values()))
        except (DaemonError, OSError) as error:
            raise HostError("keeper", f"does not listen: {error}", "try again") from error

    def drop(self, plug: int) -> None:
        """Let go of a plug that the daemon has taken out."""
        self._tell({"op": "drop", "plug": plug})

    def quit(self) -> None:
        """Let go of everything, and end."""
        self._tell({"op": "quit"})
        self.forget()

    def forget(self) -> None:
        """Go on without the keeper, which has died, or is to live on without us."""
        if self.channel is not None:
            self.channel.close()
            self._children.append(self.pid)
        self.channel, self.pid = None, 0

    def entrust(self, model: Model, plug: Plug) -> tuple[Body, int]:
        """Hold the lease of a user's plug; what he gets instead, and the other end of the pipe.

        Raises HostError.
        """
        plug.token = secrets.token_hex(16)
        plug.alive, end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            self.renew(model, plug)
        except HostError:
            os.close(end)
            raise
        return {"token": plug.token}, end

    def renew(self, model: Model, plug: Plug) -> None:
        """Hold the lease as it is now.  Raises HostError."""
        self.hold(plug.id, *leases.make(model, plug))

    def said(self) -> bool:
        """Something came: False where that is the keeper's end."""
        if self.channel is None:
            return False
        try:
            return self.channel.recv() is not None
        except BlockingIOError:
            return True

    def _start(self) -> None:
        for pid in list(self._children):
            with contextlib.suppress(ChildProcessError):
                if not os.waitpid(pid, os.WNOHANG)[0]:
                    continue
            self._children.remove(pid)
        try:
            self.pid, sock = fork_off(lambda control: _Process(Channel(control), self.auto).run(), set())
        except OSError as error:
            raise HostError.from_oserror("keeper", error) from error
        self.channel = Channel(sock)

    def _tell(self, body: Body) -> None:
        if self.channel is not None:
            with contextlib.suppress(DaemonError, OSError):
                self.channel.send(body)


def claimed(model: Model, token: str, uid: int) -> Plug:
    """The plug that a user claims.  Raises HostError."""
    for plug in model.plugs.values():
        if plug.token and plug.uid == uid and secrets.compare_digest(plug.token.encode(), token.encode()):
            return plug
    raise HostError("lease", "its ports were given up meanwhile", "plug again")


class _Process:
    """The keeper itself."""

    def __init__(self, control: Channel, auto: bool) -> None:
        self.control = control
        self.auto = auto
        self.leases: dict[int, tuple[Body, dict[str, int]]] = {}

    def run(self) -> None:
        self.control.sock.setblocking(True)
        while (message := self.control.recv()) is not None:
            op, plug = message.body.get("op"), int(message.body.get("plug", 0))
            if op == "hold":
                self._drop(plug)
                self.leases[plug] = message.body["lease"], message.named()
                continue
            message.close()
            if op == "drop":
                self._drop(plug)
            elif op == "quit":
                return
        self.control.close()
        self._alone()

    def _drop(self, plug: int) -> None:
        _, fds = self.leases.pop(plug, (None, {}))
        for fd in fds.values():
            os.close(fd)

    def _alone(self) -> None:
        """Without a daemon: until the users of all plugs have ended, or the next daemon has all that is theirs."""
        plugs = {
            number: client.Plug(None, PlugReply(number, [], [], lease, fds), self.auto, state="orphaned")
            for number, (lease, fds) in self.leases.items()
        }
        while plugs:
            poll = select.poll()
            for plug in plugs.values():
                poll.register(plug.reply.fds[ALIVE], 0)  # its hang-up only, whatever the user may write
                if plug.fileno() >= 0:
                    poll.register(plug.fileno(), select.POLLIN)
            timeouts = [one for plug in plugs.values() if (one := plug.timeout()) is not None]
            ready = dict(poll.poll(min(timeouts) * 1000 + 1 if timeouts else None))
            for number, plug in list(plugs.items()):
                if plug.reply.fds[ALIVE] in ready:
                    if plug.state == "orphaned":
                        _remove_interfaces(plug.reply.lease)
                elif _goes_on(plug, ready):
                    continue
                plug.close()
                del plugs[number]


def _goes_on(plug: client.Plug, ready: Mapping[int, int]) -> bool:
    """Serve a plug whose user lives; False where a daemon has it, or has no place for it any more."""
    try:
        if plug.fileno() in ready:
            plug.serve()
        plug.tick()
    except (HangUp, VdexdpError):
        return False
    return True


def _remove_interfaces(lease: Mapping[str, Any]) -> None:
    """What the daemon had made for a plug: a user may have made it stay, and no daemon is there to see to it."""
    with Netlink() as netlink:
        for port in lease["ports"]:
            link = netlink.link(port["ifindex"]) if port["owned"] else None
            if link is not None and link.name == port["name"]:
                with contextlib.suppress(HostError):
                    netlink.delete_link(link.index)
