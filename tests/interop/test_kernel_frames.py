# SPDX-License-Identifier: GPL-2.0-or-later
"""Frames intact, live: a frame that is put on one port of a network comes out of the others byte for byte.

Shows, for vxvde and vxlan over IPv4 and IPv6, with ports of every kind on both hosts (a veth whose far end is in
another namespace or in the same one; the host's own stack on a tap; a tap that another process
holds; a vdestream): every shape of frame from every port, as broadcast to all others and as known unicast to each one,
arrives once, there and nowhere else.  Once more with XDP on the ports and on the uplinks.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.frameshapes import BROADCAST, JUMBO, differences, shapes
from tests.kernelkit import End, HeldEnd, PacketEnd, StreamEnd, counters, plug_ends, show, tap, until, veth, xdp_told
from tests.labkit import require_tool
from vdexdp.control import client
from vdexdp.control.dataplane import Dataplane
from vdexdp.control.protocol import Bridge, PlugRequest
from vdexdp.lab import SLOWNESS, Lab, Namespace
from vdexdp.plugins.base import Tunnel
from vdexdp.plugins.registry import parse

PATIENCE = 3.0 * SLOWNESS
"""Seconds that frames may take on a busy machine."""
BURST = 8
"""Frames at once for which a stock node's socket has room."""

NETWORKS = {
    "vxvde4": "vxvde://234.0.0.1/if=lan0",
    "vxvde6": "vxvde:///v6/if=lan0",
    "vxlan4": "vxlan://239.0.0.1/if=lan0",
    "vxlan6": "vxlan:///v6/if=lan0",
}


@contextmanager
def ends_on(lab: Lab, left: Namespace, right: Namespace, network: str) -> Iterator[list[End]]:
    """Ports of every kind on two hosts, plugged into one network."""
    here: list[End] = [veth(lab, left, 1), tap(left, 2), HeldEnd(3, left, "q3")]
    there: list[End] = [veth(lab, right, 4, here=True), tap(right, 5), StreamEnd(6), veth(lab, right, 7)]
    try:
        plug_ends(left, network, here)
        plug_ends(right, network, there)
        yield here + there
    finally:
        for end in here + there:
            end.close()


@contextmanager
def xdp_ends_on(lab: Lab, left: Namespace, right: Namespace, network: str) -> Iterator[list[End]]:
    """Two ports with XDP on each host, a tap beside them, and XDP on the uplinks.

    The daemon leaves veths to tc by itself: the uplinks' XDP programs are attached here, over the maps in a lease.
    """
    both = (left, right)
    for host in both:
        host.run("ethtool", "-K", "lan0", "gro", "on")
    xdp = {host: [veth(lab, host, 3 * at + n, "/hook=xdp", mtu=1500) for n in (1, 2)] for at, host in enumerate(both)}
    taps = {host: tap(host, 3 * at + 3, mtu=1500) for at, host in enumerate(both)}
    with ExitStack() as undo:
        for host in both:
            ends: list[End] = [*xdp[host], taps[host]]
            for end in ends:
                undo.callback(end.close)
            plug_ends(host, network, ends)
            undo.enter_context(uplink_xdp(host, network))
        yield [*xdp[left], taps[left], *xdp[right], taps[right]]


@contextmanager
def uplink_xdp(host: Namespace, network: str) -> Iterator[None]:
    with ExitStack() as undo:
        with host.entered():
            tunnel = parse(network).kernel_end()
            assert isinstance(tunnel, Tunnel)
            lease = client.plug(
                PlugRequest((Bridge("null://"), tunnel), ("null://", network), fd_index=(None, None)), []
            )
            undo.callback(lease.close)
            maps = {name[4:]: os.dup(fd) for name, fd in lease.reply.fds.items() if name.startswith("map:")}
            dataplane = Dataplane.adopt(maps)
            undo.callback(dataplane.close)
            undo.callback(dataplane.attach(host.ifindex("lan0"), "uplink_xdp").close)
        yield


def introduce(ends: list[End]) -> None:
    """Every end says its address, so that every switch learns it, untagged and with the tags of the shapes."""
    greetings = {end: [data for data in shapes(end.mac, BROADCAST).values() if len(data) == 64] for end in ends}
    for end in ends:
        for data in greetings[end]:
            end.send(data)
        for other in ends:
            if other is not end:
                other.collect(len(greetings[end]), PATIENCE)
                other.seen.clear()


