# SPDX-License-Identifier: GPL-2.0-or-later
"""``vdexdp bench``: measure here, against what else there is here.  Installs nothing."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from vdexdp.bench.contest import Progress
    from vdexdp.bench.report import Report, Target


@click.group()
def bench() -> None:
    """Measure vdexdp against the kernel's own tunnels and against stock VDE, on namespaces of this machine (root)."""


@bench.command()
@click.option("--runs", default=5, show_default=True, type=click.IntRange(1), help="Rounds; the medians count.")
@click.option("--seconds", default=2, show_default=True, type=click.IntRange(1), help="Length of each TCP stream.")
@click.option("--json", "as_json", is_flag=True, help="Print everything measured as JSON.")
@click.option("--check", is_flag=True, help="Exit with status 1 if a target is missed.")
@click.option("-q", "--quiet", is_flag=True, help="No line on stderr for each measurement.")
def lac(runs: int, seconds: int, as_json: bool, check: bool, quiet: bool) -> None:
    """Two guests on two hosts in one LAC: vdexdp, Linux bridge + kernel vxlan, stock vde_plug."""
    from vdexdp.bench.lac import run

    say: Progress = (lambda line: None) if quiet else (lambda line: click.echo(line, err=True))
    finish(run(runs, seconds, say), as_json, check)


@bench.command()
@click.option("--runs", default=3, show_default=True, type=click.IntRange(1), help="Rounds; the medians count.")
@click.option("--seconds", default=2, show_default=True, type=click.IntRange(1), help="Length of each TCP stream.")
@click.option("--only", "families", multiple=True, help="A family of contestants: switch, lac, ptp or cmd; repeatable.")
@click.option("--floor", is_flag=True, help="Also measure the shortest Python programs that do what ptp and cmd do.")
@click.option("--json", "as_json", is_flag=True, help="Print everything measured as JSON.")
@click.option("--check", is_flag=True, help="Exit with status 1 if a target is missed.")
@click.option("-q", "--quiet", is_flag=True, help="No line on stderr for each measurement.")
def legacy(
    runs: int, seconds: int, families: tuple[str, ...], floor: bool, as_json: bool, check: bool, quiet: bool
) -> None:
    """What runs in userspace (switch, ptp, cmd, a legacy client in a LAC), each against its stock program."""
    from vdexdp.bench.legacy import FAMILIES, run

    unknown = set(families) - set(FAMILIES)
    if unknown:
        raise click.BadParameter(f"{', '.join(sorted(unknown))}; known are {', '.join(FAMILIES)}", param_hint="--only")
    say: Progress = (lambda line: None) if quiet else (lambda line: click.echo(line, err=True))
    finish(run(runs, seconds, families or FAMILIES, say, floor=floor), as_json, check)


def finish(report: Report, as_json: bool, check: bool) -> None:
    """Print the report and choose the exit status."""
    if as_json:
        click.echo(json.dumps(report.as_json(), indent=2))
    else:
        show(report)
    if any(report.result(target.contestant).absent for target in report.targets):
        sys.exit(1)
    if check and not all(report.met(target) for target in report.targets):
        sys.exit(1)


def show(report: Report) -> None:
    """The report as a table, with what was compared and the targets."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)
    table = Table(title=f"bench {report.name}: medians of {report.runs}")
    table.add_column("")
    for metric in report.metrics:
        table.add_column(f"{metric.title}\n{metric.unit}", justify="right")
    for result in report.results:
        if result.absent:
            continue
        cells = []
        for metric in report.metrics:
            median = result.median(metric.key)
            cells.append("-" if median is None else f"{median * metric.scale:.{metric.digits}f}")
        table.add_row(result.title, *cells)
    pairs = [(target.contestant, target.baseline) for target in report.targets]
    for contestant, baseline in dict.fromkeys([*pairs, *report.beside]):
        ratios = [report.ratio(metric.key, contestant, baseline) for metric in report.metrics]
        if any(ratios):
            title = f"{report.result(contestant).title} / {report.result(baseline).title}"
            table.add_row(title, *("-" if ratio is None else f"{ratio:.2f}×" for ratio in ratios), style="bold")
    console.print(table)
    for result in report.results:
        console.print(
            f"{result.title}: {result.how}" + (f" — left out: {result.absent}" if result.absent else ""), markup=False
        )
    console.print(report.about, markup=False)
    for target in report.targets:
        console.print(verdict(report, target), markup=False)


def verdict(report: Report, target: Target) -> str:
    """One target as a line."""
    sign = "≤" if report.metric(target.metrics[0]).less_is_better else "≥"
    reached, met = report.reached(target), report.met(target)
    if reached is None:
        return f"not measured  {target.title}: {sign} {target.factor:g}×"
    return f"{'met   ' if met else 'MISSED'}  {target.title}: {reached:.2f}× (target {sign} {target.factor:g}×)"
