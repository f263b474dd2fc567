# SPDX-License-Identifier: GPL-2.0-or-later
"""Callers other than root: what the policy in force lets them do, and how much of the daemon's time they may have.

Who asks is what the kernel says (SO_PEERCRED, SO_PEERGROUPS), what for is made canonical before it is judged, and what
the rule says about a port is put in place of what was asked.  An interface has to be granted, and must not be one that
the host uses itself; a tap that is named must be the one whose descriptor came along; a network namespace must
be the caller's own.

Each user has a bucket of ``BURST`` units, refilled with ``RATE`` a second; a request costs one to four.  Who has used
it up is not read until there is some again: then his requests queue up in his own sockets.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final

from vdexdp.control import policy
from vdexdp.control.channel import Peer
from vdexdp.control.descriptors import netns_owner, tap_of
from vdexdp.control.host import OURS
from vdexdp.control.log import Log
from vdexdp.control.netlink import Netlink, canonical
from vdexdp.control.plug import Plug
from vdexdp.control.protocol import Bridge, End, PlugRequest, Visit, netns_inode
from vdexdp.control.tunnels import find_uplink
from vdexdp.errors import PrivilegeError, RequestError, VdexdpError
from vdexdp.plugins.base import Inside, Netdev, Tunnel
from vdexdp.users import user_name

BURST: Final = 60.0
RATE: Final = 20.0
COSTS: Final = {"plug": 3.0, "may": 1.0, "show": 3.0, "fdb": 3.0, "resume": 1.0}
"""Beside the one unit that each message costs."""
CONNECTIONS: Final = 8
"""That a user may have beside one for each plug that a rule allows."""
_PAUSE_MAX: Final = 1.0
_JUDGED: Final = ("kind", "group", "family", "port", "vni", "ttl", "device", "vlan")
_FOR_ALL: Final = {
    one.name: {"expiry": "expiretime"}.get(one.name, one.name) for one in fields(Tunnel) if one.name not in _JUDGED
}
"""Members of a Tunnel that the first plug decides for all others, and their options in a VNL: all but those that a rule
judges, whatever there will be.
"""


@dataclass
class _Bucket:
    level: float
    since: float


class Guests:
    """The policy of a file.  Without the file, nobody but root; with one that is wrong, what held before."""

    def __init__(self, log: Log, path: Path = policy.DEFAULT_FILE) -> None:
        self.log = log
        self.path = path
        self.policy = policy.Policy()
        self.broken = ""
        """Why the file as it is now is not in force."""
        self.missing = False
        self._buckets: dict[int, _Bucket] = {}

    def load(self) -> bool:
        """Read the file (again); False where it is wrong, and what held before holds on."""
        try:
            found = policy.load(self.path)
        except VdexdpError as error:
            self.missing = not self.path.exists()
            if self.missing and self.path == policy.DEFAULT_FILE:
                self.policy, self.broken = policy.Policy(), ""
                return True
            self.broken = str(error)
            self.log.say(f"the policy was not read: {error}; what held before holds on", "error")
            return False
        self.policy, self.broken, self.missing = found, "", False
        count = len(found.rules)
        self.log.say(f"policy of {self.path}: {count} rule{'s' * (count != 1)}", rules=count)
        return True

    # Time and connections

    def charge(self, peer: Peer, cost: float = 1.0) -> float:
        """Take something out of a user's bucket; how many seconds he is not to be heard, 0 for none."""
        now = time.monotonic()
        if len(self._buckets) > 1024:
            full = [uid for uid, one in self._buckets.items() if one.level + RATE * (now - one.since) >= BURST]
            for uid in full:
                del self._buckets[uid]
        one = self._buckets.setdefault(peer.uid, _Bucket(BURST, now))
        one.level = max(-BURST, min(BURST, one.level + RATE * (now - one.since)) - cost)
        one.since = now
        return min(_PAUSE_MAX, (1.0 - one.level) / RATE) if one.level < 0 else 0.0

    def connections(self, peer: Peer) -> int:
        """How many connections a user may have."""
        return CONNECTIONS + sum(rule.plugs for rule in self.policy.rules_for(peer))

    # The policy

    def allow(
        self, peer: Peer, asked: PlugRequest, netlink: Netlink, used: int, fds: Sequence[int] | None = None
    ) -> tuple[policy.Rule, PlugRequest]:
        """The rule that allows a plug, and the plug as that rule wants it.

        ``used`` is how many plugs the user has; without ``fds`` what they prove is taken for granted.  Raises
        PrivilegeError, RequestError and what stands in the way of finding out.
        """
        rules = self.policy.rules_for(peer)
        if not rules and self.broken:
            raise PrivilegeError("policy", f"{self.path} has a mistake", "ask root to correct it")
        if not rules:
            raise PrivilegeError(
                "policy", f"it grants user {user_name(peer.uid)} nothing", f"ask root for a rule in {self.path}"
            )
        ends = tuple(map(_plain, asked.ends, asked.vnls))
        if fds is not None:
            for end, vnl, index in zip(ends, asked.vnls, asked.fd_index, strict=True):
                _check_descriptor(peer, end, vnl, -1 if index is None or not 0 <= index < len(fds) else fds[index])
        refusals: list[list[PrivilegeError]] = []
        for rule in rules:
            found = [self._refusal(rule, peer, end, vnl, netlink) for end, vnl in zip(ends, asked.vnls, strict=True)]
            reasons = [reason for reason in found if reason is not None]
            if not reasons and used >= rule.plugs:
                reasons = [PrivilegeError("policy", f"you have {used} plugs, and rule {rule.name} allows no more")]
            if not reasons:
                first, second = (_limited(end, rule) for end in ends)
                return rule, replace(asked, ends=(first, second))
            refusals.append(reasons)
        raise min(refusals, key=len)[0]  # of the rule that was closest

    def _refusal(self, rule: policy.Rule, peer: Peer, end: End, vnl: str, netlink: Netlink) -> PrivilegeError | None:
        hint = '"vdexdp doctor" says what it does'
        if type(end) not in (Tunnel, Netdev, Inside, Bridge):  # whatever there will be
            return PrivilegeError(vnl, "only root may plug this")
        if isinstance(end, Tunnel):
            routed = find_uplink(netlink, replace(end, device=""))[0].name
            uplink = end.device or routed
            if not rule.allows_network(end, uplink, routed, peer):
                return PrivilegeError(vnl, "the policy does not grant you this network", hint)
        elif isinstance(end, Netdev):
            link = netlink.need(end.name)
            if link.name.startswith(tuple(OURS)) or not rule.allows_interface(link, peer):
                return PrivilegeError(vnl, f"the policy does not grant you {link.name}", hint)
            if end.side == "wire" and (link.master or _addresses(netlink, link.index)):
                return PrivilegeError(vnl, f"the host uses {link.name} itself", "only root may plug it")
        return None

    def grants(self, peer: Peer) -> dict[str, Any]:
        """What the policy says about a user; root is told all of it."""
        rules: Iterable[policy.Rule] = self.policy.rules_for(peer) if peer.uid else self.policy.rules
        told = [
            {
                "name": rule.name,
                "networks": [grant.text for grant in rule.networks],
                "interfaces": list(rule.interfaces),
                "plugs": rule.plugs,
                "addresses": rule.addresses,
            }
            | ({} if peer.uid else {"users": sorted(rule.users), "groups": sorted(rule.groups)})
            for rule in rules
        ]
        return {"file": str(self.path), "broken": bool(self.broken) if peer.uid else self.broken, "rules": told}


