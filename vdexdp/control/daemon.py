# SPDX-License-Identifier: GPL-2.0-or-later
"""Start-up of the daemon: limits, leftovers of kernels without links, the data plane's programs, then the server."""

from __future__ import annotations

import resource
import signal
import sys

from vdexdp import __version__
from vdexdp.control import service
from vdexdp.control.log import Form, Log
from vdexdp.control.netlink import Netlink
from vdexdp.control.server import Server


def raise_limits() -> None:
    """A lease for each of a thousand ports is many descriptors; kernels before 5.11 charge maps to RLIMIT_MEMLOCK."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    except (OSError, ValueError):
        return


def remove_leftovers(netlink: Netlink) -> int:
    """Remove the tc filters that a killed daemon of ours left on a kernel without tcx; returns how many."""
    found = netlink.clsact_leftovers()
    for clsact in found:
        netlink.clsact_detach(clsact)
    return len(found)


def run(*, auto: bool = False, verbose: bool = False, form: Form = "text") -> None:
    """Serve this network namespace until told to stop.  ``form`` is that of the log.

    Raises DaemonError where another daemon does, PrivilegeError.
    """
    raise_limits()
    log = Log(form, quiet=auto, verbose=verbose)
    server = Server(log, auto=auto)
    if not server.awaited and (removed := remove_leftovers(server.netlink)):
        log.say(f"removed {removed} filters that an earlier daemon left", "warning", filters=removed)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # while programs are loaded, or compiled by children
    try:
        if not auto:
            server.prepare()
        log.say(f"serving this network namespace at {server.rundir.path}", version=__version__)
        service.notify("READY=1")
        server.run()
    finally:
        log.say("ending")
        service.notify("STOPPING=1")
        server.close()
