# SPDX-License-Identifier: GPL-2.0-or-later
"""``vdexdp explain``: which way a cable would go here, and why.  Touches nothing, needs no daemon."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field, replace

import click

from vdexdp.cli.printing import json_option, print_json, print_table
from vdexdp.control import client, features, hooks
from vdexdp.control.netlink import Netlink
from vdexdp.control.path import check, cut_off, plan
from vdexdp.control.probe import capabilities
from vdexdp.control.protocol import Bridge, end_to_json
from vdexdp.control.sockets import foreign_sockets
from vdexdp.control.tunnels import OVERHEAD, find_uplink
from vdexdp.errors import KernelPathError, VdexdpError
from vdexdp.plugins import registry
from vdexdp.plugins.base import KernelEnd, Member, Netdev, NoKernelEnd, Tunnel
from vdexdp.plugins.sockdir import CONTROL
from vdexdp.plugins.vde import FALLBACKS


@dataclass
class Part:
    """One end.  ``problem`` stands in the way of plugging it at all."""

    vnl: str
    path: str
    why: str
    problem: str = ""
    notes: list[str] = field(default_factory=list)


@click.command()
@click.argument("first")
@click.argument("second", required=False)
@json_option
def explain(first: str, second: str | None, as_json: bool) -> int:
    """Say which path each end would take here, and why; nothing is touched.

    Users other than root are told whether the daemon's policy grants it, if a daemon runs.
    """
    ends = [registry.parse(first)] + ([registry.parse(second)] if second is not None else [])
    kernel = [end.kernel_end() for end in ends]
    way, why = "kernel", ""
    if len(ends) == 2:
        check(ends[0], ends[1])
        chosen = plan(ends[0], ends[1])
        way, why = chosen.way, chosen.why
        if way == "node" and any(isinstance(one, Member) and _is_ours(one.path) for one in kernel):
            way = "kernel"
        elif way == "node":
            way = chosen.instead("").way
    elif isinstance(kernel[0], NoKernelEnd):
        way, why = "user", kernel[0].reason
    with Netlink() as netlink:
        vlan = any(not isinstance(one, NoKernelEnd) and one.vlan for one in kernel)
        parts = [
            _part(netlink, end.vnl, one, alone=len(ends) == 1, way=way, vlan=vlan)
            for end, one in zip(ends, kernel, strict=True)
        ]
        if way == "kernel" and (slow := [part for part in parts if part.path == "user"]):
            way, why = "user", slow[0].why
        if way == "kernel" and len(ends) == 2:
            _fit(netlink, parts, kernel)
    needs, rule = "", ""
    if way != "user" and len(ends) == 2 and os.geteuid():
        try:
            rule = _granting_rule(ends, kernel)
        except client.NotRunning:
            pass
        except VdexdpError as error:
            way, why = "user", f"{error.subject}: {error.cause}"
            parts = [part if part.path == "user" else replace(part, path="user", why=why) for part in parts]
    lacks = [] if way == "user" else _lacks(parts, kernel)
    if way != "user" and not rule and "CAP_NET_ADMIN" not in capabilities():
        needs = "a running daemon, or root to start one"
    if as_json:
        told = {"way": way, "why": why, "needs": needs, "rule": rule, "lacks": lacks}
        print_json(told | {"ends": [asdict(part) for part in parts]})
    else:
        _print(parts, way, why, needs, lacks)
        if rule:
            click.echo(f"The daemon's policy grants it to you: rule {rule}.")
    return 1 if any(part.problem for part in parts) else 0


def _granting_rule(ends: list[registry.End], kernel: list[KernelEnd | NoKernelEnd]) -> str:
    """The rule of the daemon's policy that lets this user plug two ends, as far as that can be told beforehand.

    Raises NotRunning, and what is in the way.
    """
    first, second = (
        end_to_json(Bridge(end.vnl) if isinstance(one, NoKernelEnd) else one)
        for end, one in zip(ends, kernel, strict=True)
    )
    return str(client.call("may", ends=[first, second], vnls=[end.vnl for end in ends])["rule"])


def _part(netlink: Netlink, vnl: str, end: KernelEnd | NoKernelEnd, *, alone: bool, way: str, vlan: bool) -> Part:
    if isinstance(end, Member) and way == "kernel":
        return Part(vnl, "tc", "the node there switches in the kernel")
    if isinstance(end, NoKernelEnd):
        bridged = " (bridged into the kernel)" if way == "bridge" else ""
        return Part(vnl, "user", end.reason + bridged)
    if way == "user" and not alone:
        return Part(vnl, "user", "the other end stays in userspace")
    try:
        if isinstance(end, Tunnel):
            return _tunnel(netlink, vnl, end)
        assert isinstance(end, Netdev), "what a VNL can name"
        return _netdev(netlink, vnl, end, vlan)
    except KernelPathError as error:
        return Part(vnl, "user", f"{error.subject}: {error.cause}")
    except VdexdpError as error:
        return Part(vnl, "-", "", str(error))


def _is_ours(path: str) -> bool:
    """Whether a daemon that runs here has the switch's node, and we may join it there."""
    if os.geteuid():
        return False
    places = (path,) if path else FALLBACKS
    try:
        shown = client.call("show")
    except VdexdpError:
        return False
    known = {node for switch in shown["switches"] for node in switch.get("nodes", ())}
    return any(os.path.join(os.path.realpath(place), CONTROL) in known for place in places)


