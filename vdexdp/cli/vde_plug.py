# SPDX-License-Identifier: GPL-2.0-or-later
"""``vdexdp vde_plug``: stock vde_plug's command line.

As in stock, options may stand anywhere in front of ``=``; what stands behind it belongs to the command.  With ``-d``
the parent waits until the cable stands, so that its exit status and its messages are true; only then does the child let
go of the terminal.
"""

from __future__ import annotations

import getopt
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from signal import SIGUSR1
from typing import cast

from vdexdp.cli.joint import Accel, Joint, Wrapper
from vdexdp.cli.report import report
from vdexdp.errors import HostError, RequestError
from vdexdp.plugins import registry
from vdexdp.plugins.base import OpenContext
from vdexdp.signals import ENDING, as_descriptor
from vdexdp.vnl import group_id

DESCRIPTION = "vdeplug:"
IPLOG_GROUP = "vdeplug_iplog"

USAGE = """\
Usage: {name} [OPTIONS] [VNL [VNL]]
       {name} [OPTIONS] [VNL] = command [ARGUMENTS]

Joins two ends of virtual Ethernets. A missing second VNL, or "-", is a stream on standard input and output; a missing
or empty first VNL is the default switch. With "=", the stream is that of the command.

  -p, --pidfile FILE   write the process id to FILE
  -d, --daemon         go to the background once the cable stands
  -D, --descr TEXT     describe this connection to a switch as TEXT
  -g, --group GROUP    group of the socket that a switch talks to; -G, --group2 for the second VNL
  -m, --mod MODE       its octal permissions; -M, --mod2 for the second VNL
  --port N, --port2 N  port of the switch; the suffix [N] of the VNL says the same
  -l, --log            log start and stop to syslog
  -L, --iplog          and also the IP addresses that are used on the stream
  -c vde_plug          be somebody's login shell, that can do nothing but this
  --accel WHEN         auto: in the kernel where it can be done; require: there or not at all; off: in userspace
  -v, --verbose        counters at the end, and a traceback where something fails
  -h, --help           this text

SIGUSR1 prints the path and the counters. SIGINT, SIGTERM and SIGHUP unplug.
"""

LOGIN_ONLY = (
    "This is a Virtual Distributed Ethernet (vde) tunnel broker.\nIt is no login shell: it runs vde_plug only.\n"
)

_SHORT = "c:hp:dm:M:g:G:lLD:v"
_LONG = [
    "pidfile=",
    "daemon",
    "port=",
    "port2=",
    "mod=",
    "mod2=",
    "group=",
    "group2=",
    "descr=",
    "log",
    "iplog",
    "help",
    "accel=",
    "verbose",
]


@dataclass
class Arguments:
    """What the command line says.  A VNL that is None was not given."""

    vnls: tuple[str | None, str | None] = (None, None)
    command: tuple[str, ...] = ()
    contexts: tuple[OpenContext, OpenContext] = (OpenContext(DESCRIPTION), OpenContext(DESCRIPTION))
    accel: Accel = "auto"
    pidfile: str = ""
    daemon: bool = False
    log: bool = False
    iplog: bool = False
    shell: str | None = None
    verbose: bool = False
    help: bool = False


def parse_arguments(words: Sequence[str]) -> Arguments:
    """Take a command line apart.  Raises RequestError."""
    cut = words.index("=") if "=" in words else len(words)
    try:
        options, vnls = getopt.gnu_getopt(list(words[:cut]), _SHORT, _LONG)
    except getopt.GetoptError as error:
        raise RequestError("vde_plug", str(error), "see vde_plug --help") from error
    found = Arguments(command=tuple(words[cut + 1 :]))
    if cut < len(words) and not found.command:
        raise RequestError("=", "no command behind it", "write: vde_plug [VNL] = command [ARGUMENTS]")
    if len(vnls) > (1 if found.command else 2):
        raise RequestError(vnls[-1], "one VNL too many", "see vde_plug --help")
    found.vnls = (vnls[0] if vnls else None, vnls[1] if len(vnls) > 1 else None)
    first, second = found.contexts
    for key, value in options:
        match key:
            case "-c":
                found.shell = value
            case "-h" | "--help":
                found.help = True
            case "-v" | "--verbose":
                found.verbose = True
                first, second = replace(first, verbose=True), replace(second, verbose=True)
            case "-d" | "--daemon":
                found.daemon = True
            case "-p" | "--pidfile":
                found.pidfile = value
            case "-D" | "--descr":
                if value:
                    first, second = replace(first, description=value), replace(second, description=value)
            case "-g" | "--group":
                first = replace(first, group=_group(key, value))
            case "-G" | "--group2":
                second = replace(second, group=_group(key, value))
            case "-m" | "--mod":
                first = replace(first, mode=_mode(key, value))
            case "-M" | "--mod2":
                second = replace(second, mode=_mode(key, value))
            case "--port":
                first = replace(first, port=_port(key, value))
            case "--port2":
                second = replace(second, port=_port(key, value))
            case "--accel":
                if value not in ("auto", "require", "off"):
                    raise RequestError(f"--accel {value}", "not understood", "write auto, require or off")
                found.accel = cast(Accel, value)
            case _:
                found.log = True
                found.iplog |= key in ("-L", "--iplog")
    found.contexts = (first, second)
    return found


