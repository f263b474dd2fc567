# SPDX-License-Identifier: GPL-2.0-or-later
"""``vdexdp doctor``: is everything here that the kernel path needs, and if not, how to get it."""

from __future__ import annotations

import ctypes.util
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from vdexdp.cli.printing import json_option, print_json, print_table
from vdexdp.control.features import Features
from vdexdp.control.host import is_ours
from vdexdp.control.netlink import Netlink
from vdexdp.control.probe import Check, capabilities, probe_drivers, probe_kernel
from vdexdp.control.unlinked import Xdp
from vdexdp.errors import VdexdpError

WORDS = {True: "ok", None: "slower", False: "MISSING"}


@click.command()
@json_option
@click.option("--clean", is_flag=True, help="Remove what killed daemons left and nobody needs.")
def doctor(as_json: bool, clean: bool) -> int:
    """Check kernel, privileges, packages and leftovers; the exit status is 1 when the kernel path can't run."""
    checks = [*_privileges(), *_devices(), *_packages(), *_sockets(clean), *_state(clean), *probe_drivers(), *_kernel()]
    broken = any(check.ok is False for check in checks)
    if as_json:
        print_json({"ok": not broken, "checks": [asdict(check) for check in checks]})
    else:
        rows = [(WORDS[check.ok], check.name, check.detail) for check in checks]
        print_table(f"Linux {os.uname().release}, {os.uname().machine}", ("", "what", "found"), rows)
        for check in checks:
            if check.ok is not True and check.hint:
                click.echo(f"{check.name}: {check.hint}")
        click.echo(
            "The kernel path can't run here; --accel off does without it."
            if broken
            else "The kernel path can run here."
        )
    return 1 if broken else 0


def _kernel() -> list[Check]:
    if os.geteuid() != 0:
        return [Check("kernel features", None, "not probed: that needs root", "run: sudo vdexdp doctor")]
    try:
        return probe_kernel()
    except VdexdpError as error:
        return [Check(error.subject, False, error.cause, error.hint)]


def _privileges() -> list[Check]:
    have = capabilities()
    if "CAP_NET_ADMIN" in have and ("CAP_BPF" in have or "CAP_SYS_ADMIN" in have):
        return [Check("privileges", True, ", ".join(sorted(have)))]
    hint = "run as root; a daemon that runs already, or --accel off, needs no privilege of yours"
    return [Check("privileges", None if have else False, "CAP_BPF and CAP_NET_ADMIN are missing", hint)]


def _devices() -> list[Check]:
    tun = Path("/dev/net/tun")
    if tun.exists():
        return [Check("/dev/net/tun", True, "there")]
    return [Check("/dev/net/tun", False, "missing", 'load it with "modprobe tun"')]


def _packages() -> list[Check]:
    checks = []
    for library, package, needed in (("bpf", "libbpf1", True), ("vdeplug", "libvdeplug2", False)):
        found = ctypes.util.find_library(library)
        missing = False if needed else None
        hint = "" if found else f'install it with "apt-get install {package}"'
        checks.append(Check(f"lib{library}", True if found else missing, found or "missing", hint))
    checks += _programs()
    for name, package in (("ip", "iproute2"), ("bpftool", "bpftool")):
        found = shutil.which(name)
        hint = "" if found else f'install it with "apt-get install {package}"'
        checks.append(Check(name, True if found else None, found or "missing: only used by people and tests", hint))
    return checks


def _programs() -> list[Check]:
    """The compiled programs, and the compiler, which nobody misses while all of them are there."""
    from vdexdp.control import bytecode

    missing, problem = bytecode.missing(), bytecode.compiler_problem()
    broken = False if missing and problem else None
    if missing:
        where = f"neither shipped nor in {bytecode.cache_dir()}: {', '.join(missing)}"
        checks = [Check("compiled programs", broken, where, "" if problem else "the first plug compiles them")]
    else:
        checks = [Check("compiled programs", True, "all there")]
    if not problem:
        return [*checks, Check("bcc", True, "there, to compile the programs")]
    detail = f"{problem}; only shipped or cached programs can be loaded"
    return [*checks, Check("bcc", broken, detail, bytecode.BCC_HINT)]


