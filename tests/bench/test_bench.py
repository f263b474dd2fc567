# SPDX-License-Identifier: GPL-2.0-or-later
"""Shows that the senders of ``vdexdp bench`` count what arrives, that contestants are interleaved, and that one
which can't run is left out and says why.  Needs root.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import pytest

from tests.labkit import require
from vdexdp.bench.contest import Contestant, compete
from vdexdp.bench.generator import FRAME, flood, paced, udp_frame
from vdexdp.errors import HostError
from vdexdp.lab import Lab, Namespace


@pytest.fixture
def guests(lab: Lab) -> tuple[Namespace, Namespace]:
    """Two guests on one bridge; the near end of the first takes redirected frames."""
    host = lab.host("host")
    left, right = lab.guest(host, "g1", 1), lab.guest(host, "g2", 2)
    lab.bridge(host, "br0", "g1", "g2")
    host.run("ethtool", "-K", "g1", "gro", "on")
    return left, right


def frame_between(left: Namespace, right: Namespace) -> bytes:
    frame = udp_frame(left.mac("eth0"), right.mac("eth0"), "10.0.0.1", "10.0.0.2")
    assert len(frame) == FRAME
    return frame


def test_flood_arrives(guests: tuple[Namespace, Namespace]) -> None:
    require("live-frames")
    result = flood(*guests, frame_between(*guests), 0.2)
    assert result.received > 10_000
    assert result.received == pytest.approx(result.offered, rel=0.02), (
        "a bridge on the sender's processor loses nothing"
    )


def test_flood_to_oneself_arrives_nowhere(guests: tuple[Namespace, Namespace]) -> None:
    """The sink counts what really came over: here the bridge sends nothing back, nor on."""
    require("live-frames")
    left, right = guests
    frame = udp_frame(left.mac("eth0"), left.mac("eth0"), "10.0.0.1", "10.0.0.2")
    assert flood(left, right, frame, 0.1).received < 1000


def test_paced_finds_a_rate(guests: tuple[Namespace, Namespace]) -> None:
    result = paced(*guests, frame_between(*guests), 0.1)
    assert 10_000 < result.received <= result.offered * 1.01


class Counting(Contestant):
    how = ""
    numbers = itertools.count()

    def build(self, lab: Lab) -> None:
        lab.host("host")

    def measure(self) -> Mapping[str, float]:
        return {"turn": next(self.numbers)}


class First(Counting):
    key = title = "first"


class Second(Counting):
    key = title = "second"


class Refused(Counting):
    key = title = "refused"

    def build(self, lab: Lab) -> None:
        raise HostError("it", "does not go")


class Toolless(Counting):
    key = title = "toolless"
    tools = ("no-such-tool",)


class Breaks(Counting):
    key = title = "breaks"

    def measure(self) -> Mapping[str, float]:
        raise TimeoutError("it stands still")


def test_rounds_are_interleaved_and_rotate(root: None) -> None:
    said: list[str] = []
    results = compete([First(), Second(), Refused(), Toolless(), Breaks()], 2, said.append, repr)
    first, second, refused, toolless, breaks = results
    assert first.samples["turn"][0] < second.samples["turn"][0]
    assert second.samples["turn"][1] < first.samples["turn"][1]
    assert max(first.samples["turn"][0], second.samples["turn"][0]) < second.samples["turn"][1]
    assert (refused.absent, refused.samples) == ("it: does not go", {})
    assert "no-such-tool: not installed; run scripts/setup" in toolless.absent
    assert breaks.absent == "failed in round 1: it stands still"
    assert any("does not go" in line for line in said)
