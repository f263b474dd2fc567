# SPDX-License-Identifier: GPL-2.0-or-later
"""What a plug says of itself: the path that each of its ends takes, why not a faster one, and what to look after."""

from __future__ import annotations

from collections.abc import Iterator

from vdexdp.control.plug import Plug
from vdexdp.control.ports import Port, Ports
from vdexdp.control.protocol import Bridge, EndPath, Visit
from vdexdp.control.tunnels import OVERHEAD, Lac, Tunnels
from vdexdp.plugins.base import Tunnel


def describe(plug: Plug, ports: Ports, tunnels: Tunnels) -> None:
    """Fill in the plug's paths and notes.  Its ports stand in the order of its ends."""
    own = iter(plug.ports)
    for end in plug.request.ends:
        if isinstance(end, Visit):
            assert plug.node is not None
            plug.paths.append(EndPath(end.vnl, "tc", f"{plug.node.name} switches in the kernel"))
            continue
        if isinstance(end, Tunnel):
            assert plug.lac is not None
            uplink = plug.lac.uplink
            way = "xdp" if "xdp" in uplink.hooks else "tc"
            patch = next((f", by the patch {port.name}" for port in plug.ports if port.out), "")
            plug.paths.append(EndPath(plug.lac.name, way, f"{uplink.name}: {uplink.why}{patch}"))
            continue
        port = next(own)
        if isinstance(end, Bridge):
            plug.paths.append(EndPath(end.vnl, "user", f"bridged into the kernel by {port.name}"))
            continue
        plug.paths.append(EndPath(port.name, port.path, port.why))
        link = ports.host.netlink.link(port.ifindex)
        if link is not None and not link.up and port.kind == "wire":
            plug.notes.append(f'{port.name} is down; bring it up with "ip link set {port.name} up"')
        if port.kind == "wire" and "xdp" in port.hooks and link is not None and link.kind == "veth":
            plug.notes.append(f"{port.name}: XDP on a veth turns off segmentation offload at its far end")
    plug.notes += [_mtu_note(port, lac) for port, lac in _tight(plug, ports, tunnels)]


def _tight(plug: Plug, ports: Ports, tunnels: Tunnels) -> Iterator[tuple[Port, Lac]]:
    """Ports and networks that the plug has brought together, where the network's uplink is too small."""
    patch = any(port.out for port in plug.ports)
    for lac in tunnels.lacs.values():
        for port in ports.all.values():
            new = port.plug == plug.id or (patch and lac is plug.lac and port.switch == plug.switch)
            tight = port.mtu > lac.room and not (port.bridge or port.out)
            if new and tight and ports.patched(port.switch, lac.switch):
                yield port, lac


def _mtu_note(port: Port, lac: Lac) -> str:
    uplink, room = lac.uplink, lac.room
    enough = port.mtu + OVERHEAD[lac.spec.family]
    return (
        f"{port.name}'s MTU {port.mtu} leaves no room on {uplink.name} ({uplink.mtu}): frames over {room}+14 bytes take"
        f" the exception path; set {port.name}'s MTU to {room}, or {uplink.name}'s to {enough}"
    )
