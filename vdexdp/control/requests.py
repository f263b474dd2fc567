# SPDX-License-Identifier: GPL-2.0-or-later
"""What the daemon's clients may ask, and its answers.

After a daemon died, its plugs come back with their leases.  The first lease brings the maps; what they hold of plugs
that did not come back is swept after a while.  Until the processes that the old daemon had noted have come back, or a
moment has passed, new plugs wait: made on fresh maps they would never meet the old ones.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import Final

from vdexdp import __version__
from vdexdp.control import bpf_map, leases, report
from vdexdp.control.channel import Body, Message, take
from vdexdp.control.clients import Client, Reply
from vdexdp.control.core import COME_BACK, Core
from vdexdp.control.dataplane import Dataplane
from vdexdp.control.guests import COSTS, only_own
from vdexdp.control.host import Host
from vdexdp.control.keeper import ALIVE, claimed
from vdexdp.control.model import Model
from vdexdp.control.netlink import Event
from vdexdp.control.nodes import key_of
from vdexdp.control.observe import Observatory
from vdexdp.control.plug import Notice
from vdexdp.control.protocol import VERSION, PlugReply, PlugRequest, Visit, check_request, netns_inode
from vdexdp.control.wish import Wish
from vdexdp.errors import HostError, PrivilegeError, ProtocolError, RequestError, VdexdpError
from vdexdp.users import user_name

SAMPLE_LINGER: Final = 300.0
"""Seconds that frames are timed after the last scrape that wanted it: more than any scrape interval."""


class Requests(Core):
    """Raises VdexdpError for the client to be told."""

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

    def prepare(self) -> None:
        """Load the programs that every cable needs before one asks, unless an older daemon's maps may come."""
        if not self.awaited:
            self._model().host.dataplane.prepare()

    # Plugs

    def _plug(self, client: Client, asked: PlugRequest, message: Message) -> Reply | None:
        if client.plug is not None or client.waiting is not None:
            raise ProtocolError("plug", "this connection has a plug already")
        if self.awaited or self._is_early(client, asked, message.fds):
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
        client.plug, given = model.plug(asked, message.fds, client.peer.uid, name, limit)
        if client.guest:
            try:
                lease, end = self.keeper.entrust(model, client.plug)
            except HostError:
                self._unplug(client.plug)
                client.plug = None
                leases.release(given)
                raise
            given = held = {ALIVE: end} | given
        else:
            lease, held = leases.make(model, client.plug)
        self._said(f"{' -- '.join(asked.vnls)} plugged", client)
        self._plugs_changed()
        reply = PlugReply(client.plug.id, client.plug.paths, client.plug.notes, lease, held | given)
        return Reply(reply.to_json(), list(reply.fds.values()), list(given.values()))

    def _is_early(self, client: Client, asked: PlugRequest, fds: list[int]) -> bool:
        """Whether somebody visits a node that is about to be: its process is here, and its plug is not yet."""
        for end, index in zip(asked.ends, asked.fd_index, strict=True):
            if isinstance(end, Visit) and index is not None and index < len(fds) and not client.guest:
                key = key_of(fds[index])
                others = [one for one in self.clients.values() if one is not client and one.plug is None]
                return key not in self._model().nodes.all and key[0] in {one.peer.pid for one in others} - {0}
        return False

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

    # Plugs that come back

    def _resume(self, client: Client, message: Message) -> Reply:
        lease = take(message.body, "lease", dict)
        if client.plug is not None:
            raise ProtocolError("resume", "this connection has a plug already")
        fds = message.named()
        message.fds.clear()
        try:
            self._adopt_maps(fds)
            client.plug = leases.resume(self._model(), lease, fds)
        finally:
            leases.release(fds)
            self.awaited.subtract([client.peer.pid])
            self.awaited = +self.awaited
            self.wait_until = time.monotonic() + COME_BACK
        self._plugs_changed()
        if self.sweep is None:  # it comes late
            self._guarded(self._model().mirrors.restore)
        host = self._model().host
        self._said(f"taken over; {host.replaced} programs replaced", client, replaced=host.replaced)
        host.replaced = 0
        self._tell(self._model().follow([Event("lost", 0)]))
        state, held = leases.make(self._model(), client.plug) if client.plug is not None else ({}, {})
        plug = lease["plug"]["id"] if client.plug is None else client.plug.id
        return Reply({"ok": True, "plug": plug, "lease": state, "fds": list(held)}, list(held.values()))

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
                host.dataplane.prepare()
            except VdexdpError as error:
                host.refused = str(error)
                self.log.failure(HostError("upgrade", f"the older programs go on: {error}"))
            self.sweep = (ports, switches)
            return
        ours = bpf_map.info_of(self.model.host.dataplane.maps["ports"].fd).id
        if "ports" not in maps or bpf_map.info_of(maps["ports"]).id != ours:
            raise HostError("lease", "a newer daemon has made a data plane of its own", "plug again")

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
            self._model().mirrors.add(port, take(body, "target", str))
        elif action == "remove":
            self._model().mirrors.remove(port)
        else:
            raise ProtocolError("mirror", f'unknown action "{action[:40]}"')
        self._renew_leases(lambda plug: any(one.index == port for one in plug.ports))
        return {}