def _plain(end: End, vnl: str) -> End:
    """An end in the one spelling that is judged; nodes stay in userspace.

    Raises RequestError and PrivilegeError for what only root may say.
    """
    if isinstance(end, Tunnel):
        default = Tunnel(end.kind, end.group, end.family, end.port, end.vni)
        for name, option in _FOR_ALL.items():
            if getattr(end, name) != getattr(default, name):
                raise RequestError(vnl, f"{option}= is for all of the network, and root's to say", "leave it out")
        return replace(end, group=canonical(end.group))
    if isinstance(end, Visit):
        raise PrivilegeError(vnl, "only root joins a node in the kernel")
    if isinstance(end, Bridge):
        return Bridge(end.vnl)
    if isinstance(end, Netdev) and end.hook == "xdp":
        raise RequestError(vnl, "hook=xdp is root's to say", "leave it out")
    return end


def _limited(end: End, rule: policy.Rule) -> End:
    if isinstance(end, Netdev):
        return replace(end, learn_limit=min(end.learn_limit or rule.addresses, rule.addresses))
    return end


def _check_descriptor(peer: Peer, end: End, vnl: str, fd: int) -> None:
    """What came along is what was said.  Raises PrivilegeError."""
    if isinstance(end, Netdev) and end.side == "stack":
        if fd < 0 or tap_of(fd) != (end.name, netns_inode()):
            raise PrivilegeError(vnl, f"you have not opened {end.name} in this network namespace", "use tap://NAME")
    elif isinstance(end, Inside) and (fd < 0 or netns_owner(fd) != peer.uid):
        raise PrivilegeError(vnl, "that network namespace is not yours", "use one in a user namespace of your own")


def _addresses(netlink: Netlink, ifindex: int) -> list[str]:
    """Those of the host, but not those that IPv6 gives to every interface."""
    found = netlink.addresses(ifindex, 4) + netlink.addresses(ifindex, 6)
    return [address for address in found if not address.startswith("fe80:")]


def only_own(shown: dict[str, Any], plugs: Iterable[Plug], peer: Peer) -> dict[str, Any]:
    """What a user is shown: his plugs, their networks and ports, and nothing of others'."""
    mine = {plug.id for plug in plugs if plug.uid == peer.uid}
    switches = [one for one in shown["switches"] if mine & set(one["plugs"])]
    for one in switches:
        one["plugs"] = sorted(mine & set(one["plugs"]))
    tunnels = {one["tunnel"] for one in switches if one["tunnel"]}
    ports = [one for one in shown["ports"] if one["plug"] in mine or one["index"] in tunnels]
    known = {one["index"] for one in ports}
    for one in switches:
        one["ports"] = [index for index in one["ports"] if index in known]
    kept = {"plugs": [one for one in shown["plugs"] if one["id"] in mine], "switches": switches, "ports": ports}
    return shown | kept | {"uplinks": [], "worker": {"running": False}, "timings": {}, "watching": {}}
