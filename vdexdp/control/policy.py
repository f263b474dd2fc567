# SPDX-License-Identifier: GPL-2.0-or-later
"""The policy: which users other than root may join which networks with which interfaces.

Rules only ever allow.  A plug has to be allowed as a whole by one rule that matches its user: two rules, each good for
one end, do not add up.  Without a file nobody but root may do anything.

What a network's name leaves open is the administrator's too.  Its first plug decides TTL, source address, buffers and
expiry for all others, so those can't be chosen but by root.

``vxvdex://`` networks belong to a group of users: VNI and the end of the multicast address are its gid.  A range of
networks never includes one; who has that effective gid, and a rule with "vxvdex://", may join it, and whom a rule names
that very network.
"""

from __future__ import annotations

import fnmatch
import grp
import ipaddress
import pwd
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from vdexdp.control.channel import Peer
from vdexdp.control.netlink import LinkInfo
from vdexdp.control.tomlfile import TomlFile
from vdexdp.errors import RequestError, VdexdpError
from vdexdp.plugins import registry, vxlan, vxnet, vxvde
from vdexdp.plugins.base import Tunnel
from vdexdp.users import user_name

DEFAULT_FILE: Final = Path("/etc/vdexdp/policy.toml")
PLUGS: Final = 8
ADDRESSES: Final = 256
OWN: Final = "own"

_KEYS: Final = ("users", "groups", "networks", "interfaces", "plugs", "addresses")
_NETWORK_KEYS: Final = ("kind", "group", "vni", "port", "uplink", "ttl")
_PORTS: Final = {"vxvde": vxvde.PORT, "vxlan": vxlan.PORT}
_BASES: Final = {4: vxnet.GROUP_V4, 6: vxnet.GROUP_V6}
_FAMILIES: Final[Mapping[int, socket.AddressFamily]] = {4: socket.AF_INET, 6: socket.AF_INET6}

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def group_network(gid: int, family: int) -> str:
    """The multicast address of the vxvdex network of a group of users."""
    return socket.inet_ntop(_FAMILIES[family], vxnet.of_group(socket.inet_pton(_FAMILIES[family], _BASES[family]), gid))


def group_of(tunnel: Tunnel) -> int | None:
    """The gid of the group that a network belongs to, None for one that is no group's."""
    own = tunnel.kind == "vxvde" and tunnel.group == group_network(tunnel.vni, tunnel.family)
    return tunnel.vni if own else None


@dataclass(frozen=True)
class Grant:
    """Networks that a rule allows.  ``uplink`` is a pattern of names; "" for wherever the route leads."""

    text: str
    kind: str = "vxvde"
    groups: Network | None = None
    vnis: range = range(1 << 24)
    ports: range = range(1, 1 << 16)
    uplink: str = ""
    ttl: int = 1
    single: bool = False
    """Whether the administrator has named this one network."""
    own: bool = False
    """Whether this is the network of the caller's own group."""

    def allows(self, tunnel: Tunnel, uplink: str, routed: str, peer: Peer) -> bool:
        """``routed`` is the uplink that the route to the network's group has, ``uplink`` the one that is asked for."""
        if tunnel.kind != self.kind or tunnel.port not in self.ports or tunnel.ttl > self.ttl:
            return False
        if not (fnmatch.fnmatchcase(uplink, self.uplink) if self.uplink else uplink == routed):
            return False
        if self.own:
            return tunnel.vni == peer.gid and tunnel.group == group_network(peer.gid, tunnel.family)
        if group_of(tunnel) is not None and not self.single:
            return False
        address = ipaddress.ip_address(tunnel.group)
        return self.groups is not None and address in self.groups and tunnel.vni in self.vnis


