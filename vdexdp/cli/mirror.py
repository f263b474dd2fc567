# SPDX-License-Identifier: GPL-2.0-or-later
"""``vdexdp mirror``: all that passes a port, copied to an interface."""

from __future__ import annotations

from typing import Any

import click

from vdexdp.cli.printing import brief, json_option, print_json, print_table
from vdexdp.control import client
from vdexdp.control.sighting import local_port
from vdexdp.errors import RequestError


@click.command()
@click.argument("source", metavar="[PORT", default="")
@click.argument("target", metavar="[INTERFACE]]", default="")
@click.option("--off", is_flag=True, help="End the mirror of PORT.")
@json_option
def mirror(source: str, target: str, off: bool, as_json: bool) -> None:
    """Copy what comes in by a port and what goes out of it to an interface; without a word, list all mirrors.

    PORT is a local port's interface or its number in "vdexdp show". INTERFACE may be a port, whose other side then gets
    the copies, or any other interface that is up. Copies are made by the kernel, of super-packets as a whole. A mirror
    ends with --off, with its port's plug, or with the interface; it outlives the daemon. While there is one, the frames
    of all plugs take a slower build of the kernel programs, and XDP is left out.

    \b
    ip link add mon0 type veth peer name mon1 && ip link set mon0 up && ip link set mon1 up
    vdexdp mirror vm0 mon0
    tcpdump -i mon1
    vdexdp mirror --off vm0
    """
    if not source:
        _list(as_json)
    elif off == bool(target):
        raise RequestError(source, "what is to be done?", "vdexdp mirror PORT INTERFACE, or vdexdp mirror --off PORT")
    elif off:
        client.call("mirror", action="remove", port=_port(source))
    else:
        # The observed programs are loaded, perhaps compiled, before the answer comes.
        client.call("mirror", action="add", port=_port(source), target=target)


def _port(name: str) -> int:
    port = local_port(client.call("show")["ports"], name)
    if port is None:
        raise RequestError(name, "no local port of this namespace", 'see "vdexdp show"')
    return int(port["index"])


def _list(as_json: bool) -> None:
    found: list[dict[str, Any]] = client.call("mirror", action="list")["mirrors"]
    names = {port["index"]: port["name"] for port in client.call("show")["ports"]}
    for one in found:
        one["name"] = names.get(one["port"], "")
    if as_json:
        print_json(found)
        return
    rows = [(one["port"], one["name"], one["target"], brief(one["frames"]), brief(one["refused"])) for one in found]
    print_table("Mirrors", ("port", "name", "to", "copies", "refused"), rows, right="port copies refused")
