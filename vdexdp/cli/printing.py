# SPDX-License-Identifier: GPL-2.0-or-later
"""Tables and JSON for the commands that look; with :mod:`vdexdp.cli.screen` the only importer of rich."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2))


def console() -> Console:
    """Written to a pipe, nothing is cut: a line is as long as it has to be."""
    made = Console(highlight=False, soft_wrap=False)
    return made if made.is_terminal else Console(highlight=False, width=1000)


def make_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], *, right: Collection[str] = ()
) -> Table:
    """One table; ``right`` names the columns that are numbers."""
    table = Table(title=title or None, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    return table


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], *, right: str = "") -> None:
    """Print one; ``right`` has blanks between the names."""
    out = console()
    out.print(make_table(title, columns, rows, right=right.split()))
    out.print()


def brief(value: int, unit: str = "") -> str:
    """A number in at most five characters: 1234567 → 1.2M."""
    number, suffix = float(value), ""
    for suffix in ("", "k", "M", "G", "T", "P"):
        if number < 1000 or suffix == "P":
            break
        number /= 1000
    return f"{value}{unit}" if suffix == "" else f"{number:.1f}{suffix}{unit}"


def duration(seconds: float) -> str:
    """87 → 1m27s"""
    whole = int(seconds)
    for size, name, small, below in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= size:
            return f"{whole // size}{name}{whole % size // small}{below}"
    return f"{whole}s"


def named(counts: dict[str, int]) -> str:
    """{"no_room": 3} → "no_room 3"; "-" for none."""
    return ", ".join(f"{name} {brief(count)}" for name, count in counts.items()) or "-"