@dataclass(frozen=True)
class Rule:
    """One [rule.NAME].  ``plugs`` and ``addresses``: how many of them a user, and a port, may have."""

    name: str
    users: frozenset[int]
    groups: frozenset[int]
    networks: tuple[Grant, ...] = ()
    interfaces: tuple[str, ...] = (OWN,)
    plugs: int = PLUGS
    addresses: int = ADDRESSES

    def matches(self, peer: Peer) -> bool:
        return peer.uid in self.users or bool(self.groups & {peer.gid, *peer.groups})

    def allows_network(self, tunnel: Tunnel, uplink: str, routed: str, peer: Peer) -> bool:
        return any(grant.allows(tunnel, uplink, routed, peer) for grant in self.networks)

    def allows_interface(self, link: LinkInfo, peer: Peer) -> bool:
        """A tap that the kernel would let this user open, or one whose name is granted."""
        if OWN in self.interfaces and owns(link, peer):
            return True
        names = {"user": user_name(peer.uid), "uid": str(peer.uid)}
        for pattern in self.interfaces:
            if pattern == OWN or (link.kind == "" and set(pattern) & set("*?[{")):
                continue  # hardware has to be named
            for key, value in names.items():
                pattern = pattern.replace("{" + key + "}", _literal(value))
            if fnmatch.fnmatchcase(link.name, pattern):
                return True
        return False


@dataclass(frozen=True)
class Policy:
    """``group`` is the gid of those who may talk to the daemon; None: nobody but root."""

    group: int | None = None
    rules: tuple[Rule, ...] = ()

    def rules_for(self, peer: Peer) -> tuple[Rule, ...]:
        return tuple(rule for rule in self.rules if rule.matches(peer))


def owns(link: LinkInfo, peer: Peer) -> bool:
    """Whether a tap is this user's, as the kernel judges when it is opened."""
    if link.kind != "tun" or (link.owner is None and link.group is None):
        return False
    return link.owner in (None, peer.uid) and (link.group is None or link.group in {peer.gid, *peer.groups})


