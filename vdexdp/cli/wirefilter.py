# SPDX-License-Identifier: GPL-2.0-or-later
"""``vdexdp wirefilter``: stock wirefilter's command line around the same wire as ``wirefilter://``.

Its ends are two VNLs, or what dpipe connects: the left end is on stdin and stdout, the right one on the descriptors
named by ALTERNATE_STDIN and ALTERNATE_STDOUT.  Without those (``=} wirefilter }=``) frames only go from stdin to
stdout.

Lengths count two bytes more than the frame has, as in stock: those of the stream's length field.
"""

from __future__ import annotations

import os
import re
from contextlib import ExitStack

import click

from vdexdp.cable import Cable
from vdexdp.cli.background import STANDARD, go_background
from vdexdp.errors import RequestError
from vdexdp.plugins import registry
from vdexdp.plugins.base import OpenContext, Stream
from vdexdp.plugins.stream import ByteStream
from vdexdp.signals import ENDING, as_descriptor
from vdexdp.wirefilter.console import is_console
from vdexdp.wirefilter.filter import MODE_DEFAULT, FilterSpec, FilterStream
from vdexdp.wirefilter.values import Parameter

OVERHEAD = 2

_VALUES = {
    "loss": Parameter.LOSS,
    "lostburst": Parameter.LOSTBURST,
    "delay": Parameter.DELAY,
    "dup": Parameter.DUP,
    "band": Parameter.BANDWIDTH,
    "speed": Parameter.SPEED,
    "chanbufsize": Parameter.BUFSIZE,
    "noise": Parameter.NOISE,
    "mtu": Parameter.MTU,
}


def split_plugs(text: str) -> tuple[str, str]:
    """The two VNLs of ``-v``, at the first colon that is not part of a ``://``.  Raises RequestError."""
    match = re.fullmatch(r"((?:[^:]|:(?=//))*):(?!//)(.*)", text, re.DOTALL)
    if match is None:
        raise RequestError(f"-v {text}", "does not name two plugs", "write two VNLs with a colon between them")
    return match[1], match[2]


def _alternate(name: str) -> int | None:
    """The descriptor that dpipe has left in the environment, if it is open."""
    text = os.environ.get(name, "")
    if not text.isdecimal():
        return None
    try:
        os.fstat(int(text))
    except OSError:
        return None
    return int(text)


def _standard(source: int, sink: int, name: str) -> ByteStream:
    for fd in (source, sink):
        if os.isatty(fd):
            raise RequestError(name, "is a terminal", "run it between two = signs of dpipe, or name two VNLs")
    return ByteStream(source, sink, name)


def _ends(plugs: tuple[str, str] | None, undo: ExitStack) -> tuple[Stream, Stream, int]:
    """The left end, the right end, and the number of directions.  Raises VdexdpError."""

    def opened(stream: Stream) -> Stream:
        undo.callback(stream.close)
        return stream

    if plugs is not None:
        if plugs == (registry.STDIO, registry.STDIO):
            raise RequestError("-v -:-", "both ends are the same", "name a VNL for one of them")
        parsed = [registry.parse(plug) for plug in plugs]
        left, right = (opened(end.open(OpenContext(description="vde_crosscable"))) for end in parsed)
        return left, right, 2
    source, sink = _alternate("ALTERNATE_STDIN"), _alternate("ALTERNATE_STDOUT")
    if source is not None and sink is not None:
        left = opened(_standard(0, 1, "the left end"))
        return left, opened(_standard(source, sink, "the right end")), 2
    nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    undo.callback(os.close, nowhere)
    silence, never_written = os.pipe2(os.O_CLOEXEC)
    undo.callback(os.close, never_written)
    undo.callback(os.close, silence)
    left = opened(_standard(0, nowhere, "standard input"))
    return left, opened(_standard(silence, 1, "standard output")), 1


