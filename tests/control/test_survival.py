# SPDX-License-Identifier: GPL-2.0-or-later
"""Deaths: of a plug, of the daemon, of the exception worker, of everything.

What lives goes on; what is dead leaves nothing.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.control import rig
from tests.control.rig import (
    START,
    call,
    daemon,
    kill,
    listening,
    looks,
    ping,
    plug,
    port,
    same,
    tunnel,
    until,
    version,
    wire,
)
from tests.labkit import VDEXDP, TwoHosts
from vdexdp.control import client, rundir, scrape
from vdexdp.control.features import Features
from vdexdp.control.protocol import RUN_DIR, Bridge
from vdexdp.errors import HangUp, HostError
from vdexdp.lab import Lab, Namespace
from vdexdp.lab.namespace import Process
from vdexdp.plugins.base import Netdev
from vdexdp.plugins.tap import open_tap


def vde_plug(host: Namespace, *vnls: str) -> Process:
    """A plug that is a process of its own, in the kernel path or not at all."""
    process = host.spawn(*VDEXDP, "vde_plug", "--accel", "require", *vnls)
    process.wait_output("tc", 20)
    return process


def tick(held: client.Plug, host: Namespace) -> None:
    """Let a plug of this process notice a dead daemon and find the new one."""
    with host.entered():
        held.serve()

        def back() -> bool:
            held.tick()
            if held.channel is not None and held.channel.wait(0):
                held.serve()
            return held.state == "plugged"

        until(back, "the plug to resume")


def flowing(left: Namespace, address: str = "10.0.0.2") -> None:
    """Each of twenty pings is answered."""
    said = left.run("ping", "-c", "20", "-i", "0.02", "-W", "1", address).stdout
    assert "20 received" in said, said


def test_a_killed_plug_unwinds_and_starts_again_at_once(lab: Lab) -> None:
    host = lab.host("host")
    lab.underlay(host, lab.host("other"))
    lab.guest(host, "g1", 1)
    daemon(host)
    before = looks(host)
    for _ in range(3):
        process = vde_plug(host, "netdev://g1", "vxvde://234.0.0.1")
        process.signal(signal.SIGKILL)
    kill(process)
    same(host, before)


def test_frames_flow_without_the_daemon_and_the_next_one_takes_over(two_hosts: TwoHosts) -> None:
    left, right, guest = two_hosts.left, two_hosts.right, two_hosts.left_guest
    master = daemon(left)
    daemon(right)
    before = looks(left)
    near, far = plug(left, wire("g1"), tunnel()), plug(right, wire("g2"), tunnel())
    assert ping(guest, "10.0.0.2")
    learnt = call(left, "fdb", action="list")["entries"]

    kill(master)
    flowing(guest)
    assert ping(guest, "10.0.0.2", size=20000), "the exception worker outlives the daemon"

    daemon(left)
    tick(near, left)
    shown = call(left, "show")
    assert [one["id"] for one in shown["plugs"]] == [near.reply.plug]
    assert {one["mac"] for one in call(left, "fdb", action="list")["entries"]} == {one["mac"] for one in learnt}
    assert port(shown, "g1")["counters"]["rx_frames"]["tc"] > 20, "counters go on"
    assert shown["worker"]["running"]
    flowing(guest)
    assert ping(guest, "10.0.0.2", size=20000)

    near.close()
    same(left, before)
    far.close()


def test_not_one_frame_is_lost_over_crash_and_restart(two_hosts: TwoHosts) -> None:
    left, right, guest = two_hosts.left, two_hosts.right, two_hosts.left_guest
    master = daemon(left)
    daemon(right)
    near, far = plug(left, wire("g1"), tunnel()), plug(right, wire("g2"), tunnel())
    assert ping(guest, "10.0.0.2")
    result: list[str] = []
    pings = threading.Thread(
        target=lambda: result.append(
            guest.run("ping", "-c", "400", "-i", "0.01", "-W", "2", "10.0.0.2", check=False).stdout
        )
    )
    pings.start()
    for number in (signal.SIGKILL, signal.SIGTERM):
        master.signal(number)
        master.wait()
        master = daemon(left)
        tick(near, left)
    pings.join()
    assert "400 received" in result[0], result[0]
    near.close()
    far.close()


def test_every_kind_of_plug_comes_back(lab: Lab) -> None:
    host = lab.host("host")
    lab.underlay(host, lab.host("other"))
    guests = [lab.guest(host, f"g{n}", n, mtu=1400) for n in (1, 2, 3)]
    master = daemon(host)
    with host.entered():
        tap, _ = open_tap("tap0")
    lab.address(host, "tap0", 4)
    host.ip("link set tap0 mtu 1400")
    before = looks(host)
    plugs = [
        plug(host, wire("g1"), wire("g2")),
        plug(host, wire("g3"), tunnel()),
        plug(host, Netdev("tap0", "stack", "tap"), tunnel(), [tap]),
        plug(host, Bridge("null://"), tunnel()),
        plug(host, Bridge("null://"), tunnel(vni=9, kind="vxlan", port=4789, group="239.0.0.1")),
        plug(host, Bridge("null://"), tunnel(vni=9, group="ff05::77", family=6)),
    ]
    kill(master)
    daemon(host)
    for held in plugs:
        tick(held, host)
    shown = call(host, "show")
    assert [one["id"] for one in shown["plugs"]] == [held.reply.plug for held in plugs]
    assert len(shown["switches"]) == 4
    assert ping(guests[0], "10.0.0.2"), "the cable"
    assert ping(guests[2], "10.0.0.4"), "guest to host within the network"
    for held in plugs:
        held.close()
    same(host, before)
    os.close(tap)


def test_plugs_that_wait_for_a_busy_daemon_are_not_late(lab: Lab, tmp_path: Path) -> None:
    package = version(tmp_path, b"", patience=1.0)
    host = lab.host("host")
    for n in (1, 2, 3, 4):
        lab.guest(host, f"g{n}", n)
    master = daemon(host)
    before = looks(host)
    plugs = [plug(host, wire("g1"), wire("g2")), plug(host, wire("g3"), wire("g4"))]
    kill(master)
    master = host.spawn(sys.executable, "-P", "-m", "vdexdp", "daemon", env={"PYTHONPATH": str(package)})
    until(lambda: listening(host), "another daemon", START)
    master.signal(signal.SIGSTOP)
    with host.entered():
        for held in plugs:
            held.serve()
            held.tick()
            assert held.state == "resuming"
    time.sleep(1.5)
    master.signal(signal.SIGCONT)
    for held in plugs:
        tick(held, host)
    assert [one["id"] for one in call(host, "show")["plugs"]] == [held.reply.plug for held in plugs]
    for held in plugs:
        held.close()
    same(host, before)


def test_a_new_daemon_waits_for_the_old_plugs_before_it_serves_new_ones(two_hosts: TwoHosts) -> None:
    left = two_hosts.left
    master = daemon(left)
    near = plug(left, wire("g1"), tunnel())
    kill(master)
    daemon(left)
    process = left.spawn(*VDEXDP, "vde_plug", "--accel", "require", "tap://tap9", "vxvde://234.0.0.1")
    time.sleep(0.5)
    assert "tc" not in process.output(), "it waits"
    tick(near, left)
    process.wait_output("tc", 10)
    shown = call(left, "show")
    assert len(shown["switches"]) == 1, "both are in one network"
    assert len(shown["plugs"]) == 2
    near.close()
    process.stop()


def test_ports_whose_plugs_do_not_come_back_are_swept(lab: Lab) -> None:
    host = lab.host("host")
    lab.underlay(host, lab.host("other"))
    for n in (1, 2):
        lab.guest(host, f"g{n}", n, mtu=1400)
    master = daemon(host)
    before = looks(host)
    stays, goes = plug(host, wire("g1"), tunnel()), vde_plug(host, "netdev://g2", "vxvde://234.0.0.1/vni=2")
    kill(master)
    kill(goes)
    daemon(host)
    tick(stays, host)
    until(lambda: len(call(host, "show")["switches"]) == 1, "the swept network to go")
    again = plug(host, wire("g2"), tunnel(vni=2))
    assert len(call(host, "show")["switches"]) == 2
    again.close()
    stays.close()
    same(host, before)


def test_a_lease_of_another_data_plane_is_refused(lab: Lab) -> None:
    host = lab.host("host")
    lab.underlay(host, lab.host("other"))
    for n in (1, 2):
        lab.guest(host, f"g{n}", n, mtu=1400)
    master = daemon(host)
    old = plug(host, wire("g1"), tunnel())
    kill(master)
    (RUN_DIR / f"{host.inode}.lock").write_text("{}")  # nobody is known to be waited for
    daemon(host)
    new = plug(host, wire("g2"), tunnel())
    with pytest.raises(HostError, match="data plane of its own"):
        tick(old, host)
    old.close()
    new.close()


def test_killing_everything_leaves_nothing(two_hosts: TwoHosts) -> None:
    left, right = two_hosts.left, two_hosts.right
    before = looks(left)
    master = daemon(left)
    daemon(right)
    processes = [vde_plug(left, "netdev://g1", "vxvde://234.0.0.1"), vde_plug(left, "tap://tap0", "vxvde://234.0.0.1")]
    far = plug(right, wire("g2"), tunnel())
    assert ping(two_hosts.left_guest, "10.0.0.2")
    doomed = rig.workers(left)
    assert doomed, "there is an exception worker"
    for process in (master, *processes):
        process.signal(signal.SIGKILL)
    for process in (master, *processes):
        process.wait()
    until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in doomed), "the worker to end")
    if Features().tcx:
        same(left, before)
    daemon(left)
    same(left, before)  # without links for tc, it is the next daemon that removes filters
    again = plug(left, wire("g1"), tunnel())
    assert ping(two_hosts.left_guest, "10.0.0.2")
    again.close()
    far.close()


def test_the_files_of_killed_daemons(lab: Lab) -> None:
    """Other daemons of this machine may remove them at any time, as they are meant to."""
    host = lab.host("host")
    lab.guest(host, "g1", 1)
    lab.guest(host, "g2", 2)
    files = [RUN_DIR / f"{host.inode}.{suffix}" for suffix in ("sock", "lock")]
    master = daemon(host)
    assert not rundir.abandoned(host.inode, remove=True), "it is served"
    held = plug(host, wire("g1"), wire("g2"))
    kill(master)
    assert not rundir.abandoned(host.inode, remove=True), "a plug lives, and will be waited for"
    assert host.inode in scrape.daemons()
    held.close()
    # This process held the plug, and goes on: to the files it is one that may come back.
    files[1].write_bytes(b"{}")
    assert rundir.abandoned(host.inode)
    assert host.inode not in scrape.daemons(), "no daemon is missed here"
    files[0].touch()
    found = json.loads(host.run(*VDEXDP, "doctor", "--clean", "--json").stdout)
    assert not any(file.exists() for file in files), found["checks"]
    files[0].touch()
    process = vde_plug(host, "netdev://g1", "netdev://g2")
    assert process.stop() == 0
    until(lambda: not any(file.exists() for file in files), "a daemon that leaves to take its files along")
    with files[1].open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        threading.Timer(0.2, fcntl.flock, (lock, fcntl.LOCK_UN)).start()
        daemon(host)


def test_a_dead_worker_is_replaced_and_leases_are_renewed(two_hosts: TwoHosts) -> None:
    left, right, guest = two_hosts.left, two_hosts.right, two_hosts.left_guest
    daemon(left)
    daemon(right)
    before = looks(left)
    near, far = plug(left, wire("g1"), tunnel()), plug(right, wire("g2"), tunnel())
    assert ping(guest, "10.0.0.2", size=20000)
    old = os.fstat(near.reply.fds["exception:worker"]).st_ino
    (worker,) = rig.workers(left)
    os.kill(worker, signal.SIGKILL)
    until(lambda: [pid for pid in rig.workers(left) if pid != worker], "another worker")
    with left.entered():
        near.serve()
    assert os.fstat(near.reply.fds["exception:worker"]).st_ino != old
    assert ping(guest, "10.0.0.2", size=20000)
    near.close()
    same(left, before)
    far.close()


def test_an_interface_that_vanishes_ends_its_plug(lab: Lab) -> None:
    host, other = lab.host("host"), lab.host("other")
    lab.underlay(host, other)
    for n in (1, 2):
        lab.guest(host, f"g{n}", n, mtu=1400)
    daemon(host)
    first, second = plug(host, wire("g1"), tunnel()), plug(host, wire("g2"), tunnel())
    host.ip("link delete g1")
    until(lambda: len(call(host, "show")["plugs"]) == 1, "the plug to be taken out")
    with host.entered(), pytest.raises(HangUp, match="g1: the interface is gone"):
        first.serve()
    host.ip("link delete lan0")
    until(lambda: not call(host, "show")["plugs"], "the uplink's plug to be taken out")
    with host.entered(), pytest.raises(HangUp, match="lan0: the uplink is gone"):
        second.serve()
    first.close()
    second.close()
    assert not host.exists("vdxp0")


def test_plugs_bring_back_the_daemon_that_they_had_started(two_hosts: TwoHosts) -> None:
    left, guest = two_hosts.left, two_hosts.left_guest
    left.ip("link add lan1 type veth peer name lan2")
    before = looks(left)
    processes = [vde_plug(left, "netdev://g1", "vxvde://234.0.0.1"), vde_plug(left, "tap://tap0", "vxvde://234.0.0.1")]
    lab_address = "10.0.0.77"
    left.ip(f"address add {lab_address}/24 dev tap0")
    left.ip("link set tap0 up")
    assert ping(guest, lab_address)
    first = call(left, "hello")["pid"]
    os.kill(first, signal.SIGKILL)
    flowing(guest, lab_address)
    until(lambda: listening(left) and call(left, "hello")["pid"] != first, "another daemon", 20)
    until(lambda: len(call(left, "show")["plugs"]) == 2, "both plugs in it")
    flowing(guest, lab_address)
    second = call(left, "hello")["pid"]
    for process in processes:
        process.stop()
    until(lambda: not os.path.exists(f"/proc/{second}"), "it leaves after the last plug")
    same(left, before)
