# SPDX-License-Identifier: GPL-2.0-or-later
"""``slirp:///OPTIONS``: TCP/IP without privileges, by libslirp.

The network behind this end has a router (``addr``), a DHCP server, a DNS proxy and a TFTP server.  Connections of its
machines are made by this process with its own sockets, so they have the rights and the addresses of its user.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from typing import TypeVar

from vdexdp.errors import HangUp, HostError, VnlError
from vdexdp.plugins.base import Batch, NoKernelEnd, OpenContext, Option, Parsed, Plugin, Stream
from vdexdp.plugins.mmsg import Reader, Writer
from vdexdp.plugins.slirp_library import JUMBO, Config, Instance, default_config
from vdexdp.vnl import integer

HOST4 = "10.0.2.2/24"
HOST6 = "fd00::2/64"
NAMESERVER_NUMBER = 3
DHCP_NUMBER = 15
"""Numbers of the DNS proxy and of the first DHCP client in their network, where not given."""

GUESTFWD_NUMBER = 0x0204
"""The machine of ``unixfwd`` and ``cmdfwd``, where not given: 10.0.2.4."""

PREFIX4_MAX = 28
"""In a smaller network there is no room for the DHCP range."""

MTU_MIN, MTU_MAX = 68, JUMBO - 14

_ANY = IPv4Address("0.0.0.0")

Address = TypeVar("Address", IPv4Address, IPv6Address, IPv4Interface, IPv6Interface)


@dataclass(frozen=True)
class PortForward:
    """A port of the host that leads to a guest; address 0.0.0.0 is every address here, and the first guest there."""

    udp: bool
    host: IPv4Address
    host_port: int
    guest: IPv4Address
    guest_port: int


@dataclass(frozen=True)
class GuestForward:
    """A TCP port inside that leads to a UNIX socket (a path) or a command of the host."""

    address: IPv4Address
    port: int
    target: str
    command: bool


@dataclass(frozen=True)
class SlirpSpec:
    """``None`` and "" are libslirp's defaults."""

    v4: bool
    v6: bool
    host: IPv4Interface
    host6: IPv6Interface
    nameserver: IPv4Address
    nameserver6: IPv6Address
    dhcp: IPv4Address
    restricted: bool = False
    hostname: str = ""
    tftp_server_name: str = ""
    tftp_path: str = ""
    bootfile: str = ""
    search: tuple[str, ...] = ()
    domain: str = ""
    mtu: int = 0
    mru: int = 0
    disable_host_loopback: bool = False
    ports: tuple[PortForward, ...] = ()
    guests: tuple[GuestForward, ...] = ()
    verbose: bool = False


class SlirpStream(Stream):
    """One libslirp; its thread ends with the stream."""

    def __init__(self, spec: SlirpSpec) -> None:
        super().__init__()
        if spec.tftp_path and not os.path.isdir(spec.tftp_path):
            raise HostError(spec.tftp_path, "no such directory", "give tftp_path a directory")
        for forward in spec.ports:
            check_port(forward)
        self._config = _configure(spec)
        self._slirp = Instance(self._config)
        for forward in spec.ports:
            host, guest = (forward.host, forward.host_port), (forward.guest, forward.guest_port)
            self._slirp.forward_port(forward.udp, host, guest)
        for inside in spec.guests:
            add = self._slirp.forward_command if inside.command else self._slirp.forward_unix
            add(inside.address, inside.port, inside.target)
        self._reader = Reader(self._slirp.fd, self.drops, sequenced=True)
        self._writer = Writer(self._slirp.fd, self.drops)

    def readers(self) -> Sequence[int]:
        return (self._slirp.fd,)

    def recv(self, batch: Batch) -> None:
        try:
            self._reader.recv(batch)
        except OSError as error:
            raise HangUp(error.strerror) from error

    def send(self, batch: Batch, start: int = 0) -> int:
        sizes = batch.lengths[start : batch.count]
        try:
            if sizes and max(sizes) > JUMBO:
                self._send_some([batch[index] for index in range(start, batch.count)])
            else:
                self._writer.send(batch, start)
        except OSError as error:
            raise HangUp(error.strerror) from error
        return batch.count - start

    def _send_some(self, frames: Sequence[memoryview]) -> None:
        """Without those that libvdeslirp would cut."""
        small = Batch()
        for frame in frames:
            if len(frame) <= JUMBO:
                small.append(frame)
        self.drops["too-big"] += len(frames) - small.count
        self._writer.send(small)

    def close(self) -> None:
        self._slirp.close()


def check_port(forward: PortForward) -> None:
    """Raise HostError where the host's port can't be had; libvdeslirp would not tell."""
    kind = socket.SOCK_DGRAM if forward.udp else socket.SOCK_STREAM
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, not forward.udp)
        try:
            probe.bind((str(forward.host), forward.host_port))
        except OSError as error:
            what = f"{'udp' if forward.udp else 'tcp'}fwd {forward.host}:{forward.host_port}"
            hint = "use a port from 1024 on" if isinstance(error, PermissionError) else "choose another port or address"
            raise HostError.from_oserror(what, error, hint) from error


