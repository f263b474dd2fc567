# SPDX-License-Identifier: GPL-2.0-or-later
"""The observed build under BPF_PROG_TEST_RUN: it forwards as the normal one does, and tells observers what they want.

Loading it is what takes time; an observer who wants nothing that there is keeps it for all tests.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.bpf.rig import (
    BROADCAST,
    GROUP,
    GROUP_PORT,
    HOST,
    PEER,
    PEER_PORT,
    PORT,
    STACK,
    SWITCH,
    TC_SHOT,
    TUNNEL,
    UPLINK,
    WIRE1,
    WIRE2,
    XDP_PASS,
    XDP_REDIRECT,
    A,
    B,
    Bench,
    C,
    D,
    K,
    Rig,
    ethernet,
    outer,
    udp4,
)
from tests.bpf.test_port import FRAMES, vlan_of
from vdexdp.control import bpf_prog, bytecode
from vdexdp.control.dataplane import Link
from vdexdp.control.host import Host
from vdexdp.control.netlink import Netlink
from vdexdp.control.observe import Mirror, Observatory
from vdexdp.control.ringbuf import Ring
from vdexdp.control.sighting import Sighting, decode
from vdexdp.control.wish import Wish
from vdexdp.errors import HostError

POINTS = ("port_tc", "uplink_ingress", "exception_ingress", "port_xdp", "uplink_xdp")
VERIFIER_LIMIT = 300_000
"""A third of the kernel's own, so that there is room for what other versions walk through twice."""


@pytest.fixture(scope="module")
def observatory(bench: None) -> Iterator[Observatory]:
    with Netlink() as netlink:
        host = Host(Bench.current.dataplane, netlink)
        host.dataplane.prepare(POINTS)
        held = [Link(-1, point, 0) for point in POINTS]
        for link in held:
            host.links.add(link)
        observatory = Observatory(host)
        keeper = Seen(observatory, ethertype=0x9999)
        yield observatory
        assert keeper.close() == {"seen": 0, "lost": 0}
        assert not observatory.active
        assert host.dataplane.observed is None


@pytest.fixture
def rig(root: None) -> Iterator[Rig]:
    with Rig() as made:
        yield made


class Seen:
    """An observer and what it gets."""

    def __init__(self, observatory: Observatory, **wish: int | str | bool) -> None:
        self.wish = Wish(**wish)  # type: ignore[arg-type]
        self.observatory = observatory
        self.slot, self.fd = observatory.watch(self.wish)
        self.ring = Ring(self.fd)

    def __call__(self) -> list[Sighting]:
        return [decode(record, self.wish.snap) for record in self.ring.read()]

    def close(self) -> dict[str, int]:
        counts = self.observatory.unwatch(self.slot)
        self.ring.close()
        os.close(self.fd)
        return counts


@contextmanager
def seeing(observatory: Observatory, **wish: int | str | bool) -> Iterator[Seen]:
    seen = Seen(observatory, **wish)
    try:
        yield seen
    finally:
        seen.close()


def test_the_verifier_has_room(observatory: Observatory) -> None:
    with seeing(observatory):
        maps = {**observatory.host.dataplane.maps, **observatory._maps}
        fds = {name: one.fd for name, one in maps.items()}
        for name, image in bytecode.images(n for n in bytecode.PROGRAMS if n.startswith(bytecode.OBSERVED)).items():
            walked = bpf_prog.verified_instructions(
                bytecode.PROGRAMS[name].kind,
                name,
                bytecode.relocate(image, fds, observatory.host.dataplane.features.substitutes),
            )
            print(f"{name}: {walked} instructions walked through")
            assert walked < VERIFIER_LIMIT, name


@pytest.mark.parametrize("name", FRAMES)
def test_forwards_as_the_normal_build(rig: Rig, observatory: Observatory, name: str) -> None:
    frame = FRAMES[name]
    vlan = vlan_of(frame)

    def both(program: int) -> list[tuple[int, bytes]]:
        found = []
        for target, place in ((WIRE2, ""), (TUNNEL, PEER)):
            rig.learn(B, target, place, vlan=vlan)
            run = rig.run("port_tc", WIRE1, frame, program=program)
            # Without the outer identification, which is random, and its checksum.
            data = run.data if len(run.data) == len(frame) else run.data[:18] + run.data[20:24] + run.data[26:]
            found.append((run.verdict, data))
        return found

    dataplane = observatory.host.dataplane
    assert dataplane.observed is not None
    with seeing(observatory) as seen:
        normal = both(dataplane.programs["port_tc"])
        assert not seen(), "the normal build says nothing"
        assert both(dataplane.observed["port_tc"]) == normal
        sightings = seen()
    assert [one.data for one in sightings] == [frame, frame]
    assert [one.length for one in sightings] == [len(frame)] * 2
    assert [one.told for one in sightings] == ["sent", "sent"]
    assert [one.out for one in sightings] == [WIRE2, TUNNEL]
    assert [one.endpoint for one in sightings] == [None, (PEER, PEER_PORT)]
    assert {one.vlan for one in sightings} == {vlan}


