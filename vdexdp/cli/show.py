# SPDX-License-Identifier: GPL-2.0-or-later
"""``vdexdp show``: what is plugged, which way its frames go, and what became of them."""

from __future__ import annotations

import time
from typing import Any

import click

from vdexdp.cli.printing import brief, console, duration, json_option, named, print_json, print_table
from vdexdp.control import client
from vdexdp.control.rates import totals


@click.command()
@json_option
@click.option("--ports", "only_ports", is_flag=True, help="Only the ports, with every counter.")
def show(as_json: bool, only_ports: bool) -> None:
    """Show plugs, networks, ports and uplinks of this network namespace."""
    found = client.call("show")
    if as_json:
        print_json(found["ports"] if only_ports else found)
        return
    if only_ports:
        _counters(found)
        return
    console().print(
        f"vdexdp {found['version']}, daemon {found['pid']}{' (started on demand)' if found['auto'] else ''},"
        f" up {duration(found['uptime'])}, Linux {found['kernel']}\n"
    )
    if not found["plugs"]:
        console().print("Nothing is plugged.")
        return
    _plugs(found)
    _switches(found)
    _ports(found)
    _uplinks(found)
    _worker(found["worker"])
    _watching(found)


def _plugs(found: dict[str, Any]) -> None:
    rows = []
    for plug in found["plugs"]:
        ways = " / ".join(path["path"] for path in plug["paths"])
        age = duration(time.time() - plug["since"])
        rows.append((plug["id"], *plug["vnls"], ways, age, plug["pid"], plug["user"]))
    print_table("Plugs", ("id", "first", "second", "path", "age", "pid", "user"), rows, right="id age pid")
    for plug in found["plugs"]:
        for note in plug["notes"]:
            console().print(f"Plug {plug['id']}: {note}", markup=False)
        if plug["notes"]:
            console().print()


def _switches(found: dict[str, Any]) -> None:
    rows = [
        (one["id"], one["name"], one["mode"], len(one["ports"]), one["fdb"], one.get("local", "-"), _peers(one))
        for one in found["switches"]
    ]
    columns = ("id", "network", "mode", "ports", "fdb", "address", "nodes here")
    print_table("Networks", columns, rows, right="id ports fdb")


def _peers(switch: dict[str, Any]) -> str:
    return str(switch["local_peers"]) if "local_peers" in switch else "-"


def _ports(found: dict[str, Any]) -> None:
    rows = []
    for port in found["ports"]:
        counters = port["counters"]
        total = totals(counters)
        hooks = "+".join(port["hooks"])
        frames = [brief(total[name]) for name in ("rx_frames", "tx_frames", "slow")]
        cells = (*frames, named(counters["drops"]), port["why"])
        rows.append((port["index"], port["switch"], port["name"], port["kind"], hooks, *cells))
    columns = ("port", "net", "name", "kind", "hook", "in", "out", "slow", "drops", "why this hook")
    print_table("Ports (frames)", columns, rows, right="port net in out slow")


def _counters(found: dict[str, Any]) -> None:
    rows = []
    for port in found["ports"] + [one | {"index": "-", "kind": "uplink"} for one in found["uplinks"]]:
        for name, value in port["counters"].items():
            for label, count in value.items():
                if count:
                    rows.append((port["index"], port["name"], name, label, count))
    print_table("Counters", ("port", "name", "counter", "by", "value"), rows, right="port value")


def _uplinks(found: dict[str, Any]) -> None:
    rows = [
        (one["name"], "+".join(one["hooks"]), one["mtu"], ", ".join(one["addresses"]), len(one["lacs"]), one["why"])
        for one in found["uplinks"]
    ]
    if rows:
        columns = ("uplink", "hook", "mtu", "address", "networks", "why this hook")
        print_table("Uplinks", columns, rows, right="mtu networks")


def _worker(worker: dict[str, Any]) -> None:
    if "tap" not in worker:
        return
    counts: dict[str, int] = worker.get("counters", {}) | worker["drops"]
    for lac in worker.get("lacs", {}).values():
        for name, count in lac.items():
            counts[name] = counts.get(name, 0) + count
    state = f"process {worker['pid']}" if worker["running"] else "does not answer"
    console().print(f"Exception path: {worker['tap']}, {state}; {named(counts)}", markup=False)


def _watching(found: dict[str, Any]) -> None:
    watching = found.get("watching")
    if watching:
        names = {port["index"]: port["name"] for port in found["ports"]}
        ways = [f"{names.get(one['port'], one['port'])} to {one['target']}" for one in watching["mirrors"]]
        what = f"{watching['observers']} captures and traces, mirrors: {', '.join(ways) or 'none'}"
        console().print(f"Watched: {what}; XDP is left out meanwhile", markup=False)
