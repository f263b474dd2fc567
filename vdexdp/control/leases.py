# SPDX-License-Identifier: GPL-2.0-or-later
"""Leases: what a plug holds so that its frames flow on without a daemon, and the next daemon can go on with it.

A lease is the plug's state as JSON, and descriptors: those of the data plane's maps, and of what else in the kernel the
plug depends on (docs/decisions/007).  The tables in the maps stand meanwhile; so a lease names entries of theirs, and
is good as long as these are what it says.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict

from vdexdp.control.channel import Body
from vdexdp.control.host import close_fd
from vdexdp.control.model import Model
from vdexdp.control.plug import Plug
from vdexdp.control.protocol import EndPath, PlugRequest, end_from_json, end_to_json
from vdexdp.errors import HostError, ProtocolError


def make(model: Model, plug: Plug) -> tuple[Body, dict[str, int]]:
    """All that keeps a plug's frames flowing without a daemon, and what a new daemon needs to know of it."""
    asked = plug.request
    ends = [end_to_json(end, index) for end, index in zip(asked.ends, asked.fd_index, strict=True)]
    state: Body = {
        "plug": {"id": plug.id, "since": plug.since, "uid": plug.uid, "pid": asked.pid, "user": asked.user}
        | {"ends": ends, "vnls": list(asked.vnls), "accel": asked.accel}
        | {"paths": [asdict(path) for path in plug.paths], "notes": plug.notes, "switch": plug.switch}
        | {"rule": plug.rule, "token": plug.token},
        "ports": [port.state() for port in plug.ports],
    }
    served = model.nodes.served_by(plug.id)
    state |= {"node": served.state()} if served is not None else {}
    state |= {"member": plug.node.state()} if plug.node is not None else {}
    held = {f"map:{name}": one.fd for name, one in model.host.dataplane.maps.items()}
    if plug.alive >= 0:
        held["alive"] = plug.alive
    for port in plug.ports:
        held |= port.fds()
    if plug.lac is not None and model.tunnels.exception is not None:
        state["lac"] = plug.lac.state()
        state["uplink"] = plug.lac.uplink.state()
        state["exception"] = model.tunnels.exception.state()
        held |= plug.lac.fds() | plug.lac.uplink.fds() | model.tunnels.exception.fds()
    return state, held


def resume(model: Model, state: Body, fds: dict[str, int]) -> Plug:
    """Go on with a plug from its lease, taking the descriptors that are needed out of ``fds``.

    The maps must be the model's already.  Raises ProtocolError for a lease that does not fit.
    """
    try:
        about = state["plug"]
        number = about["id"] if about["id"] not in model.plugs else model.next_plug
        _check(model, state)
        (first, first_fd), (second, second_fd) = map(end_from_json, about["ends"])
        vnls = (str(about["vnls"][0]), str(about["vnls"][1]))
        asked = PlugRequest((first, second), vnls, about["accel"], about["pid"], about["user"], (first_fd, second_fd))
        paths = [EndPath(**path) for path in about["paths"]]
        with ExitStack() as undo:
            plug = Plug(number, asked, about["since"], about["uid"], paths=paths, notes=list(about["notes"]))
            plug.undo, plug.switch = undo, about["switch"]
            plug.rule, plug.token = str(about.get("rule", "")), str(about.get("token", ""))
            own = "lac" not in state or plug.switch != state["lac"]["switch"]
            if "lac" in state:
                model.tunnels.adopt_exception(state["exception"], fds)
                model.tunnels.adopt_uplink(state["uplink"], fds)
                plug.hold_lac(model.tunnels, model.tunnels.adopt_lac(state["lac"], fds, plug.id))
            if own and "node" in state:
                model.host.tables.switches_used.add(plug.switch)
                undo.callback(model.host.tables.clear_switch, plug.switch)
            elif own and "member" not in state:
                model.hold_cable(plug)
            _resume_node(model, plug, state)
            for one in state["ports"]:
                plug.hold_ports(model.ports, model.ports.adopt(one | {"plug": number}, fds))
            plug.alive = fds.pop("alive", -1)
            plug.undo = undo.pop_all()
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        raise ProtocolError("lease", f"malformed: {error!r}") from error
    model.plugs[plug.id] = plug
    model.next_plug = max(model.next_plug, plug.id + 1)
    return plug


def _resume_node(model: Model, plug: Plug, state: Body) -> None:
    """Either may come back first, the node or its member."""
    for role in ("node", "member"):
        if about := state.get(role):
            key = (about["pid"], about["path"])
            node = model.nodes.note(key, plug.switch, about["mode"], about["expiry"], plug.lac)
            if role == "node":
                plug.serve(model.nodes, node)
            else:
                plug.visit(node)


def _check(model: Model, state: Body) -> None:
    """The tables still say what the lease says.  Raises HostError where its ports were given up meanwhile."""
    tables = model.host.tables
    claims = [(one["index"], one["switch"], one.get("out") or one["ifindex"]) for one in state["ports"]]
    if "lac" in state:
        claims.append((state["lac"]["index"], state["lac"]["switch"], 0))
    for index, switch, ifindex in claims:
        info = tables.port(index)
        if info is None or (info.switch_id, info.ifindex) != (switch, ifindex) or index in model.ports.all:
            raise HostError("lease", "its ports were given up meanwhile", "plug again")


def sweep(model: Model, ports: Iterable[int], switches: Iterable[int]) -> int:
    """Remove what adopted maps still hold of plugs that did not come back; returns how many ports that were."""
    tables = model.host.tables
    kept = set(model.ports.all) | {uplink.index for uplink in model.tunnels.uplinks.values()}
    kept |= {lac.index for lac in model.tunnels.lacs.values()}
    if model.tunnels.exception is not None:
        kept.add(model.tunnels.exception.index)
    gone = set(ports) - kept
    for index in gone:
        tables.drop_vlans_of(index)
        tables.drop_ingress_of(index)
        for key in tables.endpoints_of(index):
            tables.drop_endpoint(key)
        tables.drop_member(tables.port(index).switch_id, index)
        tables.drop_tx(index)
        tables.clear_port(index)
    nodes = {node.switch for node in model.nodes.all.values()}
    for switch in set(switches) - set(model.tunnels.lacs) - model.cables - nodes:
        tables.clear_switch(switch)
    return len(gone)


def release(fds: dict[str, int]) -> None:
    """Close what nobody took over."""
    while fds:
        close_fd(fds.popitem()[1])
