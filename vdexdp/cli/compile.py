# SPDX-License-Identifier: GPL-2.0-or-later
"""``vdexdp compile``: fill the bytecode cache, so that the first plug need not."""

from __future__ import annotations

import sys

import click

from vdexdp.control import bytecode


@click.command("compile")
@click.option("--force", is_flag=True, help="Compile even what is cached.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def compile_(force: bool, as_json: bool) -> None:
    """Compile the kernel programs into the cache.

    Needs python3-bpfcc and linux-libc-dev.  Nothing is loaded into the kernel.
    """
    names = list(bytecode.PROGRAMS)
    images = bytecode.compile_programs(names) if force else bytecode.images(names)
    sizes = {name: len(image) // 8 for name, image in images.items()}
    if as_json:
        import json

        json.dump({"cache": str(bytecode.cache_dir()), "instructions": sizes}, sys.stdout)
        click.echo()
        return
    for name, size in sizes.items():
        click.echo(f"{name:18} {size:5} instructions")
    click.echo(f"cached in {bytecode.cache_dir()}")
