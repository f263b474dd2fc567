# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon's loop: connections, requests, events.

One thread, one selector.  A connection that hangs up takes its plug with it.  Whatever a client sends, it gets an
answer or is hung up on; nothing it does stops the loop.

After a daemon died, its plugs come back with their leases.  The first lease brings the maps; what they hold of plugs
that did not come back is swept after a while.  Until the processes that the old daemon had noted have come back, or a
moment has passed, new plugs wait: made on fresh maps they would never meet the old ones.
"""

from __future__ import annotations

import os
import select
import selectors
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from vdexdp import __version__
from vdexdp.control import libbpf, report
from vdexdp.control.channel import Body, Channel, Message, take
from vdexdp.control.clients import Client, Reply
from vdexdp.control.dataplane import Dataplane
from vdexdp.control.descriptors import Porters
from vdexdp.control.guests import COSTS, Guests, only_own
from vdexdp.control.host import Host
from vdexdp.control.keeper import ALIVE, Keeper, claimed
from vdexdp.control.log import Log
from vdexdp.control.model import Model, Notice, Plug, release
from vdexdp.control.netlink import Event, Monitor, Netlink
from vdexdp.control.observe import Observatory
from vdexdp.control.policy import DEFAULT_FILE
from vdexdp.control.protocol import VERSION, PlugRequest, check_request, failure, netns_inode
from vdexdp.control.rundir import RunDir
from vdexdp.control.wish import Wish
from vdexdp.errors import DaemonError, HostError, PrivilegeError, ProtocolError, RequestError, VdexdpError
from vdexdp.users import user_name

LINGER: Final = 1.0
"""Seconds that a daemon started on demand stays after its last plug."""
START_LINGER: Final = 10.0
"""Seconds that it waits for its first one."""
COME_BACK: Final = 3.0
"""Seconds that plugs of a dead daemon have to come back."""
PEERS_EVERY: Final = 2.0
SAMPLE_LINGER: Final = 300.0
"""Seconds that frames are timed after the last scrape that wanted it: more than any scrape interval."""
CONNECTIONS_MAX: Final = 1024
ROOTS_SHARE: Final = 128
"""How many of them are root's alone."""
COMMON_POINTS: Final = ("port_ingress", "port_egress", "uplink_ingress", "exception_ingress")


