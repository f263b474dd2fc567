# SPDX-License-Identifier: GPL-2.0-or-later
"""``vdexdp metrics``: a target for Prometheus, or a file for node_exporter's textfile collector."""

from __future__ import annotations

import select
import sys
from pathlib import Path

import click

from vdexdp.errors import RequestError
from vdexdp.signals import ENDING, as_descriptor

DEFAULT = "127.0.0.1:9617"


def parse_listen(text: str) -> tuple[str, int]:
    """``ADDR:PORT``, ``[ADDR]:PORT`` for IPv6.  Raises RequestError."""
    address, colon, number = text.rpartition(":")
    if address.startswith("[") and address.endswith("]"):
        address = address[1:-1]
    elif ":" in address:
        raise RequestError(text, "an IPv6 address is written in brackets", "like [::1]:9617")
    if not colon or not address or not (number.isascii() and number.isdecimal()) or int(number) >= 1 << 16:
        raise RequestError(text, "not an address and a port", f"write it like {DEFAULT} or [::1]:9617")
    return address, int(number)


@click.command()
@click.option("--listen", metavar="ADDR:PORT", help=f"Serve scrapes here.  [default: {DEFAULT}]")
@click.option("--textfile", metavar="PATH", type=Path, help="Write one scrape to this file and end.")
@click.option(
    "--netns", metavar="NAME", default="", help='Only the daemon of this namespace; "host" is the host\'s own.'
)
@click.option(
    "--sample",
    metavar="N",
    type=click.IntRange(0, (1 << 32) - 1),
    default=256,
    show_default=True,
    help="Time one frame in N in the kernel, and round trips to peers; 0: neither.",
)
def metrics(listen: str | None, textfile: Path | None, netns: str, sample: int) -> None:
    """Give the counters of all daemons on this host to Prometheus.

    --textfile is for node_exporter's textfile collector: run it from a timer, with a PATH that ends in .prom.
    """
    if listen is not None and textfile is not None:
        raise RequestError("--listen", "does not go together with --textfile", "choose one")
    address, port = parse_listen(listen or DEFAULT)
    from vdexdp.control import scrape
    from vdexdp.control.metrics import serve, write_textfile

    scrape.check_access(netns)
    if textfile is not None:
        write_textfile(textfile, netns, sample)
        return
    with as_descriptor(*ENDING) as signals:
        port = serve(address, port, netns, sample)
        host = f"[{address}]" if ":" in address else address
        print(f"vdexdp: metrics at http://{host}:{port}/metrics", file=sys.stderr, flush=True)
        select.select([signals], [], [])
