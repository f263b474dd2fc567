# SPDX-License-Identifier: GPL-2.0-or-later
"""``vlan://`` in the kernel does what it does in userspace.

Shows, for policies with every option and nested ones, in both directions: frames of every shape come out of a cable of
two interfaces as they do with ``--accel off``, byte for byte, and what is dropped is counted; the same in front of the
host's own stack, and around a network.  TCP keeps its speed and its checksums, with all processes stopped.  What can't
be done is refused; a killed plug leaves nothing behind.
"""

from __future__ import annotations

import os
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress

from tests.frameshapes import BROADCAST, JUMBO, LOCAL, differences, filler, shapes, tag
from tests.interop.test_kernel_frozen import frozen
from tests.kernelkit import NETWORK, End, PacketEnd, bad_checksums, counters, plug, reaches, tagged, tap, transfer, veth
from tests.labkit import VDEXDP
from vdexdp.control import bpf_prog
from vdexdp.control.netlink import Netlink
from vdexdp.lab import Lab, Namespace
from vdexdp.lab.measure import iperf_server
from vdexdp.plugins.registry import parse
from vdexdp.wire.dot1q import Mapper
from vdexdp.wire.ethernet import Buffer

QUIET = 0.05
"""Seconds after which nothing more comes; what is expected is waited for longer."""

POLICIES = (
    "vlan://0/untag=7{%s}",
    "vlan://3/u=4/trunk/tag=7-8:8-7:9-4094{%s}",
    "vlan://4095/t=7:8-9{%s}",
    "vlan://7/qinq/x{%s}",
    "vlan://0/q/untag=5/t=7-4094{%s}",
    "vlan://8/x/u=5{vlan://0/q/t=9-7{vlan://0/x{%s}}}",
)


def mappers(vnl: str) -> tuple[Mapper, ...]:
    """The policies, outermost first."""
    kernel = parse(vnl % "tap://none").kernel_end()
    found: tuple[Mapper, ...] = kernel.vlan  # type: ignore[union-attr]
    return found


def rewritten(frame: bytes, rules: Sequence[Callable[[Buffer], Buffer | None]]) -> bytes | None:
    for rule in rules:
        changed = rule(frame)
        if changed is None or not 14 <= len(changed) <= JUMBO + 18:
            return None
        frame = bytes(changed)
    return frame


def expected(frames: dict[str, bytes], policy: str, *, outward: bool) -> dict[str, bytes]:
    """What comes of frames, by the rules themselves."""
    chain = mappers(policy)
    rules = [one.outward for one in chain] if outward else [one.inward for one in reversed(chain)]
    came = {name: rewritten(frame, rules) for name, frame in frames.items()}
    return {name: frame for name, frame in came.items() if frame is not None}


def frames_of(end: End) -> dict[str, bytes]:
    """Frames of every shape, and the longest of all."""
    found = shapes(end.mac, BROADCAST, 1500)
    longest = BROADCAST + end.mac + LOCAL.to_bytes(2, "big") + filler(JUMBO)
    found["longest"], found["longest, tagged"] = longest, longest[:12] + tag(0x8100, 7) + longest[12:]
    return found


def sent(source: End, target: End, frames: dict[str, bytes], wanted: int) -> list[bytes]:
    for frame in frames.values():
        with suppress(OSError):  # a host is told that its frame was dropped
            source.send(frame)
    target.collect(wanted, 3.0)
    time.sleep(QUIET)
    target.collect(0, 0.0)
    came, target.seen = target.seen, []
    return came


def check_both_ways(policy: str, outside: End, inside: End, *, exact: bool = True) -> tuple[list[bytes], list[bytes]]:
    came = []
    for source, target, outward in ((inside, outside, True), (outside, inside, False)):
        frames = frames_of(source)
        wanted = expected(frames, policy, outward=outward)
        seen = sent(source, target, frames, len(wanted))
        if exact:
            assert not differences(wanted, seen), (policy, outward)
        came.append(seen)
    return came[0], came[1]


@contextmanager
def behind(lab: Lab, host: Namespace, device: str) -> Iterator[End]:
    """What comes to the host's stack by a device: packet sockets would see it in front of tc."""
    lab.pair(host, "look0", host, "look1", JUMBO)
    # r1 and r2 are a number; call helper 23, which redirects, and return what it says
    move, leave = "b7{:02x}0000{}", "8500000017000000" + "95" + "00" * 7
    target = struct.pack("=I", host.ifindex("look0")).hex()
    with ExitStack() as undo, host.entered():
        code = move.format(1, target) + move.format(2, "0" * 8) + leave
        program = bpf_prog.load("tc", "look", bytes.fromhex(code))
        undo.callback(os.close, program)
        netlink = undo.enter_context(Netlink())
        undo.callback(netlink.clsact_detach, netlink.clsact_attach(host.ifindex(device), "ingress", program))
        end = PacketEnd(99, "", host, "look1")
        undo.callback(end.close)
        yield end


