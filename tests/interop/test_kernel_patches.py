# SPDX-License-Identifier: GPL-2.0-or-later
"""Networks in a node: what joins a ``switch://`` and its like, or is the other end of one that does not switch, is
patched to it in the kernel.

Shows: interfaces of a node, stock clients of it, guests of the network on this and other hosts, and a stock node of it
reach each other, the kernel's ends at full speed and with every process stopped, over either kind of network; hub,
multi and bonding do with a network as with an interface; two networks in one node learn, flood and part; nothing is
joined twice; vlan:// is kept; what dies takes its half along, and a daemon that dies, nothing; plugs of a file, and
those that come too early, find their node.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.control.rig import looks, same, tunnel
from tests.frameshapes import BROADCAST, JUMBO, shapes
from tests.interop.test_kernel_frames import everybody_to_everybody, exchange
from tests.interop.test_kernel_frozen import as_fast_when_frozen, frozen
from tests.interop.test_kernel_nodes import ClientEnd, says, serve
from tests.interop.test_kernel_stock import both_ways, stock_guest
from tests.kernelkit import (
    NETWORK,
    End,
    HeldEnd,
    bad_checksums,
    counters,
    daemon,
    listening,
    plug,
    plug_ends,
    reaches,
    show,
    streams,
    tap,
    until,
    veth,
)
from tests.labkit import VDEXDP, require_tool
from vdexdp.control import client
from vdexdp.control.features import Features
from vdexdp.control.protocol import PlugRequest, Visit
from vdexdp.lab import Lab, Namespace, wait_until
from vdexdp.lab.measure import iperf_server
from vdexdp.plugins.vde import visit

VXLAN = "vxlan://239.0.0.1"
OTHER = f"{NETWORK}/vni=2"


def taps(host: Namespace) -> list[str]:
    """The interfaces of ours."""
    names = [line.split(":")[1].split("@")[0].strip() for line in host.ip("-o link").splitlines()]
    return [name for name in names if name.startswith("vdx")]


def stock_client(lab: Lab, number: int, path: str) -> Namespace:
    """A stock client of a node, in a namespace of its own."""
    client = lab.namespace(f"client{number}")
    client.spawn(require_tool("vde_plug"), f"tap://t{number}", f"vde://{path}")
    until(lambda: client.exists(f"t{number}"), "the stock client's tap")
    lab.address(client, f"t{number}", number)
    return client


@pytest.mark.parametrize("network", [NETWORK, VXLAN])
@pytest.mark.parametrize("node", ["switch", "hub"])
@pytest.mark.parametrize("how", ["joins", "served"])
def test_everybody_reaches_everybody(lab: Lab, tmp_path: Path, network: str, node: str, how: str) -> None:
    left, right = lab.host("left"), lab.host("right")
    lab.underlay(left, right, mtu=1700)
    path = f"{tmp_path}/node"
    members = {number: lab.guest(left, f"g{number}", number) for number in (1, 2, 3)}
    members[4] = lab.guest(right, "g4", 4)
    if how == "served":
        serve(left, f"{node}://{path}", network)
        plug(left, "netdev://g1", f"vde://{path}")
    else:
        serve(left, f"{node}://{path}", "netdev://g1")
        plug(left, f"vde://{path}", network)
    plug(left, "netdev://g2", f"vde://{path}")
    plug(left, "netdev://g3", network)
    plug(right, "netdev://g4", network)
    members[5] = stock_client(lab, 5, path)
    for guest in members.values():
        for number in members:
            assert reaches(guest, f"10.0.0.{number}"), f"{guest} to {number}"
    iperf_server(members[4])
    iperf_server(members[3])
    with frozen(lab):
        for number in (1, 2, 3, 4):
            members[number].ip("neigh flush all")
        for number in (2, 3, 4):
            assert reaches(members[1], f"10.0.0.{number}")
            assert reaches(members[1], f"fd00::{number}")
        least = 1.0 if node == "switch" else 0.2  # a hub segments all of it for the tap of its clients, too
        streams(members[1], "10.0.0.4", least, 100)
        streams(members[2], "fd00::4", least, 100)
        streams(members[1], "10.0.0.3", least, 100)
    streams(members[5], "10.0.0.4", 0.01, 5)
    as_fast_when_frozen(lab, members[1], "10.0.0.4")
    as_fast_when_frozen(lab, members[1], "10.0.0.4", "-R")
    assert not [number for number, member in members.items() if bad_checksums(member)]


@pytest.mark.parametrize("node", ["switch", "hub"])
def test_frames_of_every_shape(lab: Lab, tmp_path: Path, node: str) -> None:
    left, right = lab.host("left"), lab.host("right")
    lab.underlay(left, right, mtu=JUMBO + 100)
    path = f"{tmp_path}/node"
    with ExitStack() as undo:
        ends: list[End] = [veth(lab, left, 1), HeldEnd(2, left, "q2"), veth(lab, left, 3), tap(right, 4)]
        ends += [veth(lab, right, 5)]
        for end in ends:
            undo.callback(end.close)
        serve(left, f"{node}://{path}", ends[0].vnl)
        plug(left, f"vde://{path}", NETWORK)
        plug(left, ends[1].vnl, f"vde://{path}")
        plug(left, ends[2].vnl, NETWORK)
        plug_ends(right, NETWORK, ends[3:])
        if node == "hub":
            for end in ends:
                others = [one for one in ends if one is not end]
                assert not exchange(end, others, [end], shapes(end.mac, BROADCAST, JUMBO))
        else:
            everybody_to_everybody(ends, JUMBO)
        assert not any(counters(left, "vxvde")["exceptions"].values())


def test_multi_and_bonding_with_a_network(lab: Lab, tmp_path: Path) -> None:
    left, right = lab.host("left"), lab.host("right")
    lab.underlay(left, right, mtu=1700)
    with ExitStack() as undo:
        ends: list[End] = [veth(lab, host, n, mtu=1500) for n, host in ((1, right), (2, left), (3, left))]
        plug(right, ends[0].vnl, NETWORK)
        for end in ends:
            undo.callback(end.close)
        for mode in ("multi", "bonding"):
            path = f"{tmp_path}/{mode}"
            server = serve(left, f"{mode}://{path}", NETWORK)
            for end in ends[1:]:
                plug(left, end.vnl, f"vde://{path}")
            clients = [ClientEnd(number, path) for number in (4, 5)]
            everybody = [*ends, *clients]
            for source in everybody[1:]:
                assert says(source, source.number, 0, everybody) == {1}
            if mode == "multi":
                assert says(ends[0], 1, 0, everybody) == {2, 3, 4, 5}
            else:
                until(lambda: turns(everybody, 8) == {2: 2, 3: 2, 4: 2, 5: 2}, "all to have their turns")  # noqa: B023
                clients[1].close()
                until(lambda: turns(everybody[:4], 6) == {2: 2, 3: 2, 4: 2}, "those that are left")  # noqa: B023
            with frozen(lab):
                for end in ends[1:]:
                    assert says(end, end.number, 0, ends) == {1}
            clients[0].close()
            server.stop()
            until(lambda: not taps(left), "the ports to go")


def turns(ends: list[End], frames: int) -> Counter[int]:
    return Counter(number for _ in range(frames) for number in says(ends[0], 1, 0, ends))


def test_two_networks_in_one_node(lab: Lab, tmp_path: Path) -> None:
    left, right = lab.host("left"), lab.host("right")
    lab.underlay(left, right, mtu=1700)
    path = f"{tmp_path}/node"
    with ExitStack() as undo:
        ends: list[End] = [veth(lab, host, n, mtu=1500) for n, host in ((1, left), (2, right), (3, right), (4, left))]
        serve(left, f"switch://{path}", ends[0].vnl)
        first = plug(left, f"vde://{path}", NETWORK)
        second = plug(left, OTHER, f"vde://{path}")
        plug(right, ends[1].vnl, NETWORK)
        plug(right, ends[2].vnl, OTHER)
        plug(left, ends[3].vnl, OTHER)
        ends.append(ClientEnd(5, path))
        for end in ends:
            undo.callback(end.close)
        for source in ends:
            assert says(source, source.number, 0, ends) == {1, 2, 3, 4, 5} - {source.number}
        for source in ends:
            for target in ends:
                if target is not source:
                    assert says(source, source.number, target.number, ends) == {target.number}
        # Station 9 moves from one network to the other, to the node, and back.
        for place in (1, 2, 0, 4, 3):
            assert says(ends[place], 9, 0, ends) == {1, 2, 3, 4, 5} - {place + 1}
            for source in ends:
                if source is not ends[place]:
                    assert says(source, source.number, 9, ends) == {place + 1}
        # Neither network joins twice, be it by another node that is joined to the other one.
        for refused in (("vde_plug", f"vde://{path}", NETWORK), ("vde_plug", OTHER, f"vde://{path}")):
            said = left.run(*VDEXDP, *refused, check=False)
            assert said.returncode == 2
            assert "go round for ever" in said.stderr
        hub = serve(left, f"hub://{tmp_path}/hub", NETWORK)
        said = left.run(*VDEXDP, "vde_plug", f"vde://{tmp_path}/hub", OTHER, check=False)
        assert "go round for ever" in said.stderr
        hub.stop()
        # The first network leaves; the rest stays joined, and a station that was there may come by another way.
        first.stop()
        until(lambda: len([one for one in taps(left) if one.startswith("vdxj")]) == 2, "the patch to go")
        assert says(ends[0], 1, 3, ends) == {3}
        assert not says(ends[0], 1, 2, ends)
        assert says(ends[3], 2, 0, ends) == {1, 3, 5}
        assert says(ends[0], 1, 2, ends) == {4}
        second.stop()
        until(lambda: [one["name"][:6] for one in show(left)["switches"]] == ["switch", "vxvde "], "the patches to go")


def test_tcp_from_network_to_network(lab: Lab, tmp_path: Path) -> None:
    left, right = lab.host("left"), lab.host("right")
    lab.underlay(left, right, mtu=1700)
    serve(left, f"hub://{tmp_path}/hub", NETWORK)
    plug(left, f"vde://{tmp_path}/hub", VXLAN)
    guests = [lab.guest(right, f"g{number}", number) for number in (1, 2)]
    plug(right, "netdev://g1", NETWORK)
    plug(right, "netdev://g2", VXLAN)
    iperf_server(guests[1])
    streams(guests[0], "10.0.0.2", 0.01, 5)
    assert not any(bad_checksums(guest) for guest in guests)


def test_stock_nodes(lab: Lab, tmp_path: Path) -> None:
    ours, theirs = lab.host("ours"), lab.host("theirs")
    lab.underlay(ours, theirs, like_a_wire=True)
    path = f"{tmp_path}/node"
    members = {1: lab.guest(ours, "g1", 1), 2: lab.guest(ours, "g2", 2), 3: stock_guest(lab, theirs, 3, NETWORK)}
    members[4] = stock_guest(lab, ours, 4, NETWORK)
    serve(ours, f"switch://{path}", "netdev://g1")
    assert "leaves no room on lan0" in plug(ours, f"vde://{path}", NETWORK).output()
    assert "leaves no room on lan0" in plug(ours, "netdev://g2", f"vde://{path}").output()
    members[5] = stock_client(lab, 5, path)
    until(lambda: any(one.get("local_peers") for one in show(ours)["switches"]), "the stock node seen")
    for guest in members.values():
        for number in members:
            assert reaches(guest, f"10.0.0.{number}", 2), f"{guest} to {number}"
            assert reaches(guest, f"10.0.0.{number}", 2, "-s", "1472", "-M", "do"), f"{guest} to {number}, 1500 bytes"
    for number in (3, 4):
        iperf_server(members[number])
        for source in (1, 5):
            both_ways(members[source], number)
    assert not [number for number, member in members.items() if bad_checksums(member)]


def test_vlans_of_a_network(lab: Lab, tmp_path: Path) -> None:
    left, right = lab.host("left"), lab.host("right")
    lab.underlay(left, right, mtu=1700)
    guests = {number: lab.guest(host, f"g{number}", number) for number, host in enumerate((left, left, left, right), 1)}
    other = lab.guest(right, "g5", 5)
    third = f"vlan://3{{{NETWORK}}}"
    serve(left, f"switch://{tmp_path}/sw", third)
    plug(left, "netdev://g1", f"vde://{tmp_path}/sw")
    serve(left, f"hub://{tmp_path}/hub", "netdev://g2")
    plug(left, f"vde://{tmp_path}/hub", third)
    plug(left, "netdev://g3", third)
    plug(right, "netdev://g4", third)
    plug(right, "netdev://g5", NETWORK)
    iperf_server(guests[4])
    with frozen(lab):
        for number in guests:
            assert reaches(guests[1], f"10.0.0.{number}")
            assert reaches(guests[2], f"10.0.0.{number}")
            assert not reaches(other, f"10.0.0.{number}", 1, "-W1", "-w1")
        streams(guests[1], "10.0.0.4", 1.0, 100)
        streams(guests[2], "10.0.0.4", 1.0, 100)


def test_deaths(lab: Lab, tmp_path: Path) -> None:
    left, right = lab.host("left"), lab.host("right")
    lab.underlay(left, right, mtu=1700)
    guests = {
        number: lab.guest(host, f"g{number}", number) for number, host in enumerate((left, left, right, right), 1)
    }
    path, hub = f"{tmp_path}/sw", f"{tmp_path}/hub"
    plug(right, "netdev://g3", NETWORK)
    plug(right, "netdev://g4", OTHER)
    before = looks(left)
    server = serve(left, f"switch://{path}", "netdev://g1")
    joined = plug(left, f"vde://{path}", NETWORK)
    second = serve(left, f"hub://{hub}", OTHER)
    member = plug(left, "netdev://g2", f"vde://{hub}")

    def all_is_well() -> None:
        assert reaches(guests[1], "10.0.0.3")
        assert reaches(guests[2], "10.0.0.4")

    all_is_well()
    # The daemon dies, and another takes over.
    pings = [guests[one].spawn("ping", "-n", "-q", "-c", "300", "-i", "0.01", f"10.0.0.{one + 2}") for one in (1, 2)]
    next(process for process in left.processes if process.argv[-1] == "daemon").kill()
    all_is_well()
    new = left.spawn(*VDEXDP, "daemon")
    until(lambda: listening(left), "another daemon")
    until(lambda: len(show(left)["plugs"]) == 4, "the plugs to come back")
    for one in pings:
        assert "300 received" in one.wait_output("received", 20)
    shown = show(left)
    assert sorted(one["mode"] for one in shown["switches"]) == ["hub", "switch", "switch", "switch"]
    assert sorted(one["name"] for one in shown["ports"] if one["kind"] == "patch") == [f"vdxj{n}" for n in range(4)]
    refused = left.run(*VDEXDP, "vde_plug", f"vde://{path}", NETWORK, check=False)
    assert "go round for ever" in refused.stderr
    third = plug(left, f"vde://{path}", OTHER)
    assert reaches(guests[1], "10.0.0.2")
    # Half a patch goes; the rest of it follows, and its plug ends.
    left.ip(f"link delete {next(one['name'] for one in show(left)['ports'] if one['plug'] == 5)}")
    assert third.wait() == 0
    assert "the interface is gone" in third.output()
    # Plugs die; what needs them ends.
    joined.kill()
    until(lambda: len(taps(left)) == 5, "the patch to go")
    second.kill()
    assert member.wait() == 0
    assert "has closed the port" in member.output()
    until(lambda: taps(left) == ["vdxb0"], "the hub's to go")
    # All of them at once.
    joined = plug(left, f"vde://{path}", NETWORK)
    assert reaches(guests[1], "10.0.0.3")
    for process in (new, server, joined):
        os.kill(process.pid, signal.SIGKILL)
    if Features().tcx:
        same(left, before)
    until(lambda: not taps(left), "the interfaces to go")
    left.spawn(*VDEXDP, "daemon")
    same(left, before)  # without links for tc, it is the next daemon that removes filters


def test_who_comes_early_waits(lab: Lab, tmp_path: Path) -> None:
    """A node can be found before the daemon knows it."""
    host = lab.host("host")
    lab.underlay(host, lab.host("other"))
    lab.guest(host, "g1", 1)
    daemon(host)
    for number in range(5):
        path = tmp_path / str(number)
        server = host.spawn(*VDEXDP, "vde_plug", f"switch://{path}", "netdev://g1")
        control = path / "ctl"
        wait_until(control.exists, 10, "the node's socket", 0.0005)
        with host.entered(), visit(str(path)) as connection:
            asked = PlugRequest((Visit("vde://"), tunnel()), ("vde://", NETWORK), fd_index=(0, None))
            made = client.plug(asked, [connection.fileno()])
        made.close()
        server.stop()


def test_declared_networks_and_nodes(lab: Lab, tmp_path: Path) -> None:
    left, right = lab.host("left"), lab.host("right")
    lab.underlay(left, right, mtu=1700)
    guests = {number: lab.guest(host, f"g{number}", number) for number, host in enumerate((left, left, right), 1)}
    plug(right, "netdev://g3", NETWORK)
    before = looks(left)
    wanted = {
        "a": ("netdev://g2", f"vde://{tmp_path}/sw"),
        "b": (f"vde://{tmp_path}/sw", NETWORK),
        "c": (f"switch://{tmp_path}/sw", "netdev://g1"),
    }
    file = tmp_path / "networks.toml"
    file.write_text("".join(f'[plug.{name}]\nends = ["{ends[0]}", "{ends[1]}"]\n' for name, ends in wanted.items()))
    daemon(left)
    left.run(*VDEXDP, "up", "--file", str(file))
    with frozen(lab):
        assert reaches(guests[1], "10.0.0.3")
        assert reaches(guests[2], "10.0.0.3")
    left.run(*VDEXDP, "down")
    left.processes[-1].stop()
    same(left, before)


def test_what_is_not_ours(lab: Lab, tmp_path: Path) -> None:
    """Somebody else's switch, and a node of ours without a kernel switch, are joined as by stock."""
    left, right = lab.host("left"), lab.host("right")
    lab.underlay(left, right, mtu=1700)
    lab.guest(right, "g2", 2)
    plug(right, "netdev://g2", NETWORK)
    daemon(left)
    for name, command in (
        ("stock", (require_tool("vde_switch"), "-s", f"{tmp_path}/stock")),
        ("off", (*VDEXDP, "vde_plug", "--accel", "off", f"switch://{tmp_path}/off", "null://")),
    ):
        theirs, ours = os.pipe()  # vde_switch ends with its input
        serving = left.spawn(*command, stdin=theirs)
        os.close(theirs)
        until((tmp_path / name / "ctl").exists, "the switch")
        joined = lab.namespace(f"client-{name}")
        joined.spawn(require_tool("vde_plug"), "tap://t1", f"vde://{tmp_path}/{name}")
        until(lambda: joined.exists("t1"), "the stock client's tap")  # noqa: B023
        lab.address(joined, "t1", 1)
        explained = left.run(*VDEXDP, "explain", f"vde://{tmp_path}/{name}", NETWORK).stdout
        assert "bridged into the kernel" in explained
        refused = left.run(*VDEXDP, "vde_plug", "--accel", "require", f"vde://{tmp_path}/{name}", NETWORK, check=False)
        assert refused.returncode == 1
        assert "nobody here serves it" in refused.stderr
        joining = left.spawn(*VDEXDP, "vde_plug", f"vde://{tmp_path}/{name}", NETWORK)
        assert "nobody here serves it" in joining.wait_output("bridged into the kernel")
        assert reaches(joined, "10.0.0.2")
        assert not [one for one in show(left)["ports"] if one["kind"] == "patch"]
        for process in (joining, serving):
            process.stop()
        os.close(ours)
    # A node of ours, joined by a plug that was told not to.
    serve(left, f"switch://{tmp_path}/sw", "tap://t9")
    lab.address(left, "t9", 9)
    apart = left.spawn(*VDEXDP, "vde_plug", "--accel", "off", f"vde://{tmp_path}/sw", NETWORK)
    apart.wait_output("in userspace")
    assert reaches(left, "10.0.0.2")
