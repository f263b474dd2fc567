# SPDX-License-Identifier: GPL-2.0-or-later
"""Frames that are lost while the daemon is restarted, upgraded or killed, or somebody watches them: none.

Three plugs of a LAC carry numbered frames at a fixed rate: one in the kernel and one that is bridged into it on the
left host, one in the kernel on the right host.  The daemon of the left host is changed under them, also where the first
is behind a node that is patched to the LAC.  Each test prints what it sent and what was lost (``pytest -s``).

An upgrade is a copy of this package whose kernel programs begin with one instruction more, and which takes longer to
load them than a daemon waits for plugs that come back.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.control.rig import REFUSED, START, behind_links, call, daemon, listening, until, version
from tests.labkit import VDEXDP, TwoHosts, require
from tests.rawframes import RawPort, StreamPort, stream_plug
from vdexdp.lab import Namespace
from vdexdp.lab.namespace import Process

NETWORK = "vxvde://234.0.0.1"
RATE = 1000
"""Frames each second and sender."""
ETHERTYPE = bytes.fromhex("88b5")
MACS = {"left": bytes.fromhex("020000000701"), "right": bytes.fromhex("020000000702"), "stream": b"\x02\0\0\0\x07\x03"}
SLOW = 2.0
"""Seconds to load the programs, and more than the daemon waits then."""
NOP = bytes.fromhex("b700000000000000")  # r0 = 0

Port = RawPort | StreamPort


@dataclass
class Flow:
    """Numbered frames from one port to another's MAC."""

    source: str
    target: str
    sent: int = 0
    received: set[int] = field(default_factory=set)

    @property
    def lost(self) -> list[int]:
        return sorted(set(range(self.sent)) - self.received)