def _literal(text: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", text)


# The file


def load(path: Path) -> Policy:
    """The policy in a file, all of it correct.

    Raises RequestError naming file, line and key; HostError where it can't be read.
    """
    file = TomlFile.read(path, "it says who may do what", owned=True)
    rules = tuple(_rule(file, name, values) for name, values in file.named_tables("rule", ("group",)).items())
    group = file.tables.get("group")
    if group is None:
        if rules:
            hint = 'write group = "NAME"; its members may talk to the daemon, and the rules say what they may do'
            raise file.wrong("", "group", "missing", hint)
        return Policy()
    (gid,) = _ids(file, "", "group", [group], _gid)
    return Policy(gid, rules)


def _rule(file: TomlFile, name: str, values: Mapping[str, Any]) -> Rule:
    table = f"rule.{name}"
    for key in values:
        if key not in _KEYS:
            raise file.wrong(table, key, "unknown key", f"known are: {', '.join(_KEYS)}")
    users = _ids(file, table, "users", values.get("users", []), _uid)
    groups = _ids(file, table, "groups", values.get("groups", []), _gid)
    if not users and not groups:
        raise file.wrong(table, "", "it is for nobody", "name users or groups")
    interfaces = values.get("interfaces", [OWN])
    if not isinstance(interfaces, list) or not all(isinstance(one, str) and one for one in interfaces):
        raise file.wrong(table, "interfaces", "not a list of names", 'write ["own", "vm-{user}-*"]')
    networks = values.get("networks", [])
    if not isinstance(networks, list):
        raise file.wrong(table, "networks", "not a list", 'write ["vxvde://234.0.0.1"]')
    numbers = {}
    for key, default, most in (("plugs", PLUGS, 1000), ("addresses", ADDRESSES, 65536)):
        numbers[key] = values.get(key, default)
        if type(numbers[key]) is not int or not 1 <= numbers[key] <= most:
            raise file.wrong(table, key, f"not a number from 1 to {most}")
    return Rule(name, users, groups, tuple(_grant(file, table, one) for one in networks), tuple(interfaces), **numbers)


def _uid(name: str) -> int:
    return pwd.getpwnam(name).pw_uid


def _gid(name: str) -> int:
    return grp.getgrnam(name).gr_gid


def _ids(file: TomlFile, table: str, key: str, values: object, look_up: Any) -> frozenset[int]:
    what = "user" if key == "users" else "group"
    if not isinstance(values, list):
        raise file.wrong(table, key, "not a list", f'write ["{what}"]')
    found = set()
    for value in values:
        if type(value) is int and 0 <= value < 0xFFFFFFFF:
            found.add(value)
        elif isinstance(value, str):
            try:
                found.add(look_up(value))
            except KeyError:
                raise file.wrong(table, key, f'there is no {what} "{value}"', "write another, or a number") from None
        else:
            raise file.wrong(table, key, f"{value!r} is no {what}", "write a name or a number")
    return frozenset(found)


def _grant(file: TomlFile, table: str, value: object) -> Grant:
    if isinstance(value, str):
        try:
            return _vnl_grant(value)
        except VdexdpError as error:
            raise file.wrong(table, "networks", f"{error.subject}: {error.cause}", error.hint) from error
    if not isinstance(value, dict):
        raise file.wrong(table, "networks", f"{value!r} is neither a VNL nor a table")
    for key in value:
        if key not in _NETWORK_KEYS:
            raise file.wrong(table, f"networks.{key}", "unknown key", f"known are: {', '.join(_NETWORK_KEYS)}")
    try:
        return _range_grant(value)
    except _BadKey as error:
        found = file.wrong(table, "networks", "")
        raise RequestError(f"{found.subject}.{error.key}", error.cause, error.hint) from error


class _BadKey(Exception):
    def __init__(self, key: str, cause: str, hint: str = "") -> None:
        self.key, self.cause, self.hint = key, cause, hint
        super().__init__(cause)


def _vnl_grant(vnl: str) -> Grant:
    """Raises VdexdpError."""
    scheme = vnl.partition("://")[0]
    if scheme not in ("vxvde", "vxvdex", "vxlan"):
        raise RequestError(vnl, "not a network", "write vxvde://…, vxlan://… or vxvdex://")
    if scheme == "vxvdex":
        # The scheme's own parser takes the gid of whoever runs it.
        tunnel = registry.parse(vnl.replace("vxvdex", "vxvde", 1)).spec.tunnel
        if (tunnel.group, tunnel.vni) != (_BASES[tunnel.family], 1):
            raise RequestError(vnl, "it has the caller's group and VNI, no others", "write vxvdex://")
        return Grant(vnl, ports=range(tunnel.port, tunnel.port + 1), uplink=tunnel.device, ttl=tunnel.ttl, own=True)
    tunnel = registry.parse(vnl).spec.tunnel
    return Grant(
        vnl,
        tunnel.kind,
        ipaddress.ip_network(tunnel.group),
        range(tunnel.vni, tunnel.vni + 1),
        range(tunnel.port, tunnel.port + 1),
        tunnel.device,
        tunnel.ttl,
        single=True,
    )


def _range_grant(value: Mapping[str, Any]) -> Grant:
    kind = value.get("kind", "vxvde")
    if kind not in _PORTS:
        raise _BadKey("kind", "not understood", "write vxvde or vxlan")
    try:
        groups = ipaddress.ip_network(value.get("group", ""))
    except (ValueError, TypeError):
        raise _BadKey("group", "not a range of addresses", 'write one like "239.7.0.0/16"') from None
    if not groups.is_multicast:
        raise _BadKey("group", "not all of it are multicast addresses", "groups are in 224.0.0.0/4 or ff00::/8")
    uplink, ttl = value.get("uplink", ""), value.get("ttl", 1)
    if not isinstance(uplink, str):
        raise _BadKey("uplink", "not the name of an interface")
    if type(ttl) is not int or not 1 <= ttl <= 255:
        raise _BadKey("ttl", "not a number from 1 to 255")
    vnis = _numbers("vni", value.get("vni", "0-16777215"), (1 << 24) - 1)
    ports = _numbers("port", value.get("port", _PORTS[kind]), (1 << 16) - 1)
    text = f"{kind} {groups} vni {_span(vnis)} port {_span(ports)}" + (f" via {uplink}" if uplink else "")
    return Grant(text, kind, groups, vnis, ports, uplink, ttl)


def _numbers(key: str, value: object, most: int) -> range:
    """7, or "100-199"."""
    found = re.fullmatch(r"(\d+)(?:-(\d+))?", str(value)) if type(value) in (int, str) else None
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
    if not first <= last <= most:
        raise _BadKey(key, f"not a number up to {most}, nor a range", 'write a number, or one like "100-199"')
    return range(first, last + 1)


def _span(numbers: range) -> str:
    return f"{numbers[0]}" if len(numbers) == 1 else f"{numbers[0]}-{numbers[-1]}"
