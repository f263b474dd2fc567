# SPDX-License-Identifier: GPL-2.0-or-later
"""A plug that fails at any step, whichever it is, leaves host, tables and descriptors as they were.

The model runs in this process.  Every call that it makes to the kernel goes through a few objects; one after the other,
each of these calls is made to fail, until a plug goes through.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.control.rig import (
    REFUSED,
    START,
    links_held,
    listening,
    looks,
    same,
    tunnel,
    until,
    version,
    wire,
)
from vdexdp.control import exception, ports, tunnels
from vdexdp.control.dataplane import Dataplane
from vdexdp.control.features import Features
from vdexdp.control.host import Host
from vdexdp.control.leases import release
from vdexdp.control.model import Model
from vdexdp.control.netlink import Netlink
from vdexdp.control.protocol import Bridge, End, PlugRequest
from vdexdp.control.tables import Tables
from vdexdp.errors import HostError
from vdexdp.lab import Lab
from vdexdp.plugins.base import Netdev
from vdexdp.plugins.tap import open_tap

READS = {"lookup", "port", "switch", "endpoints_of", "tunnel_flags", "endpoint_owner", "counters"}
UNDO = {"clear_port", "clear_switch", "drop_ingress", "drop_member", "drop_tx", "drop_endpoint", "close", "fdb_delete"}


class Injected(HostError):
    pass


class Saboteur:
    """Counts calls, and makes the one with number ``target`` fail."""

    def __init__(self) -> None:
        self.target = 0
        self.count = 0
        self.hit = ""

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **values: Any) -> Any:
            self.count += 1
            if self.count == self.target:
                self.hit = name
                raise Injected(name, "injected")
            return function(*args, **values)

        return wrapped


@pytest.fixture
def saboteur(monkeypatch: pytest.MonkeyPatch) -> Saboteur:
    made = Saboteur()
    for cls in (Tables, Host, Netlink):
        for name, function in vars(cls).items():
            if callable(function) and not name.startswith("_") and name not in READS | UNDO:
                monkeypatch.setattr(cls, name, made.wrap(f"{cls.__name__}.{name}", function))
    for module, name in (
        (exception, "open_tap"),
        (exception, "spawn"),
        (ports, "open_tap"),
        (tunnels, "open_sockets"),
        (tunnels, "foreign_sockets"),
    ):
        monkeypatch.setattr(module, name, made.wrap(name, getattr(module, name)))
    return made


@contextmanager
def model_in(lab: Lab) -> Iterator[tuple[Model, Any]]:
    host = lab.host("host")
    lab.underlay(host, lab.host("other"))
    for number in (1, 2):
        lab.guest(host, f"g{number}", number)
    with host.entered(), Netlink() as netlink:
        made = Model(Host(Dataplane.create(), netlink))
        made.host.dataplane.prepare(("port_ingress", "port_egress", "uplink_ingress", "exception_ingress"))
        try:
            yield made, host
        finally:
            made.unplug_all()
            made.host.close()


CASES: dict[str, tuple[End, End]] = {
    "tunnel": (wire("g1"), tunnel()),
    "tunnel6": (wire("g1"), tunnel(group="ff05::77", family=6)),
    "vxlan": (wire("g1"), tunnel(kind="vxlan", port=4789, group="239.0.0.1")),
    "bridge": (Bridge("null://"), tunnel()),
    "cable": (wire("g1"), wire("g2")),
    "stack": (Netdev("tap0", "stack", "tap"), tunnel()),
}


@pytest.mark.parametrize("case", CASES)
def test_every_step_that_fails_is_undone(lab: Lab, saboteur: Saboteur, case: str) -> None:
    with model_in(lab) as (model, host):
        taps = [open_tap("tap0")[0]] if case == "stack" else []
        before, fds = looks(host), len(os.listdir("/proc/self/fd"))
        tables = model.host.tables
        steps: list[str] = []
        while True:
            saboteur.target, saboteur.count = len(steps) + 1, 0
            asked = PlugRequest(CASES[case], ("one://", "two://"), fd_index=(0 if taps else None, None))
            try:
                _, given = model.plug(asked, taps)
                break
            except Injected:
                steps.append(saboteur.hit)
            saboteur.target = 0
            assert len(os.listdir("/proc/self/fd")) == fds, f"descriptors are left after {saboteur.hit}"
            assert (tables.ports_used, tables.switches_used) == ({0}, {0}), saboteur.hit
            assert not list(tables.maps["ingress"].items()), saboteur.hit
            assert not list(tables.maps["endpoints"].items()), saboteur.hit
            left = (model.plugs, model.ports.all, model.tunnels.lacs, model.tunnels.uplinks, model.cables)
            assert not any(left), f"{left} after {saboteur.hit}"
            if len(steps) % 8 == 0:
                same(host, before)
        assert len(steps) >= 8, steps
        least = 2 if case == "cable" else 3
        assert links_held() >= least or not Features().tcx, "it plugs when nothing fails"
        saboteur.target = 0
        release(given)
        model.unplug_all()
        assert len(os.listdir("/proc/self/fd")) == fds
        same(host, before)
        for tap in taps:
            os.close(tap)


def test_a_verifier_that_refuses(lab: Lab, tmp_path: Path) -> None:
    """One message with object, cause and next step, status 1, the host as it was; userspace where that is allowed."""
    package = version(tmp_path, REFUSED)
    host = lab.host("host")
    lab.underlay(host, lab.host("other"))
    lab.guest(host, "g1", 1)
    before = looks(host)
    command = (sys.executable, "-P", "-m", "vdexdp", "vde_plug")
    ends = ("netdev://g1", "vxvde://234.0.0.1")
    done = host.run(*command, "--accel", "require", *ends, check=False, env={"PYTHONPATH": str(package)})
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert re.match(
        r"vdexdp: program \w+: the kernel's verifier refused it \(Invalid argument\): unreachable insn 1; ", line
    )
    assert '"vdexdp -v daemon" shows all of its log' in line
    until(lambda: not listening(host), "the daemon to leave")
    whole = host.run(*command[:-1], "-v", "daemon", check=False, env={"PYTHONPATH": str(package)})
    assert whole.returncode == 1
    assert "\nunreachable insn 1\n" in whole.stderr
    assert "\nprocessed 0 insns" in whole.stderr
    same(host, before)
    process = host.spawn(*command, *ends, env={"PYTHONPATH": str(package)})
    said = process.wait_output("in userspace", START)
    assert "verifier refused it" in said
    assert process.stop() == 0
    until(lambda: not listening(host), "the daemon to leave")
    same(host, before)
