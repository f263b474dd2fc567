# SPDX-License-Identifier: GPL-2.0-or-later
"""``vdexdp support-bundle``: all that a helper wants to see, in one file."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click


@click.command("support-bundle")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help='The tar.gz to write; "-" is stdout.'
)
def support_bundle(output: Path | None) -> None:
    """Gather versions, doctor, show, explain, kernel options and recent logs in a tar.gz.

    No key, no environment and no traffic goes into it; what looks like a password is blanked, and so are the arguments
    of commands in VNLs. Addresses and names of interfaces do: look into it before you pass it on.
    """
    from vdexdp.control import bundle

    data = bundle.archive()
    if output == Path("-"):
        sys.stdout.buffer.write(data)
        return
    path = output or Path(time.strftime("vdexdp-support-%Y%m%d-%H%M%S.tar.gz"))
    bundle.write(path, data)
    click.echo(f"{path}: {len(data)} bytes")
