# SPDX-License-Identifier: GPL-2.0-or-later
"""``vdexdp fdb``: the forwarding database of this namespace's networks."""

from __future__ import annotations

from typing import Any

import click

from vdexdp.cli.printing import json_option, print_json, print_table
from vdexdp.control import client
from vdexdp.errors import RequestError

switch_option = click.option("--switch", type=int, help="Id of the network, as in show; needed if there are several.")
filter_option = click.option("--switch", type=int, help="Only this network, by its id in show.")
vlan_option = click.option("--vlan", type=int, default=0, help="VLAN id; 0, the default, for untagged frames.")


@click.group(invoke_without_command=True)
@json_option
@click.pass_context
def fdb(context: click.Context, as_json: bool) -> None:
    """List or change the forwarding database; without a word, list it."""
    if context.invoked_subcommand is None:
        _list(None, as_json)


@fdb.command("list")
@filter_option
@json_option
@click.pass_context
def list_(context: click.Context, switch: int | None, as_json: bool) -> None:
    """List the live entries."""
    assert context.parent is not None
    _list(switch, as_json or context.parent.params["as_json"])


def _list(switch: int | None, as_json: bool) -> None:
    entries = client.call("fdb", action="list", switch=switch)["entries"]
    if as_json:
        print_json(entries)
        return
    rows = []
    for one in sorted(entries, key=lambda one: (one["switch"], one["vlan"], one["mac"])):
        where = f"{one['endpoint'][0]} port {one['endpoint'][1]}" if one["endpoint"] else f"port {one['port']}"
        age = "static" if one["static"] else f"{one['age']:.0f}s"
        rows.append((one["switch"], one["vlan"] or "-", one["mac"], where, age, "here" if one["local"] else ""))
    print_table("FDB", ("net", "vlan", "mac", "place", "age", ""), rows, right="net vlan age")


@fdb.command()
@click.argument("mac")
@click.option("--port", type=int, help="Index of a local port, as in show.")
@click.option("--endpoint", metavar="ADDRESS:UDP-PORT", help="A node of the network; [ADDRESS]:PORT for IPv6.")
@switch_option
@vlan_option
def add(mac: str, port: int | None, endpoint: str | None, switch: int | None, vlan: int) -> None:
    """Add a static entry: it never ages and never moves."""
    if (port is None) == (endpoint is None):
        raise RequestError(mac, "it has one place", "give either --port or --endpoint")
    place: dict[str, Any] = {"port": port} if endpoint is None else {"endpoint": list(_endpoint(endpoint))}
    client.call("fdb", action="add", switch=switch, vlan=vlan, mac=mac, **place)


def _endpoint(text: str) -> tuple[str, int]:
    address, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal():
        raise RequestError(text, "not an endpoint", "write ADDRESS:UDP-PORT, or [ADDRESS]:UDP-PORT for IPv6")
    return address.removeprefix("[").removesuffix("]"), int(port)


@fdb.command()
@click.argument("mac")
@switch_option
@vlan_option
def delete(mac: str, switch: int | None, vlan: int) -> None:
    """Delete one entry, static or learnt."""
    client.call("fdb", action="delete", switch=switch, vlan=vlan, mac=mac)


@fdb.command()
@filter_option
def flush(switch: int | None) -> None:
    """Forget all that was learnt; static entries stay."""
    client.call("fdb", action="flush", switch=switch)
