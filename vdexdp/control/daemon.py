# SPDX-License-Identifier: GPL-2.0-or-later
"""Start-up of the daemon: limits, leftovers of kernels without links, the data plane's programs, then the server."""

from __future__ import annotations

import os
import resource
import select
import signal
import sys
from pathlib import Path

from vdexdp import __version__
from vdexdp.control import client, service
from vdexdp.control.features import Features
from vdexdp.control.log import Form, Log
from vdexdp.control.netlink import Netlink
from vdexdp.control.policy import DEFAULT_FILE
from vdexdp.control.rundir import remove_abandoned
from vdexdp.control.server import Server
from vdexdp.errors import DaemonError

REPLACE_LIMIT = 10.0
"""Seconds for another daemon to answer, and to end."""


def raise_limits() -> None:
    """A lease for each of a thousand ports is many descriptors; kernels before 5.11 charge maps to RLIMIT_MEMLOCK."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    except (OSError, ValueError):
        return


def remove_leftovers(netlink: Netlink) -> int:
    """Remove what a killed daemon of ours left attached on a kernel without links for it; returns how many."""
    filters = netlink.clsact_leftovers()
    for clsact in filters:
        netlink.clsact_detach(clsact)
    programs = [] if Features().xdp_link else netlink.xdp_leftovers()
    for xdp in programs:
        netlink.xdp_detach(xdp)
    return len(filters) + len(programs)


def end_running() -> None:
    """End the daemon of this network namespace, if there is one, as for a restart: its plugs go on.

    Raises DaemonError.
    """
    try:
        pid = client.call("hello", limit=REPLACE_LIMIT)["pid"]
        process = os.pidfd_open(pid)
    except (client.NotRunning, ProcessLookupError):
        return
    try:
        signal.pidfd_send_signal(process, signal.SIGTERM)
        if not select.select([process], [], [], REPLACE_LIMIT)[0]:
            raise DaemonError("daemon", f"process {pid} does not end", "see its log")
    finally:
        os.close(process)


def run(
    *,
    auto: bool = False,
    verbose: bool = False,
    form: Form = "text",
    replace: bool = False,
    policy: Path = DEFAULT_FILE,
) -> None:
    """Serve this network namespace until told to stop.

    ``form`` is that of the log; with ``replace`` another daemon is no obstacle; ``policy`` says what users other than
    root may do.

    Raises DaemonError where another daemon does, PrivilegeError.
    """
    raise_limits()
    if replace:
        end_running()
    log = Log(form, quiet=auto, verbose=verbose)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until the server reads the policy for it
    server = Server(log, auto=auto, policy=policy)
    if not server.awaited and (removed := remove_leftovers(server.netlink)):
        log.say(f"removed {removed} programs that an earlier daemon left attached", "warning", programs=removed)
    if left := remove_abandoned():
        log.say(f"removed the control sockets of {len(left)} daemons that were killed", "warning", sockets=len(left))
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
