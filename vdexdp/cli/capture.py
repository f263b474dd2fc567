# SPDX-License-Identifier: GPL-2.0-or-later
"""``vdexdp capture``: frames of the kernel path, as they pass the switch, into a pcapng file."""

from __future__ import annotations

import os
import stat
import sys
import time
from itertools import accumulate
from typing import Any

import click

from vdexdp import __version__
from vdexdp.cli.trace import Printer
from vdexdp.cli.watching import Choice, Names, filters, run, size, summary, verdict
from vdexdp.cli.watching import sender as sender_of
from vdexdp.control.abi import K
from vdexdp.control.pcapfilter import Filter
from vdexdp.control.scrape import find_netns
from vdexdp.control.sighting import Sighting, Watch, clock_offset
from vdexdp.control.wish import Wish
from vdexdp.errors import HostError, RequestError
from vdexdp.wire import pcapng

_TC_VERDICTS = {"sent": 7, "exception": 7, "dropped": 2, "flooded": 2, "consumed": 2}
"""TC_ACT_REDIRECT and TC_ACT_SHOT: of what was flooded, the clones went, and the original was dropped."""


@click.command()
@filters
@click.option("-w", "--write", "path", metavar="FILE", help="Write pcapng there; - for standard output.")
@click.option(
    "-s",
    "--snap",
    metavar="BYTES",
    type=click.IntRange(14, K["SNAP_MAX"]),
    default=K["SNAP_MAX"],
    help="Take no more of each frame than this; without it, all.",
)
@click.option("-f", "--filter", "expression", metavar="EXPRESSION", default="", help="Only what pcap-filter(7) takes.")
def capture(chosen: Choice, path: str | None, snap: int, expression: str) -> None:
    """Capture frames as they pass the switch: a port's, a network's, or all.

    PORT is an interface or a number of "vdexdp show", NETWORK a part of a network's name. What went through a tunnel is
    shown without its outer headers. Each packet has a comment that says where it came from and what became of it.
    Without -w, a line for each frame is printed.

    \b
    vdexdp capture vm0 -w vm0.pcapng
    vdexdp capture 234.0.0.1 --ethertype arp
    vdexdp capture vm0 -f 'tcp port 80' -w - | tshark -r -

    The filters but -f are the kernel's: what they leave out costs little. While somebody captures, the frames of all
    plugs take a slower build of the kernel programs, and XDP is left out.
    """
    if path == "-" and sys.stdout.isatty():
        raise RequestError("-w -", "standard output is a terminal", "name a file, or a reader: | tshark -r -")
    wanted = Filter(expression) if expression else None
    inode = find_netns(chosen.netns) if chosen.netns else None
    names = Names(inode)
    wish = chosen.wish(names, snap)
    if path is None:
        printer = Printer(names, wanted)
        with Watch(wish, inode) as watch:
            say = summary(*run(watch, printer, chosen.count, chosen.seconds))
    else:
        with Writer(path, names, wish, wanted, expression) as writer, Watch(wish, inode) as watch:
            try:
                taken, counts = run(watch, writer, chosen.count, chosen.seconds)
                writer.finish(taken, counts)
            except BrokenPipeError:
                say = f"the reader has ended after {writer.written} frames"
            else:
                say = f"{summary(taken, counts)}; {writer.name}"
    click.echo(f"vdexdp: {say}", err=True)


class Writer:
    """Makes the file, block by block; a file ends with a whole block whatever happens.

    What was in it before is there until the first block is written.
    """

    def __init__(self, path: str, names: Names, wish: Wish, wanted: Filter | None, expression: str) -> None:
        """Raises HostError."""
        self.names, self.wish, self.wanted, self.expression = names, wish, wanted, expression
        self.name = "standard output" if path == "-" else path
        self.written = 0
        self.began = time.time_ns()
        self._offset = clock_offset()
        self._lost = 0
        self._numbers: dict[tuple[int, str], int] = {}
        """Interfaces by port number and name: numbers are given again."""
        self._pending: list[bytes] = [pcapng.section(f"vdexdp {__version__}", f"Linux {os.uname().release}")]
        self._size = 0
        try:
            self._new = path if path != "-" and not os.path.lexists(path) else ""
            self._fd = os.dup(1) if path == "-" else os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._file = stat.S_ISREG(os.fstat(self._fd).st_mode) and path != "-"
        except OSError as error:
            raise HostError.from_oserror(self.name, error) from error
        for index in sorted(names.ports):
            if wish.port in (0, index) and wish.switch in (0, names.port(index)["switch"]):
                self._interface(index)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)
        if self._new and not self._size:
            os.unlink(self._new)

    def _interface(self, index: int) -> int:
        port = self.names.port(index)
        key = index, port["name"]
        if key not in self._numbers:
            about = f"{port['kind']} port {index} of network {port['switch']}"
            self._numbers[key] = len(self._numbers)
            snap = self.wish.snap if self.wish.snap < K["SNAP_MAX"] else 0
            self._pending.append(pcapng.interface(port["name"], about, snap=snap, expression=self.expression))
        return self._numbers[key]

    def take(self, one: Sighting) -> bool:
        if not one.data or (self.wanted is not None and not self.wanted.takes(one.data, one.length)):
            return False
        outbound = self.wish.port not in (0, one.into)
        comment = f"from {sender_of(one, self.names)}, {verdict(one, self.names)}"
        if one.gso_size:
            comment += f"; {size(one)}"
        self._pending.append(
            pcapng.packet(
                self._interface(self.wish.port if outbound else one.into),
                one.time + self._offset,
                one.data,
                one.length,
                direction=pcapng.OUTBOUND if outbound else pcapng.INBOUND,
                comment=comment,
                verdict=_TC_VERDICTS.get(one.told),
                lost=self._lost,
                id=one.id,
            )
        )
        self._lost = 0
        self.written += 1
        return True

    def lose(self, frames: int) -> None:
        self._lost += frames

    def flush(self) -> None:
        """Raises BrokenPipeError when the reader has ended, HostError when the disk is full."""
        blocks, self._pending = self._pending, []
        left = memoryview(b"".join(blocks))
        end = self._size + len(left)
        try:
            if self._file and not self._size and blocks:
                os.ftruncate(self._fd, 0)
            while left:
                left = left[os.write(self._fd, left) :]
        except BrokenPipeError:
            raise
        except OSError as error:
            if self._file:
                ends = accumulate((len(one) for one in blocks), initial=self._size)
                self._size = max(at for at in ends if at <= end - len(left))
                os.ftruncate(self._fd, self._size)
            hint = "the capture has ended; forwarding has not"
            raise HostError.from_oserror(self.name, error, hint) from error
        self._size = end

    def finish(self, taken: int, counts: dict[str, Any]) -> None:
        """The statistics.  What was lost can't be told by interface: the first has it all."""
        if self._numbers:
            comment = "of all interfaces together" if len(self._numbers) > 1 else ""
            lost = counts["lost"]
            self._pending.append(
                pcapng.statistics(
                    0,
                    time.time_ns(),
                    began=self.began,
                    received=counts["seen"] + lost,
                    dropped=lost,
                    delivered=taken,
                    comment=comment,
                )
            )
        self.flush()