def _configure(spec: SlirpSpec) -> Config:
    config = default_config()
    config.restricted = spec.restricted
    config.in_enabled, config.in6_enabled = spec.v4, spec.v6
    config.set_v4("vnetwork", spec.host.network.network_address)
    config.set_v4("vnetmask", spec.host.network.netmask)
    config.set_v4("vhost", spec.host.ip)
    config.set_v4("vnameserver", spec.nameserver)
    config.set_v4("vdhcp_start", spec.dhcp)
    config.set_v6("vprefix_addr6", spec.host6.network.network_address)
    config.vprefix_len = spec.host6.network.prefixlen
    config.set_v6("vhost6", spec.host6.ip)
    config.set_v6("vnameserver6", spec.nameserver6)
    if spec.hostname:
        config.vhostname = spec.hostname.encode()
    for field, text in (
        ("tftp_server_name", spec.tftp_server_name),
        ("tftp_path", spec.tftp_path),
        ("bootfile", spec.bootfile),
        ("vdomainname", spec.domain),
    ):
        if text:
            setattr(config, field, os.fsencode(text))
    if spec.search:
        config.set_search(spec.search)
    config.if_mtu, config.if_mru = spec.mtu, spec.mru
    config.disable_host_loopback = spec.disable_host_loopback
    return config


def describe(spec: SlirpSpec) -> str:
    """What the option ``verbose`` prints."""
    rows = [
        ("IPv4", f"{spec.host.network}, router {spec.host.ip}" if spec.v4 else "off"),
        ("DNS, DHCP from", f"{spec.nameserver}, {spec.dhcp}" if spec.v4 else "off"),
        ("IPv6", f"{spec.host6.network}, router {spec.host6.ip}" if spec.v6 else "off"),
        ("DNS", str(spec.nameserver6) if spec.v6 else "off"),
        ("restricted", "yes" if spec.restricted else "no"),
        ("host's loopback", "no" if spec.disable_host_loopback else "reachable through the router's address"),
    ]
    for forward in spec.ports:
        kind = "UDP" if forward.udp else "TCP"
        where = f"{forward.host}:{forward.host_port} to {forward.guest}:{forward.guest_port}"
        rows.append((f"{kind} forward", where))
    for inside in spec.guests:
        rows.append(("inside", f"{inside.address}:{inside.port} to {inside.target}"))
    return "".join(f"slirp: {name:<15} {text}\n" for name, text in rows)


class SlirpPlugin(Plugin):
    scheme = "slirp"
    grammar = "slash"
    summary = "the Internet without privileges, by libslirp (NAT, DHCP, DNS)"
    example = "slirp:///tcpfwd=8080:10.0.2.15:80"
    options = (
        Option("restricted", "no connections to the outside", flag=True),
        Option("v4", "IPv4 only, without v6", flag=True),
        Option("v6", "IPv6 only, without v4", flag=True),
        Option("host", "the router's address and prefix", default=HOST4),
        Option("addr", "as host", alias="host"),
        Option("host6", "the router's IPv6 address and prefix", default=HOST6),
        Option("addr6", "as host6", alias="host6"),
        Option("hostname", "name of the DHCP server", default="slirp"),
        Option("tftp_server_name", "name of the TFTP server, for DHCP"),
        Option("tftp_path", "directory served by TFTP"),
        Option("bootfile", "boot file, for DHCP"),
        Option("dhcp", "first address given by DHCP", default="10.0.2.15"),
        Option("vnameserver", "address of the DNS proxy", default="10.0.2.3"),
        Option("vnameserver6", "IPv6 address of the DNS proxy", default="fd00::3"),
        Option("vdnssearch", "search domains, between commas"),
        Option("vdomainname", "domain name, for DHCP"),
        Option("mtu", "bytes", default="1500"),
        Option("mru", "bytes", default="1500"),
        Option("disable_host_loopback", "the host's loopback can't be reached", flag=True),
        Option("tcpfwd", "[hostIP:]hostport:[guestIP]:guestport, between commas"),
        Option("udpfwd", "as tcpfwd, for UDP"),
        Option("unixfwd", "[IP:]port:path of a UNIX socket of the host, between commas"),
        Option("cmdfwd", "[IP:]port:command of the host, between commas"),
        Option("verbose", "print the configuration", flag=True),
    )

    def parse(self, parsed: Parsed) -> SlirpSpec:
        if parsed.address:
            cause = f'"{parsed.address}" stands where nothing belongs'
            raise VnlError(parsed.vnl, cause, f"write options behind three slashes, slirp:///{parsed.address}")
        options = parsed.options
        host = _read(parsed, "host", HOST4, IPv4Interface, 24)
        host6 = _read(parsed, "host6", HOST6, IPv6Interface, 64)
        if not 1 <= host.network.prefixlen <= PREFIX4_MAX:
            raise parsed.error("host", "has a prefix that is out of range", f"give 1 to {PREFIX4_MAX}")
        both = ("v4" in options) == ("v6" in options)
        spec = SlirpSpec(
            v4=both or "v4" in options,
            v6=both or "v6" in options,
            host=host,
            host6=host6,
            nameserver=_read(parsed, "vnameserver", str(_number(host, NAMESERVER_NUMBER)), IPv4Address),
            nameserver6=_read(
                parsed, "vnameserver6", str(host6.network.network_address + NAMESERVER_NUMBER), IPv6Address
            ),
            dhcp=_read(parsed, "dhcp", str(_number(host, DHCP_NUMBER)), IPv4Address),
            restricted="restricted" in options,
            hostname=options.get("hostname", ""),
            tftp_server_name=options.get("tftp_server_name", ""),
            tftp_path=options.get("tftp_path", ""),
            bootfile=options.get("bootfile", ""),
            search=tuple(filter(None, options.get("vdnssearch", "").split(","))),
            domain=options.get("vdomainname", ""),
            mtu=integer(parsed, "mtu", 0, MTU_MIN, MTU_MAX),
            mru=integer(parsed, "mru", 0, MTU_MIN, MTU_MAX),
            disable_host_loopback="disable_host_loopback" in options,
            ports=tuple(_ports(parsed)),
            guests=tuple(_guests(parsed)),
            verbose="verbose" in options,
        )
        _check_inside(parsed, spec)
        return spec

    def open(self, spec: SlirpSpec, context: OpenContext) -> SlirpStream:
        if spec.verbose:
            print(describe(spec), end="", file=sys.stderr)
        return SlirpStream(spec)

    def kernel_end(self, spec: SlirpSpec) -> NoKernelEnd:
        return NoKernelEnd("slirp:// is a TCP/IP stack in userspace")


