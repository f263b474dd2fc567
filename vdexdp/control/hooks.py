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


@dataclass(frozen=True)
class Choice:
    """``xdp``: attach the XDP program too; ``native``: by the driver itself; ``why`` for the user."""

    xdp: bool
    why: str
    native: bool = True


def choose(hook: Literal["auto", "tc", "xdp"], link: LinkInfo, features: int | None, *, stack: bool = False) -> Choice:
    """``features`` as in :meth:`Netlink.xdp_features`.  Raises RequestError where the wish is impossible."""
    native = features is not None and features & (XDP_BASIC | XDP_REDIRECT) == XDP_BASIC | XDP_REDIRECT
    virtual = link.kind or link.driver
    if hook == "tc":
        return Choice(False, "tc was asked for")
    if stack:
        if hook == "xdp":
            raise RequestError(
                link.name, "XDP can't see what this host itself sends on it", "leave the hook to auto, or use netdev://"
            )
        return Choice(False, "the host's own end: its frames pass tc egress only")
    if hook == "xdp":
        if native or features is None:
            return Choice(True, "xdp was asked for")
        return Choice(True, f"xdp was asked for; {link.driver or 'the driver'} has none, so generic XDP", native=False)
    if link.kind or link.driver in VIRTUAL_DRIVERS:
        return Choice(False, f"{virtual}: tc keeps super-packets whole")
    if native:
        return Choice(True, f"{link.driver}: native XDP, tc behind it")
    if features is None:
        return Choice(False, f"{link.driver or link.name}: this kernel can't tell whether the driver has native XDP")
    return Choice(False, f"{link.driver or link.name}: the driver has no native XDP")
