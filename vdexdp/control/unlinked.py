# SPDX-License-Identifier: GPL-2.0-or-later
"""Attaching programs where the kernel has no links for them: tc by clsact filters, XDP by rtnetlink.

What is attached so stays when its maker dies.  Therefore everything here can be found again: filters by their name, XDP
programs by the names that only ours have, and the next daemon removes what it finds.
"""

from __future__ import annotations

import errno
import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Final, Literal

from pyroute2.netlink.exceptions import NetlinkError

from vdexdp.control import bpf_link, bpf_prog
from vdexdp.errors import HostError, KernelFeatureError

ETH_P_ALL: Final = 3
XDP_NAMES: Final = ("port_xdp", "uplink_xdp", "obs_port_xdp", "obs_uplink_xdp")
_XDP_IF_NONE: Final = 1 << 0
"""XDP_FLAGS_UPDATE_IF_NOEXIST"""

CLSACT_PARENT: Final[dict[str, int]] = {"ingress": 0xFFFFFFF2, "egress": 0xFFFFFFF3}
CLSACT_PRIORITY: Final = 0x5644
CLSACT_HANDLE: Final = 1
CLSACT_NAMES: Final = {"vdexdp": True, "vdexdp-shared": False}
"""Names of our filters, and whether the qdisc is ours as well: the next daemon has to know."""


@dataclass(frozen=True)
class Clsact:
    """Our filter at one side of one interface; ``alone``: the qdisc goes with it, if nobody else has a filter there."""

    ifindex: int
    direction: Literal["ingress", "egress"]
    slot: int = 0
    alone: bool = True


def xdp_refused(ifindex: int, number: int) -> HostError:
    """What an errno of attaching XDP means, by link or not."""
    name = f"interface {ifindex}"
    if number in (errno.EBUSY, errno.EEXIST):
        return HostError(name, "another XDP program is attached", 'see it with "bpftool net", or use hook=tc')
    if number == errno.ERANGE:
        return KernelFeatureError(name, "its MTU, or its far end's, is too large for XDP", "lower it, or use hook=tc")
    if number in (errno.EOPNOTSUPP, errno.EINVAL):
        return KernelFeatureError(name, f"its driver refuses native XDP ({os.strerror(number)})", "use hook=tc")
    return HostError.from_oserror(name, OSError(number, os.strerror(number)))


@dataclass(frozen=True)
class Xdp:
    """Our XDP program on an interface; ``flags``: the mode that it was attached in."""

    ifindex: int
    flags: int


