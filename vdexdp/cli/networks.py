# SPDX-License-Identifier: GPL-2.0-or-later
"""``vdexdp up``, ``down`` and ``diff``: the plugs that a file declares."""

from __future__ import annotations

import json
import select
import signal
import sys
from pathlib import Path
from typing import Any

import click

from vdexdp.control import networks, service
from vdexdp.control.networks import DEFAULT_FILE, Change, Networks
from vdexdp.errors import RequestError, VdexdpError
from vdexdp.signals import as_descriptor, received

_file = click.option(
    "-f", "--file", type=click.Path(path_type=Path), default=DEFAULT_FILE, show_default=True, help="Where they stand."
)


def _say(text: str) -> None:
    click.echo(text, err=True)


def _failures(failed: dict[str, str]) -> int:
    for name, why in failed.items():
        _say(f"vdexdp: plug.{name}: {why}")
    return 1 if failed else 0


def _lines(changes: list[Change]) -> list[str]:
    lines = []
    for change in changes:
        if change.now is not None:
            lines.append(f"- {change.name}: {change.now}")
        if change.wanted is not None:
            lines.append(f"+ {change.name}: {change.wanted}")
    return lines


@click.command()
@_file
@click.option("--prune", is_flag=True, help="End plugs that are not in the file any more.")
@click.option(
    "--stay", is_flag=True, help="Stay, and start again what ends; SIGHUP reads the file again, SIGTERM ends."
)
def up(file: Path, prune: bool, stay: bool) -> int:
    """Start the plugs of a file that don't run, and restart those that it describes otherwise.

    What runs as it is described is left alone, and so is everything if there is a mistake in the file. Each plug is a
    vde_plug process; it goes on when this command ends, and when the daemon does. The exit status is 1 if one did not
    start.

    \b
    [plug.vm0]
    ends = ["netdev://vm0", "vxvde://234.0.0.1"]
    accel = "require"
    """
    wanted = networks.load(file)
    plugs = Networks()
    if stay:
        return _stay(plugs, file, wanted, prune)
    with plugs.locked():
        changes = [change for change in plugs.changes(wanted) if prune or change.wanted is not None]
        failed = plugs.apply(changes)
    for line in _lines([change for change in changes if change.name not in failed]):
        click.echo(line)
    return _failures(failed)


def _stay(plugs: Networks, file: Path, wanted: dict[str, networks.Spec], prune: bool) -> int:
    retries = networks.Retries()
    refused: set[Change] = set()  # replacements that did not start: another try would disturb what runs instead
    with as_descriptor(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        while True:
            with plugs.locked():
                changes = [change for change in plugs.changes(wanted) if prune or change.wanted is not None]
                changes = retries.due(change for change in changes if change not in refused)
                failed = plugs.apply(changes)
            refused |= {change for change in changes if change.now is not None and change.name in failed}
            for line in _lines([change for change in changes if change.name not in failed]):
                _say(line)
            _failures(failed)
            service.notify("READY=1")
            numbers = received(signals) if select.select([signals], [], [], 0.5)[0] else []
            if set(numbers) - {signal.SIGHUP}:
                break
            if numbers:
                retries, refused = networks.Retries(), set()
                try:
                    wanted = networks.load(file)
                except VdexdpError as error:
                    _say(f"vdexdp: {error}; nothing is changed")
    with plugs.locked():
        plugs.stop(list(wanted))
    return 0


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
def down(names: tuple[str, ...]) -> None:
    """End plugs that "vdexdp up" has started: those named, or all of this network namespace."""
    plugs = Networks()
    with plugs.locked():
        running = plugs.running()
        for name in names:
            if name not in running:
                known = ", ".join(running) or "none"
                raise RequestError(name, "no such plug runs", f"running: {known}")
        chosen = names or tuple(running)
        plugs.stop(chosen)
    for name in chosen:
        click.echo(f"- {name}: {running[name].spec}")


@click.command()
@_file
@click.option("--json", "as_json", is_flag=True, help="Print a list of objects.")
def diff(file: Path, as_json: bool) -> int:
    """Show what "vdexdp up --prune" would do: "-" is ended, "+" is started.

    The exit status is 1 if there is anything, like that of diff.
    """
    changes = Networks().changes(networks.load(file))
    if as_json:
        objects: list[dict[str, Any]] = [
            {"name": change.name, "now": _object(change.now), "wanted": _object(change.wanted)} for change in changes
        ]
        json.dump(objects, sys.stdout)
        click.echo()
    else:
        for line in _lines(changes):
            click.echo(line)
    return 1 if changes else 0


def _object(spec: networks.Spec | None) -> dict[str, Any] | None:
    return None if spec is None else {"ends": list(spec.ends), "accel": spec.accel}
