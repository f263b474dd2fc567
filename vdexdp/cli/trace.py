# SPDX-License-Identifier: GPL-2.0-or-later
"""``vdexdp trace``: what each frame met on its way through the switch."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from typing import Any

import click

from vdexdp.cli.watching import Choice, Names, filters, hook, run, sender, size, summary, target, verdict
from vdexdp.control.pcapfilter import Filter
from vdexdp.control.scrape import find_netns
from vdexdp.control.sighting import HELP, Sighting, Watch, clock_offset
from vdexdp.wire.ethernet import Header, format_mac, parse_header

HEADERS = 128
"""Bytes of a frame that are enough to say what it is."""

_TYPES = {0x0800: "IPv4", 0x0806: "ARP", 0x86DD: "IPv6", 0x88CC: "LLDP"}


@click.command()
@filters
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object for each frame.")
def trace(chosen: Choice, as_json: bool) -> None:
    """Say what frames meet: the hook, the look-ups of both addresses, the decision, and why it was dropped if it was.

    PORT is an interface or a number of "vdexdp show", NETWORK a part of a network's name; without, it is all. Filters
    are evaluated in the kernel. While somebody traces, the frames of all plugs take a slower build of the kernel
    programs, and XDP is left out.

    \b
    vdexdp trace --mac 02:00:00:00:00:01 -c 10
    vdexdp trace vm0 --dropped
    """
    inode = find_netns(chosen.netns) if chosen.netns else None
    names = Names(inode)
    sink = JsonPrinter(names) if as_json else Tracer(names)
    with Watch(chosen.wish(names, HEADERS), inode) as watch:
        say = summary(*run(watch, sink, chosen.count, chosen.seconds))
    click.echo(f"vdexdp: {say}", err=True)


class Printer:
    """One line for each frame."""

    def __init__(self, names: Names, wanted: Filter | None = None) -> None:
        self.names, self.wanted = names, wanted
        self._offset = clock_offset()

    def take(self, one: Sighting) -> bool:
        if self.wanted is not None and not self.wanted.takes(one.data, one.length):
            return False
        self.say(one)
        return True

    def say(self, one: Sighting) -> None:
        self.write(f"{self.clock(one)} {sender(one, self.names)}: {frame(one)}: {verdict(one, self.names)}")

    def write(self, line: str) -> None:
        sys.stdout.write(line + "\n")

    def clock(self, one: Sighting) -> str:
        seconds, fraction = divmod(one.time + self._offset, 10**9)
        return f"{time.strftime('%H:%M:%S', time.localtime(seconds))}.{fraction // 1000:06d}"

    def lose(self, frames: int) -> None:
        click.echo(f"vdexdp: {frames} frames lost", err=True)

    def flush(self) -> None:
        sys.stdout.flush()


class Tracer(Printer):
    """A paragraph for each frame."""

    def say(self, one: Sighting) -> None:
        names, header = self.names, parse_header(one.data)
        lines = [f"{self.clock(one)} {frame(one)}"]
        lines.append(f"  hook     {hook(one, names)}")
        if one.source != "none" and header is not None:
            what = f"{one.source} ({HELP.get(('source', one.source), '')})"
            lines.append(f"  source   {format_mac(header.src)} at {sender(one, names)}: {what}")
        if one.target != "none" and header is not None:
            lines.append(f"  target   {format_mac(header.dst)}{_lookup(one, names)}")
        lines.append(f"  verdict  {verdict(one, names)}")
        self.write("\n".join(lines))


class JsonPrinter(Printer):
    """An object for each frame."""

    def say(self, one: Sighting) -> None:
        header, names = parse_header(one.data), self.names
        about: dict[str, Any] = {key: value for key, value in asdict(one).items() if key not in ("data", "out")}
        about["time"] = (one.time + self._offset) / 1e9
        about |= {"in": names.port(one.into)["name"], "hook": hook(one, names), "flooded": one.flooded}
        about["out"] = None if one.flooded or not one.out else one.out
        about["to"] = None if one.flooded or not one.out else target(one, names)
        if header is not None:
            about |= {"src": format_mac(header.src), "dst": format_mac(header.dst), "ethertype": header.ethertype}
            about["tags"] = [tag.tci & 0xFFF for tag in header.tags]
        about |= {"verdict": verdict(one, names), "head": one.data.hex()}
        self.write(json.dumps(about))


def _lookup(one: Sighting, names: Names) -> str:
    if one.target != "found":
        return f": {one.target} ({HELP.get(('target_state', one.target), '')})"
    return f" is at {target(one, names)}, " + ("static" if one.static else f"heard of {one.age:.1f} s ago")


def frame(one: Sighting) -> str:
    """What kind of frame it is."""
    header: Header | None = parse_header(one.data)
    if header is None:
        return f"frame of {size(one)}"
    tags = "".join(f" vlan {tag.tci & 0xFFF}" for tag in header.tags)
    kind = _TYPES.get(header.ethertype, f"{header.ethertype:#06x}")
    return f"{format_mac(header.src)} > {format_mac(header.dst)}{tags} {kind}, {size(one)}"
