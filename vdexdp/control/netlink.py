# SPDX-License-Identifier: GPL-2.0-or-later
"""What the daemon asks of rtnetlink and the netdev family; with :mod:`vdexdp.control.unlinked` the only importer of
pyroute2.

Everything acts in the network namespace of the calling process.  Results are small frozen objects, so nobody else sees
pyroute2's dictionaries.
"""

from __future__ import annotations

import array
import fcntl
import ipaddress
import itertools
import socket
import struct
from dataclasses import dataclass
from typing import Any, Final, Literal

from pyroute2 import IPRoute
from pyroute2.netlink import NLM_F_REQUEST, genlmsg
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.generic import GenericNetlinkSocket
from pyroute2.netlink.rtnl import RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR, RTMGRP_LINK
from pyroute2.netlink.rtnl.marshal import MarshalRtnl

from vdexdp.control.unlinked import Unlinked
from vdexdp.errors import HostError, RequestError

ARPHRD_ETHER: Final = 1
IFF_UP: Final = 1
XDP_BASIC: Final = 1
XDP_REDIRECT: Final = 2
XDP_NDO_XMIT: Final = 4
"""Bits of the netdev family's ``xdp-features`` (linux/netdev.h)."""

RENEW_AFTER: Final = 500
"""Requests after which the socket is replaced."""

_STACKED: Final = ("vlan", "macvlan", "macvtap", "ipvlan", "ipvtap")
"""Kinds whose IFLA_LINK is what their frames come in by."""

_SIOCETHTOOL: Final = 0x8946
_ETHTOOL_GDRVINFO: Final = 0x00000003


@dataclass(frozen=True)
class LinkInfo:
    """One interface.  ``kind`` is rtnetlink's ("veth", "tun", …; "" for hardware), ``driver`` ethtool's."""

    index: int
    name: str
    mac: bytes
    mtu: int
    kind: str
    up: bool
    operstate: str
    ethernet: bool
    peer_netns: int | None
    """Id of the namespace that a veth's far end lives in; None when it is this one (or there is no far end)."""
    driver: str
    master: int = 0
    """The bridge, bond or the like that it belongs to; 0 for none."""
    lower: int = 0
    """The interface that it stands on, as a VLAN or macvlan does; 0 for none here."""
    owner: int | None = None
    """Uid of the user who may open a tap; None for nobody but root, or anybody, or no tap."""
    group: int | None = None
    """The same for the gid of a group."""

    @property
    def far_elsewhere(self) -> bool:
        """Whether this is a veth whose far end is in another namespace."""
        return self.kind == "veth" and self.peer_netns is not None


@dataclass(frozen=True)
class Route:
    """The way towards an address: interface and the source address that the kernel would choose ("" if none)."""

    ifindex: int
    source: str


@dataclass(frozen=True)
class Event:
    """``link``: an interface changed; ``gone``: it was removed; ``address``: its addresses changed.

    ``lost``: events were lost, look at everything again (``ifindex`` is 0).
    """

    what: Literal["link", "gone", "address", "lost"]
    ifindex: int


def _family(address: str) -> int:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def driver_of(name: str) -> str:
    """The driver's name as ethtool knows it; "" where there is none."""
    buffer = array.array("B", struct.pack("I", _ETHTOOL_GDRVINFO) + bytes(256))
    address, _ = buffer.buffer_info()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            fcntl.ioctl(sock, _SIOCETHTOOL, struct.pack("16sP", name.encode(), address))
        except OSError:
            return ""
    return bytes(buffer[4:36]).split(b"\0", 1)[0].decode(errors="replace")


class _NetdevMessage(genlmsg):  # type: ignore[misc]
    prefix = "NETDEV_A_DEV_"
    nla_map = (
        ("NETDEV_A_DEV_UNSPEC", "none"),
        ("NETDEV_A_DEV_IFINDEX", "uint32"),
        ("NETDEV_A_DEV_PAD", "hex"),
        ("NETDEV_A_DEV_XDP_FEATURES", "uint64"),
    )