class Flood:
    """Sends while it is entered; afterwards each flow knows what arrived."""

    def __init__(self, ports: dict[str, Port]) -> None:
        self.ports = ports
        self.flows = [Flow("left", "right"), Flow("right", "left"), Flow("right", "stream"), Flow("stream", "right")]
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._send, args=(flow,)) for flow in self.flows]
        self._threads += [threading.Thread(target=self._receive, args=(name,)) for name in ports]

    def _send(self, flow: Flow) -> None:
        head = MACS[flow.target] + MACS[flow.source] + ETHERTYPE
        while not self._stop.wait(1 / RATE):  # what a busy machine delays is not made up for: no bursts
            self.ports[flow.source].send(head + flow.sent.to_bytes(4, "big") + bytes(100))
            flow.sent += 1

    def _receive(self, name: str) -> None:
        quiet = False
        while not quiet:
            stopped = self._stop.is_set()
            frames = self.ports[name].receive(64, 0.3)
            quiet = stopped and not frames
            for data in frames:
                for flow in self.flows:
                    if data[:12] == MACS[name] + MACS[flow.source] and flow.target == name:
                        flow.received.add(int.from_bytes(data[14:18], "big"))

    def __enter__(self) -> Flood:
        for thread in self._threads:
            thread.start()
        time.sleep(0.3)
        return self

    def __exit__(self, *_: object) -> None:
        time.sleep(0.3)
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def check(self, what: str) -> None:
        lost = {f"{flow.source} to {flow.target}": flow.lost for flow in self.flows}
        counts = ", ".join(f"{name} {len(numbers)}" for name, numbers in lost.items())
        print(f"{what}: {sum(flow.sent for flow in self.flows)} frames sent at {RATE}/s each; lost: {counts}")
        assert all(flow.sent > RATE // 4 for flow in self.flows), [flow.sent for flow in self.flows]
        assert not any(lost.values()), f"{what}: {lost}"


@dataclass
class Net:
    left: Namespace
    plugs: int
    master: Process
    ports: dict[str, Port]


@contextmanager
def plugged(two_hosts: TwoHosts, *cables: tuple[str, str]) -> Iterator[Net]:
    """The left host's guest is plugged in by these cables."""
    require("tcx")
    left, right = two_hosts.left, two_hosts.right
    master = daemon(left)
    for host, vnls in [(left, cable) for cable in cables] + [(right, ("netdev://g2", NETWORK))]:
        host.spawn(*VDEXDP, "vde_plug", *vnls).wait_output("the kernel", START)
    with stream_plug(left, *VDEXDP, "vde_plug", NETWORK) as stream:
        ports: dict[str, Port] = {
            "left": RawPort(two_hosts.left_guest, "eth0"),
            "right": RawPort(two_hosts.right_guest, "eth0"),
            "stream": stream,
        }
        for name, port in ports.items():  # all switches learn where everybody is
            port.send(b"\xff" * 6 + MACS[name] + ETHERTYPE + bytes(100))
        until(lambda: len(learnt(left)) == 3, "all addresses to be learnt")
        time.sleep(0.2)
        yield Net(left, len(cables) + 1, master, ports)


@pytest.fixture
def net(two_hosts: TwoHosts) -> Iterator[Net]:
    with plugged(two_hosts, ("netdev://g1", NETWORK)) as made:
        yield made


@pytest.fixture
def patched(two_hosts: TwoHosts, tmp_path: Path) -> Iterator[Net]:
    with plugged(two_hosts, (f"switch://{tmp_path}/sw", "netdev://g1"), (f"vde://{tmp_path}/sw", NETWORK)) as made:
        assert "patch" in [one["kind"] for one in call(made.left, "show")["ports"]]
        yield made


def learnt(host: Namespace) -> set[str]:
    wanted = {mac.hex(":") for mac in MACS.values()}
    return wanted & {entry["mac"] for entry in call(host, "fdb", action="list")["entries"]}


def programs(host: Namespace) -> dict[str, str]:
    """The tags of the programs behind all links that plugs of a host hold, by link."""
    return behind_links(call(host, "show")["plugs"], "prog_tag")


def change(net: Net, number: int, *, package: Path | None = None) -> Process:
    """End the daemon by a signal and start another, perhaps of another version; wait until its plugs are back."""
    net.master.signal(number)
    net.master.wait()
    environment = {"PYTHONPATH": str(package)} if package else {}
    command = (sys.executable, "-P", "-m", "vdexdp", "daemon") if package else (*VDEXDP, "daemon")
    process = net.left.spawn(*command, env=environment)
    until(lambda: listening(net.left) and len(call(net.left, "show")["plugs"]) == net.plugs, "the plugs", START)
    net.master = process
    return process


def test_restart(net: Net) -> None:
    before = programs(net.left)
    with Flood(net.ports) as flood:
        change(net, signal.SIGTERM)
    flood.check("restart")
    assert programs(net.left) == before, "the same programs need no replacement"


def test_crash(net: Net) -> None:
    crash(net)


def crash(net: Net) -> None:
    with Flood(net.ports) as flood:
        change(net, signal.SIGKILL)
    flood.check("crash")


def test_replace(net: Net) -> None:
    with Flood(net.ports) as flood:
        process = net.left.spawn(*VDEXDP, "daemon", "--replace")
        until(lambda: process.output().count("taken over") == 2, "both plugs in the new daemon", START)
        assert net.master.wait() == 0
    flood.check("replace")
    assert call(net.left, "hello")["pid"] == process.pid


def test_upgrade(net: Net, tmp_path: Path) -> None:
    upgrade(net, tmp_path)


def test_crash_and_upgrade_of_a_node_with_a_network(patched: Net, tmp_path: Path) -> None:
    crash(patched)
    upgrade(patched, tmp_path)


def upgrade(net: Net, tmp_path: Path) -> None:
    package = version(tmp_path, NOP, SLOW, SLOW / 2)
    before = programs(net.left)
    with Flood(net.ports) as flood:
        process = change(net, signal.SIGTERM, package=package)
    flood.check("upgrade")
    now = programs(net.left)
    assert now.keys() == before.keys(), "the links are the old ones"
    assert all(now[link] != before[link] for link in before), "the programs behind them are new"
    said = re.findall(r"taken over; (\d+) programs replaced", process.output())
    assert sum(map(int, said)) == len(before), process.output()
    with Flood(net.ports) as flood:
        change(net, signal.SIGTERM)
    flood.check("downgrade")
    assert programs(net.left) == before


def test_an_upgrade_whose_programs_are_refused_keeps_the_old_ones(net: Net, tmp_path: Path) -> None:
    package = version(tmp_path, REFUSED)
    before = programs(net.left)
    with Flood(net.ports) as flood:
        process = change(net, signal.SIGTERM, package=package)
        os.kill(process.pid, 0)
    flood.check("refused upgrade")
    assert programs(net.left) == before
    assert "the older programs go on" in process.output(), process.output()


def test_somebody_begins_and_ends_to_watch(net: Net) -> None:
    before = programs(net.left)
    with Flood(net.ports) as flood:
        for number in (signal.SIGINT, signal.SIGKILL):
            process = net.left.spawn(*VDEXDP, "capture", "-w", os.devnull)
            process.wait_output("watching", START)
            assert all(programs(net.left)[link] != before[link] for link in before), "the observed build"
            time.sleep(0.3)
            process.signal(number)
            process.wait()
            until(lambda: programs(net.left) == before, "the normal programs")
    flood.check("watching")