def test_what_a_frame_met(rig: Rig, observatory: Observatory) -> None:
    frame = ethernet(B, A, 0x0800, udp4(b"hello"))
    with seeing(observatory) as seen:
        rig.run("port_tc", WIRE1, frame)
        rig.learn(B, WIRE1, age=5.0)
        rig.run("port_tc", WIRE1, frame)
        rig.learn(B, WIRE2, age=5.0)
        rig.run("port_tc", STACK, frame)
        rig.set_switch(generation=9)
        rig.run("port_tc", WIRE1, ethernet(BROADCAST, A, 0x0806, bytes(28)))
        rig.run("port_tc", WIRE1, frame)
        first, same, moved, broadcast, stale = seen()
    assert (first.source, first.target, first.told, first.copies) == ("learnt", "unknown", "sent", 2)
    assert (first.flooded, first.into, first.switch, first.path) == (True, WIRE1, SWITCH, "tc")
    assert (same.source, same.target, same.told, same.detail) == ("known", "found", "dropped", "same_port")
    assert 4.9 < same.age < 60
    assert (moved.source, moved.told, moved.out, moved.into) == ("moved", "sent", WIRE2, STACK)
    assert (broadcast.target, broadcast.told, broadcast.flooded) == ("group", "sent", True)
    assert stale.target == "stale"


def test_a_cable_and_floods_without_a_tunnel(rig: Rig, observatory: Observatory) -> None:
    with seeing(observatory) as seen:
        rig.set_switch("MODE_CABLE", (WIRE1, WIRE2), tunnel=0)
        rig.run("port_tc", WIRE2, ethernet(B, A, 0x0800, b"x" * 20))
        rig.set_switch(tunnel=0)
        rig.run("port_tc", WIRE1, ethernet(B, A, 0x0800, b"x" * 20))
        rig.set_switch(members=(WIRE1,), tunnel=0)
        rig.run("port_tc", WIRE1, ethernet(B, A, 0x0800, b"x" * 20))
        rig.set_port(WIRE1, kind=K["PORT_WIRE"], switch_id=9)
        run = rig.run("port_tc", WIRE1, ethernet(B, A, 0x0800, b"x" * 20))
        cable, flooded, alone, homeless = seen()
    assert (cable.told, cable.out, cable.target, cable.source) == ("sent", WIRE1, "none", "none")
    assert (flooded.told, flooded.copies, flooded.refused) == ("flooded", 2, 0)
    assert (alone.told, alone.detail) == ("dropped", "no_ports")
    assert (homeless.told, homeless.detail, homeless.into) == ("dropped", "no_switch", WIRE1)
    assert run.verdict == TC_SHOT


def test_frames_from_the_tunnel(rig: Rig, observatory: Observatory) -> None:
    inner = ethernet(A, B, 0x0800, udp4(b"from afar"), (0x8100, 7))
    rig.learn(A, WIRE1, vlan=7)
    rig.learn(C, TUNNEL, PEER)
    with seeing(observatory) as seen:
        rig.run("uplink_ingress", UPLINK, outer(inner, pad=b"padding"))
        rig.run("uplink_ingress", UPLINK, outer(ethernet(C, B, 0x0800, udp4(b"back"))))
        rig.run("uplink_ingress", UPLINK, outer(inner, header=b"\x08\0\0\1\0\0\7\0"))
        rig.run("uplink_ingress", UPLINK, outer(b""))
        rig.run("uplink_ingress", UPLINK, outer(inner, dst=GROUP, dport=GROUP_PORT, sport=PORT, src=HOST))
        rig.run("uplink_ingress", UPLINK, ethernet(A, B, 0x0800, udp4(b"the host's own")))
        sent, back, bad, goodbye, own = seen()
    assert (sent.data, sent.length, sent.vlan) == (inner, len(inner), 7)
    assert (sent.told, sent.out, sent.into, sent.sender) == ("sent", WIRE1, TUNNEL, (PEER, PEER_PORT))
    assert (back.told, back.detail) == ("dropped", "split_horizon")
    assert (bad.told, bad.detail, bad.into) == ("dropped", "bad_header", TUNNEL)
    assert bad.data == inner
    assert (goodbye.told, goodbye.data) == ("consumed", b"")
    assert own.detail == "own_copy"


def test_the_exception_path(rig: Rig, observatory: Observatory) -> None:
    rig.learn(B, TUNNEL, PEER)
    with seeing(observatory) as seen:
        rig.tunnel.mtu = 200
        rig.maps["tunnels"].update(TUNNEL, rig.tunnel)
        rig.run("port_tc", WIRE1, ethernet(B, A, 0x0800, udp4(bytes(300))))
        (one,) = seen()
    assert (one.told, one.detail, one.endpoint) == ("exception", "mtu", (PEER, PEER_PORT))


