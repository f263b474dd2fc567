# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon's loop: connections, requests, events, timers.

One thread, one selector.  A connection that hangs up takes its plug with it.  Whatever a client sends, it gets an
answer or is hung up on; nothing it does stops the loop.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import time
from collections import Counter
from pathlib import Path
from typing import Final

from vdexdp.control import leases
from vdexdp.control.channel import Channel, Message
from vdexdp.control.clients import Client, Reply
from vdexdp.control.core import COME_BACK, LINGER, hung_up
from vdexdp.control.host import BRIDGE_TAP, INSIDE_VETH, is_ours
from vdexdp.control.log import Log
from vdexdp.control.policy import DEFAULT_FILE
from vdexdp.control.protocol import failure
from vdexdp.control.requests import Requests
from vdexdp.control.rundir import started
from vdexdp.errors import HostError, ProtocolError, VdexdpError

PEERS_EVERY: Final = 2.0
CONNECTIONS_MAX: Final = 1024
ROOTS_SHARE: Final = 128
"""How many of them are root's alone."""
LIVING_EVERY: Final = 1.0
"""Seconds after which the processes of plugs that are to come back are looked at: they may have ended."""


class Server(Requests):
    """One network namespace's daemon.  ``run`` returns when it is over; ``close`` it then."""

    def __init__(self, log: Log, *, auto: bool = False, policy: Path = DEFAULT_FILE) -> None:
        super().__init__(log, auto=auto, policy=policy)
        self.listener = self.rundir.listen(self.guests.policy.group)
        self._open_socket()
        self.selector.register(self.listener, selectors.EVENT_READ, self._accept)
        self.selector.register(self.monitor, selectors.EVENT_READ, self._rtnetlink)

    # The loop

    def run(self) -> None:
        """Serve until a signal, ``stop``, or, started on demand, until nobody is plugged any more."""
        reader, writer = socket.socketpair(type=socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        old = signal.set_wakeup_fd(writer.fileno())
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: None)
        self.selector.register(reader, selectors.EVENT_READ, lambda: self._signalled(reader))
        self.wait_until = time.monotonic() + COME_BACK
        try:
            while self.running:
                ready = self.selector.select(self._timeout())
                for key, _ in ready:
                    if self.selector.get_map().get(key.fd) is key:  # not unregistered by a handler before it
                        self._guarded(key.data)
                self._await_plugs(idle=not ready)
                self._timers()
        finally:
            signal.set_wakeup_fd(old)
            reader.close()
            writer.close()

    def _signalled(self, reader: socket.socket) -> None:
        if set(reader.recv(64)) - {signal.SIGHUP}:
            self.running = False
        else:
            self._read_policy()

    def _timeout(self) -> float:
        now = time.monotonic()
        times = [self.next_peers if self.model and self.model.tunnels.lacs else now + 60.0]
        times += [self.leave_at] if self.leave_at is not None else []
        times += [self.wait_until] if self.awaited or self.sweep is not None else []
        times += [now + LIVING_EVERY] if self.awaited else []
        times += [self.revive_at] if self.revive_at is not None else []
        times += self.paused.values()
        times += [now] if self._strays_are_due() else []
        times += [self.sample_until] if self.model is not None and self.model.host.tables.sample else []
        return max(0.0, min(times) - now)

    def _await_plugs(self, *, idle: bool) -> None:
        """Go on when all plugs of the daemon before are back, or dead, or had their time.

        One that waits in our queue is not late, however slow we are: it takes a moment with nothing else to do.
        """
        self.awaited = Counter({pid: count for pid, count in self.awaited.items() if started(pid)})
        late = idle and time.monotonic() >= self.wait_until
        if self.awaited and late:
            self.awaited.clear()
            self.expected = False
        all_back = self.expected and not self.awaited
        if self.sweep is not None and self.model is not None and (all_back or late):
            ports, switches = self.sweep
            self.sweep = None
            self._tell(self.model.dismiss_orphans())
            leases.sweep(self.model, ports, switches)
            self._guarded(self.model.mirrors.restore)
        if not self.awaited:
            self._serve_waiting()

    def _timers(self) -> None:
        now = time.monotonic()
        if self.model is not None and now >= self.next_peers:
            self.next_peers = now + PEERS_EVERY
            self._guarded(self.model.poll_peers)
        if self._strays_are_due():
            self.strays = False
            self._guarded(self._remove_strays)
        for fd in [fd for fd, until in self.paused.items() if now >= until]:
            del self.paused[fd]
            self._listen_to(self.clients[fd])
        if self.revive_at is not None and now >= self.revive_at:
            self._guarded(self._revive_worker)
        if self.model is not None and self.model.host.tables.sample and now >= self.sample_until:
            self.model.host.tables.set_sample(0)
        if self.leave_at is not None and now >= self.leave_at:
            self.running = False

    def close(self) -> None:
        """Tell the plugs, and let go; with ``restart`` they keep their descriptors and wait for the next daemon."""
        plugged = [client for client in self.clients.values() if client.plug is not None]
        for client in plugged:
            self._send(client, {"event": "bye", "restart": self.restart})
        keep = bool(plugged) and self.restart
        if self.model is not None:
            self.model.observatory.close()
            if not keep:
                self.model.unplug_all()
                self.keeper.quit()
            self.model.host.close()
        self.rundir.close(keep=keep)
        for client in self.clients.values():
            client.channel.close()
        self.keeper.forget()
        for one in (self.listener, self.monitor, self.netlink, self.selector):
            one.close()

    # Connections

    def _accept(self) -> None:
        try:
            sock, _ = self.listener.accept()
        except OSError:  # the client is gone again, or descriptors ran out
            return
        sock.setblocking(False)
        channel = Channel(sock)
        client = Client(channel, channel.peer())
        if refusal := self._refuse(client):
            self._send(client, failure(refusal))
            channel.close()
            return
        self.clients[channel.fileno()] = client
        self._listen_to(client)

    def _refuse(self, client: Client) -> HostError | None:
        """Why there is no room for a connection.  Some is kept for root's."""
        if len(self.clients) >= CONNECTIONS_MAX - client.guest * ROOTS_SHARE:
            return HostError("daemon", f"it has {len(self.clients)} connections already")
        if client.guest:
            have = sum(one.peer.uid == client.peer.uid for one in self.clients.values())
            self.guests.charge(client.peer)
            if have >= self.guests.connections(client.peer):
                return HostError("daemon", f"you have {have} connections already", "close some")
        return None

    def _listen_to(self, client: Client) -> None:
        self.selector.register(client.channel, selectors.EVENT_READ, lambda: self._readable(client))

    def _readable(self, client: Client) -> None:
        if client.guest:
            if pause := self.guests.charge(client.peer, 0.0):
                self._pause(client, pause)
                return
            self.guests.charge(client.peer)
        try:
            message = self.porters.recv(client.channel) if client.guest else client.channel.recv()
        except BlockingIOError:
            return
        except ProtocolError as error:
            if not self._send(client, failure(error)):
                self._hang_up(client)
            return
        except OSError:
            message = None
        if message is None:
            self._hang_up(client)
            return
        self._request(client, message)

    def _request(self, client: Client, message: Message) -> None:
        try:
            reply = self._answer(client, message)
        except VdexdpError as error:
            reply = Reply(failure(error))
            if self.log.verbose:
                self.log.failure(error)
            if self.leave_at is not None and not self.awaited:  # started for nothing, perhaps
                self.leave_at = min(self.leave_at, time.monotonic() + LINGER)
        except Exception as error:
            cause = "internal error" if not isinstance(error, OSError) else "the system refused"
            reply = Reply(failure(HostError("daemon", f"{cause}: {error!r}", "see the daemon's log")))
            self.log.failure(error)
        if reply is None:
            client.waiting = message
            return
        message.close()
        if not self._send(client, reply.body, reply.fds):
            self._hang_up(client)
        for fd in reply.own:
            os.close(fd)

    def _pause(self, client: Client, seconds: float) -> None:
        """Read nothing for a while, unless nobody waits for an answer any more."""
        if hung_up([client]):
            self._hang_up(client)
            return
        self.selector.unregister(client.channel)
        self.paused[client.channel.fileno()] = time.monotonic() + seconds

    def _strays_are_due(self) -> bool:
        return self.strays and not self.awaited and self.sweep is None

    def _remove_strays(self) -> None:
        """Delete the interfaces that a daemon had made, when it was killed, and the keeper of the users' too."""
        known = {port.ifindex for port in self.model.ports.all.values()} if self.model is not None else set()
        for link in self.netlink.links():
            if is_ours(link, INSIDE_VETH, BRIDGE_TAP) and link.index not in known:
                self.netlink.delete_link(link.index)
                self.log.say(f"removed {link.name}, which a killed daemon had left", "warning")

    def _serve_waiting(self) -> None:
        for client in list(self.clients.values()):
            if client.waiting is not None:
                message, client.waiting = client.waiting, None
                self._request(client, message)

    # Events

    def _rtnetlink(self) -> None:
        events = self.monitor.events()
        if self.model is not None:
            self._tell(self.model.follow(events))