class Server:
    """One network namespace's daemon.  ``run`` returns when it is over; ``close`` it then."""

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
        self.wait_until = now + COME_BACK if self.awaited else 0.0
        self.sweep: tuple[float, set[int], set[int]] | None = None
        self.next_peers = now
        self.sample_until = 0.0
        self.guests.load()
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
        try:
            while self.running:
                for key, _ in self.selector.select(self._timeout()):
                    if self.selector.get_map().get(key.fd) is key:  # not unregistered by a handler before it
                        self._guarded(key.data)
                self._timers()
        finally:
            signal.set_wakeup_fd(old)
            reader.close()
            writer.close()

    def _guarded(self, handler: Callable[[], object]) -> None:
        try:
            handler()
        except Exception as error:
            self.log.failure(error)

    def _signalled(self, reader: socket.socket) -> None:
        if set(reader.recv(64)) - {signal.SIGHUP}:
            self.running = False
        else:
            self._read_policy()

    def _timeout(self) -> float:
        now = time.monotonic()
        times = [self.next_peers if self.model and self.model.tunnels.lacs else now + 60.0]
        times += [self.leave_at] if self.leave_at is not None else []
        times += [self.wait_until] if self.awaited else []
        times += [self.sweep[0]] if self.sweep else []
        times += [self.revive_at] if self.revive_at is not None else []
        times += self.paused.values()
        times += [now] if self._strays_are_due() else []
        times += [self.sample_until] if self.model is not None and self.model.host.tables.sample else []
        return max(0.0, min(times) - now)

    def _timers(self) -> None:
        now = time.monotonic()
        if self.model is not None and now >= self.next_peers:
            self.next_peers = now + PEERS_EVERY
            self._guarded(self.model.poll_peers)
        if self.awaited and now >= self.wait_until:
            self.awaited.clear()
        all_back = self.expected and not self.awaited
        if self.sweep is not None and self.model is not None and (all_back or now >= self.sweep[0]):
            _, ports, switches = self.sweep
            self.sweep = None
            self._tell(self.model.dismiss_orphans())
            self.model.sweep(ports, switches)
            self._guarded(self.model.remirror)
        if not self.awaited:
            self._serve_waiting()
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

    def _send(self, client: Client, body: Body, fds: list[int] | None = None) -> bool:
        """False where the client is gone or does not read."""
        try:
            client.channel.send(body, fds or [])
        except (DaemonError, OSError):
            return False
        return True

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
        for client in _hung_up(self.clients.values()):
            self._hang_up(client)

    def _pause(self, client: Client, seconds: float) -> None:
        """Read nothing for a while, unless nobody waits for an answer any more."""
        if _hung_up([client]):
            self._hang_up(client)
            return
        self.selector.unregister(client.channel)
        self.paused[client.channel.fileno()] = time.monotonic() + seconds

    def _plugs_changed(self) -> None:
        plugged = [client for client in self.clients.values() if client.plug is not None]
        self.rundir.write(Counter(self.keeper.pid if client.guest else client.peer.pid for client in plugged))
        if self.auto:
            self.leave_at = None if plugged else time.monotonic() + LINGER
        self._watch_worker()
        self._watch_keeper()

    # Requests

    def _answer(self, client: Client, message: Message) -> Reply | None:
        """The reply; None where the request has to wait."""
        body = message.body
        op = check_request(body)
        if op == "hello":
            return Reply(self._hello())
        if client.guest:
            self.guests.charge(client.peer, COSTS.get(op, 0.0))
        match op:
            case "plug" | "may":
                asked = PlugRequest.from_json(body)
                asked = replace(asked, pid=client.peer.pid or asked.pid)  # 0: the caller is in another PID namespace
                return self._plug(client, asked, message) if op == "plug" else Reply(self._may(client, asked))
            case "clients" if client.plug is not None:
                self._model().clients(client.plug, max(take(body, "count", int), 0), take(body, "left", bool))
                return Reply({"ok": True})
            case "policy":
                return Reply({"ok": True, "used": self._used(client)} | self.guests.grants(client.peer))
            case "resume" if "token" in take(body, "lease", dict):
                return self._claim(client, take(body["lease"], "token", str))
            case "show" if client.guest:
                shown = self._show(ask_worker=False)
                return Reply(only_own(shown, self.model.plugs.values() if self.model is not None else (), client.peer))
            case "fdb" if client.guest and take(body, "action", str, "list") == "list":
                return Reply({"ok": True} | report.fdb(self._model(), body, client.peer.uid))
        if client.guest:
            raise PrivilegeError("daemon", f"user {user_name(client.peer.uid)} may not ask it for that", "run as root")
        match op:
            case "resume":
                return self._resume(client, message)
            case "show":
                self._sample(take(body, "sample", int, 0))
                return Reply(self._show())
            case "fdb":
                return Reply({"ok": True} | report.fdb(self._model(), body))
            case "features":
                return Reply({"ok": True, "features": self._model().host.dataplane.features.all()})
            case "log":
                return Reply({"ok": True, "records": list(self.log.records)})
            case "watch":
                return self._watch(client, body)
            case "watched" | "unwatch":
                return Reply({"ok": True} | self._watched(client, end=op == "unwatch"))
            case "mirror":
                return Reply({"ok": True} | self._mirror(body))
            case "stop":
                self.restart, self.running = False, False
                return Reply({"ok": True})
        raise ProtocolError("request", f'unknown operation "{op[:40]}"')

    def _hello(self) -> Body:
        about = {"version": __version__, "pid": os.getpid(), "netns": netns_inode(), "auto": self.auto}
        return {"ok": True, "v": VERSION} | about

    def _sample(self, every: int) -> None:
        """Have one frame in ``every`` timed from now on; for a while, if nobody asks again.  0 leaves it as it is."""
        if not 0 <= every < 1 << 32:
            raise ProtocolError("show", '"sample" is out of range')
        if every and self.model is not None:
            self.sample_until = time.monotonic() + SAMPLE_LINGER
            share = ((1 << 32) - 1) // every
            if share != self.model.host.tables.sample:
                self.model.host.tables.set_sample(share)

    def _show(self, *, ask_worker: bool = True) -> Body:
        nothing: Body = {"kernel": os.uname().release, "plugs": [], "switches": [], "ports": [], "uplinks": []}
        shown = (
            report.show(self.model, ask_worker=ask_worker)
            if self.model is not None
            else nothing | {"worker": {"running": False}}
        )
        return self._hello() | {"since": self.since, "uptime": round(time.time() - self.since, 1)} | shown

    def _model(self) -> Model:
        if self.model is None:
            self.model = Model(Host(Dataplane.create(), self.netlink))
        return self.model

    def prepare(self) -> None:
        """Load the programs that every cable needs before one asks, unless an older daemon's maps may come."""
        if not self.awaited:
            self._model().host.dataplane.prepare(COMMON_POINTS)

    def _plug(self, client: Client, asked: PlugRequest, message: Message) -> Reply | None:
        if client.plug is not None or client.waiting is not None:
            raise ProtocolError("plug", "this connection has a plug already")
        if self.awaited:
            return None
        self._reap()
        model, name, limit = self._model(), "", 0
        if client.guest:
            try:
                rule, asked = self.guests.allow(client.peer, asked, self.netlink, self._used(client), message.fds)
            except PrivilegeError as error:
                self.log.say(f"user {user_name(client.peer.uid)}: {error}", "warning", client=client.peer.pid)
                raise
            name, limit = rule.name, rule.addresses
        reply = model.plug(asked, message.fds, client.peer.uid, name, limit)
        client.plug = model.plugs[reply.plug]
        own = [reply.fds["bridge"]] if "bridge" in reply.fds else []
        if client.guest:
            try:
                reply.lease, end = self.keeper.entrust(model, client.plug)
            except HostError:
                self._unplug(client.plug)
                client.plug = None
                for fd in own:
                    os.close(fd)
                raise
            own.append(end)
            reply.fds = {ALIVE: end} | ({"bridge": own[0]} if len(own) > 1 else {})
        self._said(f"{' -- '.join(asked.vnls)} plugged", client)
        self._plugs_changed()
        return Reply(reply.to_json(), list(reply.fds.values()), own)

    # Users other than root

    def _used(self, client: Client) -> int:
        """How many plugs a user has."""
        plugs = self.model.plugs.values() if self.model is not None else ()
        return sum(plug.uid == client.peer.uid for plug in plugs)

    def _may(self, client: Client, asked: PlugRequest) -> Body:
        """Whether the policy would allow a plug."""
        rule = ""
        if client.guest:
            rule = self.guests.allow(client.peer, asked, self.netlink, self._used(client))[0].name
        return {"ok": True, "rule": rule}

    def _claim(self, client: Client, token: str) -> Reply | None:
        """Give a user's plug, that the keeper has brought, to him."""
        if client.plug is not None or client.waiting is not None:
            raise ProtocolError("resume", "this connection has a plug already")
        if self.awaited:
            return None
        model = self._model()
        plug = claimed(model, token, client.peer.uid)
        holder = next((one for one in self.clients.values() if one.plug is plug), None)
        if holder is None or holder.guest:
            raise HostError("lease", "somebody has claimed it", "plug again")
        self.keeper.renew(model, plug)
        holder.plug, client.plug = None, plug
        self._send(holder, {"event": "unplugged", "subject": "keeper", "cause": "its user is back"})
        self._said("claimed by its user", client)
        self._plugs_changed()
        self._withdraw()
        return Reply({"ok": True, "plug": plug.id})

    def _read_policy(self) -> None:
        """Read the policy, again; plugs that it allows no more are taken out."""
        if self.guests.load():
            self._open_socket()
            self._withdraw()

    def _open_socket(self) -> None:
        try:
            self.rundir.open_to(self.guests.policy.group)
        except HostError as error:
            self.log.say(f"the socket is not open to the policy's group: {error}", "error")

    def _withdraw(self) -> None:
        if self.guests.broken or self.model is None:
            return
        notices = []
        for client in self.clients.values():
            if not client.guest or client.plug is None:
                continue
            try:
                self.guests.allow(client.peer, client.plug.request, self.netlink, 0)
            except (PrivilegeError, RequestError) as error:
                self._unplug(client.plug)
                notices.append(Notice(client.plug.id, error.subject, error.cause))
            except VdexdpError:  # an interface or a route is gone: that is followed elsewhere
                continue
        self._tell(notices)

    def _strays_are_due(self) -> bool:
        return self.strays and not self.awaited and self.sweep is None

    def _remove_strays(self) -> None:
        """Delete the interfaces that a daemon had made, when it was killed, and the keeper of the users' too."""
        known = {port.ifindex for port in self.model.ports.all.values()} if self.model is not None else set()
        for link in self.netlink.links():
            if (link.kind, link.name[:4]) in (("veth", "vdxv"), ("tun", "vdxb")) and link.index not in known:
                self.netlink.delete_link(link.index)
                self.log.say(f"removed {link.name}, which a killed daemon had left", "warning")

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

    def _resume(self, client: Client, message: Message) -> Reply:
        lease = take(message.body, "lease", dict)
        if client.plug is not None:
            raise ProtocolError("resume", "this connection has a plug already")
        fds = message.named()
        message.fds.clear()
        try:
            self._adopt_maps(fds)
            client.plug = self._model().resume(lease, fds)
        finally:
            release(fds)
            self.awaited.subtract([client.peer.pid])
            self.awaited = +self.awaited
        self._plugs_changed()
        if self.sweep is None:  # it comes late
            self._guarded(self._model().remirror)
        host = self._model().host
        self._said(f"taken over; {host.replaced} programs replaced", client, replaced=host.replaced)
        host.replaced = 0
        self._tell(self._model().follow([Event("lost", 0)]))
        state, held = self._model().lease(client.plug) if client.plug is not None else ({}, {})
        plug = lease["plug"]["id"] if client.plug is None else client.plug.id
        return Reply({"ok": True, "plug": plug, "lease": state, "fds": list(held)}, list(held.values()))

    def _said(self, what: str, client: Client, **fields: Any) -> None:
        if client.plug is not None:
            number, pid = client.plug.id, client.peer.pid
            self.log.say(f"plug {number} of process {pid}: {what}", plug=number, client=pid, **fields)

    def _adopt_maps(self, fds: dict[str, int]) -> None:
        """The first lease's maps become ours; every other lease has to bring the same."""
        maps = {name.removeprefix("map:"): fd for name, fd in fds.items() if name.startswith("map:")}
        if self.model is None:
            host = Host(Dataplane.adopt(maps), self.netlink)
            for name in maps:
                del fds[f"map:{name}"]
            self.model = Model(host)
            ports, switches = host.tables.adopt()
            try:
                host.dataplane.prepare(COMMON_POINTS)
            except VdexdpError as error:
                host.refused = str(error)
                self.log.failure(HostError("upgrade", f"the older programs go on: {error}"))
            # Loading, and compiling even more, takes its time, and the other plugs wait in our queue meanwhile.
            self.wait_until = time.monotonic() + COME_BACK
            self.sweep = (self.wait_until, ports, switches)
            return
        ours = libbpf.map_info(self.model.host.dataplane.maps["ports"].fd).id
        if "ports" not in maps or libbpf.map_info(maps["ports"]).id != ours:
            raise HostError("lease", "a newer daemon has made a data plane of its own", "plug again")

    def _serve_waiting(self) -> None:
        for client in list(self.clients.values()):
            if client.waiting is not None:
                message, client.waiting = client.waiting, None
                self._request(client, message)

    # Watching

    def _watch(self, client: Client, body: Body) -> Reply:
        if client.watch >= 0:
            raise ProtocolError("watch", "this connection watches already")
        wish = Wish.from_json(body)
        client.watch, ring = self._observatory().watch(wish)
        return Reply({"ok": True, "fds": ["ring"]}, [ring], [ring])

    def _watched(self, client: Client, *, end: bool) -> Body:
        if client.watch < 0:
            raise ProtocolError("watch", "this connection watches nothing")
        if not end:
            return self._observatory().counts(client.watch) | {"ports": report.port_names(self._model())}
        slot, client.watch = client.watch, -1
        return self._observatory().unwatch(slot)

    def _observatory(self) -> Observatory:
        if self.awaited or self.sweep is not None:
            raise HostError("daemon", "the plugs of the last one are just coming back", "try again in a moment")
        return self._model().observatory

    def _mirror(self, body: Body) -> Body:
        observatory, action = self._observatory(), take(body, "action", str)
        if action == "list":
            return {"mirrors": observatory.mirrored()}
        port = take(body, "port", int)
        if action == "add":
            self._model().mirror(port, take(body, "target", str))
        elif action == "remove":
            self._model().unmirror(port)
        else:
            raise ProtocolError("mirror", f'unknown action "{action[:40]}"')
        self._renew_leases(lambda plug: any(one.index == port for one in plug.ports))
        return {}

    # Events

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

    def _rtnetlink(self) -> None:
        events = self.monitor.events()
        if self.model is not None:
            self._tell(self.model.follow(events))

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

    def _renew_leases(self, wanted: Callable[[Plug], bool]) -> None:
        for client in self.clients.values():
            if client.plug is None or self.model is None or not wanted(client.plug):
                continue
            if client.guest:
                self.keeper.renew(self.model, client.plug)
            else:
                state, held = self.model.lease(client.plug)
                self._send(client, {"event": "lease", "lease": state, "fds": list(held)}, list(held.values()))


def _hung_up(clients: Iterable[Client]) -> list[Client]:
    """Those whose other side is closed, whatever is still to be read."""
    known = {client.channel.fileno(): client for client in clients}
    poll = select.poll()
    for fd in known:
        poll.register(fd, select.POLLRDHUP)
    return [known[fd] for fd, events in poll.poll(0) if events & (select.POLLHUP | select.POLLERR)]