UDP = ethernet(B, A, 0x0800, udp4(b"x", checksum="none"))
ARP = ethernet(BROADCAST, C, 0x0806, bytes(28))
TAGGED = ethernet(B, A, 0x0800, udp4(b"x"), (0x88A8, 5), (0x8100, 6))
TCP6 = ethernet(D, B, 0x86DD, struct.pack("!IHBB", 6 << 28, 20, 6, 64) + bytes(32) + struct.pack("!HH16x", 22, 9999))
ALL = [UDP, ARP, TAGGED, TCP6]


@pytest.mark.parametrize(
    ("wish", "frames"),
    [
        ({}, ALL),
        ({"mac": A.hex(":")}, [UDP, TAGGED]),
        ({"mac": C.hex(":")}, [ARP]),
        ({"ethertype": 0x0806}, [ARP]),
        ({"ethertype": 0x0800}, [UDP, TAGGED]),
        ({"vlan": 0}, [UDP, ARP, TCP6]),
        ({"vlan": 5}, [TAGGED]),
        ({"l4_port": 2000}, [UDP, TAGGED]),
        ({"l4_port": 22}, [TCP6]),
        ({"l4_port": 2000, "vlan": 5, "mac": B.hex(":")}, [TAGGED]),
        ({"switch": SWITCH, "port": WIRE1}, ALL),
        ({"switch": SWITCH, "port": WIRE2}, ALL),
        ({"switch": SWITCH + 1}, []),
        ({"drops": True}, []),
        ({"snap": 20}, [one[:20] for one in ALL]),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_filters(rig: Rig, observatory: Observatory, wish: dict[str, int | str | bool], frames: list[bytes]) -> None:
    with seeing(observatory, **wish) as seen:
        for frame in ALL:
            rig.run("port_tc", WIRE1, frame)
        assert [one.data for one in seen()] == frames


def test_ports_as_filters(rig: Rig, observatory: Observatory) -> None:
    rig.learn(B, WIRE2)
    with seeing(observatory, switch=SWITCH, port=STACK) as seen:
        rig.run("port_tc", WIRE1, UDP)
        rig.learn(B, STACK)
        rig.run("port_tc", WIRE1, UDP)
        assert [one.out for one in seen()] == [STACK], "what goes elsewhere is not its business"


def test_observers_do_not_disturb_each_other_and_losses_are_counted(rig: Rig, observatory: Observatory) -> None:
    rig.learn(B, WIRE2)
    big = ethernet(B, A, 0x0800, udp4(bytes(3000)))
    watching = [Seen(observatory, snap=size, buffer=1 << 18) for size in (14, 100, 4000)]
    with pytest.raises(HostError, match="4 captures or traces are running already"):
        observatory.watch(Wish())
    for _ in range(200):
        rig.run("port_tc", WIRE1, big)
    counts = [(len(one.ring.read(1000)), one.close()) for one in watching]
    assert [(read, count) for read, count in counts[:2]] == [(200, {"seen": 200, "lost": 0})] * 2
    read, third = counts[2]
    assert third["lost"] > 0
    assert (third["seen"] + third["lost"], read) == (200, third["seen"])


def test_xdp_leaves_all_to_tc_while_somebody_watches(rig: Rig, observatory: Observatory) -> None:
    for port in (WIRE1, WIRE2):
        rig.set_port(port, kind=K["PORT_WIRE"], flags=K["PORT_F_XDP_OUT"])
        rig.maps["tx_ports"].update(port, rig.ifindex[port])
    rig.learn(A, WIRE1)
    rig.learn(B, WIRE2)
    assert rig.run("port_xdp", WIRE1, UDP).verdict == XDP_PASS
    normal = observatory.host.dataplane.programs["port_xdp"]
    assert rig.run("port_xdp", WIRE1, UDP, program=normal).verdict == XDP_REDIRECT


def test_mirrors(rig: Rig, observatory: Observatory) -> None:
    rig.learn(B, WIRE2)
    rig.learn(C, TUNNEL, PEER)
    inner = ethernet(A, B, 0x0800, udp4(b"from afar"))
    rig.learn(A, WIRE1)
    observatory.mirror(Mirror(WIRE1, SWITCH, "rig3", rig.ifindex[STACK]))
    try:
        rig.run("port_tc", WIRE1, UDP)
        rig.run("port_tc", WIRE1, ethernet(C, A, 0x0800, udp4(b"away")))
        rig.run("port_tc", WIRE2, ethernet(C, B, 0x0800, udp4(b"others'")))
        rig.run("uplink_ingress", UPLINK, outer(inner))
        rig.sent(WIRE1)
        assert rig.sent(STACK) == [UDP, ethernet(C, A, 0x0800, udp4(b"away")), inner]
        (about,) = observatory.mirrored()
        assert (about["frames"], about["refused"]) == (3, 0)
    finally:
        assert observatory.unmirror(WIRE1)
    assert not observatory.unmirror(WIRE1)
