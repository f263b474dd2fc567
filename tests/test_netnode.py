# SPDX-License-Identifier: GPL-2.0-or-later
"""Shows that our nodes forward as hub, switch, multi and bonding should, to the byte and in order, and that a full
receiver loses no frames but its own.

All with real sockets in this process.
"""

from __future__ import annotations

import os
import random
import socket
import threading
import time
from pathlib import Path

import pytest

from tests.legacy import BROADCAST, Client, Node, clients, frame, introduce, mac, node
from vdexdp.cable import Cable
from vdexdp.lab import wait_until
from vdexdp.plugins import registry
from vdexdp.plugins.base import FRAME_MAX, Batch
from vdexdp.plugins.null import NullStream


def test_hub_repeats_to_everybody_but_the_source(tmp_path: Path) -> None:
    with node(f"hub://{tmp_path}/hub") as hub, clients(hub, 3) as (a, b, c):
        unicast = frame(mac(1), mac(0), b"x")
        a.send(unicast)
        assert b.received(1) == c.received(1) == [unicast]
        wait_until(lambda: hub.heard == [unicast])
        hub.send(unicast, unicast)
        assert a.received(2) == b.received(2) == c.received(2) == [unicast] * 2
        assert a.received() == []


def test_multi_copies_to_all_and_isolates_them(tmp_path: Path) -> None:
    with node(f"multi://{tmp_path}/multi") as multi, clients(multi, 2) as (a, b):
        multi.send(frame(mac(7), mac(9)))
        assert a.received(1) == b.received(1) == [frame(mac(7), mac(9))]
        a.send(frame(BROADCAST, mac(1)))
        wait_until(lambda: multi.heard == [frame(BROADCAST, mac(1))])
        assert b.received() == []


def test_bonding_takes_turns(tmp_path: Path) -> None:
    sent = [frame(mac(1), mac(2), bytes([number])) for number in range(6)]
    with node(f"bonding://{tmp_path}/bond") as bond:
        bond.send(sent[0])  # nobody there yet: lost
        with clients(bond, 3) as (a, b, c):
            bond.send(*sent)
            got = [one.received() for one in (a, b, c)]
            assert [len(one) for one in got] == [2, 2, 2]
            assert sorted(one for frames in got for one in frames) == sent
            for one in sent:  # singly, too
                bond.send(one)
            assert [len(one.received()) for one in (a, b, c)] == [2, 2, 2]
            b.close()
            bond.settle(2)
            bond.send(*sent)
            assert [len(one.received()) for one in (a, c)] == [3, 3]
            a.send(sent[0])
            wait_until(lambda: bond.heard == [sent[0]])
            assert c.received() == []


def test_switch_learns_and_floods(switch: Node) -> None:
    with clients(switch, 3) as (a, b, c):
        unknown = frame(mac(1), mac(0))
        a.send(unknown)
        assert b.received(1) == c.received(1) == [unknown]
        wait_until(lambda: switch.heard == [unknown])
        answer = frame(mac(0), mac(1))
        b.send(answer)
        assert a.received(1) == [answer]
        a.send(unknown)
        assert b.received(1) == [unknown]
        assert c.received() == []
        assert switch.heard == [unknown]
        a.send(frame(mac(0), mac(5)))  # to itself
        assert a.received() + b.received() + c.received() == []
        switch.send(frame(mac(0), mac(9)))  # the host is a station like the others
        assert a.received(1) == [frame(mac(0), mac(9))]
        a.send(frame(mac(9), mac(0)))
        wait_until(lambda: switch.heard[1:] == [frame(mac(9), mac(0))])
        assert b.received() + c.received() == []


def test_a_mac_moves_and_a_client_leaves(switch: Node) -> None:
    with clients(switch, 3) as members:
        a, b, c = members
        introduce(members, switch)
        c.send(frame(BROADCAST, mac(1)))  # b's address, now behind c
        a.received(1), b.received(1)
        a.send(frame(mac(1), mac(0)))
        assert c.received(1) == [frame(mac(1), mac(0))]
        assert b.received() == []
        c.close()
        switch.settle(2)
        a.send(frame(mac(1), mac(0)))
        assert b.received(1) == [frame(mac(1), mac(0))], "forgotten with the client, so flooded"


