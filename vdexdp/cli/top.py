# SPDX-License-Identifier: GPL-2.0-or-later
"""``vdexdp top``: what passes each port now, again and again.

On a terminal it fills the screen; elsewhere, and with ``-b``, it prints one block or one JSON object for each interval.
A daemon that goes away meanwhile is waited for: plugs outlive it, and so do their counters.
"""

from __future__ import annotations

import fnmatch
import json
import select
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import click

from vdexdp.cli.printing import brief, console, duration, json_option, make_table, named
from vdexdp.control import client, rates
from vdexdp.control.scrape import ANSWER_LIMIT, find_netns
from vdexdp.errors import HangUp, RequestError, VdexdpError
from vdexdp.signals import ENDING, as_descriptor, received

if TYPE_CHECKING:
    from rich.console import Group

    from vdexdp.cli.screen import Screen

SORTS: Final = ("bits", "frames", "slow", "drops", "port", "name")
COLUMNS: Final = ("port", "net", "path", "in/s", "in bit/s", "out/s", "out bit/s", "slow/s", "drops/s", "dropped")
LEAST: Final = ("dropped", "net", "port", "slow/s")
"""Columns that a narrow screen does without, from the first on, so that names have ``NAME_ROOM``."""
NAME_ROOM: Final = 16
HELP: Final = "q quit   s sort: {sort}{reverse}   r reverse   ↑ ↓ scroll   space now"


@click.command()
@click.option(
    "-d",
    "--interval",
    metavar="SECONDS",
    type=click.FloatRange(0.1, 3600),
    default=1.0,
    show_default=True,
    help="How long each interval is.",
)
@click.option("-n", "--count", metavar="N", type=click.IntRange(min=1), help="End after so many intervals.")
@click.option("-b", "--batch", is_flag=True, help="Print one block after the other; so it is without a terminal.")
@click.option("--once", is_flag=True, help="The same as -b -n 1.")
@json_option
@click.option("--sort", type=click.Choice(SORTS), default="bits", show_default=True, help="What comes first.")
@click.option("-r", "--reverse", is_flag=True, help="The other way round.")
@click.option("--port", "ports", metavar="NAME", multiple=True, help="Only ports of this name, pattern or number.")
@click.option("--lac", "lacs", metavar="TEXT", multiple=True, help="Only networks whose name contains this.")
@click.option("--netns", metavar="NAME", default="", help="Ask the daemon of this network namespace.")
def top(
    interval: float,
    count: int | None,
    batch: bool,
    once: bool,
    as_json: bool,
    sort: str,
    reverse: bool,
    ports: tuple[str, ...],
    lacs: tuple[str, ...],
    netns: str,
) -> None:
    """Show rates, drops and paths of all ports, live.

    Rates are per second, of the counters that "vdexdp show" prints: frames (segments of super-packets counted
    singly) and bits each way, frames that took the exception path (slow), and drops; "dropped" is their number
    since the start. Tunnels and uplinks are ports here, too. --json prints one object on a line for each interval.
    """
    view = View(Source(find_netns(netns) if netns else None), sort, reverse, ports, lacs)
    view.check()
    if once:
        batch, count = True, 1
    out = console()
    batch = batch or as_json or not out.is_terminal or out.is_dumb_terminal
    with as_descriptor(*ENDING, *(() if batch else (signal.SIGWINCH, signal.SIGTSTP))) as signals:
        if batch:
            _print(view, signals, interval, count, as_json)
        else:
            from vdexdp.cli.screen import Screen

            with Screen(out) as screen:
                Live(view, screen, signals, interval, count).run()


class Source:
    """Answers to ``show``, and the moments that they are of."""

    def __init__(self, netns: int | None) -> None:
        self.netns = netns
        self.before: tuple[dict[str, Any], float] | None = None
        self.shown: dict[str, Any] = {}
        self.interval = rates.Interval(0.0)
        self.problem = ""

    def ask(self) -> None:
        """Raises PrivilegeError, DaemonError and the like."""
        begin = time.monotonic()
        shown = client.call("show", self.netns, ANSWER_LIMIT)
        now = (begin + time.monotonic()) / 2
        if self.before is None:
            self.interval = rates.between(None, shown, 0.0)
        else:
            self.interval = rates.between(self.before[0], shown, now - self.before[1])
        self.before, self.shown, self.problem = (shown, now), shown, ""

    def try_again(self) -> None:
        """As ``ask``, but what goes wrong is only noted."""
        try:
            self.ask()
        except VdexdpError as error:
            self.problem = str(error)