class Netlink(Unlinked):
    """One socket for requests.  Close it, or use it in ``with``."""

    def __init__(self) -> None:
        self._socket = IPRoute()
        self._requests = 0

    @property
    def _route(self) -> Any:
        # pyroute2 keeps some kilobytes of each request for as long as its socket lives, and a daemon lives for years.
        self._requests += 1
        if self._requests % RENEW_AFTER == 0:
            self._socket.close()
            self._socket = IPRoute()
        return self._socket

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def link(self, which: str | int) -> LinkInfo | None:
        """The interface of that name or index; None when there is none.  Raises HostError."""
        selector = {"index": which} if isinstance(which, int) else {"ifname": which}
        try:
            (found, *_) = self._route.link("get", **selector)
        except NetlinkError as error:
            if error.code in (19, 22):  # ENODEV, EINVAL: no such index
                return None
            raise HostError(str(which), f"rtnetlink refused: {error}") from error
        return _link_info(found)

    def need(self, which: str | int) -> LinkInfo:
        """The interface of that name or index.  Raises RequestError when there is none."""
        link = self.link(which)
        if link is None:
            hint = f'create it with "ip tuntap add mode tap name {which}", or see "ip link"'
            raise RequestError(str(which), "no such interface", hint)
        return link

    def dropped(self, ifindex: int) -> int:
        """Frames that an interface lost on output since it was made: its queue was full."""
        for found in self._route.get_links(ifindex):
            return int((found.get_attr("IFLA_STATS64") or {}).get("tx_dropped", 0))
        return 0

    def links(self) -> list[LinkInfo]:
        """All interfaces of this namespace."""
        return [_link_info(found) for found in self._route.get_links()]

    def stands_on(self, upper: int, lower: int) -> bool:
        """Whether what comes in by ``lower`` is all that ``upper`` gets: it is the same interface, the bridge or bond
        that ``lower`` belongs to, or a VLAN or macvlan on one of those.

        Not seen is a bridge with a VLAN on ``lower`` in it.
        """
        return not self._chain(upper, "lower").isdisjoint(self._chain(lower, "master"))

    def _chain(self, ifindex: int, towards: Literal["lower", "master"]) -> set[int]:
        found: set[int] = set()
        while ifindex and ifindex not in found:
            found.add(ifindex)
            link = self.link(ifindex)
            ifindex = int(getattr(link, towards)) if link is not None else 0
        return found

    def addresses(self, ifindex: int, family: Literal[4, 6]) -> list[str]:
        """The interface's own addresses, best scope first; tentative and failed IPv6 addresses left out."""
        wanted = socket.AF_INET if family == 4 else socket.AF_INET6
        found: list[tuple[int, str]] = []
        for item in self._route.get_addr(family=wanted, index=ifindex):
            if item.get_attr("IFA_FLAGS", 0) & 0x48:  # IFA_F_TENTATIVE | IFA_F_DADFAILED
                continue
            address = item.get_attr("IFA_LOCAL") or item.get_attr("IFA_ADDRESS")
            found.append((item["scope"], address))
        return [address for _, address in sorted(found, key=lambda pair: pair[0])]

    def local_addresses(self) -> set[str]:
        """Every address of this namespace."""
        found = (item.get_attr("IFA_LOCAL") or item.get_attr("IFA_ADDRESS") for item in self._route.get_addr())
        return {address for address in found if address}

    def route(self, address: str, ifindex: int = 0) -> Route:
        """The route towards an address, through ``ifindex`` if that is given.

        Raises RequestError when there is none.
        """
        query: dict[str, Any] = {"dst": address, "family": _family(address)}
        if ifindex:
            query["oif"] = ifindex
        try:
            (found, *_) = self._route.route("get", **query)
        except NetlinkError as error:
            raise RequestError(address, "no route to it", 'name the interface: "/if=NAME"') from error
        kind = found["type"]
        if kind in (6, 7, 8):  # RTN_BLACKHOLE, RTN_UNREACHABLE, RTN_PROHIBIT
            raise RequestError(address, "its route refuses traffic", 'name the interface: "/if=NAME"')
        return Route(found.get_attr("RTA_OIF"), found.get_attr("RTA_PREFSRC") or "")

    def set_link(self, ifindex: int, **values: Any) -> None:
        """Change an interface: ``state="up"``, ``mtu=1500``, …  Raises HostError."""
        try:
            self._route.link("set", index=ifindex, **values)
        except NetlinkError as error:
            raise HostError(f"interface {ifindex}", f"rtnetlink refused: {error}") from error

    def make_veth(self, name: str, peer: str) -> int:
        """A pair of connected interfaces, both up; the first one's index.  Raises HostError."""
        try:
            self._route.link("add", ifname=name, kind="veth", peer=peer)
        except NetlinkError as error:
            raise HostError(name, f"rtnetlink refused a veth: {error}", 'load its module: "modprobe veth"') from error
        for one in (peer, name):
            self.set_link(self.need(one).index, state="up")
        return self.need(name).index

    def make_veth_into(self, prefix: str, peer: str, netns: int) -> tuple[str, int]:
        """A veth from here to the network namespace of a descriptor; both ends are down.

        Name (``prefix`` and a number) and index of the end here.  Raises HostError, RequestError where ``peer`` is
        taken there.
        """
        taken = {link.get_attr("IFLA_IFNAME") for link in self._route.get_links()}
        name = next(name for number in itertools.count() if (name := f"{prefix}{number}") not in taken)
        try:
            self._route.link("add", ifname=name, kind="veth", peer={"ifname": peer, "net_ns_fd": netns})
        except NetlinkError as error:
            if error.code == 17:  # EEXIST
                raise RequestError(peer, "there is an interface of this name already", "choose another name") from error
            raise HostError(peer, f"rtnetlink refused a veth: {error}", 'load its module: "modprobe veth"') from error
        return name, self.need(name).index

    def delete_link(self, ifindex: int) -> None:
        """Delete an interface; one that is gone already is all right.  Raises HostError."""
        try:
            self._route.link("del", index=ifindex)
        except NetlinkError as error:
            if error.code != 19:  # ENODEV
                raise HostError(f"interface {ifindex}", f"rtnetlink refused: {error}") from error

    def xdp_features(self, ifindex: int) -> int | None:
        """The interface's XDP feature bits now; None where the kernel (before 6.3) can't tell."""
        try:
            with GenericNetlinkSocket() as generic:
                generic.bind("netdev", _NetdevMessage)
                message = _NetdevMessage()
                message["cmd"] = 1  # NETDEV_CMD_DEV_GET
                message["version"] = 1
                message["attrs"] = [("NETDEV_A_DEV_IFINDEX", ifindex)]
                for answer in generic.nlm_request(message, generic.prid, NLM_F_REQUEST):
                    features = answer.get_attr("NETDEV_A_DEV_XDP_FEATURES")
                    return None if features is None else int(features)
        except (NetlinkError, OSError):
            return None
        return None


def _link_info(found: Any) -> LinkInfo:
    info = found.get_attr("IFLA_LINKINFO")
    kind = info.get_attr("IFLA_INFO_KIND") if info is not None else None
    data = info.get_attr("IFLA_INFO_DATA") if kind == "tun" else None
    name = found.get_attr("IFLA_IFNAME")
    elsewhere = found.get_attr("IFLA_LINK_NETNSID")
    mac = bytes.fromhex((found.get_attr("IFLA_ADDRESS") or "").replace(":", ""))
    return LinkInfo(
        index=found["index"],
        name=name,
        mac=mac,
        mtu=found.get_attr("IFLA_MTU") or 0,
        kind=kind or "",
        up=bool(found["flags"] & IFF_UP),
        operstate=(found.get_attr("IFLA_OPERSTATE") or "").lower(),
        ethernet=found["ifi_type"] == ARPHRD_ETHER or name == "lo",
        peer_netns=elsewhere,
        driver=driver_of(name),
        master=found.get_attr("IFLA_MASTER") or 0,
        lower=found.get_attr("IFLA_LINK") or 0 if kind in _STACKED and elsewhere is None else 0,
        owner=data.get_attr("IFLA_TUN_OWNER") if data is not None else None,
        group=data.get_attr("IFLA_TUN_GROUP") if data is not None else None,
    )


class Monitor:
    """Changes of interfaces and addresses, as they happen.  Non-blocking; ``fileno`` is for a selector."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, 0)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self._socket.bind((0, RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR))
        self._marshal = MarshalRtnl()

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def events(self) -> list[Event]:
        """What happened since the last call, one event per interface and kind."""
        found: dict[Event, None] = {}
        while True:
            try:
                data, (sender, _) = self._socket.recvfrom(1 << 18)
            except BlockingIOError:
                return list(found)
            except OSError:  # ENOBUFS: the kernel dropped some
                found[Event("lost", 0)] = None
                continue
            if sender != 0:  # another process may send to us; only the kernel is believed
                continue
            for message in self._marshal.parse(data):
                if event := self._event(message):
                    found[event] = None

    @staticmethod
    def _event(message: Any) -> Event | None:
        match message.get("event"):
            case "RTM_DELLINK":
                # a bridge, too, says RTM_DELLINK when one of its ports leaves
                return Event("gone", message["index"]) if message["family"] == 0 else None
            case "RTM_NEWLINK":
                return Event("link", message["index"])
            case "RTM_NEWADDR" | "RTM_DELADDR":
                return Event("address", message["index"])
        return None


def canonical(address: str) -> str:
    """An address in the kernel's own spelling, to compare it with others."""
    return str(ipaddress.ip_address(address))