@pytest.mark.parametrize("tpid", [0x8100, 0x88A8])
def test_vlans_are_twelve_bits_and_apart(switch: Node, tpid: int) -> None:
    with clients(switch, 3) as (a, b, c):
        b.send(frame(BROADCAST, mac(1), vlan=5, tpid=tpid))
        c.send(frame(BROADCAST, mac(1), vlan=0x405, tpid=tpid))  # the same but for the bits that stock drops
        a.received(2)
        for one in (a, b, c):
            one.received()
        for vlan, behind, other in ((5, b, c), (0x405, c, b), (0xE005, b, c)):  # the last with a priority
            sent = frame(mac(1), mac(0), vlan=vlan, tpid=tpid)
            a.send(sent)
            assert behind.received(1) == [sent]
            assert other.received() == []
        untagged = frame(mac(1), mac(0))
        a.send(untagged)
        assert b.received(1) == c.received(1) == [untagged], "not known without a tag"


def test_a_short_tagged_frame_is_in_no_other_vlan(switch: Node) -> None:
    with clients(switch, 2) as (a, b):
        b.send(frame(BROADCAST, mac(1), vlan=7))
        a.received(1)
        a.send(frame(mac(9), mac(0), vlan=7))  # leaves its tag in the row
        b.received(1)
        short = mac(1) + mac(0) + b"\x81\x00"
        a.send(short)
        assert b.received(1) == [short]
        wait_until(lambda: short in switch.heard, what="the flooded frame")


def test_entries_age(tmp_path: Path) -> None:
    with node(f"switch://{tmp_path}/sw[expiretime=1]") as switch, clients(switch, 3) as members:
        a, b, c = members
        introduce(members, switch)
        end = time.monotonic() + 2.2
        while time.monotonic() < end:  # a and b stay in use, c does not
            b.send(frame(mac(0), mac(1)))
            assert a.received(1) == [frame(mac(0), mac(1))]
            a.send(frame(mac(1), mac(0)))
            assert b.received(1) == [frame(mac(1), mac(0))]
            time.sleep(0.02)
        a.send(frame(mac(1), mac(0)))
        assert b.received(1) == [frame(mac(1), mac(0))]
        assert c.received() == []
        a.send(frame(mac(2), mac(0)))
        assert b.received(1) == c.received(1) == [frame(mac(2), mac(0))]


def test_the_table_is_bounded_and_keeps_what_is_used(tmp_path: Path) -> None:
    with node(f"switch://{tmp_path}/sw[hashsize=128]") as switch, clients(switch, 3) as members:
        a, b, c = members
        introduce(members, switch)
        for burst in range(8):
            c.send(*(frame(mac(2), mac(1000 + 40 * burst + number)) for number in range(40)))
            b.send(frame(mac(0), mac(1)))
            while (seen := a.received(1)) and seen != [frame(mac(0), mac(1))]:
                pass
            assert seen
        for one in members:
            one.received()
        a.send(frame(mac(1), mac(0)))
        assert b.received(1) == [frame(mac(1), mac(0))]
        assert c.received() == []
        a.send(frame(mac(1000), mac(0)))
        assert len(b.received(1)) == len(c.received(1)) == 1, "the oldest of the flood are gone"
    with node(f"switch://{tmp_path}/sw[hashsize=0]") as hub, clients(hub, 3) as members:
        introduce(members, hub)
        members[0].send(frame(mac(1), mac(0)))
        assert len(members[2].received(1)) == 1, "hashsize=0 learns nothing"