@dataclass
class View:
    """Which rows, in which order."""

    source: Source
    sort: str
    reverse: bool
    ports: Sequence[str]
    lacs: Sequence[str]

    def check(self) -> None:
        """Take the first answer.  Raises RequestError where nothing at all is selected, or what the daemon says."""
        self.source.ask()
        rows = self.source.interval.rows
        for pattern in self.ports:
            if not any(_matches(row, pattern) for row in rows):
                raise RequestError(f"--port {pattern}", "no such port", 'see "vdexdp show"')
        for text in self.lacs:
            if not any(text in row.network for row in rows):
                raise RequestError(f"--lac {text}", "in no network's name", 'see "vdexdp show"')

    def rows(self) -> list[rates.Row]:
        found = [
            row
            for row in self.source.interval.rows
            if (not self.ports or any(_matches(row, pattern) for pattern in self.ports))
            and (not self.lacs or any(text in row.network for text in self.lacs))
        ]
        if self.sort in ("port", "name"):
            found.sort(key=lambda row: row.name if self.sort == "name" else row.index or 1 << 32, reverse=self.reverse)
        else:
            found.sort(key=lambda row: _weight(row, self.sort), reverse=not self.reverse)
        return found

    def to_json(self) -> dict[str, Any]:
        shown = self.source.shown
        about = {"time": round(time.time(), 3), "version": shown["version"], "pid": shown["pid"]}
        rows = self.rows()
        total = {name: round(value, 1) for name, value in rates.summary(rows).items()}
        return about | rates.Interval(self.source.interval.seconds, rows).to_json() | {"total": total}

    def headline(self) -> list[str]:
        """The daemon, and what all rows come to."""
        shown, rows = self.source.shown, self.rows()
        total = rates.summary(rows)
        reasons: dict[str, float] = {}
        for row in rows:
            for reason, rate in row.reasons.items():
                reasons[reason] = reasons.get(reason, 0.0) + rate
        drops = f" ({named({name: _whole(rate) for name, rate in reasons.items()})})" if reasons else ""
        about = (
            f"vdexdp {shown['version']}, daemon {shown['pid']}, up {duration(shown['uptime'])};"
            f" plugs {len(shown['plugs'])}, networks {len(shown['switches'])}; {time.strftime('%H:%M:%S')}"
        )
        sums = (
            f"in {_frames(total['rx_frames'])} frames/s, {_bits(total['rx_bytes'])} bit/s;"
            f" exception path {_frames(total['slow'])}/s; drops {_frames(total['drops'])}/s{drops}"
        )
        return [about, sums]


def _matches(row: rates.Row, pattern: str) -> bool:
    return fnmatch.fnmatchcase(row.name, pattern) or (row.index is not None and str(row.index) == pattern)


def _weight(row: rates.Row, sort: str) -> float:
    match sort:
        case "bits":
            return row.rx_bytes + row.tx_bytes
        case "frames":
            return row.rx_frames + row.tx_frames
    return float(getattr(row, sort))


def _whole(rate: float) -> int:
    return round(rate)


def _frames(rate: float) -> str:
    return brief(_whole(rate))


def _bits(rate: float) -> str:
    return brief(_whole(rate * 8))


def _cells(row: rates.Row) -> tuple[object, ...]:
    number = "-" if row.index is None else row.index
    switch = "-" if row.switch is None else row.switch
    flows = (_frames(row.rx_frames), _bits(row.rx_bytes), _frames(row.tx_frames), _bits(row.tx_bytes))
    return (number, switch, row.path, *flows, _frames(row.slow), _frames(row.drops), brief(row.dropped))


def _name(row: rates.Row) -> str:
    return row.name if row.kind == "tunnel" else f"{row.name} ({row.kind})"


RIGHT: Final = tuple(column for column in COLUMNS if column != "path")