def _netdev(netlink: Netlink, vnl: str, end: Netdev, vlan: bool) -> Part:
    stack = end.side == "stack"
    link = netlink.link(end.name) if end.name else None
    if link is None and end.create:
        rewriting = "tc rewrites its tags for vlan://" if vlan else "the host's own end passes tc egress only"
        return Part(vnl, "tc", f"the interface would be made; {rewriting}")
    link = link or netlink.need(end.name)
    choice = hooks.choose(end.hook, link, netlink.xdp_features(link.index), stack=stack, vlan=vlan)
    part = Part(vnl, "xdp" if choice.xdp else "tc", choice.why)
    if not link.up:
        part.notes.append(f'{link.name} is down; bring it up with "ip link set {link.name} up"')
    return part


def _tunnel(netlink: Netlink, vnl: str, end: Tunnel) -> Part:
    link, local = find_uplink(netlink, end)
    choice = hooks.choose(end.hook, link, netlink.xdp_features(link.index))
    part = Part(vnl, "xdp" if choice.xdp else "tc", f"uplink {link.name} ({local}): {choice.why}")
    room = link.mtu - OVERHEAD[end.family]
    part.notes.append(f"inner packets up to {room} bytes go unfragmented; larger ones take the exception path")
    if peers := foreign_sockets(end.family, end.group, end.port, set()):
        part.notes.append(
            f"sockets on this host that listen to {end.group}: {peers}; those of other programs, if any, are served by"
            " the exception path"
        )
    return part


def _fit(netlink: Netlink, parts: list[Part], ends: list[KernelEnd | NoKernelEnd]) -> None:
    tunnel = next((end for end in ends if isinstance(end, Tunnel)), None)
    if tunnel is None or any(part.problem for part in parts):
        return
    uplink = find_uplink(netlink, tunnel)[0]
    room = uplink.mtu - OVERHEAD[tunnel.family]
    for part, end in zip(parts, ends, strict=True):
        if not isinstance(end, Netdev) or not end.name:
            continue
        link = netlink.link(end.name)
        if link is not None and end.side == "wire" and netlink.stands_on(uplink.index, link.index):
            part.problem = str(cut_off(link.name, uplink.name))
        elif link is not None and link.mtu > room:
            part.notes.append(f"its MTU {link.mtu} is over {room}; set it with: ip link set {link.name} mtu {room}")


def _lacks(parts: list[Part], ends: list[KernelEnd | NoKernelEnd]) -> list[str]:
    """What this kernel does not have of what the cable would use, and what is done instead.

    Nothing where neither we nor a daemon may ask the kernel.
    """
    used = ["tcx", "coarse_clock"]
    if any(isinstance(end, Tunnel) for end in ends):
        used += ["encap_ethernet", "decap_typed"]
    if any(isinstance(end, Netdev) and end.side == "wire" for end in ends):
        used.append("redirect_peer")
    if any(part.path == "xdp" for part in parts):
        used += ["xdp_link", "frags"]
    found = features.known(lambda: client.call("features")["features"])
    return [
        f"{features.TABLE[name].title}: {features.TABLE[name].instead}" for name in used if not found.get(name, True)
    ]


def _print(parts: list[Part], way: str, why: str, needs: str, lacks: list[str]) -> None:
    text = {
        "kernel": "No frame touches a process.",
        "bridge": f"One end runs in the kernel, the other in this process: {why}.",
        "user": f"Every frame passes a process: {why}.",
    }
    print_table("", ("end", "path", "why"), [(part.vnl, part.path, part.problem or part.why) for part in parts])
    for part in parts:
        for note in part.notes:
            click.echo(f"{part.vnl}: {note}")
    for lack in lacks:
        click.echo(f"This kernel lacks {lack}.")
    if any(part.problem for part in parts):
        click.echo("As it is, this cable can't be plugged.")
        return
    click.echo(text[way] + (f" Needs {needs}." if needs else ""))