def _read(parsed: Parsed, key: str, default: str, kind: Callable[[str], Address], prefix: int = 0) -> Address:
    text = parsed.options.get(key, default)
    try:
        return kind(f"{text}/{prefix}" if prefix and "/" not in text else text)
    except ValueError as error:
        raise parsed.error(key, f"is not understood: {error}", f"write it like {default}") from error


def _number(host: IPv4Interface, number: int) -> IPv4Address:
    """A machine of the network; the number's bits that the prefix covers don't count, as in libvdeslirp."""
    network = host.network
    return network.network_address + (number & int(network.hostmask))


def _check_inside(parsed: Parsed, spec: SlirpSpec) -> None:
    """libslirp believes anything; addresses outside of the network would only be silent."""
    network = spec.host.network
    for key, address in (("vnameserver", spec.nameserver), ("dhcp", spec.dhcp)):
        if address not in network:
            raise VnlError(parsed.vnl, f"{key} {address} is outside of {network}", "see host= and its prefix")
    if spec.nameserver6 not in spec.host6.network:
        cause = f"vnameserver6 {spec.nameserver6} is outside of {spec.host6.network}"
        raise VnlError(parsed.vnl, cause, "see host6= and its prefix")
    taken = (spec.host.ip, spec.nameserver, spec.dhcp)
    for inside in spec.guests:
        if inside.address == _ANY:
            continue
        if inside.address not in network or inside.address in taken:
            cause = f"{inside.address} is not a free address of {network}"
            raise VnlError(parsed.vnl, cause, f"leave it out, for {_number(spec.host, GUESTFWD_NUMBER)}")


def _ports(parsed: Parsed) -> list[PortForward]:
    found = []
    for key, udp in (("tcpfwd", False), ("udpfwd", True)):
        for item in filter(None, parsed.options.get(key, "").split(",")):
            fields = item.split(":")
            if len(fields) == 3:
                fields.insert(0, "")
            try:
                host, host_port, guest, guest_port = fields
                forward = PortForward(
                    udp, IPv4Address(host or _ANY), _port(host_port), IPv4Address(guest or _ANY), _port(guest_port)
                )
            except ValueError as error:
                hint = "write [hostIP:]hostport:[guestIP]:guestport, like 8080:10.0.2.15:80"
                raise VnlError(parsed.vnl, f'{key} "{item}" is not understood', hint) from error
            found.append(forward)
    return found


def _guests(parsed: Parsed) -> list[GuestForward]:
    found = []
    for key, command in (("unixfwd", False), ("cmdfwd", True)):
        for item in filter(None, parsed.options.get(key, "").split(",")):
            first, _, rest = item.partition(":")
            address, port, target = ("", first, rest) if first.isdecimal() else (first, *rest.partition(":")[::2])
            try:
                forward = GuestForward(IPv4Address(address or _ANY), _port(port), target, command)
            except ValueError as error:
                hint = f"write [IP:]port:{'command' if command else 'path'}"
                raise VnlError(parsed.vnl, f'{key} "{item}" is not understood', hint) from error
            if not target:
                raise VnlError(parsed.vnl, f'{key} "{item}" has no target', "write it behind the port and a colon")
            found.append(forward)
    return found


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 1 << 16:
        raise ValueError(f"{text} is not a port")
    return int(text)
