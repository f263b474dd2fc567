# SPDX-License-Identifier: GPL-2.0-or-later
"""Frames intact, live: a frame that is put on one port of a network comes out of the others byte for byte.

Shows, for vxvde and vxlan over IPv4 and IPv6, with ports of every kind on both hosts (a veth whose far end is in
another namespace or in the same one, with hook tc and xdp; the host's own stack on a tap; a tap that another process
holds; a vdestream): every shape of frame from every port, as broadcast to all others and as known unicast to each one,
arrives once, there and nowhere else.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.kernelkit import (
    BROADCAST,
    JUMBO,
    End,
    HeldEnd,
    StreamEnd,
    counters,
    differences,
    plug_ends,
    shapes,
    tap,
    veth,
)
from vdexdp.lab import Lab, Namespace

PATIENCE = 3.0
"""Seconds that frames may take on a busy machine."""

NETWORKS = {
    "vxvde4": "vxvde://234.0.0.1/if=lan0",
    "vxvde6": "vxvde:///v6/if=lan0",
    "vxlan4": "vxlan://239.0.0.1/if=lan0",
    "vxlan6": "vxlan:///v6/if=lan0",
}


@contextmanager
def ends_on(lab: Lab, left: Namespace, right: Namespace, network: str) -> Iterator[list[End]]:
    """Ports of every kind on two hosts, plugged into one network."""
    here: list[End] = [veth(lab, left, 1), veth(lab, left, 2, "/hook=xdp"), tap(left, 3), HeldEnd(4, left, "q4")]
    there: list[End] = [
        veth(lab, right, 5, here=True),
        veth(lab, right, 6, "/hook=xdp"),
        tap(right, 7),
        StreamEnd(8),
        veth(lab, right, 9),
    ]
    try:
        plug_ends(left, network, here)
        plug_ends(right, network, there)
        yield here + there
    finally:
        for end in here + there:
            end.close()


def introduce(ends: list[End]) -> None:
    """Every end says its address, so that every switch learns it, untagged and with the tags of the shapes."""
    greetings = {end: list(shapes(end.mac, BROADCAST, 1500).values()) for end in ends}
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


@pytest.mark.parametrize("network", NETWORKS)
def test_frames_of_every_shape_from_and_to_every_kind_of_port(lab: Lab, network: str) -> None:
    left, right = lab.host("left"), lab.host("right")
    lab.underlay(left, right, mtu=JUMBO + 100)
    with ends_on(lab, left, right, NETWORKS[network]) as ends:
        wrong = []
        for end in ends:
            wrong += exchange(end, [one for one in ends if one is not end], [end], shapes(end.mac, BROADCAST))
            assert not wrong, "\n".join(wrong[:40])
        introduce(ends)
        for end in ends:
            for target in ends:
                if target is not end:
                    others = [one for one in ends if one is not target]
                    wrong = exchange(end, [target], others, shapes(end.mac, target.mac))
                    assert not wrong, "\n".join(wrong[:40])
        for host, port in ((left, "v2"), (right, "v6")):
            assert counters(host, port)["rx_frames"]["xdp"], "the XDP program carried frames"
        assert not counters(left, "vx")["exceptions"]["mtu"]
        late = {end: end.seen for end in ends if end.collect(1, 0.05) or end.seen}
        assert not late
