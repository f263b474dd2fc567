# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon's state: its clients, their plugs, the worker and the keeper behind them.

:mod:`vdexdp.control.requests` answers over it, :mod:`vdexdp.control.server` drives both.
"""

from __future__ import annotations

import select
import selectors
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

from vdexdp.control import leases
from vdexdp.control.channel import Body, Channel
from vdexdp.control.clients import Client
from vdexdp.control.dataplane import Dataplane
from vdexdp.control.descriptors import Porters
from vdexdp.control.guests import Guests
from vdexdp.control.host import Host
from vdexdp.control.keeper import Keeper
from vdexdp.control.log import Log
from vdexdp.control.model import Model
from vdexdp.control.netlink import Monitor, Netlink
from vdexdp.control.plug import Notice, Plug
from vdexdp.control.policy import DEFAULT_FILE
from vdexdp.control.rundir import RunDir
from vdexdp.errors import DaemonError, HostError

LINGER: Final = 1.0
"""Seconds that a daemon started on demand stays after its last plug."""
START_LINGER: Final = 10.0
"""Seconds that it waits for its first one."""
COME_BACK: Final = 10.0
"""Seconds that plugs of a dead daemon have to come back, while their processes live; again after each that did."""


class Core:
    """What one network namespace's daemon knows and holds."""

    def __init__(self, log: Log, *, auto: bool = False, policy: Path = DEFAULT_FILE) -> None:
        self.auto = auto
        self.log = log
        self.guests = Guests(log, policy)
        self.keeper = Keeper(auto)
        self.porters = Porters()
        self.kept: Channel | None = None
        self.paused: dict[int, float] = {}
        self.strays = True
        """Whether interfaces of an earlier daemon's are to be looked for, once its plugs had their time."""
        self.since = time.time()
        self.rundir = RunDir()
        self.netlink = Netlink()
        self.monitor = Monitor()
        self.selector = selectors.DefaultSelector()
        self.clients: dict[int, Client] = {}
        self.model: Model | None = None
        self.watched: tuple[Channel, int] | None = None
        self.revive_at: float | None = None
        self.running = True
        self.restart = True
        now = time.monotonic()
        self.leave_at = now + START_LINGER if auto else None
        self.awaited = self.rundir.orphans
        self.expected = bool(self.awaited)
        self.wait_until = 0.0
        self.sweep: tuple[set[int], set[int]] | None = None
        self.next_peers = now
        self.sample_until = 0.0
        self.guests.load()

    def _guarded(self, handler: Callable[[], object]) -> None:
        try:
            handler()
        except Exception as error:
            self.log.failure(error)

    # Clients and plugs

    def _send(self, client: Client, body: Body, fds: list[int] | None = None) -> bool:
        """False where the client is gone or does not read."""
        try:
            client.channel.send(body, fds or [])
        except (DaemonError, OSError):
            return False
        return True

    def _said(self, what: str, client: Client, **fields: Any) -> None:
        if client.plug is not None:
            number, pid = client.plug.id, client.peer.pid
            self.log.say(f"plug {number} of process {pid}: {what}", plug=number, client=pid, **fields)

    def _tell(self, notices: list[Notice]) -> None:
        """Tell plugs that they were unplugged."""
        for notice in notices:
            for client in self.clients.values():
                if client.plug is not None and client.plug.id == notice.plug:
                    if client.plug.token:
                        self.keeper.drop(client.plug.id)
                    self._said(f"unplugged: {notice.subject}: {notice.cause}", client)
                    client.plug = None
                    self._send(client, {"event": "unplugged", "subject": notice.subject, "cause": notice.cause})
        if notices:
            self._plugs_changed()

    def _hang_up(self, client: Client) -> None:
        if self.clients.pop(client.channel.fileno(), None) is None:
            return
        if self.paused.pop(client.channel.fileno(), None) is None:
            self.selector.unregister(client.channel)
        client.channel.close()
        if client.waiting is not None:
            client.waiting.close()
            client.waiting = None
        if client.watch >= 0 and self.model is not None:
            self._guarded(partial(self.model.observatory.unwatch, client.watch))
        if client.plug is not None and self.model is not None:
            self._said("hung up: unplugged", client)
            notices = self._unplug(client.plug)
            client.plug = None
            self._plugs_changed()
            self._tell(notices)

    def _unplug(self, plug: Plug) -> list[Notice]:
        """Returns whom else that concerns."""
        assert self.model is not None
        notices = self.model.unplug(plug)
        if plug.token:
            self.keeper.drop(plug.id)
        return notices

    def _reap(self) -> None:
        """See hang-ups that wait in the queue: a plain restart must not meet its own dead plug."""
        for client in hung_up(self.clients.values()):
            self._hang_up(client)

    def _model(self) -> Model:
        if self.model is None:
            self.model = Model(Host(Dataplane.create(), self.netlink))
        return self.model

    def _plugs_changed(self) -> None:
        plugged = [client for client in self.clients.values() if client.plug is not None]
        self.rundir.write(Counter(self.keeper.pid if client.guest else client.peer.pid for client in plugged))
        if self.auto:
            self.leave_at = None if plugged else time.monotonic() + LINGER
        self._watch_worker()
        self._watch_keeper()

    def _renew_leases(self, wanted: Callable[[Plug], bool]) -> None:
        for client in self.clients.values():
            if client.plug is None or self.model is None or not wanted(client.plug):
                continue
            if client.guest:
                self.keeper.renew(self.model, client.plug)
            else:
                state, held = leases.make(self.model, client.plug)
                self._send(client, {"event": "lease", "lease": state, "fds": list(held)}, list(held.values()))

    # Helpers: the exception worker and the keeper

    def _watch_worker(self) -> None:
        """Listen to the exception worker of the moment, if there is one."""
        exception = self.model.tunnels.exception if self.model is not None else None
        channel = exception.channel if exception is not None else None
        if self.watched is not None and self.watched[0] is not channel:
            with suppress(KeyError, ValueError):
                self.selector.unregister(self.watched[1])
            self.watched = None
        if self.watched is None and channel is not None:
            self.watched = (channel, channel.fileno())
            self.selector.register(channel.fileno(), selectors.EVENT_READ, self._worker)

    def _worker(self) -> None:
        if self.model is None or self.model.tunnels.exception is None:
            return
        events, alive = self.model.tunnels.exception.events()
        self.model.worker_said(events)
        if not alive and self.watched is not None:
            self.log.failure(HostError("exception worker", "ended", "starting another one"))
            self.selector.unregister(self.watched[1])
            self.watched = None
            self.revive_at = time.monotonic() + (0.0 if self.model.tunnels.exception.restarts < 3 else 1.0)

    def _revive_worker(self) -> None:
        self.revive_at = None
        if self.model is None:
            return
        self.model.tunnels.restart_worker()
        self._watch_worker()
        self._renew_leases(lambda plug: plug.lac is not None)

    def _watch_keeper(self) -> None:
        if self.kept is not self.keeper.channel:
            if self.kept is not None and self.kept.fileno() >= 0:
                self.selector.unregister(self.kept)
            self.kept = self.keeper.channel
            if self.kept is not None:
                self.selector.register(self.kept, selectors.EVENT_READ, self._keeper_said)

    def _keeper_said(self) -> None:
        if self.model is None or self.keeper.said():
            return
        self.log.failure(HostError("keeper", "ended", "starting another one"))
        if self.kept is not None:
            self.selector.unregister(self.kept)
            self.kept = None
        self.keeper.forget()
        for client in self.clients.values():
            if client.guest and client.plug is not None:
                self.keeper.renew(self.model, client.plug)
        self._plugs_changed()


def hung_up(clients: Iterable[Client]) -> list[Client]:
    """Those whose other side is closed, whatever is still to be read."""
    known = {client.channel.fileno(): client for client in clients}
    poll = select.poll()
    for fd in known:
        poll.register(fd, select.POLLRDHUP)
    return [known[fd] for fd, events in poll.poll(0) if events & (select.POLLHUP | select.POLLERR)]
