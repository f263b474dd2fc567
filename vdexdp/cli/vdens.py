# SPDX-License-Identifier: GPL-2.0-or-later
"""``vdexdp vdens``: a command in a network of its own, plugged into VDE networks.

The command runs in an :mod:`vdexdp.cli.enclosure`; each VNL is an interface there (:mod:`vdexdp.cli.inlet`).  This
process stays outside, pumps the frames where that is needed, and ends with the command and its status.
"""

from __future__ import annotations

import os
import select
import signal
import sys
from contextlib import ExitStack
from typing import cast

import click

from vdexdp.cli.enclosure import Enclosure, Wishes, shell
from vdexdp.cli.inlet import open_inlet
from vdexdp.cli.joint import Accel
from vdexdp.plugins import registry
from vdexdp.plugins.tap import interface_name
from vdexdp.signals import as_descriptor, received

NO_NETWORK = ("", "-", "no")


def split_command(words: tuple[str, ...], multi: bool) -> tuple[list[str], tuple[str, ...]]:
    """The VNLs and the command of a command line.  Raises HostError where there is neither command nor shell."""
    if multi and words:
        count = words.index("--") if "--" in words else len(words)
        vnls, command = list(words[:count]), words[count + 1 :]
    else:
        vnls, command = [vnl for vnl in words[:1] if vnl not in NO_NETWORK], words[1:]
    return vnls, command or shell(os.environ)


def _parse(vnl: str) -> registry.End:
    """A VNL, or as in stock ``=COMMAND``, a command that speaks vdestream."""
    return registry.parse(f"cmd://{vnl[1:]}" if vnl.startswith("=") else vnl)


@click.command("vdens", context_settings={"allow_interspersed_args": False, "help_option_names": ["-h", "--help"]})
@click.option("-m", "--multi", is_flag=True, help="Several networks: all VNLs up to --.")
@click.option("-i", "--iface", default="vde", show_default=True, metavar="PREFIX", help="Interfaces are PREFIX0, ….")
@click.option("-r", "--resolvconf", envvar="VDE_RESOLVCONF", metavar="FILE", help="The /etc/resolv.conf to be seen.")
@click.option("-R", "--resolvaddr", envvar="VDE_RESOLVADDR", metavar="ADDRESSES", help="DNS servers, between commas.")
@click.option("-H", "--hostname", default="", metavar="NAME", help="The host name inside.")
@click.option("-s", "--sysadm", is_flag=True, help="Grant CAP_SYS_ADMIN inside, too, for mounting.")
@click.option("-c", "--clone", is_flag=True, help="Accepted, without effect: there is one way to make the namespace.")
@click.option("-u", "--unshare", is_flag=True, help="As -c.")
@click.option(
    "--accel",
    type=click.Choice(["auto", "require", "off"]),
    default="auto",
    show_default=True,
    help="Whether the frames may, must or must not take the kernel path, which needs root.",
)
@click.option("-v", "--verbose", is_flag=True, help="Say which path the frames take.")
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[VNL [COMMAND [ARG]...]]")
def vdens(
    multi: bool,
    iface: str,
    resolvconf: str | None,
    resolvaddr: str | None,
    hostname: str,
    sysadm: bool,
    clone: bool,
    unshare: bool,
    accel: str,
    verbose: bool,
    words: tuple[str, ...],
) -> int:
    """Run a command ($SHELL) in a network namespace whose interface vde0 is plugged into VNL.

    No privilege is needed. The command may configure its network. Without VNL, or with "-" or "no", there is no
    interface.

    \b
    vdexdp vdens slirp://
    vdexdp vdens -R 10.0.2.3 vxvde://234.0.0.1 sh
    vdexdp vdens -m switch:///tmp/sw slirp:// -- sh
    """
    vnls, command = split_command(words, multi)
    ends = [_parse(vnl) for vnl in vnls]
    interface_name(f"-i {iface}", f"{iface}{len(ends)}")
    wishes = Wishes(
        command,
        hostname=hostname,
        resolvconf=resolvconf or "",
        resolvers=tuple(filter(None, (resolvaddr or "").split(","))),
        sysadm=sysadm,
    )
    return run(wishes, ends, iface, cast(Accel, accel), verbose)


def run(wishes: Wishes, ends: list[registry.End], prefix: str, accel: Accel, verbose: bool = False) -> int:
    """Run the command to its end; its status.  Raises VdexdpError."""
    inside = Enclosure(wishes)
    with ExitStack() as undo:
        # The terminal sends these to the command, too, and that decides what they mean.
        for number in (signal.SIGINT, signal.SIGQUIT):
            undo.callback(signal.signal, number, signal.signal(number, signal.SIG_IGN))
        signals = undo.enter_context(as_descriptor(signal.SIGTERM, signal.SIGHUP))
        try:
            for index, end in enumerate(ends):
                inlet = open_inlet(inside, f"{prefix}{index}", end, accel)
                undo.callback(inlet.close)
                if verbose:
                    print(f"vdens: {inlet.name} -- {end.vnl}: {inlet.path}", file=sys.stderr)
        except BaseException:
            inside.abandon()
            raise
        inside.go()
        return _wait(inside.pid, signals)


def _wait(pid: int, signals: int) -> int:
    pidfd = os.pidfd_open(pid)
    try:
        while True:
            ready = select.select([pidfd, signals], [], [])[0]
            for number in received(signals):
                os.kill(pid, number)
            if pidfd in ready:
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                return code if code >= 0 else 128 - code
    finally:
        os.close(pidfd)
