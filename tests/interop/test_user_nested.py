# SPDX-License-Identifier: GPL-2.0-or-later
"""``vlan://`` and ``agno://`` over ``ptp://``, ours on one side and stock's on the other.

Shows ping, TCP both ways and ping again, with either one started first.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kernelkit import streams
from tests.labkit import VDEXDP, require_tool, settled
from vdexdp.lab import Lab, Namespace, wait_until
from vdexdp.lab.measure import iperf_server, ping

KEY = "00112233445566778899aabbccddeeff"

CASES = {
    "vlan": ("vlan://3{{{}}}", "vlan://3{{{}}}"),
    "vlan-remapped": ("vlan://9{{vlan:///tag=9-4{{{}}}}}", "vlan://4{{{}}}"),
    "qinq": ("vlan://4{{vlan://5/qinq{{{}}}}}", "vlan://4{{vlan://5/qinq{{{}}}}}"),
    "agno": ("agno://{key}{{{}}}", "agno://{key}{{{}}}"),
    "agno-options": ("agno://{key}[ethtype=ipv4]{{{}}}", "agno://{key}[ethtype=rand]{{{}}}"),
    "agno-in-vlan": ("agno://{key}{{vlan://7{{{}}}}}", "agno://{key}{{vlan://7{{{}}}}}"),
}


@pytest.mark.parametrize(("case", "ours_first"), [*((case, True) for case in CASES), ("vlan", False), ("agno", False)])
def test_against_stock(lab: Lab, tmp_path: Path, case: str, ours_first: bool) -> None:
    key = tmp_path / "key"
    key.write_text(KEY)
    key.chmod(0o600)
    ptp = f"ptp://{tmp_path}/ptp"
    ours, stock = (vnl.format(ptp, key=key) for vnl in CASES[case])
    left, right = lab.host("left"), lab.host("right")
    starts = [(left, (*VDEXDP, "vde_plug", "tap://t0", ours)), (right, (require_tool("vde_plug"), "tap://t0", stock))]
    for host, argv in starts if ours_first else reversed(starts):
        host.spawn(*argv)
        _wait_tap(host)
    for number, host in enumerate((left, right), 1):
        lab.address(host, "t0", number)
    wait_until(lambda: ping(left, "10.0.0.2", count=1, timeout=0.3).received, what="the link")
    iperf_server(right)
    streams(left, "10.0.0.2", 0.0, 10)
    settled(left, "10.0.0.2")
    settled(right, "fd00::1")


def _wait_tap(host: Namespace) -> None:
    wait_until(lambda: host.exists("t0"), what="t0")