def test_bursts_arrive_whole_and_in_order(switch: Node) -> None:
    """Two senders, mixed destinations and sizes: each receiver gets each sender's frames in order, byte for byte."""
    with clients(switch, 4) as members:
        introduce(members, switch)
        dice = random.Random(3)
        expected: dict[int, dict[int, list[bytes]]] = {2: {0: [], 1: []}, 3: {0: [], 1: []}}
        for number in range(300):
            for source in (0, 1):
                to = dice.choice((2, 3, 99))
                payload = number.to_bytes(4, "big") + dice.randbytes(dice.choice((0, 50, 1400, 9000)))
                one = frame(BROADCAST if to == 99 else mac(to), mac(source), payload)
                members[source].send(one)
                for receiver in (2, 3) if to == 99 else (to,):
                    expected[receiver][source].append(one)
            if number % 20 == 19:
                members[0].received(quiet=0), members[1].received(quiet=0)
                for receiver in (2, 3):
                    wanted = expected[receiver]
                    got = members[receiver].received(len(wanted[0]) + len(wanted[1]))
                    for source in (0, 1):
                        assert [one for one in got if one[6:12] == mac(source)] == wanted[source]
                        wanted[source].clear()
        assert not switch.stream.drops


def test_a_full_receiver_loses_only_its_own_frames(switch: Node) -> None:
    with clients(switch, 3) as members:
        a, slow, quick = members
        introduce(members, switch)
        count, got = 6000, []
        for number in range(count):
            a.send(frame(mac(1), mac(0), number.to_bytes(4, "big")), frame(mac(2), mac(0), number.to_bytes(4, "big")))
            got += quick.received(quiet=0)
        got += quick.received(count - len(got))
        assert [int.from_bytes(one[14:18], "big") for one in got] == list(range(count))
        wait_until(lambda: not a.received(quiet=0.05))
        late = [int.from_bytes(one[14:18], "big") for one in slow.received()]
        assert late == sorted(late), "in order"
        assert 0 < len(late) < count
        assert switch.stream.drops == {"full": count - len(late)}


class SlowHost(NullStream):
    """Takes no frames for as long as it is told so; the pump waits for a pipe that stays full."""

    def __init__(self, pipe: int) -> None:
        super().__init__()
        self.pipe: int | None = pipe
        self.taken = 0

    def writer(self) -> int | None:
        return self.pipe

    def send(self, batch: Batch, start: int = 0) -> int:
        self.taken += 0 if self.pipe is not None else batch.count - start
        return 0 if self.pipe is not None else batch.count - start


def test_a_host_that_takes_nothing_stops_nobody_else(tmp_path: Path) -> None:
    """A byte stream that is full blocks its flow in the pump; the clients talk on, and the host's loss is counted."""
    reads, writes = os.pipe2(os.O_NONBLOCK)
    try:
        while True:
            os.write(writes, bytes(4096))
    except BlockingIOError:
        pass
    stream = registry.parse(f"hub://{tmp_path}/hub").open()
    host = SlowHost(writes)
    cable = Cable(stream, host)
    stop = threading.Event()

    def pump() -> None:
        while not stop.is_set():
            cable.step(0.02)

    thread = threading.Thread(target=pump)
    thread.start()
    try:
        with Client(f"{tmp_path}/hub") as a, Client(f"{tmp_path}/hub") as b:
            for number in range(200):
                a.send(frame(mac(1), mac(0), bytes([number])))
                assert b.received(1) == [frame(mac(1), mac(0), bytes([number]))]
            wait_until(lambda: stream.drops["full"] == 200)
            host.pipe = None
            time.sleep(0.05)
            a.send(frame(mac(1), mac(0)))
            assert len(b.received(1)) == 1
            wait_until(lambda: host.taken == 1)
            assert stream.drops["full"] == 200
    finally:
        stop.set()
        thread.join()
        stream.close()
        os.close(reads)
        os.close(writes)


def test_frames_of_impossible_length_are_counted(switch: Node) -> None:
    with clients(switch, 2) as members:
        a, b = members
        introduce(members, switch)
        a.data.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 18)
        largest = frame(mac(1), mac(0), bytes(FRAME_MAX - 14))
        good = frame(mac(1), mac(0))
        a.send(b"", good[:13], good[:14], largest, largest + b"x", bytes(60000), good, b"x", good)
        assert b.received() == [good[:14], largest, good, good]
        assert switch.stream.drops == {"runt": 3, "too-big": 2}
        switch.send(b"", good)
        assert b.received() == [good]
        half = b"\x02\x07\x07\x07\x07"
        a.send(mac(5) + half, good)  # no address is learnt from half a header
        a.send(frame(half + b"\0", mac(0)))
        assert len(b.received(2)) == 2