def test_as_in_userspace(lab: Lab) -> None:
    host = lab.host("host")
    one, other, third, fourth = (veth(lab, host, number) for number in (1, 2, 3, 4))
    third.mac, fourth.mac = one.mac, other.mac
    for policy in POLICIES:
        process = plug(host, policy % one.vnl, other.vnl)
        assert "tc rewrites its tags" in process.output()
        in_userspace = host.spawn(*VDEXDP, "vde_plug", "--accel", "off", policy % third.vnl, fourth.vnl)
        before = Counter(counters(host, "v1")["drops"])  # of frames that the interfaces said on their own
        kernel = check_both_ways(policy, one, other)
        drops = Counter(counters(host, "v1")["drops"]) - before
        assert set(drops) <= {"vlan", "too_big"}
        assert drops.get("vlan") or "x" in policy
        in_userspace.wait_output("in userspace", 10)
        user = check_both_ways(policy, third, fourth, exact=False)
        in_userspace.stop()
        for ours, theirs in zip(kernel, user, strict=True):
            assert not Counter(theirs) - Counter(ours), policy
            # A packet socket can't send the longest with two tags, nor a kernel receive the shortest with one.
            assert {len(frame) for frame in Counter(ours) - Counter(theirs)} <= {18, 19, 22, 23, JUMBO + 18}, policy
        process.stop()
    for end in (one, other, third, fourth):
        end.close()


def test_the_hosts_own_stack_and_around_a_network(lab: Lab) -> None:
    left, right = lab.host("left"), lab.host("right")
    lab.underlay(left, right, mtu=JUMBO + 200)
    policy = POLICIES[1]
    own, far = tap(left, 1), veth(lab, left, 2)
    inner, plain = veth(lab, left, 3), veth(lab, right, 4)
    process = plug(left, far.vnl, policy % own.vnl)
    with behind(lab, left, "t1") as own_stack:
        frames = frames_of(far)
        wanted = expected(frames, policy, outward=True)
        assert not differences(wanted, sent(far, own_stack, frames, len(wanted)))
    frames = frames_of(own)
    wanted = expected(frames, policy, outward=False)
    assert not differences(wanted, sent(own, far, frames, len(wanted)))
    process.stop()
    plug(right, plain.vnl, NETWORK)
    plug(left, inner.vnl, policy % NETWORK)
    check_both_ways(policy, plain, inner)
    # Around both ends: what the one puts on, the other takes off again.
    process = plug(left, f"vlan://0/untag=7{{{own.vnl}}}", f"vlan://0/untag=7{{{NETWORK}}}")
    frames = {name: frame for name, frame in frames_of(own).items() if frame[12:14] != b"\x81\x00"}
    assert not differences(frames, sent(own, plain, frames, len(frames)))
    for end in (own, far, inner, plain):
        end.close()


def test_tcp_with_offloads(lab: Lab) -> None:
    """An untagged guest and a guest that tags by itself meet in VLAN 7 of a network."""
    left, right = lab.host("left"), lab.host("right")
    lab.underlay(left, right, mtu=1700)
    one, other = lab.guest(left, "g1", 1), lab.guest(right, "g2", 2)
    plug(left, "vlan://0/untag=7{netdev://g1}", NETWORK)
    plug(right, "netdev://g2", f"vlan://8/tag=9-7{{{NETWORK}}}")
    assert not reaches(one, "10.0.0.2", 1, "-w", "1")
    one.ip("neigh flush all")
    with tagged(other, "eth0", 9):
        iperf_server(other)
        with frozen(lab):
            assert reaches(one, "10.0.0.2")
            fast = max(transfer(one, "10.0.0.2", 60)[0], transfer(one, "10.0.0.2", 60)[0])
            back = max(transfer(one, "10.0.0.2", 60, "-R")[0], transfer(one, "10.0.0.2", 60, "-R")[0])
    assert min(fast, back) > 1.5, (fast, back)
    assert not bad_checksums(one)
    assert not bad_checksums(other)
    assert counters(left, "g1")["rx_frames"]["tc"] > 100


def test_refusals_and_undo(lab: Lab) -> None:
    host = lab.host("host")
    guests = [lab.guest(host, f"g{number}", number) for number in (1, 2)]

    def run(*words: str) -> tuple[int, str]:
        done = host.run(*VDEXDP, *words, check=False)
        return done.returncode, done.stdout + done.stderr

    status, said = run("vde_plug", "vlan://7{netdev://g1/hook=xdp}", "netdev://g2")
    assert status == 2
    assert "tags are rewritten in tc" in said
    deep = "vlan://7{vlan://7{vlan://7{vlan://7{vlan://7{netdev://g1}}}}}"
    assert "at most 4 vlan://" in run("explain", deep, "netdev://g2")[1]
    assert "No frame touches a process" in run("explain", "vlan://7{netdev://g1}", "netdev://g2")[1]
    assert "same interface" in run("explain", "vlan://7{netdev://g1}", "vlan://8{netdev://g1}")[1]
    plug(host, "vlan://7{netdev://g1}", "vlan://7{netdev://g2}").kill()
    assert not reaches(guests[0], "10.0.0.2", 1, "-w", "1")
    plug(host, "vlan://7/x{netdev://g1}", "vlan://7{netdev://g2}")
    assert not reaches(guests[0], "10.0.0.2", 1, "-w", "1"), "untagged frames are not let in"
    guests[0].ip("neigh flush all")
    with tagged(guests[0], "eth0", 7), tagged(guests[1], "eth0", 7):
        assert reaches(guests[0], "10.0.0.2")
