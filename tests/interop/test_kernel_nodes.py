# SPDX-License-Identifier: GPL-2.0-or-later
"""``switch://`` and its like with interfaces in them: those switch in the kernel, together with the clients.

Shows: interfaces of one node, a network behind it, and stock clients reach each other, the interfaces also with every
process stopped; where an address is, both halves know, however it moves and whoever leaves; a hub repeats everything;
multi gives the host's frames to all, bonding to each in turn; a switch that is not ours is used in userspace; what ends
takes its members along; a daemon that is killed changes nothing; a tap that moves away goes on in userspace.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.frameshapes import BROADCAST, LOCAL, filler, mac_of
from tests.interop.test_kernel_frozen import frozen
from tests.kernelkit import NETWORK, End, PacketEnd, daemon, listening, plug, reaches, show, transfer, until, veth
from tests.labkit import VDEXDP, require_tool
from vdexdp.lab import Lab, Namespace, Process
from vdexdp.lab.measure import iperf_server
from vdexdp.plugins.base import Batch, OpenContext
from vdexdp.plugins.vde import VdeSpec, VdeStream

SERVED = "bridged into the kernel"
PATIENCE, QUIET = 3.0, 0.05
"""Seconds that a frame may take, and after which none comes any more."""


class ClientEnd(End):
    """A legacy client of a node, in this process."""

    def __init__(self, number: int, path: str) -> None:
        super().__init__(number, f"vde://{path}")
        self.stream = VdeStream(VdeSpec(path), OpenContext())
        self._batch = Batch()

    def fileno(self) -> int:
        return self.stream.readers()[0]

    def send(self, data: bytes) -> None:
        self._batch.clear()
        self._batch.append(data)
        self.stream.send(self._batch)

    def receive(self) -> list[bytes]:
        self._batch.clear()
        self.stream.recv(self._batch)
        return [bytes(data) for data in self._batch]

    def close(self) -> None:
        self.stream.close()


def serve(host: Namespace, node: str, other: str) -> Process:
    daemon(host)
    process = host.spawn(*VDEXDP, "vde_plug", node, other)
    process.wait_output(SERVED, 20)
    return process


def says(source: End, station: int, to: int, ends: list[End]) -> set[int]:
    """Have an end send a frame from one station to another; at which ends it comes out."""
    frame = (mac_of(to) if to else BROADCAST) + mac_of(station) + LOCAL.to_bytes(2, "big") + filler(50)
    source.send(frame)
    came: set[int] = set()
    deadline = time.monotonic() + PATIENCE
    while not came and time.monotonic() < deadline:
        time.sleep(QUIET)
        for end in ends:
            end.collect(0, 0.0)
            came |= {end.number for data in end.seen if data == frame}
            assert len(end.seen) <= 1, "twice"
            end.seen.clear()
    return came


@contextmanager
def node_with_ends(lab: Lab, node: str, path: str) -> Iterator[tuple[End, ...]]:
    """A node that a host serves with one interface; two guests of it, and two clients."""
    host = lab.host("host")
    with ExitStack() as undo:
        ends: list[End] = [veth(lab, host, number) for number in (1, 2, 3)]
        serve(host, f"{node}{path}", ends[0].vnl)
        for end in ends[1:]:
            plug(host, end.vnl, f"vde://{path}")
        ends += [ClientEnd(number, path) for number in (4, 5)]
        for end in ends:
            undo.callback(end.close)
        yield tuple(ends)


def test_interfaces_clients_and_a_network(lab: Lab, tmp_path: Path) -> None:
    left, right, far = lab.host("left"), lab.host("right"), lab.host("far")
    lab.underlay(left, right, mtu=1700)
    path = f"{tmp_path}/sw"
    one, two, remote = lab.guest(left, "g1", 1), lab.guest(left, "g2", 2), lab.guest(right, "g3", 3)
    plug(right, "netdev://g3", NETWORK)
    serve(left, f"switch://{path}", NETWORK)
    for number in (1, 2):
        plug(left, f"netdev://g{number}", f"vde://{path}")
    far.spawn(require_tool("vde_plug"), "tap://t4", f"vde://{path}")
    until(lambda: far.exists("t4"), "the stock client's tap")
    lab.address(far, "t4", 4)
    for guest in (one, remote, far):
        for number in (1, 2, 3, 4):
            until(lambda g=guest, n=number: reaches(g, f"10.0.0.{n}"), f"{guest} to reach {number}")  # type: ignore[misc]
    iperf_server(two)
    with frozen(lab):
        for guest in (one, two, remote):
            guest.ip("neigh flush all")
        for number in (2, 3):
            assert reaches(one, f"10.0.0.{number}")
        assert transfer(one, "10.0.0.2", 100)[0] > 1
    assert transfer(far, "10.0.0.2", 5)[0] > 0.01


def test_both_halves_know_where_an_address_is(lab: Lab, tmp_path: Path) -> None:
    with node_with_ends(lab, "switch://", f"{tmp_path}/sw") as ends:
        first, second, third, client, other = ends
        for end in ends:
            assert says(end, end.number, 0, list(ends)) == {one.number for one in ends} - {end.number}
        for source in ends:
            for target in ends:
                if target is not source:
                    assert says(source, source.number, target.number, list(ends)) == {target.number}
        # Station 9 is behind a client, and speaks to the other client alone.
        says(client, 9, 5, list(ends))
        assert says(client, 9, 5, list(ends)) == {5}
        assert says(first, 1, 9, list(ends)) == {4}
        # It goes to an interface, and speaks to an interface alone: the clients know.
        says(second, 9, 1, list(ends))
        assert says(second, 9, 1, list(ends)) == {1}
        assert says(other, 5, 9, list(ends)) == {2}
        # From one interface to another.
        says(third, 9, 1, list(ends))
        assert says(other, 5, 9, list(ends)) == {3}
        # And back, speaking to a client: the kernel knows.
        says(client, 9, 5, list(ends))
        assert says(first, 1, 9, list(ends)) == {4}
        # The client leaves: what was behind it may be anywhere.
        client.close()
        until(lambda: says(first, 1, 9, [second, third, other]) == {2, 3, 5}, "the kernel to forget")
        assert says(other, 5, 2, [first, second, third]) == {2}


def test_a_hub(lab: Lab, tmp_path: Path) -> None:
    with node_with_ends(lab, "hub://", f"{tmp_path}/hub") as ends:
        for source in ends:
            for _ in range(2):
                others = {end.number for end in ends} - {source.number}
                assert says(source, source.number, ends[0].number, list(ends)) == others
        host = lab.namespaces["host"]
        with frozen(lab):
            assert says(ends[1], 2, 1, list(ends[:3])) == {1, 3}
        assert [switch["mode"] for switch in show(host)["switches"]] == ["hub"]


def test_multi_and_bonding(lab: Lab, tmp_path: Path) -> None:
    with node_with_ends(lab, "multi://", f"{tmp_path}/multi") as ends:
        for source in ends:
            assert says(source, source.number, 0, list(ends)) == ({2, 3, 4, 5} if source.number == 1 else {1})
    server = next(process for process in lab.namespaces["host"].processes if "multi" in str(process.argv))
    server.stop()
    until(lambda: not show(lab.namespaces["host"])["ports"], "the ports to go")
    host = lab.namespaces["host"]
    with ExitStack() as undo:
        near = [PacketEnd(n, "", lab.namespaces[f"guest{n}"], "eth0") for n in (1, 2, 3)]
        path = f"{tmp_path}/bond"
        serve(host, f"bonding://{path}", "netdev://v1")
        for number in (2, 3):
            plug(host, f"netdev://v{number}", f"vde://{path}")
        clients = [ClientEnd(number, path) for number in (4, 5)]
        everybody: list[End] = [*near, *clients]
        for end in everybody:
            undo.callback(end.close)
        for source in everybody[1:]:
            assert says(source, source.number, 0, everybody) == {1}
        until(lambda: _turns(everybody, 8) == {2: 2, 3: 2, 4: 2, 5: 2}, "all to have their turns")
        clients[1].close()
        until(lambda: _turns(everybody[:4], 6) == {2: 2, 3: 2, 4: 2}, "those that are left to have them")


def _turns(ends: list[End], frames: int) -> Counter[int]:
    return Counter(number for _ in range(frames) for number in says(ends[0], 1, 0, ends))


def test_what_is_not_ours_and_what_ends(lab: Lab, tmp_path: Path) -> None:
    host = lab.host("host")
    guests = [lab.guest(host, f"g{number}", number) for number in (1, 2, 3)]
    path = f"{tmp_path}/sw"
    # Without a daemon none is started for a guest, and a node without a kernel switch is a switch like any other.
    host.spawn(*VDEXDP, "vde_plug", "--accel", "off", f"switch://{path}", "netdev://g1").wait_output("in userspace")
    alone = host.spawn(*VDEXDP, "vde_plug", "netdev://g2", f"vde://{path}")
    assert "none runs in this network namespace" in alone.wait_output("in userspace")
    assert reaches(guests[0], "10.0.0.2")
    alone.stop()
    daemon(host)
    other = host.spawn(*VDEXDP, "vde_plug", "netdev://g2", f"vde://{path}")
    assert "nobody here serves it" in other.wait_output("in userspace")
    refused = host.run(*VDEXDP, "vde_plug", "--accel", "require", "netdev://g3", f"vde://{path}", check=False)
    assert refused.returncode == 1
    for process in (other, host.processes[0]):
        process.stop()
    assert not show(host)["ports"]

    # What was plugged outlives a daemon; a new one knows the node and its guest.
    server = serve(host, f"switch://{path}", "netdev://g1")
    guest = plug(host, f"vde://{path}", "netdev://g2")
    first = next(process for process in host.processes if process.argv[-1] == "daemon")
    first.kill()
    assert reaches(guests[0], "10.0.0.2")
    second = host.spawn(*VDEXDP, "daemon")
    until(lambda: listening(host), "another daemon")
    until(lambda: len(show(host)["plugs"]) == 2, "the plugs to come back")
    third = plug(host, f"vde://{path}", "netdev://g3")
    assert reaches(guests[2], "10.0.0.2")
    inside = "ip address add 10.0.0.8/24 dev vde0; ip link set vde0 up; ping -qc1 10.0.0.2"
    within = host.run(*VDEXDP, "vdens", "-v", f"vde://{path}", "sh", "-c", inside)
    assert "in the kernel" in within.stderr
    explained = host.run(*VDEXDP, "explain", "netdev://lo", f"vde://{path}", check=False).stdout
    assert "the node there switches in the kernel" in explained
    os.kill(server.pid, signal.SIGKILL)
    for process in (guest, third):
        assert process.wait() == 0
        assert "has closed the port" in process.output()
    until(lambda: not show(host)["switches"], "the switch to go")
    assert second.poll() is None


def test_a_tap_that_moves_goes_on_in_userspace(lab: Lab, tmp_path: Path) -> None:
    host, inside = lab.host("host"), lab.namespace("inside")
    path = f"{tmp_path}/sw"
    server = serve(host, f"switch://{path}", "tap://t1")
    host.ip(f"link set t1 netns {inside.full_name}")
    server.wait_output("moved to another network namespace", 10)
    lab.address(inside, "t1", 1)
    outside = lab.namespace("outside")
    outside.spawn(*VDEXDP, "vde_plug", "--accel", "off", "tap://t2", f"vde://{path}").wait_output("in userspace")
    lab.address(outside, "t2", 2)
    until(lambda: reaches(outside, "10.0.0.1"), "a ping")