class Unlinked(ABC):
    """The half of :class:`vdexdp.control.netlink.Netlink` that attaches and finds programs."""

    @property
    @abstractmethod
    def _route(self) -> Any: ...

    # XDP

    def xdp_attach(self, ifindex: int, program: int, flags: int) -> Xdp:
        """Attach an XDP program by descriptor, in place of one of ours but of nobody else's; ``flags`` as for a link.

        Raises KernelFeatureError where the driver refuses it, HostError.
        """
        ours = any(_our_xdp(link) for link in self._route.get_links(ifindex))
        try:
            self._set_xdp(ifindex, program, flags if ours else flags | _XDP_IF_NONE)
        except NetlinkError as error:
            raise xdp_refused(ifindex, error.code) from error
        return Xdp(ifindex, flags)

    def xdp_detach(self, xdp: Xdp) -> None:
        """Remove our program.  Missing is fine."""
        try:
            self._set_xdp(xdp.ifindex, -1, xdp.flags)
        except NetlinkError:
            pass

    def xdp_leftovers(self) -> list[Xdp]:
        """XDP programs of ours, whoever attached them: what a killed daemon leaves on kernels without XDP links."""
        return [Xdp(link["index"], flags) for link in self._route.get_links() if (flags := _our_xdp(link))]

    def _set_xdp(self, ifindex: int, program: int, flags: int) -> None:
        attributes = [("IFLA_XDP_FD", program), ("IFLA_XDP_FLAGS", flags)]
        self._route.link("set", index=ifindex, xdp={"attrs": attributes})

    # tc: a clsact qdisc with a direct-action cls_bpf filter of ours

    def clsact_attach(
        self, ifindex: int, direction: Literal["ingress", "egress"], program: int, slot: int = 0
    ) -> Clsact:
        """Attach a tc program by descriptor in place of ours before, if any, adding the qdisc where it is missing.

        ``slot`` tells several filters of ours on one side apart; the highest runs first.  Raises HostError.
        """
        created = not any(q.get_attr("TCA_KIND") == "clsact" for q in self._route.get_qdiscs(index=ifindex))
        there = [] if created else self._ours(ifindex, "ingress") + self._ours(ifindex, "egress")
        alone = created or any(clsact.alone for clsact in there)
        try:
            if created:
                self._route.tc("add", "clsact", index=ifindex)
            self._route.tc(
                "replace-filter",
                "bpf",
                index=ifindex,
                handle=CLSACT_HANDLE,
                parent=CLSACT_PARENT[direction],
                prio=CLSACT_PRIORITY - slot,
                protocol=ETH_P_ALL,
                fd=program,
                name=next(name for name, ours in CLSACT_NAMES.items() if ours == alone),
                direct_action=True,
            )
        except NetlinkError as error:
            if created:
                self._clsact_remove_if_empty(ifindex)
            raise HostError(f"interface {ifindex}", f"clsact refused: {error}") from error
        return Clsact(ifindex, direction, slot, alone)

    def clsact_detach(self, clsact: Clsact) -> None:
        """Remove our filter, and the qdisc if nobody else uses it.  Missing is fine."""
        try:
            self._route.tc(
                "del-filter",
                "bpf",
                index=clsact.ifindex,
                handle=CLSACT_HANDLE,
                parent=CLSACT_PARENT[clsact.direction],
                prio=CLSACT_PRIORITY - clsact.slot,
                protocol=ETH_P_ALL,
            )
        except NetlinkError:
            pass
        if clsact.alone:
            self._clsact_remove_if_empty(clsact.ifindex)

    def clsact_leftovers(self) -> list[Clsact]:
        """Filters of ours, whoever attached them: what a killed daemon leaves on kernels without tcx."""
        found: list[Clsact] = []
        for qdisc in self._route.get_qdiscs():
            if qdisc.get_attr("TCA_KIND") == "clsact":
                found += self._ours(qdisc["index"], "ingress") + self._ours(qdisc["index"], "egress")
        return found

    def _ours(self, ifindex: int, direction: Literal["ingress", "egress"]) -> list[Clsact]:
        found = []
        for item in self._filters(ifindex, CLSACT_PARENT[direction]):
            options = item.get_attr("TCA_OPTIONS")
            name = options.get_attr("TCA_BPF_NAME") if options is not None else None
            if name in CLSACT_NAMES:
                slot = CLSACT_PRIORITY - (item["info"] >> 16)
                found.append(Clsact(ifindex, direction, slot, CLSACT_NAMES[name]))
        return found

    def _filters(self, ifindex: int, parent: int) -> list[Any]:
        return list(self._route.get_filters(index=ifindex, parent=parent))

    def _clsact_remove_if_empty(self, ifindex: int) -> None:
        try:
            if not any(self._filters(ifindex, parent) for parent in CLSACT_PARENT.values()):
                self._route.tc("del", "clsact", index=ifindex)
        except NetlinkError:
            pass


def _our_xdp(link: Any) -> int:
    """The flags by which the program of ours on an interface is taken off; 0 where there is none, or another's."""
    xdp = link.get_attr("IFLA_XDP")
    for attribute, flags in (
        ("IFLA_XDP_DRV_PROG_ID", bpf_link.XDP_FLAGS_DRV_MODE),
        ("IFLA_XDP_SKB_PROG_ID", bpf_link.XDP_FLAGS_SKB_MODE),
    ):
        try:
            if xdp is not None and (number := xdp.get_attr(attribute)) and bpf_prog.name_of(number) in XDP_NAMES:
                return flags
        except OSError:
            continue
    return 0
