# SPDX-License-Identifier: GPL-2.0-or-later
"""``vdexdp daemon``: the privileged part, one for each network namespace."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from vdexdp.control.log import Form


@click.command()
@click.option("--auto", is_flag=True, help="Leave about a second after the last plug, as when a plug started it.")
@click.option("--replace", is_flag=True, help="Take over from the daemon that runs here; its plugs go on.")
@click.option("--stop", is_flag=True, help="End the daemon that runs here, and its plugs with it.")
@click.option(
    "--log",
    "form",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="The log on stderr: lines for people, or a JSON object on each.",
)
@click.option(
    "--policy",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("/etc/vdexdp/policy.toml"),
    show_default=True,
    metavar="FILE",
    help="What users other than root may do; SIGHUP reads it again.",
)
@click.option("-v", "--verbose", is_flag=True, help="Log refused requests, with tracebacks.")
def daemon(auto: bool, replace: bool, stop: bool, form: Form, policy: Path, verbose: bool) -> None:
    """Serve the kernel path of this network namespace's plugs.

    Plugs start it on demand; run it by hand, or as a service, to keep it.  SIGTERM and SIGINT end it; frames between
    plugs flow on, and the next daemon takes them over. A service manager may pass the listening socket (LISTEN_FDS) and
    is told when the daemon is ready (NOTIFY_SOCKET).

    Only root is served, unless a policy says what others may do.
    """
    if stop:
        from vdexdp.control import client

        client.call("stop")
        return
    from vdexdp.control import bytecode

    bytecode.compile_early()  # on another processor, while this one imports
    from vdexdp.control.daemon import run

    run(auto=auto, verbose=verbose, form=form, replace=replace, policy=policy)
