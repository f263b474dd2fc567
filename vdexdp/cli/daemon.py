# SPDX-License-Identifier: GPL-2.0-or-later
"""``vdexdp daemon``: the privileged part, one for each network namespace."""

from __future__ import annotations

import click


@click.command()
@click.option("--auto", is_flag=True, help="Leave about a second after the last plug, as when a plug started it.")
@click.option("--stop", is_flag=True, help="End the daemon that runs here, and its plugs with it.")
@click.option("-v", "--verbose", is_flag=True, help="Log refused requests, with tracebacks.")
def daemon(auto: bool, stop: bool, verbose: bool) -> None:
    """Serve the kernel path of this network namespace's plugs.

    Plugs start it on demand; run it by hand, or as a service, to keep it.  SIGTERM and SIGINT end it; frames between
    plugs flow on, and the next daemon takes them over.
    """
    if stop:
        from vdexdp.control import client

        client.call("stop")
        return
    from vdexdp.control.daemon import run

    run(auto=auto, verbose=verbose)
