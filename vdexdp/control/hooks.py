# SPDX-License-Identifier: GPL-2.0-or-later
"""Which hook a device gets, and why.

tc programs are complete; XDP programs are the fast path for known unicast in front of them.  On a virtual device tc
wins: it keeps super-packets whole and their checksums unfilled, while XDP there costs the far end its offloads.  On
hardware whose driver has native XDP, XDP wins.  The user may override.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vdexdp.control.netlink import XDP_BASIC, XDP_REDIRECT, LinkInfo
from vdexdp.errors import RequestError

VIRTUAL_DRIVERS = frozenset({"tun", "veth", "bridge", "macvlan", "ipvlan", "802.1Q VLAN Support", "vxlan", "dummy"})


def finishes_checksums(link: LinkInfo) -> bool:
    """Whether what leaves by the interface has its checksums filled in before another stack sees it.

    Hardware does that, also behind a VLAN, a bond or a macvlan.  A veth, a bridge of veths, or a virtual machine's
    virtio NIC may hand the frame over to another stack in memory, as it is.
    """
    return link.kind in ("", "vlan", "bond", "team", "macvlan") and link.driver != "virtio_net"


@dataclass(frozen=True)
class Choice:
    """``xdp``: attach the XDP program too; ``native``: by the driver itself, None where only trying can tell.

    ``why`` is for the user.
    """

    xdp: bool
    why: str
    native: bool | None = True


def choose(
    hook: Literal["auto", "tc", "xdp"], link: LinkInfo, features: int | None, *, stack: bool = False, vlan: bool = False
) -> Choice:
    """``features`` as in :meth:`Netlink.xdp_features`; ``vlan``: there is a vlan:// in front of the port.

    Raises RequestError where the wish is impossible.
    """
    native = features is not None and features & (XDP_BASIC | XDP_REDIRECT) == XDP_BASIC | XDP_REDIRECT
    virtual = link.kind or link.driver
    if vlan:
        if hook == "xdp":
            raise RequestError(link.name, "tags are rewritten in tc, behind XDP", "leave the hook to auto, or to tc")
        return Choice(False, "tc rewrites its tags for vlan://")
    if hook == "tc":
        return Choice(False, "tc was asked for")
    if stack:
        if hook == "xdp":
            raise RequestError(
                link.name, "XDP can't see what this host itself sends on it", "leave the hook to auto, or use netdev://"
            )
        return Choice(False, "the host's own end: its frames pass tc egress only")
    if hook == "xdp":
        if features is None:
            return Choice(True, "xdp was asked for, native XDP if the driver takes it", native=None)
        if native:
            return Choice(True, "xdp was asked for")
        return Choice(True, f"xdp was asked for; {link.driver or 'the driver'} has none, so generic XDP", native=False)
    if link.kind or link.driver in VIRTUAL_DRIVERS:
        return Choice(False, f"{virtual}: tc keeps super-packets whole")
    if native:
        return Choice(True, f"{link.driver}: native XDP, tc behind it")
    if features is None:
        return Choice(False, f"{link.driver or link.name}: this kernel can't tell whether the driver has native XDP")
    return Choice(False, f"{link.driver or link.name}: the driver has no native XDP")
