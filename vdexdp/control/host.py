# SPDX-License-Identifier: GPL-2.0-or-later
"""What the objects of the model share.

The data plane, its tables, rtnetlink, and attaching by whatever the kernel has.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
from pathlib import Path
from typing import Final, Literal
from weakref import WeakSet

from vdexdp.control.dataplane import Dataplane, Link, is_xdp, xdp_flags
from vdexdp.control.hooks import Choice
from vdexdp.control.netlink import LinkInfo, Netlink
from vdexdp.control.tables import Tables
from vdexdp.errors import HostError, KernelFeatureError, VdexdpError

_TUNSETOFFLOAD: Final = 0x400454D0
_TUN_OFFLOADS: Final = (0x6F, 0x0F)
"""Checksums, TCP and (kernels >= 6.2) UDP segmentation, as TUN_F_* flags; the first set that the kernel takes."""

EXCEPTION_TAP: Final = "vdxp"
BRIDGE_TAP: Final = "vdxb"
PATCH_TAP: Final = "vdxj"
INSIDE_VETH: Final = "vdxv"
OURS: Final = {EXCEPTION_TAP: "tun", BRIDGE_TAP: "tun", PATCH_TAP: "tun", INSIDE_VETH: "veth"}
"""The interfaces that the daemon makes: how their names begin, in front of a number, and of which kind they are."""

_PACKET_ADD_MEMBERSHIP: Final = 1
_PACKET_MR_PROMISC: Final = 1


class Host:
    """One network namespace with its data plane."""

    def __init__(self, dataplane: Dataplane, netlink: Netlink) -> None:
        self.dataplane = dataplane
        self.netlink = netlink
        self.tables = Tables(dict(dataplane.maps))
        self.links: WeakSet[Link] = WeakSet()
        """All that is attached."""
        self.replaced = 0
        """Programs of an older daemon that were replaced by ours."""
        self.refused = ""
        """Why this version's programs can't be loaded, where an older daemon's go on instead."""

    def close(self) -> None:
        """Let go; what plugs hold lives on."""
        self.dataplane.close()

    def attach(self, ifindex: int, point: str, *, xdp_native: bool = True) -> Link:
        """Attach a program, by other means where the kernel has no links for it.

        Raises HostError, with nothing changed.
        """
        link = self._attach(ifindex, point, xdp_native)
        self.links.add(link)
        return link

    def _attach(self, ifindex: int, point: str, xdp_native: bool) -> Link:
        try:
            return self.dataplane.attach(ifindex, point, xdp_native=xdp_native)
        except KernelFeatureError:
            if self.dataplane.has_links(point):
                raise
        program = self.dataplane.program(point)
        if is_xdp(point):
            flags = xdp_flags(xdp_native)

            def put_xdp(program: int) -> None:
                self.netlink.xdp_attach(ifindex, program, flags)

            xdp = self.netlink.xdp_attach(ifindex, program, flags)
            return Link(-1, point, ifindex, lambda: self.netlink.xdp_detach(xdp), put_xdp)
        direction: Literal["ingress", "egress"] = "egress" if point.endswith("_egress") else "ingress"
        # On a device that is both, the uplink's program has to see frames before the port's takes them all.
        slot = {"port": 0, "vlan": 2}.get(point.partition("_")[0], 1)

        def put(program: int) -> None:
            self.netlink.clsact_attach(ifindex, direction, program, slot)

        filter_ = self.netlink.clsact_attach(ifindex, direction, program, slot)
        return Link(-1, point, ifindex, lambda: self.netlink.clsact_detach(filter_), put)

    def attach_xdp(self, ifindex: int, point: str, choice: Choice) -> tuple[Link, str]:
        """Attach an XDP program as chosen, and say how it was done.

        Where it is to be found out whether the driver has native XDP, it is asked by trying.  Raises HostError.
        """
        if choice.native is not None:
            return self.attach(ifindex, point, xdp_native=choice.native), choice.why
        try:
            return self.attach(ifindex, point), choice.why
        except KernelFeatureError as error:
            return self.attach(ifindex, point, xdp_native=False), f"{choice.why}; {error.cause}, so generic XDP"

    def adopt_link(self, fd: int | None, ifindex: int, point: str) -> Link:
        """Go on with a link from a lease, with this version's program behind it; attach anew where there was none.

        Where this version's programs can't be loaded, the older ones go on: frames first.
        """
        if fd is None:
            return self.attach(ifindex, point)
        if not self.refused:
            try:
                self.replaced += self.dataplane.replace(fd, point)
            except VdexdpError as error:
                self.refused = str(error)
        link = Link(fd, point, ifindex)
        self.links.add(link)
        return link

    def private(self, name: str) -> None:
        """Keep the host's own stack silent on an interface of ours: no IPv6 address, no neighbour discovery."""
        with contextlib.suppress(OSError):
            Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")

    def isolate(self, name: str) -> None:
        """Keep the host's stack from taking anything from an interface of ours that leads to a user other than root.

        Our program takes every frame; this is for the moment when it is gone and the interface is not yet: no answer to
        ARP, and no source address that would be believed.
        """
        for key, value in (("rp_filter", "1"), ("arp_ignore", "8"), ("forwarding", "0")):
            with contextlib.suppress(OSError):
                Path(f"/proc/sys/net/ipv4/conf/{name}/{key}").write_text(value)


def is_ours(link: LinkInfo, *prefixes: str) -> bool:
    """Whether the daemon has made an interface, one with one of these ``prefixes`` of OURS, or any."""
    prefix = next((one for one in prefixes or OURS if link.name.startswith(one)), "")
    return OURS.get(prefix) == link.kind


def tun_offloads(fd: int, wanted: bool) -> bool:
    """Let the host's stack send super-packets on a tap (nobody reads them); False where the kernel refuses."""
    for flags in _TUN_OFFLOADS if wanted else (0,):
        try:
            fcntl.ioctl(fd, _TUNSETOFFLOAD, flags)
        except OSError:
            continue
        return True
    return False


def promiscuous(ifindex: int) -> int:
    """A descriptor that keeps an interface promiscuous as long as it is open.  Raises HostError."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    try:
        request = struct.pack("=iHH8s", ifindex, _PACKET_MR_PROMISC, 0, b"")
        sock.setsockopt(263, _PACKET_ADD_MEMBERSHIP, request)  # SOL_PACKET
    except OSError as error:
        sock.close()
        raise HostError.from_oserror(f"interface {ifindex}", error) from error
    return sock.detach()


def close_fd(fd: int) -> None:
    """Close, whatever state the descriptor is in."""
    if fd >= 0:
        with contextlib.suppress(OSError):
            os.close(fd)
