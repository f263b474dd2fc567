# SPDX-License-Identifier: GPL-2.0-or-later
"""Shows that chains of tools carry TCP both ways at once, and ping afterwards.

The chain is ``dpipe vde_plug ptp://… = wirefilter = vde_plug ptp://…``, which with stock tools hangs at the first
saturation.  Here it is ours as a whole, or ours around stock plugs.  Two stock plugs are never at both ends of one ptp:
these hang without any help, each sending to the other and waiting.  A stock wirefilter in the middle gets ping alone,
because it writes the fragments of both directions into one buffer, and so garbles its own stream under load.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.labkit import VDEXDP, require_tool
from vdexdp.lab import Lab, Namespace, Process, wait_until
from vdexdp.lab.measure import iperf_server, ping, tcp

PLUG = (*VDEXDP, "vde_plug")
STOCK_PLUG = ("vde_plug",)


class Chain:
    """A guest's tap on each side, and the chain between them."""

    def __init__(self, lab: Lab, path: Path, plug: tuple[str, ...], filter: tuple[str, ...]) -> None:
        for tool in (plug[0], filter[0]):
            require_tool(tool)
        hub, self.left, self.right = lab.host("hub"), lab.host("left"), lab.host("right")
        vnls = [f"ptp://{path}/left", f"ptp://{path}/right"]
        self.left.spawn(*PLUG, "tap://t0", vnls[0])
        self.right.spawn(*(STOCK_PLUG if plug == PLUG else PLUG), "tap://t0", vnls[1])
        self.dpipe: Process = hub.spawn(*VDEXDP, "dpipe", *plug, vnls[0], "=", *filter, "=", *plug, vnls[1])
        for number, host in enumerate((self.left, self.right), 1):
            self._wait_tap(host)
            lab.address(host, "t0", number)
        wait_until(lambda: ping(self.left, "10.0.0.2", count=1, timeout=0.3).received, what="the chain")

    @staticmethod
    def _wait_tap(host: Namespace) -> None:
        wait_until(lambda: host.exists("t0"), what="t0")

    def check(self) -> None:
        # What TCP had not sent when iperf3 ended still crowds the wire for a moment.
        wait_until(lambda: ping(self.left, "10.0.0.2", count=5).received == 5, what="ping to the right")
        wait_until(lambda: ping(self.right, "10.0.0.1", count=5).received == 5, what="ping to the left")
        assert self.dpipe.poll() is None, self.dpipe.output()


@pytest.mark.parametrize("plug", [PLUG, STOCK_PLUG], ids=["ours", "stock-plugs"])
def test_saturated(lab: Lab, tmp_path: Path, plug: tuple[str, ...]) -> None:
    chain = Chain(lab, tmp_path, plug, (*VDEXDP, "wirefilter"))
    iperf_server(chain.right)
    found = tcp(chain.left, "10.0.0.2", seconds=3, options=("--bidir",))
    print(f"{found.bits_per_second / 1e6:.0f} Mbit/s")
    chain.check()


def test_stock_filter(lab: Lab, tmp_path: Path) -> None:
    Chain(lab, tmp_path, PLUG, ("wirefilter",)).check()


def test_between_switches(lab: Lab, tmp_path: Path) -> None:
    """``wirefilter -v``: a plug at each of two switches, 30 ms from left to right."""
    hub, left, right = lab.host("hub"), lab.host("left"), lab.host("right")
    for name in ("one", "two"):
        hub.spawn(*PLUG, f"switch://{tmp_path}/{name}", "null://").wait_output("in userspace")
    left.spawn(require_tool("vde_plug"), "tap://t0", f"vde://{tmp_path}/one")
    right.spawn(*PLUG, "tap://t0", f"vde://{tmp_path}/two")
    hub.spawn(*VDEXDP, "wirefilter", "-d", "LR30", "-v", f"{tmp_path}/one:vde://{tmp_path}/two")
    for number, host in enumerate((left, right), 1):
        Chain._wait_tap(host)
        lab.address(host, "t0", number)
    wait_until(lambda: ping(left, "10.0.0.2", count=1, timeout=0.3).received, what="the wire")
    assert 29 < ping(left, "10.0.0.2", count=10).median < 36
    assert 29 < ping(right, "10.0.0.1", count=10).median < 36
