# SPDX-License-Identifier: GPL-2.0-or-later
"""What ``capture`` and ``trace`` share: their filters, the loop, and how a frame is put into words."""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import wraps
from typing import Any, Final, Protocol

import click

from vdexdp.control import client
from vdexdp.control.sighting import HELP, Sighting, Watch, decode, local_port, ports_of
from vdexdp.control.wish import BUFFER_MAX, Wish
from vdexdp.errors import DaemonError, RequestError
from vdexdp.signals import ENDING, as_descriptor, received

ETHERTYPES: Final = {"ip": 0x0800, "arp": 0x0806, "ip6": 0x86DD, "lldp": 0x88CC, "pppoe": 0x8864, "mpls": 0x8847}
BATCH: Final = 512
COUNTS_EVERY: Final = 1.0
"""Seconds between two questions after the frames that were lost."""
PORTS_EVERY: Final = 1.0
"""Seconds between two looks for a port that is not known."""


def _ethertype(context: click.Context, parameter: click.Parameter, value: str | None) -> int:
    if value is None:
        return 0
    try:
        number = ETHERTYPES.get(value.lower()) or int(value, 16)
    except ValueError:
        number = 0
    if not 0x600 <= number <= 0xFFFF:
        known = ", ".join(ETHERTYPES)
        raise click.BadParameter(f"{value} is neither one of {known} nor a hexadecimal number from 600 to ffff")
    return number


FILTERS: Final = (
    click.argument("where", metavar="[PORT|NETWORK]", default=""),
    click.option("--mac", metavar="ADDRESS", default="", help="Only frames from or to this address."),
    click.option("--ethertype", metavar="TYPE", callback=_ethertype, help="Only this type: ip, ip6, arp, 88cc, …"),
    click.option("--vlan", type=click.IntRange(0, 4094), help="Only this VLAN; 0 for untagged frames."),
    click.option("--l4-port", type=click.IntRange(1, 65535), help="Only TCP and UDP from or to this port."),
    click.option("--dropped", is_flag=True, help="Only frames that were dropped."),
    click.option("-c", "--count", type=click.IntRange(min=1), help="End after so many frames."),
    click.option("--seconds", type=click.FloatRange(min=0.1), help="End after so many seconds."),
    click.option(
        "-B",
        "--buffer",
        metavar="MIB",
        type=click.IntRange(1, BUFFER_MAX >> 20),
        default=8,
        show_default=True,
        help="Room in the kernel for what is not read yet.",
    ),
    click.option("--netns", metavar="NAME", default="", help="Ask the daemon of this network namespace."),
)


@dataclass(frozen=True)
class Choice:
    """What the user chose: which frames, how many or how long, and whose daemon."""

    where: str
    mac: str
    ethertype: int
    vlan: int | None
    l4_port: int | None
    dropped: bool
    count: int | None
    seconds: float | None
    buffer: int
    netns: str

    def wish(self, names: Names, snap: int) -> Wish:
        """The wish for that, with so many bytes of each frame.  Raises RequestError."""
        wish = Wish(
            mac=self.mac,
            ethertype=self.ethertype,
            vlan=-1 if self.vlan is None else self.vlan,
            l4_port=self.l4_port or 0,
            drops=self.dropped,
            snap=snap,
            buffer=self.buffer << 20,
        )
        return names.find(self.where, wish)


def filters(command: Callable[..., None]) -> Callable[..., None]:
    """The argument and the options that say which frames; the command gets them as one Choice."""

    @wraps(command)
    def choosing(**given: Any) -> None:
        chosen = Choice(**{one.name: given.pop(one.name) for one in fields(Choice)})
        command(chosen, **given)

    for one in reversed(FILTERS):
        choosing = one(choosing)
    return choosing


class Names:
    """Ports and networks by number, asked for again when an unknown one is met."""

    def __init__(self, netns: int | None) -> None:
        self.netns = netns
        self.shown: dict[str, Any] = {}
        self.ports: dict[int, dict[str, Any]] = {}
        self._next = 0.0
        self._ask()

    def _ask(self) -> None:
        self._next = time.monotonic() + PORTS_EVERY
        self.shown = client.call("show", self.netns)
        self.ports |= ports_of(self.shown)

    def learn(self, ports: list[dict[str, Any]]) -> None:
        """Numbers are given again to others."""
        self.ports |= {port["index"]: port for port in ports}

    def port(self, index: int) -> dict[str, Any]:
        if index not in self.ports and time.monotonic() >= self._next:
            self._ask()
        return self.ports.get(index) or {"index": index, "name": f"port {index}", "kind": "", "switch": 0}

    def find(self, where: str, wish: Wish) -> Wish:
        """The wish for a port (name or number), a network (a part of its name), or all of it.  Raises RequestError."""
        if not where:
            return wish
        found = local_port(self.ports.values(), where)
        found = found or next((one for one in self.ports.values() if str(one["index"]) == where), None)
        if found is not None:
            return replace(wish, port=found["index"], switch=found["switch"])
        plugs = {plug["switch"] for plug in self.shown["plugs"] if where in plug["vnls"]}
        networks = [one for one in self.shown["switches"] if where in one["name"] or one["id"] in plugs]
        if len(networks) == 1:
            return replace(wish, switch=networks[0]["id"])
        if networks:
            names = ", ".join(one["name"] for one in networks)
            raise RequestError(where, f"several networks are called so: {names}", "say more of the name")
        raise RequestError(where, "neither a port nor a network of this namespace", 'see "vdexdp show"')


