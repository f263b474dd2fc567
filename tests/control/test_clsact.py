# SPDX-License-Identifier: GPL-2.0-or-later
"""The way of kernels without tcx links: clsact filters.  Forced here on whatever kernel runs the test."""

from __future__ import annotations

import pytest

from tests.control.rig import looks, ping, same, tunnel, wire
from vdexdp.control.daemon import remove_leftovers
from vdexdp.control.dataplane import Dataplane, Features, Link
from vdexdp.control.host import Host
from vdexdp.control.model import Model
from vdexdp.control.netlink import Netlink
from vdexdp.control.protocol import PlugRequest
from vdexdp.errors import KernelFeatureError
from vdexdp.lab import Lab


@pytest.fixture
def no_tcx(monkeypatch: pytest.MonkeyPatch) -> None:
    def attach(self: Dataplane, ifindex: int, point: str, *, xdp_native: bool = True) -> Link:
        raise KernelFeatureError("tcx", "not in this test")

    monkeypatch.setattr(Dataplane, "attach", attach)
    monkeypatch.setattr(Dataplane, "features", Features(tcx=False, xdp_link=False))


def test_a_cable_and_a_tunnel(lab: Lab, no_tcx: None) -> None:
    host = lab.host("host")
    lab.underlay(host, lab.host("other"))
    guests = [lab.guest(host, f"g{n}", n) for n in (1, 2)]
    lab.guest(host, "g3", 3, mtu=1400)
    host.ip("link add keep0 type veth peer name keep1")
    host.run("tc", "qdisc", "add", "dev", "g2", "clsact")
    before = looks(host)
    with host.entered(), Netlink() as netlink:
        model = Model(Host(Dataplane.create(), netlink))
        model.plug(PlugRequest((wire("g1"), wire("g2")), ("", "")), [])
        assert ping(guests[0], "10.0.0.2")
        model.plug(PlugRequest((wire("g3"), tunnel()), ("", "")), [])
        filters = netlink.clsact_leftovers()
        assert len(filters) == 5, "two ports of the cable, one of the network, its uplink, the exception tap"
        model.unplug_all()
        same(host, before)  # one of the qdiscs was there before
        model.host.close()


def test_what_a_killed_daemon_left_is_removed(lab: Lab, no_tcx: None) -> None:
    host = lab.host("host")
    for n in (1, 2):
        lab.guest(host, f"g{n}", n)
    before = looks(host)
    with host.entered(), Netlink() as netlink:
        model = Model(Host(Dataplane.create(), netlink))
        model.plug(PlugRequest((wire("g1"), wire("g2")), ("", "")), [])
        model.host.close()
        assert looks(host) != before
        assert remove_leftovers(netlink) == 2
        assert remove_leftovers(netlink) == 0
    same(host, before)
