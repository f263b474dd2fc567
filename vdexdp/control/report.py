# SPDX-License-Identifier: GPL-2.0-or-later
"""What ``show`` and ``fdb`` answer, as JSON."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from vdexdp.control import fdb as table
from vdexdp.control.abi import K, enum
from vdexdp.control.channel import Body, take
from vdexdp.control.model import Model
from vdexdp.control.netlink import canonical
from vdexdp.control.nodes import Node
from vdexdp.control.ports import Port
from vdexdp.control.sockets import lost_datagrams
from vdexdp.control.tables import mac_bytes
from vdexdp.control.tunnels import Lac, Uplink
from vdexdp.errors import RequestError


def show(model: Model, *, ask_worker: bool = True) -> Body:
    """Plugs, switches, ports, uplinks and the worker, with their counters."""
    census = table.census(model.host.tables)
    if ask_worker and model.tunnels.exception is not None:
        model.worker_said(model.tunnels.exception.ask_stats())
    switches = [_lac_switch(model, lac, census) for lac in model.tunnels.lacs.values()]
    switches += [_cable_switch(model, switch) for switch in sorted(model.cables)]
    switches += [_node_switch(model, node, census) for node in model.nodes.all.values() if node.lac is None]
    ports = [_port(model, port) for port in model.ports.all.values()]
    ports += [_tunnel_port(model, lac) for lac in model.tunnels.lacs.values()]
    return {
        "kernel": os.uname().release,
        "plugs": [plug.show() for plug in model.plugs.values()],
        "switches": sorted(switches, key=lambda one: one["id"]),
        "ports": sorted(ports, key=lambda one: one["index"]),
        "uplinks": [_uplink(model, uplink) for uplink in model.tunnels.uplinks.values()],
        "worker": _worker(model),
        "fdb": {"used": census.slots, "size": K["MAX_FDB"]},
        "timings": _timings(model),
        "watching": model.observatory.show(),
    }


def port_names(model: Model) -> list[Body]:
    """What a port number stands for now."""
    ports = [(port.index, port.name, port.kind, port.switch) for port in model.ports.all.values()]
    ports += [(lac.index, lac.name, "tunnel", lac.switch) for lac in model.tunnels.lacs.values()]
    return [dict(zip(("index", "name", "kind", "switch"), one, strict=True)) for one in ports]


def _lac_switch(model: Model, lac: Lac, census: table.Census) -> Body:
    members = sorted(port.index for port in model.ports.all.values() if port.switch == lac.switch)
    return {
        "id": lac.switch,
        "mode": "switch",
        "name": lac.name,
        "expiry": lac.spec.expiry,
        "fdb": census.entries[lac.switch],
        "peers": census.endpoints[lac.switch],
        "tunnel": lac.index,
        "nodes": [node.key[1] for node in model.nodes.all.values() if node.switch == lac.switch],
        "ports": members,
        "local": lac.local,
        "udp_port": lac.sockets.port,
        "local_peers": lac.local_peers,
        "rtt": model.host.tables.histogram("rtts", lac.index) if model.host.tables.sample else None,
        "plugs": sorted(lac.plugs),
    }


def _cable_switch(model: Model, switch: int) -> Body:
    members = sorted((port for port in model.ports.all.values() if port.switch == switch), key=lambda port: port.index)
    name = "cable " + " = ".join(port.name for port in members)
    return {"id": switch, "mode": "cable", "name": name, "expiry": 0, "fdb": 0, "tunnel": None} | {
        "ports": [port.index for port in members],
        "plugs": sorted({port.plug for port in members}),
    }


def _node_switch(model: Model, node: Node, census: table.Census) -> Body:
    members = [port for port in model.ports.all.values() if port.switch == node.switch]
    about = {"id": node.switch, "mode": node.mode, "name": node.name, "expiry": node.expiry, "tunnel": None}
    return about | {
        "fdb": census.entries[node.switch],
        "nodes": [node.key[1]],
        "ports": sorted(port.index for port in members),
        "plugs": sorted({port.plug for port in members}),
    }


def _learning(model: Model) -> list[int]:
    return sorted({*model.tunnels.lacs, *model.nodes.learning()})


def _port(model: Model, port: Port) -> Body:
    kept = ("index", "switch", "name", "kind", "ifindex", "hooks", "why", "plug", "mtu", "bridge")
    counters = model.host.tables.counters(port.index)
    return {key: getattr(port, key) for key in kept} | {"counters": counters}


def _tunnel_port(model: Model, lac: Lac) -> Body:
    uplink = lac.uplink
    return {
        "index": lac.index,
        "switch": lac.switch,
        "name": lac.name,
        "kind": "tunnel",
        "ifindex": uplink.ifindex,
        "hooks": uplink.hooks,
        "why": uplink.why,
        "plug": None,
        "mtu": lac.room,
        "bridge": False,
        "counters": model.host.tables.counters(lac.index),
    }


def _uplink(model: Model, uplink: Uplink) -> Body:
    addresses = sorted({lac.local for lac in model.tunnels.lacs.values() if lac.uplink is uplink})
    return {
        "name": uplink.name,
        "ifindex": uplink.ifindex,
        "hooks": uplink.hooks,
        "why": uplink.why,
        "mtu": uplink.mtu,
        "address": addresses[0] if addresses else "",
        "addresses": addresses,
        "lacs": sorted(uplink.lacs),
        "counters": model.host.tables.counters(uplink.index),
    }


def _timings(model: Model) -> Body:
    """How long the programs take, as histograms; empty while nobody has it measured."""
    tables = model.host.tables
    return {row.label: tables.histogram("timings", row.value) for row in enum("timed")} if tables.sample else {}


def _worker(model: Model) -> Body:
    exception = model.tunnels.exception
    if exception is None:
        return {"running": False}
    stats = {key: value for key, value in exception.stats.items() if key != "event"}
    drops = model.host.tables.counters(exception.index)["drops"]
    # What came faster than the worker could take it, at either side, is counted by the kernel alone.
    lost = {
        "queue_full": model.host.netlink.dropped(exception.ifindex),
        "socket_full": lost_datagrams(model.tunnels.inodes()),
    }
    drops |= {name: count for name, count in lost.items() if count}
    return {"running": bool(stats), "tap": exception.name, "restarts": exception.restarts, "drops": drops, **stats}


def fdb(model: Model, body: Mapping[str, Any], uid: int = 0) -> Body:
    """``list``, ``add``, ``delete``, ``flush``.  Raises RequestError for what is not there, ProtocolError.

    A user other than root sees the switches of his plugs only.
    """
    mine = {plug.switch for plug in model.plugs.values() if not uid or plug.uid == uid}
    action = take(body, "action", str, "list")
    switch = take(body, "switch", (int, type(None)), None)
    if switch is not None and (switch not in {*_learning(model), *model.cables} or (uid and switch not in mine)):
        raise RequestError(f"switch {switch}", "no such switch", 'see "vdexdp show"')
    tables = model.host.tables
    if action == "list":
        rows = (row for row in table.rows(tables, switch) if not uid or row.switch in mine)
        return {"entries": [asdict(row) | {"age": round(row.age, 1)} for row in rows]}
    if action == "flush":
        for one in [switch] if switch is not None else _learning(model):
            tables.fdb_flush(one)
        return {}
    if action not in ("add", "delete"):
        raise RequestError(f"fdb {action[:20]}", "no such action", "use list, add, delete or flush")
    one = switch if switch is not None else _only_switch(model)
    mac, vlan = mac_bytes(take(body, "mac", str)), take(body, "vlan", int, 0)
    if not 0 <= vlan < 4095:
        raise RequestError(f"vlan {vlan}", "out of range", "use 0 (untagged) to 4094")
    if action == "delete":
        if not tables.fdb_delete(one, vlan, mac):
            raise RequestError(take(body, "mac", str), f"not in the table of switch {one}", 'see "vdexdp fdb list"')
        return {}
    _add(model, one, vlan, mac, body)
    return {}


def _only_switch(model: Model) -> int:
    learning = _learning(model)
    if len(learning) != 1:
        raise RequestError("fdb", f"there are {len(learning)} learning switches", "say which: --switch ID")
    return learning[0]


def _add(model: Model, switch: int, vlan: int, mac: bytes, body: Mapping[str, Any]) -> None:
    if mac[0] & 1 or not any(mac):
        raise RequestError(take(body, "mac", str), "not the address of a single station", "use a unicast address")
    lac = model.tunnels.lacs.get(switch)
    if switch in model.cables:
        raise RequestError(f"switch {switch}", "a cable has no table")
    endpoint = take(body, "endpoint", (list, type(None)), None)
    if endpoint is not None:
        if lac is None:
            raise RequestError(f"switch {switch}", "it has no network, so no endpoints", "name a port")
        model.host.tables.fdb_add(switch, vlan, mac, lac.index, _endpoint(endpoint, lac))
        return
    index = take(body, "port", int)
    port = model.ports.all.get(index)
    if port is None or port.switch != switch:
        raise RequestError(f"port {index}", f"not a local port of switch {switch}", 'see "vdexdp show"')
    model.host.tables.fdb_add(switch, vlan, mac, index)


def _endpoint(value: list[Any], lac: Lac) -> tuple[str, int]:
    if len(value) != 2 or not isinstance(value[0], str) or type(value[1]) is not int or not 0 < value[1] < 1 << 16:
        raise RequestError(str(value)[:60], "not an endpoint", "write ADDRESS and UDP port")
    try:
        address = canonical(value[0])
    except ValueError as error:
        raise RequestError(value[0][:60], "not an IP address") from error
    where = ipaddress.ip_address(address)
    if where.is_multicast or where.is_loopback or where.is_unspecified:
        raise RequestError(address, "not the address of a node", "use the node's own unicast address")
    if (":" in address) != (lac.spec.family == 6):
        raise RequestError(address, f"not an IPv{lac.spec.family} address, as this network's are")
    return address, value[1]
