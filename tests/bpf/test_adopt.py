# SPDX-License-Identifier: GPL-2.0-or-later
"""Shows which maps a new version's daemon can go on with: those of an older version, which had fewer, and no others."""

from __future__ import annotations

import os

import pytest

from tests.bpf.rig import A, K, Rig, S
from vdexdp.control.abi import MAPS
from vdexdp.control.dataplane import Dataplane
from vdexdp.errors import HostError


@pytest.fixture
def leased(root: None) -> dict[str, int]:
    """Duplicates of the descriptors of maps with something in them."""
    with Rig() as rig:
        rig.learn(A, 1)
        return {name: os.dup(one.fd) for name, one in rig.maps.items()}


def test_maps_that_an_older_version_did_not_have_are_made(leased: dict[str, int]) -> None:
    for name in ("timings", "rtts", "probes"):
        os.close(leased.pop(name))
    dataplane = Dataplane.adopt(leased)
    try:
        assert set(dataplane.maps) == set(MAPS)
        assert dataplane.maps["ports"].fd == leased["ports"]
        dataplane.maps["probes"].update(S["rtt_key"](tunnel=1), 5)
        assert len(dataplane.maps["timings"].lookup(K["TIMED_PORT_TC"])) >= 1
        dataplane.prepare(("port_ingress", "uplink_ingress"))
    finally:
        dataplane.close()


@pytest.mark.parametrize("name", ["ports", "switches", "ingress", "endpoints"])
def test_maps_that_frames_depend_on_must_be_there(leased: dict[str, int], name: str) -> None:
    os.close(leased.pop(name))
    with pytest.raises(HostError, match=f"map {name}"):
        Dataplane.adopt(leased)
    for fd in leased.values():
        os.close(fd)


def test_a_map_of_another_layout_is_refused(leased: dict[str, int]) -> None:
    leased["rtts"], leased["timings"] = leased["timings"], leased["rtts"]
    with pytest.raises(HostError, match="another layout"):
        Dataplane.adopt(leased)
    for fd in leased.values():
        os.close(fd)