@click.command("wirefilter", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-f", "--rcfile", default="", metavar="FILE", help="Management commands to begin with.")
@click.option("-l", "--loss", metavar="VALUE", help="Percent of frames to lose.")
@click.option("-L", "--lostburst", metavar="VALUE", help="Mean length of bursts of lost frames (Gilbert's model).")
@click.option("-d", "--delay", metavar="VALUE", help="Milliseconds.")
@click.option("-D", "--dup", metavar="VALUE", help="Percent of frames to duplicate.")
@click.option("-b", "--band", metavar="VALUE", help="Bytes per second of a bottleneck.")
@click.option("-s", "--speed", metavar="VALUE", help="Bytes per second of the interface, whose sender waits.")
@click.option("-c", "--chanbufsize", "--capacity", metavar="VALUE", help="Bytes that may wait; the rest is lost.")
@click.option("-n", "--noise", metavar="VALUE", help="Damaged bits per megabyte.")
@click.option("-m", "--mtu", metavar="VALUE", help="Bytes; longer frames are lost.")
@click.option("-N", "--nofifo", is_flag=True, help="Frames with less delay may overtake others.")
@click.option("-M", "--mgmt", default="", metavar="SOCKET", help="Management socket (for vdeterm, unixcmd).")
@click.option("--mgmtmode", metavar="MODE", help="Its permissions, octal; 0700 without this.")
@click.option("-v", "--vde-plug", metavar="VNL:VNL", help="The two ends; also written as two arguments. - is stdin.")
@click.option("--daemon", is_flag=True, help="Run in the background.")
@click.option("--pidfile", default="", metavar="FILE", help="Write the process id to FILE.")
@click.option("--blink", default="", metavar="SOCKET", help="Announce each frame to this UNIX datagram socket.")
@click.option("--blinkid", default="", metavar="ID", help="How the announcements begin; the process id without this.")
@click.argument("plugs", nargs=-1, metavar="[VNL VNL]")
def wirefilter(
    rcfile: str,
    nofifo: bool,
    mgmt: str,
    mgmtmode: str | None,
    vde_plug: str | None,
    daemon: bool,
    pidfile: str,
    blink: str,
    blinkid: str,
    plugs: tuple[str, ...],
    **values: str | None,
) -> None:
    """A wire that delays, loses, duplicates and damages frames.

    A VALUE is [LR|RL]NUMBER[+VARIATION][K|M|G][U|N]: for frames from left to right, from right to left or both; with a
    random variation, uniform or normal. For example: -d LR100+20N -l 5.

    \b
    vdexdp dpipe vde_plug /tmp/s1 = vdexdp wirefilter -l 10 = vde_plug /tmp/s2
    vdexdp wirefilter -l 10 -v /tmp/s1:/tmp/s2
    """
    if len(plugs) not in (0, 2) or (plugs and vde_plug is not None):
        raise RequestError("wirefilter", "takes two VNLs or none", "see wirefilter --help")
    pair = (plugs[0], plugs[1]) if plugs else None if vde_plug is None else split_plugs(vde_plug)
    spec = FilterSpec(
        tuple((_VALUES[key], text) for key, text in values.items() if text is not None),
        nofifo=nofifo,
        rc=rcfile,
        mgmt=mgmt and os.path.abspath(mgmt),
        mgmtmode=MODE_DEFAULT if mgmtmode is None else _mode(mgmtmode),
        blink=blink and os.path.abspath(blink),
        blinkid=blinkid,
        pidfile=pidfile and os.path.abspath(pidfile),
    )
    on_streams = pair is None or registry.STDIO in pair
    ready = go_background((2,) if on_streams else STANDARD) if daemon else None
    with ExitStack() as undo:
        signals = undo.enter_context(as_descriptor(*ENDING))
        left, right, directions = _ends(pair, undo)
        wire = FilterStream(right, spec, overhead=OVERHEAD, directions=directions)
        undo.callback(wire.close)
        if ready is not None:
            ready()
        elif not on_streams and is_console(0):
            wire.console.attach(0, 1)
        cable = Cable(left, wire)
        cable.stop_on(signals)
        cable.run()


def _mode(text: str) -> int:
    try:
        mode = int(text, 8)
    except ValueError:
        mode = -1
    if not 0 <= mode <= 0o777:
        raise RequestError(f"--mgmtmode {text}", "not an octal mode", "write permissions like 0700")
    return mode