class Sink(Protocol):
    """Where frames go."""

    names: Names

    def take(self, one: Sighting) -> bool:
        """Whether the frame counts: it passed the sink's own filter."""

    def lose(self, frames: int) -> None:
        """So many more frames were lost."""

    def flush(self) -> None: ...


def run(watch: Watch, sink: Sink, count: int | None, seconds: float | None) -> tuple[int, dict[str, Any]]:
    """Hand frames on until a signal, the count or the time ends it: how many counted, and the kernel's counts.

    Raises DaemonError when the daemon ends, and what the sink raises.
    """
    taken, lost, wish = 0, 0, watch.wish
    click.echo("vdexdp: watching", err=True)
    end = time.monotonic() + seconds if seconds else None
    ask_at = time.monotonic() + COUNTS_EVERY

    def drain() -> bool:
        nonlocal taken
        records = watch.ring.read(BATCH)
        for record in records:
            if count is not None and taken >= count:
                break
            taken += sink.take(decode(record, wish.snap))
        return bool(records)

    def news(counts: dict[str, Any]) -> None:
        nonlocal lost
        sink.names.learn(counts.get("ports", []))
        if counts["lost"] > lost:
            sink.lose(counts["lost"] - lost)
            lost = counts["lost"]

    with as_descriptor(*ENDING) as stop:
        poll = select.poll()
        for one in (watch.ring, watch.channel, stop):
            poll.register(one, select.POLLIN)
        while (count is None or taken < count) and (end is None or time.monotonic() < end):
            wake = min(ask_at, end or ask_at) - time.monotonic()
            ready = {descriptor for descriptor, _ in poll.poll(max(0.0, wake) * 1000)}
            if stop in ready and received(stop):
                break
            if watch.channel.fileno() in ready:
                while drain():
                    pass
                sink.flush()
                raise DaemonError("daemon", f"ended, and with it this, after {taken} frames", "start it again")
            if not drain() or time.monotonic() >= ask_at:
                sink.flush()
            if time.monotonic() >= ask_at:
                news(watch.counts())
                ask_at = time.monotonic() + COUNTS_EVERY
        counts = watch.stop()
        news(counts)
        while (count is None or taken < count) and drain() and not received(stop):
            pass
        sink.flush()
    return taken, counts


def summary(taken: int, counts: dict[str, Any]) -> str:
    """What is said in the end."""
    lost = counts["lost"]
    return f"{taken} frames; {lost} lost{', as they were not read in time' if lost else ''}"


# Words


def sender(one: Sighting, names: Names) -> str:
    """Where a frame came from."""
    port = names.port(one.into)
    return f"{one.sender[0]} port {one.sender[1]}" if one.sender else str(port["name"])


def hook(one: Sighting, names: Names) -> str:
    """Which program saw it first."""
    port = names.port(one.into)
    if one.path == "exception":
        back = "back in segments" if not one.sender else "from a UDP socket: a fragment, or a node of this host"
        return f"tc ingress of the exception tap, {back}"
    if port["kind"] == "tunnel":
        return f"tc ingress of the uplink, {port['name']}"
    return f"tc {'egress' if port['kind'] == 'stack' else 'ingress'} of {port['name']}"


def verdict(one: Sighting, names: Names) -> str:
    """What became of it."""
    if one.told == "dropped":
        return f"dropped: {one.detail} ({HELP.get(('drop_reason', one.detail), '')})"
    if one.told == "consumed":
        return "a goodbye: its sender leaves the network"
    if one.told == "exception":
        why = f"{one.detail} ({HELP.get(('exception_reason', one.detail), '')})"
        return f"to {target(one, names)} by the exception path: {why}"
    if not one.flooded:
        return f"sent to {target(one, names)}"
    ways = [f"{one.copies} local port{'s' * (one.copies != 1)}"] if one.copies or one.told == "flooded" else []
    ways += ["the network's group"] if one.told == "sent" else []
    refused = f"; {one.refused} local port{'s' * (one.refused != 1)} refused it" if one.refused else ""
    return f"flooded to {' and '.join(ways)}{refused}"


def target(one: Sighting, names: Names) -> str:
    """Where it goes."""
    if one.flooded:
        return "the network's group"
    return f"{one.endpoint[0]} port {one.endpoint[1]}" if one.endpoint else str(names.port(one.out)["name"])


def size(one: Sighting) -> str:
    """Its length, and that of its segments."""
    if not one.gso_size:
        return f"{one.length} bytes"
    return f"{one.length} bytes, a super-packet of {one.segments} segments with {one.gso_size} bytes each"