def _sockets(clean: bool) -> list[Check]:
    """Files in the run directory, of whatever namespace, that nobody needs."""
    from vdexdp.control import rundir

    try:
        found = rundir.remove_abandoned() if clean else [one for one in rundir.places() if rundir.abandoned(one)]
    except VdexdpError as error:
        return [Check(error.subject, None, error.cause, error.hint)]
    if not found:
        return [Check("control sockets", True, "none without a use")]
    detail = f"{len(found)} of daemons that were killed"
    if clean:
        return [Check("control sockets", True, f"{detail}: removed")]
    hint = 'harmless; the next daemon that starts removes them, and so does "vdexdp doctor --clean"'
    return [Check("control sockets", None, detail, hint)]


def _state(clean: bool) -> list[Check]:
    """The daemon of this namespace, and what a killed one may have left."""
    from vdexdp.control import client, rundir
    from vdexdp.control.protocol import netns_inode

    checks = []
    running = True
    try:
        about = client.call("hello")
        checks.append(Check("daemon", True, f"process {about['pid']}, version {about['version']}"))
    except client.NotRunning:
        running = False
        checks.append(Check("daemon", True, "none runs in this network namespace; a plug starts one"))
    except VdexdpError as error:
        checks.append(Check("daemon", None, error.cause, error.hint))
    if running:
        return checks + _policy()
    with Netlink() as netlink:
        taps = [link.name for link in netlink.links() if is_ours(link)]
        filters, programs = netlink.clsact_leftovers(), _xdp_leftovers(netlink)
        if clean and (filters or programs) and rundir.abandoned(netns_inode()):
            for filter_ in filters:
                netlink.clsact_detach(filter_)
            for program in programs:
                netlink.xdp_detach(program)
            detail = f"{len(filters)} tc filters, {len(programs)} XDP programs: removed"
            return [*checks, Check("leftovers", True, detail)]
    if taps or filters or programs:
        detail = f"{len(filters)} tc filters, {len(programs)} XDP programs, interfaces {', '.join(taps) or 'none'}"
        hint = "plugs without a daemon hold them, or a killed daemon left them; the next daemon takes over or cleans up"
        checks.append(Check("leftovers", None, detail, hint))
    else:
        checks.append(Check("leftovers", True, "none"))
    return checks


def _xdp_leftovers(netlink: Netlink) -> list[Xdp]:
    """XDP programs of ours that are attached without a link.  Only a kernel without links has any."""
    try:
        return [] if Features().xdp_link else netlink.xdp_leftovers()
    except OSError:  # without privilege
        return []


def _policy() -> list[Check]:
    """What the daemon's policy grants: this user, or, for root, everybody."""
    from vdexdp.control import client

    try:
        found = client.call("policy")
    except VdexdpError as error:
        return [Check("policy", None, error.cause, error.hint)]
    if found["broken"]:
        cause = found["broken"] if isinstance(found["broken"], str) else f"{found['file']} has a mistake"
        return [Check("policy", None, f"what held before holds on: {cause}", "correct it, and send the daemon SIGHUP")]
    if not found["rules"]:
        for_whom = "you nothing" if os.geteuid() else "nobody but root anything"
        return [Check("policy", None if os.geteuid() else True, f"it grants {for_whom}", "see docs/policy.md")]
    return [Check("policy", True, _told(rule, found["used"])) for rule in found["rules"]]


def _told(rule: dict[str, Any], used: int) -> str:
    whom = [f"user {uid}" for uid in rule.get("users", [])] + [f"group {gid}" for gid in rule.get("groups", [])]
    parts = [
        f"rule {rule['name']}" + (f", {', '.join(whom)}" if whom else ""),
        f"networks {', '.join(rule['networks']) or 'none'}",
        f"interfaces {', '.join(rule['interfaces']) or 'none'}",
        f"{rule['plugs']} plugs" + ("" if whom else f", {used} in use"),
    ]
    return "; ".join(parts)