def _print(view: View, signals: int, interval: float, count: int | None, as_json: bool) -> None:
    """One block after the other, until a signal comes."""
    due = time.monotonic()
    done = 0
    while count is None or done < count:
        due = max(due + interval, time.monotonic())
        if _readable([signals], due - time.monotonic()):
            return
        done += 1
        if done == count:
            view.source.ask()  # what is wrong at the end is the result
        else:
            view.source.try_again()
        if view.source.problem:
            print(f"vdexdp: {view.source.problem}", file=sys.stderr, flush=True)
            continue
        if as_json:
            click.echo(json.dumps(view.to_json()))
            continue
        out = console()
        for line in view.headline():
            out.print(line, markup=False)
        out.print(make_table("", (*COLUMNS, "name"), [(*_cells(row), _name(row)) for row in view.rows()], right=RIGHT))
        out.print()
        sys.stdout.flush()


def _readable(descriptors: list[int], seconds: float) -> list[int]:
    return select.select(descriptors, [], [], max(0.0, seconds))[0]


class Live:
    """The screen, until a key or a signal ends it."""

    def __init__(self, view: View, screen: Screen, signals: int, interval: float, count: int | None) -> None:
        self.view, self.screen, self.signals = view, screen, signals
        self.interval, self.left = interval, count
        self.first = 0
        self.running = True

    def run(self) -> None:
        due = time.monotonic() + self.interval
        while self.running:
            self.screen.draw(self._content())
            waiting = [self.signals] + ([self.screen.fileno()] if self.screen.fileno() >= 0 else [])
            ready = _readable(waiting, due - time.monotonic())
            try:
                now = self._signalled() if self.signals in ready else False
                if self.screen.fileno() in ready:
                    now = self._pressed() or now
            except HangUp:
                return
            if self.running and (now or time.monotonic() >= due):
                due = time.monotonic() + self.interval
                self.view.source.try_again()
                if self.left is not None and not self.view.source.problem:
                    self.left -= 1
                    self.running = self.left > 0

    def _signalled(self) -> bool:
        for number in received(self.signals):
            if number == signal.SIGTSTP:
                self.screen.suspend()
            elif number in ENDING:
                self.running = False
        return False

    def _pressed(self) -> bool:
        """Whether the next interval shall begin at once."""
        view, page = self.view, self._room()
        now = False
        for key in self.screen.pressed():
            match key:
                case "q" | "Q":
                    self.running = False
                case "s":
                    view.sort = SORTS[(SORTS.index(view.sort) + 1) % len(SORTS)]
                case "r":
                    view.reverse = not view.reverse
                case " ":
                    now = True
                case "up" | "down" | "page up" | "page down":
                    self.first += {"up": -1, "down": 1, "page up": -page, "page down": page}[key]
        return now

    def _room(self) -> int:
        """How many rows the screen has place for."""
        return max(1, self.screen.console.size.height - 6)

    def _content(self) -> Group:
        from rich.console import Group
        from rich.text import Text

        view, room, width = self.view, self._room(), self.screen.console.size.width
        rows = view.rows()
        self.first = max(0, min(self.first, len(rows) - room))
        cells = [dict(zip(COLUMNS, _cells(row), strict=True)) for row in rows[self.first : self.first + room]]
        taken = {name: max(len(str(cell)) for cell in (name, *(one[name] for one in cells))) + 2 for name in COLUMNS}
        for name in LEAST:
            if width - sum(taken.values()) < NAME_ROOM:
                del taken[name]
        names = max(8, width - sum(taken.values()))
        lines = [
            (*(one[name] for name in taken), _name(row)[:names])
            for one, row in zip(cells, rows[self.first :], strict=False)
        ]
        table = make_table("", (*taken, "name"), lines, right=RIGHT)
        for column in table.columns:
            column.no_wrap = True
        hidden = len(rows) - len(lines)
        said = view.source.problem or (f"{len(rows)} rows, {hidden} more by ↑ ↓" if hidden else "")
        help_line = HELP.format(sort=view.sort, reverse=" reversed" if view.reverse else "")
        texts = [Text(line, no_wrap=True, overflow="ellipsis") for line in (*view.headline(), said)]
        last = Text(help_line if self.screen.fileno() >= 0 else "", no_wrap=True, overflow="ellipsis", style="dim")
        texts[2].stylize("bold red" if view.source.problem else "dim")
        return Group(*texts, table, Text(""), last)
