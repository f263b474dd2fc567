# SPDX-License-Identifier: GPL-2.0-or-later
"""In the kernel: with every process of vdexdp stopped, everything goes on; and all of it together weighs little.

Shows, between guests and taps on two hosts whose daemons, workers and plugs have SIGSTOP: neighbours resolved anew by
ARP and ND, TCP at full speed, a guest with a new address, an address that moves to another guest, flooding.  Then, with
nothing stopped: how soon a plug is ready, and how much memory twelve of them take.
"""

from __future__ import annotations

import os
import signal
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.kernelkit import NETWORK, counters, plug, reaches, start, transfer
from tests.labkit import VDEXDP
from vdexdp.control import bytecode
from vdexdp.lab import Lab, Namespace, marked, wait_until
from vdexdp.lab.measure import iperf_server, pss_bytes
from vdexdp.lab.namespace import command_line

READY, READY_COLD = 0.15, 1.5
"""Seconds from exec to the line that says which path the cable takes, with and without a daemon that runs."""
PLUGS, PLUG_BYTES = 12, 25 << 20


def ours(lab: Lab) -> list[int]:
    """The pids of vdexdp in a lab: plugs, daemons and workers."""
    return [pid for pid in marked(lab.prefix) if "vdexdp" in command_line(pid)]


@contextmanager
def frozen(lab: Lab) -> Iterator[None]:
    pids = ours(lab)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        for pid in pids:
            wait_until(lambda pid=pid: open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] == "T")  # type: ignore[misc]  # noqa: SIM115
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def as_fast_when_frozen(lab: Lab, client: Namespace, address: str, *options: str) -> None:
    """In turns, at most five of each: others use this machine too."""
    running: list[float] = []
    stopped: list[float] = []
    for _ in range(5):
        running.append(transfer(client, address, 100, *options)[0])
        with frozen(lab):
            stopped.append(transfer(client, address, 100, *options)[0])
        if max(stopped) > 0.6 * max(running):
            return
    raise AssertionError(f"{stopped} Gbit/s, {running} while the processes run")


@pytest.mark.parametrize("network", [NETWORK, "vxlan:///v6/if=lan0"])
def test_stopped_processes_do_not_matter(lab: Lab, network: str) -> None:
    left, right = lab.host("left"), lab.host("right")
    lab.underlay(left, right, mtu=1700)
    one, other = lab.guest(left, "g1", 1), lab.guest(right, "g2", 2)
    third = lab.guest(left, "g3", 3)
    for host, vnl in ((left, "netdev://g1"), (left, "netdev://g3"), (right, "netdev://g2"), (right, "tap://t4")):
        plug(host, vnl, network)
    lab.address(right, "t4", 4)
    iperf_server(other)
    with frozen(lab):
        assert len(ours(lab)) >= 8
        for guest in (one, other, third, right):
            guest.ip("neigh flush all")
        for number in (2, 3, 4):
            assert reaches(one, f"10.0.0.{number}")
            assert reaches(one, f"fd00::{number}")
        assert reaches(third, "10.0.0.4")
        # A guest comes with an address that no switch has ever seen.
        other.ip("link set eth0 address 02:00:00:00:00:77")
        lab.address(other, "eth0", 7)
        assert reaches(third, "10.0.0.7")
        assert reaches(right, "10.0.0.7", 3, "-I", "10.0.0.4")
        # It moves to another host, with its address.
        other.ip("link set eth0 address 02:00:00:00:00:78")
        third.ip("link set eth0 address 02:00:00:00:00:77")
        assert reaches(third, "10.0.0.1")
        assert reaches(third, "10.0.0.4")
        assert reaches(right, "10.0.0.3", 3, "-I", "10.0.0.4")
    as_fast_when_frozen(lab, one, "10.0.0.2")
    as_fast_when_frozen(lab, one, "10.0.0.2", "-R")
    assert counters(right, "vx")["events"]["move"]
    assert not any(counters(left, "vx")["exceptions"].values())


def test_how_soon_a_plug_is_ready(lab: Lab) -> None:
    host = lab.host("host")
    lab.underlay(host, lab.host("other"))
    for number in range(8):
        lab.guest(host, f"g{number}", number + 1)

    def first(*wrapper: str) -> list[float]:
        """Seconds until ready when the daemon has to be started, in up to five tries."""
        took: list[float] = []
        while not took or (min(took) > READY_COLD and len(took) < 5):
            before = time.monotonic()
            process = host.spawn(*wrapper, *VDEXDP, "vde_plug", "--accel", "require", "netdev://g0", NETWORK)
            process.wait_output("in the kernel", 20)
            took.append(time.monotonic() - before)
            process.stop()
            wait_until(lambda: not ours(lab), 5, "the daemon to leave")
        return took

    cold = first()
    cache = bytecode.cache_dir()
    empty = first("sh", "-c", f'mkdir -p {cache} && mount -t tmpfs none {cache} && exec "$@"', "sh")
    plug(host, "netdev://g0", NETWORK)
    warm: list[float] = []
    for number in range(1, 8):
        before = time.monotonic()
        plug(host, f"netdev://g{number}", NETWORK)
        warm.append(time.monotonic() - before)
    print(f"no bytecode {statistics.median(empty):.3f} s")
    print(f"cold {statistics.median(cold):.3f} s, warm {statistics.median(warm):.3f} s")
    assert min(cold) < READY_COLD, cold
    assert min(empty) < READY_COLD, empty
    assert min(warm) < READY, warm


def test_twelve_plugs_weigh_little(lab: Lab) -> None:
    host = lab.host("host")
    lab.underlay(host, lab.host("other"))
    plugs = []
    for number in range(PLUGS):
        if number % 2:
            plugs.append(start(host, f"tap://t{number}", f"{NETWORK}/vni={1 + number % 3}"))
        else:
            lab.guest(host, f"g{number}", number + 1)
            plugs.append(start(host, f"netdev://g{number}", NETWORK))
    for process in plugs:
        process.wait_output("in the kernel", 20)
    pids = ours(lab)
    assert len(pids) == PLUGS + 2, "plugs, daemon and worker"
    weights = {pid: pss_bytes(pid) for pid in pids}
    average = sum(weights.values()) / PLUGS
    print(f"{average / (1 << 20):.1f} MB for each plug")
    assert average < PLUG_BYTES, {command_line(pid): weight >> 10 for pid, weight in weights.items()}


def test_a_daemon_that_was_started_for_nothing_leaves(lab: Lab) -> None:
    host = lab.host("host")
    lab.guest(host, "g1", 1)
    refused = host.run(*VDEXDP, "vde_plug", "--accel", "require", "netdev://g1", NETWORK, check=False)
    assert refused.returncode
    assert "no route" in refused.stderr
    wait_until(lambda: not ours(lab), 4, "the daemon to leave")
    assert [line.split(":")[1].split("@")[0].strip() for line in host.ip("-o link").splitlines()] == ["lo", "g1"]