def exchange(sender: End, targets: list[End], others: list[End], frames: dict[str, bytes]) -> list[str]:
    """Send; say what is wrong at the targets, and what came to the others."""
    for data in frames.values():
        sender.send(data)
    wrong = []
    deadline = time.monotonic() + PATIENCE
    for target in targets:
        target.collect(len(frames), max(0.01, deadline - time.monotonic()))
        wrong += [f"{sender} to {target}: {words}" for words in differences(frames, target.seen)]
        target.seen.clear()
    for other in others:
        other.collect(0, 0)
        wrong += [f"{sender} to {targets}: {data[:20].hex()} came to {other}" for data in other.seen]
        other.seen.clear()
    return wrong


def everybody_to_everybody(ends: list[End], mtu: int) -> None:
    """All shapes, as broadcast and as unicast to addresses that are known."""
    for end in ends:
        wrong = exchange(end, [one for one in ends if one is not end], [end], shapes(end.mac, BROADCAST, mtu))
        assert not wrong, "\n".join(wrong[:40])
    introduce(ends)
    for end, target in itertools.permutations(ends, 2):
        wrong = exchange(end, [target], [one for one in ends if one is not target], shapes(end.mac, target.mac, mtu))
        assert not wrong, "\n".join(wrong[:40])
    for end in ends:
        end.collect(1, 0.02)
        assert not end.seen, f"late or twice: {end.seen}"


@pytest.mark.parametrize("network", NETWORKS)
def test_frames_of_every_shape_from_and_to_every_kind_of_port(lab: Lab, network: str) -> None:
    left, right = lab.host("left"), lab.host("right")
    lab.underlay(left, right, mtu=JUMBO + 100)
    with ends_on(lab, left, right, NETWORKS[network]) as ends:
        everybody_to_everybody(ends, JUMBO)
        for host in (left, right):
            assert not any(counters(host, "vx")["exceptions"].values()), "everything was carried by the programs"


@pytest.mark.parametrize("network", ["vxvde4", "vxlan6"])
def test_frames_of_every_shape_by_xdp(lab: Lab, network: str) -> None:
    left, right = lab.host("left"), lab.host("right")
    lab.underlay(left, right, mtu=1700)
    with xdp_ends_on(lab, left, right, NETWORKS[network]) as ends:
        everybody_to_everybody(ends, 1500)
        told = xdp_told(left, "v1")
        for host, port in ((left, "v1"), (right, "v5"), (left, "vx"), (right, "vx")):
            seen = counters(host, port)
            assert seen["rx_frames"]["xdp"] > 100 or not told, f"{port}: {seen}"
            assert seen["tx_frames"]["xdp"] > 100 or not told, f"{port}: {seen}"


@pytest.mark.parametrize("family", [4, 6])
def test_frames_of_every_shape_with_stock_nodes_and_fragments(lab: Lab, family: int) -> None:
    """Jumbo frames over an underlay of 1500 bytes, among our ports and stock nodes on both hosts."""
    network = NETWORKS[f"vxvde{family}"]
    left, right = lab.host("left"), lab.host("right")
    lab.underlay(left, right)
    ends: list[End] = [veth(lab, left, 1), veth(lab, right, 2)]
    try:
        plug_ends(left, network, ends[:1])
        plug_ends(right, network, ends[1:])
        for number, host in enumerate((left, right), 3):
            host.ip("route add multicast ff05:56de::1 dev lan0 table local")
            host.spawn(require_tool("vde_plug"), f"tap://s{number}", network)
            until(lambda host=host, number=number: host.exists(f"s{number}"), "the stock node")  # type: ignore[misc]
            host.ip(f"link set s{number} mtu {JUMBO} up")
            ends.append(PacketEnd(number, "stock", host, f"s{number}"))
            until(lambda host=host: show(host)["switches"][0]["local_peers"], "the stock node seen")  # type: ignore[misc]
        for mac in (BROADCAST, None):
            for sender in ends:
                for targets in (
                    [[end for end in ends if end is not sender]]
                    if mac
                    else [[one] for one in ends if one is not sender]
                ):
                    frames = shapes(sender.mac, mac or targets[0].mac, JUMBO)
                    del frames["14 bytes"]  # stock drops it
                    few = list(frames.items())
                    for at in range(0, len(few), BURST):
                        others = [end for end in ends if end is not sender and end not in targets]
                        wrong = exchange(sender, targets, others, dict(few[at : at + BURST]))
                        assert not wrong, "\n".join(wrong[:40])
            if mac:
                introduce(ends)
    finally:
        for end in ends:
            end.close()
