# SPDX-License-Identifier: GPL-2.0-or-later
"""``vde_plug`` as one of the commands of click; ``vdexdp.__main__`` knows a shorter way."""

from __future__ import annotations

import click

from vdexdp.cli.vde_plug import run


@click.command(
    "vde_plug",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    add_help_option=False,
)
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
def vde_plug(words: tuple[str, ...]) -> int:
    """Join two ends of virtual Ethernets; options and arguments are those of stock vde_plug."""
    return run(words)
