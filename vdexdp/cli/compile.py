# SPDX-License-Identifier: GPL-2.0-or-later
"""``vdexdp compile``: fill the bytecode cache, so that the first plug need not."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from vdexdp.control import bytecode
from vdexdp.errors import HostError


@click.command("compile")
@click.option("--force", is_flag=True, help="Compile even what is cached.")
@click.option(
    "--into", type=click.Path(path_type=Path), metavar="DIRECTORY", help="Write there instead, as a package ships them."
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def compile_(force: bool, into: Path | None, as_json: bool) -> None:
    """Compile the kernel programs into the cache.

    Needs python3-bpfcc and linux-libc-dev.  Nothing is loaded into the kernel.
    """
    names = list(bytecode.PROGRAMS)
    images = bytecode.compile_programs(names) if force else bytecode.images(names)
    if into is not None:
        try:
            into.mkdir(mode=0o755, parents=True, exist_ok=True)
            for name, image in images.items():
                bytecode.write(into / bytecode.file_name(bytecode.PROGRAMS[name]), image)
        except OSError as error:
            raise HostError.from_oserror(str(into), error) from error
    place = into or bytecode.cache_dir()
    sizes = {name: len(image) // 8 for name, image in images.items()}
    if as_json:
        import json

        json.dump({"cache": str(place), "instructions": sizes}, sys.stdout)
        click.echo()
        return
    for name, size in sizes.items():
        click.echo(f"{name:18} {size:5} instructions")
    click.echo(f"{'written to' if into else 'cached in'} {place}")
