# SPDX-License-Identifier: GPL-2.0-or-later
"""Which way a cable between two ends can go, decided from their descriptions alone.  Nothing is touched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vdexdp.errors import RequestError, VdexdpError
from vdexdp.plugins.base import Inside, KernelEnd, Member, Netdev, Node, NoKernelEnd, Tunnel
from vdexdp.plugins.registry import End


@dataclass(frozen=True)
class Plan:
    """``way``: "kernel", all of it; "bridge", a port in the kernel and the other end here; "node", in the kernel if
    the daemon knows the node, which nobody else can tell; "user".

    ``why`` says, but for the first, what is in the way of a faster one.
    """

    way: Literal["kernel", "bridge", "node", "user"]
    ends: tuple[KernelEnd | NoKernelEnd, KernelEnd | NoKernelEnd]
    why: str = ""

    def instead(self, cause: str) -> Plan:
        """The best way where this one can't be had, and why that is."""
        if self.way == "node" and any(isinstance(end, Tunnel) for end in self.ends):
            return Plan("bridge", self.ends, f"{self.why}; {cause}")
        return Plan("user", self.ends, f"no kernel path: {cause}")


def plan(first: End, second: End) -> Plan:
    """The best way for a cable between two ends.  May look at the system.  Raises VnlError."""
    ends = (first.kernel_end(), second.kernel_end())
    tunnels = sum(isinstance(end, Tunnel) for end in ends)
    reasons = [kernel.reason for kernel in ends if isinstance(kernel, NoKernelEnd)]
    if tunnels == 2:
        return Plan("user", ends, "two tunnels are joined in userspace")
    if (limit := _vlan_limit(ends)) is not None:
        return Plan("user", ends, f"in the kernel a cable has at most {limit} vlan://")
    if _same_interface(*ends):
        return Plan("user", ends, "both ends are the same interface")
    if not reasons:
        return Plan("kernel", ends)
    if tunnels == 1:
        return Plan("node" if any(isinstance(end, Member) for end in ends) else "bridge", ends, reasons[0])
    if any(isinstance(end, Netdev | Inside) for end in ends):
        if any(isinstance(end, Member) for end in ends):
            return Plan("node", ends, reasons[0])
        if any(isinstance(end, Node) for end in ends):
            return Plan("bridge", ends, reasons[0])
    return Plan("user", ends, "; ".join(dict.fromkeys(reasons)))


def check(first: End, second: End) -> None:
    """Refuse to join an interface or a network to itself: each frame would go round for ever.  Raises RequestError."""
    if first.plugin.scheme != second.plugin.scheme:
        return
    one, other = first.kernel_end(), second.kernel_end()
    if not isinstance(one, NoKernelEnd) and one.vlan:
        return  # between two VLANs of one network, for instance
    if _same_interface(one, other):
        raise RequestError(second.vnl, "both ends are the same interface", "name another at one end")
    if isinstance(one, Tunnel) and isinstance(other, Tunnel) and _network(one) == _network(other):
        raise RequestError(
            second.vnl,
            "both ends are the same network, and each frame would go round for ever",
            "name another group, port, VNI or uplink at one end",
        )


def _vlan_limit(ends: tuple[KernelEnd | NoKernelEnd, ...]) -> int | None:
    """How many ``vlan://`` the kernel path can do, if these are more."""
    steps = sum(len(end.vlan) for end in ends if not isinstance(end, NoKernelEnd))
    if not steps:
        return None
    from vdexdp.control.abi import K

    return K["MAX_VLAN_STEPS"] if steps > K["MAX_VLAN_STEPS"] else None


def _same_interface(one: KernelEnd | NoKernelEnd, other: KernelEnd | NoKernelEnd) -> bool:
    return isinstance(one, Netdev) and isinstance(other, Netdev) and one.name == other.name != ""


def cut_off(port: str, uplink: str) -> RequestError:
    """The error for a port that would take the packets of a network, whose ``uplink`` is it or stands on it."""
    what = "the uplink of a network" if port == uplink else f"the way in of {uplink}, the uplink of a network"
    return RequestError(port, f"{what}, which a port would cut off", "plug another interface")


def check_uplink(first: End, second: End) -> None:
    """Refuse a port that the network at its other end needs for itself; the daemon does so in the kernel path.

    Asks rtnetlink, so that it is kept out of ``check``.  Raises RequestError.
    """
    ends = (first.kernel_end(), second.kernel_end())
    port = next((end for end in ends if isinstance(end, Netdev) and end.side == "wire"), None)
    tunnel = next((end for end in ends if isinstance(end, Tunnel)), None)
    if port is None or tunnel is None:
        return
    from vdexdp.control.netlink import Netlink
    from vdexdp.control.tunnels import find_uplink

    with Netlink() as netlink:
        try:
            uplink = find_uplink(netlink, tunnel)[0]
        except VdexdpError:  # no uplink for the kernel path; what userspace does with it, its stream says
            return
        if netlink.stands_on(uplink.index, netlink.need(port.name).index):
            raise cut_off(port.name, uplink.name)


def _network(tunnel: Tunnel) -> tuple[object, ...]:
    return tunnel.kind, tunnel.family, tunnel.group, tunnel.port, tunnel.vni, tunnel.device