def _group(key: str, value: str) -> str:
    if group_id(value) is None:
        raise RequestError(f"{key} {value}", "no such group", 'see "getent group"')
    return value


def _mode(key: str, value: str) -> int:
    try:
        mode = int(value, 8)
    except ValueError:
        mode = -1
    if not 0 <= mode <= 0o7777:
        raise RequestError(f"{key} {value}", "not an octal mode", "write permissions like 0700")
    return mode


def _port(key: str, value: str) -> int:
    if not value.isascii() or not value.isdecimal() or not 0 < int(value) < 1 << 16:
        raise RequestError(f"{key} {value}", "not a port of a switch", "write a number from 1 on")
    return int(value)


def run(words: Sequence[str], name: str = "vdexdp vde_plug", *, login: bool = False) -> int:
    """Run one command line; return the exit status."""
    verbose = "-v" in words or "--verbose" in words
    try:
        arguments = parse_arguments(words)
        if login or arguments.shell not in (None, "vde_plug"):
            from vdexdp.cli import plug_log

            plug_log.refused()
            print(LOGIN_ONLY, end="", file=sys.stderr)
            return RequestError.exit_code
        if arguments.help:
            print(USAGE.format(name=name), end="")
            return 0
        return plug(arguments)
    except Exception as error:
        return report(error, verbose=verbose)


def plug(arguments: Arguments) -> int:
    """Join the two ends until the cable ends; return the exit status.  Raises VdexdpError."""
    first = registry.parse(arguments.vnls[0] or "")
    second = registry.parse(registry.STDIO if arguments.vnls[1] is None else arguments.vnls[1])
    if arguments.daemon:
        from vdexdp.cli.background import go_background

        ready = go_background()
    else:
        ready = _nothing
    with ExitStack() as undo:
        if arguments.pidfile:
            _write_pidfile(arguments.pidfile)
            undo.callback(_remove, os.path.abspath(arguments.pidfile))
        wrap = _logging(arguments, undo)
        command = None
        if arguments.command:
            from vdexdp.cli.coprocess import Coprocess

            command = undo.enter_context(Coprocess(arguments.command))
            second = command.end()
        signals = undo.enter_context(as_descriptor(*ENDING, SIGUSR1))
        joint = undo.enter_context(Joint((first, second), arguments.contexts, arguments.accel, wrap))
        print(f"vdexdp: {first.vnl} -- {second.vnl}: {joint.path}", file=sys.stderr, flush=True)
        ready()
        if "NOTIFY_SOCKET" in os.environ:
            from vdexdp.control.service import notify

            notify("READY=1")
        cause = joint.run(signals)
        if arguments.verbose:
            print(f"vdexdp: ended: {cause}; {joint.status()}", file=sys.stderr)
        elif cause not in {number.name for number in ENDING} and not (command and command.closed(cause)):
            print(f"vdexdp: ended: {cause}", file=sys.stderr)
    return command.status if command is not None and command.closed(cause) else 0


def _logging(arguments: Arguments, undo: ExitStack) -> Wrapper | None:
    """Start the logs that are wanted; return what watches the stream, if anything does."""
    if not (arguments.log or arguments.shell):
        return None
    from vdexdp.cli import plug_log

    undo.enter_context(plug_log.session())
    if arguments.iplog or (arguments.shell and plug_log.is_member(IPLOG_GROUP)):
        return plug_log.AddressLog
    return None


def _nothing() -> None:
    return


def _write_pidfile(path: str) -> None:
    try:
        with open(path, "w", encoding="ascii") as file:
            file.write(f"{os.getpid()}\n")
    except OSError as error:
        raise HostError.from_oserror(path, error) from error


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass
