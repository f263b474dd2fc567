# SPDX-License-Identifier: GPL-2.0-or-later
"""What ``vxvde://`` and ``vxlan://`` have in common: how a network is named.

Both take a multicast group, an address family, a port, a VNI, and how far and through which interface group traffic
goes.  Stock libvdeplug resolves the group as a host name and takes any address; here it has to be a multicast address
in digits, since with another one the plug would seem to work and reach nobody.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Literal

from vdexdp.errors import VnlError
from vdexdp.plugins.base import Option, Parsed, Plugin, Tunnel, parse_hook
from vdexdp.vnl import group, integer, size, vni

GROUP_V4 = "239.0.0.1"
GROUP_V6 = "ff05:56de::1"
EXPIRY = 128
TABLE = 1024

V4 = Option("v4", "use IPv4", flag=True)
V6 = Option("v6", "use IPv6", flag=True)
VNI = Option("vni", "network identifier, 24 bits; a group's name means its gid", "1")
TTL = Option("ttl", "hop limit of group traffic", "1")
RCVBUF = Option("rcvbuf", "receive buffer of the sockets in bytes; K, M, G are understood", "4M, if allowed")
HASHSIZE = Option("hashsize", "how many MAC addresses to remember in userspace; 0 floods everything", str(TABLE))
EXPIRETIME = Option("expiretime", "seconds until an unused MAC address is forgotten", str(EXPIRY))
INTERFACE = Option("if", "the uplink", "the interface of the route to the group")

REACH = (TTL, RCVBUF, V6, V4, HASHSIZE, EXPIRETIME, INTERFACE)
"""What every scheme here has behind the network's own name, in libvdeplug's order."""


@dataclass(frozen=True)
class VxSpec:
    """A network, and the size of the MAC table that only the userspace end has."""

    tunnel: Tunnel
    table: int = TABLE


def parse_network(parsed: Parsed, kind: Literal["vxvde", "vxlan"], port: int) -> VxSpec:
    """The network that a VNL of this kind means; ``port`` is the default.  Raises VnlError."""
    gid = group(parsed, "grp")
    address, device, family = _group(parsed, gid)
    spec = Tunnel(
        kind=kind,
        group=address,
        family=family,
        port=integer(parsed, "port", port, 1, 65535),
        vni=vni(parsed, "vni", 1 if gid is None else gid & 0xFFFFFF),
        ttl=integer(parsed, "ttl", 1, 1, 255),
        device=device,
        rcvbuf=size(parsed, "rcvbuf", 0),
        expiry=integer(parsed, "expiretime", EXPIRY, 0, 0x7FFFFFFF) or EXPIRY,
        bind=_bind(parsed, family),
        hook=parse_hook(parsed),
    )
    if spec.rcvbuf > 0x7FFFFFFF:
        raise parsed.error("rcvbuf", "is more than a socket can have", "give less than 2G")
    return VxSpec(spec, integer(parsed, "hashsize", TABLE, 0, 1 << 24))


class VxPlugin(Plugin):
    """What the kernel path sees of such a network is the same for all schemes."""

    def kernel_end(self, spec: VxSpec) -> Tunnel:
        interface_index(f"{self.scheme}://{spec.tunnel.group}", spec.tunnel.device)
        return spec.tunnel


def of_group(address: bytes, gid: int) -> bytes:
    """The multicast address that a group of users has in place of this one: its gid in the last three bytes."""
    return address[:-3] + (gid & 0xFFFFFF).to_bytes(3, "big")


def interface_index(vnl: str, device: str) -> int:
    """The ifindex of an uplink, 0 where none was given.  Raises VnlError where it does not exist."""
    if not device:
        return 0
    try:
        return socket.if_nametoindex(device)
    except OSError:
        raise VnlError(vnl, f"if={device}: no such interface", 'see "ip link" for their names') from None


def _family(parsed: Parsed, address: str) -> Literal[4, 6]:
    only = [family for family, key in ((4, "v4"), (6, "v6")) if key in parsed.options]
    if address:
        family = 6 if ":" in address else 4
    else:
        family = 6 if "v6" in parsed.options else 4
    if len(only) == 1 and only[0] != family:
        raise VnlError(parsed.vnl, f"{address} is not an IPv{only[0]} address", f"leave out v{only[0]}")
    return 6 if family == 6 else 4


def _group(parsed: Parsed, gid: int | None) -> tuple[str, str, Literal[4, 6]]:
    text, _, scope = parsed.address.partition("%")
    family = _family(parsed, text)
    text = text or (GROUP_V6 if family == 6 else GROUP_V4)
    kind = socket.AF_INET6 if family == 6 else socket.AF_INET
    try:
        packed = socket.inet_pton(kind, text)
    except (OSError, ValueError):
        raise VnlError(parsed.vnl, f'"{text}" is not an IP address', f"write a group like {GROUP_V4}") from None
    if not (packed[0] == 0xFF if family == 6 else 0xE0 <= packed[0] <= 0xEF):
        raise VnlError(parsed.vnl, f"{text} is not a multicast address", "a group is in 224.0.0.0/4 or ff00::/8")
    if gid is not None:
        packed = of_group(packed, gid)
    device = parsed.options.get("if", scope)
    if len(device.encode()) > 15 or "/" in device:
        raise parsed.error("if", "is not an interface name", 'see "ip link" for their names')
    return socket.inet_ntop(kind, packed), device, family


def _bind(parsed: Parsed, family: Literal[4, 6]) -> str:
    text = parsed.options.get("bind", "")
    if text:
        try:
            socket.inet_pton(socket.AF_INET6 if family == 6 else socket.AF_INET, text)
        except (OSError, ValueError):
            raise parsed.error("bind", f"is not an IPv{family} address", "give one of this host's addresses") from None
    return text
