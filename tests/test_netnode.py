# SPDX-License-Identifier: GPL-2.0-or-later
"""Shows that our nodes forward as hub, switch, multi and bonding should, to the byte and in order; that no client,
whatever it sends or omits, harms the node or the others; and that nothing stays behind, in the file system or in the
process.

All with real sockets in this process; some tests need root.
"""

from __future__ import annotations

import gc
import grp
import os
import random
import resource
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.legacy import BROADCAST, Client, Node, clients, connect, frame, mac, node, request_v1, request_v3
from vdexdp.cable import Cable
from vdexdp.errors import HostError, PrivilegeError, RequestError, VnlError
from vdexdp.lab import wait_until
from vdexdp.plugins import reception, registry
from vdexdp.plugins.base import FRAME_MAX, Batch, OpenContext
from vdexdp.plugins.null import NullStream

NOBODY_UID = 65534


@pytest.fixture
def switch(tmp_path: Path) -> Iterator[Node]:
    with node(f"switch://{tmp_path}/sw") as made:
        yield made


@pytest.fixture
def public_path() -> Iterator[Path]:
    """A directory that other users can reach; pytest's own is closed to them."""
    with tempfile.TemporaryDirectory(prefix="vdexdp-test-") as path:
        os.chmod(path, 0o755)
        yield Path(path)


def introduce(members: list[Client], at: Node) -> None:
    """Let the switch learn mac(i) behind client i, and empty all queues."""
    for number, member in enumerate(members):
        member.send(frame(BROADCAST, mac(number)))
    wait_until(lambda: len(at.heard) >= len(members))
    for member in members:
        member.received()
    at.heard.clear()


# Forwarding


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


# Clients of all kinds


REQUESTS = [(3, 0), (3, 1), (3, 7 << 8), (3, 0xFFFF << 8), (1, 0), (1, 1)]  # version, type: any, port 0, 7, 65535


@pytest.mark.parametrize(("version", "kind"), REQUESTS)
def test_requests(switch: Node, version: int, kind: int) -> None:
    name = f"{switch.directory}/.{os.getpid():05d}-{Client._count + 1:05d}"
    request = (request_v1 if version == 1 else request_v3)(name, kind, "schön".encode())
    with Client(switch.directory, request=request) as client, Client(switch.directory) as other:
        assert Path(client.peer).parent == Path(switch.directory)
        assert Path(client.peer).name.startswith("fd")
        assert switch.stream.ports[0].description == "schön"
        client.send(frame(BROADCAST, mac(1)))
        assert len(other.received(1)) == 1


def test_a_request_in_pieces(switch: Node) -> None:
    name = f"{switch.directory}/.{os.getpid():05d}-{Client._count + 1:05d}"
    request = request_v3(name, description=b"d" * 128)
    pieces = [request[:1], request[1:9], request[9:121], request[121:130], request[130:]]
    with Client(switch.directory, pieces) as client, Client(switch.directory) as other:
        client.send(frame(BROADCAST, mac(1)))
        assert len(other.received(1)) == 1


def closed(control: socket.socket, timeout: float = 2.0) -> bool:
    """Whether the node hangs up."""
    control.settimeout(timeout)
    try:
        return control.recv(1) == b""
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False


GARBAGE = {
    "text": b"GET / HTTP/1.0\r\n\r\n",
    "zeros": bytes(256),
    "version 2": request_v3("/x").replace(b"\x03\0\0\0", b"\x02\0\0\0", 1),
    "unknown type": request_v3("/x", kind=2),
    "no path": request_v3(""),
    "abstract": request_v3("\0abstract"),
    "missing": request_v3("/nonexistent/socket"),
    "a directory": request_v3("/tmp"),
    "a file": request_v3("/etc/passwd"),
    "path without end": request_v3("x" * 108),
    "flood": b"\xce\xfa\xed\xfe" * 100000,
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE.keys())
def test_garbage_on_the_control_socket(switch: Node, garbage: bytes) -> None:
    with clients(switch, 2) as members:
        introduce(members, switch)
        with connect(switch.directory) as control:
            control.settimeout(2)
            try:
                control.sendall(garbage)
            except OSError:
                pass  # hung up in the middle
            assert closed(control)
        members[0].control.sendall(b"garbage")  # behind a good request: borne, up to a limit
        members[0].send(frame(mac(1), mac(0)))
        assert len(members[1].received(1)) == 1
        try:
            members[0].control.sendall(bytes(100000))
        except OSError:
            pass
        assert closed(members[0].control)
        switch.settle(1)


def test_silent_clients_are_few_and_not_for_ever(switch: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reception, "HANDSHAKE_TIMEOUT", 0.5)
    silent = [connect(switch.directory) for _ in range(reception.HALF_OPEN_MAX)]
    silent[-1].sendall(request_v3("/x")[:50])
    time.sleep(0.1)
    with clients(switch, 2) as members:  # each of them closes the oldest
        assert closed(silent[0])
        assert closed(silent[1])
        introduce(members, switch)
        assert closed(silent[2]), "by time"
        assert all(closed(one) for one in silent[3:])
        members[0].send(frame(mac(1), mac(0)))
        assert len(members[1].received(1)) == 1
    for one in silent:
        one.close()


def test_a_client_can_only_name_its_own_socket(root: None, public_path: Path) -> None:
    victim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    victim.bind(f"{public_path}/victim")
    os.chmod(f"{public_path}/victim", 0o600)
    program = f"""
import os, socket, sys
os.setgroups([]); os.setgid({NOBODY_UID}); os.setuid({NOBODY_UID})
control = socket.socket(socket.AF_UNIX)
control.connect(sys.argv[1])
control.sendall(bytes.fromhex(sys.argv[2]))
print(len(control.recv(110)))
"""
    with node(f"hub://{public_path}/hub[mode=0666]") as hub:
        argument = request_v3(f"{public_path}/victim").hex()
        result = subprocess.run(
            [sys.executable, "-c", program, f"{hub.directory}/ctl", argument],
            capture_output=True,
            text=True,
            check=True,
        )
        assert result.stdout == "0\n", "refused"
        assert not hub.stream.ports
        hub.send(frame(BROADCAST, mac(1)))
    victim.setblocking(False)
    with pytest.raises(BlockingIOError):
        victim.recv(100)
    victim.close()


def test_clients_that_die(switch: Node) -> None:
    """A client killed in mid-traffic is gone at once, and its name with it; the others feel nothing."""
    program = """
import sys
from tests.legacy import Client, frame, mac, BROADCAST
client = Client(sys.argv[1])
client.send(frame(BROADCAST, mac(50)))
print("ready", flush=True)
while True:
    client.send(frame(mac(51), mac(50)))
    client.received(quiet=0)
"""
    with clients(switch, 2) as members:
        introduce(members, switch)
        for _ in range(3):
            victim = subprocess.Popen([sys.executable, "-c", program, switch.directory], stdout=subprocess.PIPE)
            assert victim.stdout
            assert victim.stdout.readline() == b"ready\n"
            switch.settle(3)
            victim.kill()
            victim.wait()
            victim.stdout.close()
            switch.settle(2)
            for member in members:
                member.received()
            members[0].send(frame(mac(1), mac(0)))
            assert members[1].received(1) == [frame(mac(1), mac(0))]
    wait_until(lambda: os.listdir(switch.directory) == ["ctl"])


def rss() -> int:
    """Resident memory in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_a_thousand_clients_come_and_go(switch: Node) -> None:
    def visit(count: int) -> None:
        for number in range(count):
            with Client(switch.directory) as client:
                client.send(frame(BROADCAST, mac(number % 500)))
            switch.settle(0)
            switch.heard.clear()
        gc.collect()

    descriptors = len(os.listdir("/proc/self/fd"))
    visit(300)
    memory = rss()
    visit(1000)
    wait_until(lambda: len(os.listdir("/proc/self/fd")) == descriptors, what="all descriptors to be closed")
    assert rss() - memory < 1 << 20
    assert os.listdir(switch.directory) == ["ctl"]


def test_out_of_descriptors(switch: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """New clients wait, those that are plugged go on, and the node says what is wrong."""
    monkeypatch.setattr(reception, "PAUSE", 0.2)
    with clients(switch, 2) as members:
        introduce(members, switch)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        late = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        top = max(int(name) for name in os.listdir("/proc/self/fd")) + 1
        fillers = []
        resource.setrlimit(resource.RLIMIT_NOFILE, (top, hard))
        try:
            while True:
                try:
                    fillers.append(os.open("/dev/null", os.O_RDONLY))
                except OSError:
                    break
            late.connect(f"{switch.directory}/ctl")
            wait_until(lambda: switch.stream.fault() == "no descriptors left for new clients")
            members[0].send(frame(mac(1), mac(0)))
            assert len(members[1].received(1)) == 1
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for filler in fillers:
                os.close(filler)
        wait_until(lambda: not switch.stream.fault())
        late.sendall(b"at last")
        assert closed(late), "accepted, then refused for its nonsense"
        late.close()


# The directory


def permissions(path: str) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


MODES = [
    ("", None, 0o600, 0o2700),
    ("[mode=0660]", None, 0o660, 0o2770),
    ("[mode=0777]", None, 0o666, 0o2777),
    ("[mode=0644]", None, 0o644, 0o2755),
    ("[mode=0660/dirmode=0750]", None, 0o660, 0o750),
    ("[dirmode=02711]", None, 0o600, 0o2711),
    ("", 0o770, 0o660, 0o2770),
    ("[mode=0600]", 0o770, 0o600, 0o2700),
]


@pytest.mark.parametrize(("options", "given", "mode", "dirmode"), MODES)
def test_modes(tmp_path: Path, options: str, given: int | None, mode: int, dirmode: int) -> None:
    before = os.umask(0o077)
    try:
        with node(f"hub://{tmp_path}/hub{options}", OpenContext(mode=given)) as hub:
            assert permissions(hub.directory) == dirmode
            assert permissions(f"{hub.directory}/ctl") == mode
            with Client(hub.directory) as client:
                assert permissions(client.peer) == mode
    finally:
        os.umask(before)
    assert not os.path.exists(f"{tmp_path}/hub")


@pytest.mark.parametrize(("options", "given"), [("[grp=games]", None), ("", "games"), ("[grp=games]", "daemon")])
def test_group(root: None, tmp_path: Path, options: str, given: str | None) -> None:
    games = grp.getgrnam("games").gr_gid
    with (
        node(f"hub://{tmp_path}/hub{options}", OpenContext(group=given)) as hub,
        Client(hub.directory) as client,
    ):
        assert {os.stat(path).st_gid for path in (hub.directory, f"{hub.directory}/ctl", client.peer)} == {games}
        assert permissions(hub.directory) == 0o2700, "changing the group leaves setgid alone"


def test_standard_path() -> None:
    import pwd

    path = f"/tmp/vdenode_{pwd.getpwuid(os.geteuid()).pw_name}"
    with node("hub://") as hub:
        assert hub.directory == path
        assert permissions(path) == 0o2700


def test_a_directory_is_served_once(tmp_path: Path) -> None:
    path = f"{tmp_path}/sw"
    with node(f"switch://{path}") as switch, clients(switch, 2) as (a, b):
        for scheme in ("switch", "hub"):
            with pytest.raises(HostError, match="another switch is being served there"):
                registry.parse(f"{scheme}://{path}").open()
        a.send(frame(BROADCAST, mac(1)))
        assert len(b.received(1)) == 1
    assert not os.path.exists(path)


def test_a_stock_switch_is_not_taken_over(tmp_path: Path) -> None:
    path = f"{tmp_path}/sw"
    stock = subprocess.Popen(["vde_plug", "null://", f"hub://{path}"])
    try:
        wait_until(lambda: os.path.exists(f"{path}/ctl"))
        with pytest.raises(HostError, match="another switch is being served there"):
            registry.parse(f"switch://{path}").open()
        with Client(path):
            pass
    finally:
        stock.terminate()
        stock.wait()


def test_a_dead_node_is_taken_over(tmp_path: Path) -> None:
    """After SIGKILL of a node with clients, of our own kind and of stock's, a plain restart works at once."""
    path = f"{tmp_path}/sw"
    ours = [
        sys.executable,
        "-c",
        f"import time; from tests.legacy import Node; Node('switch://{path}'); time.sleep(60)",
    ]
    for command in (ours, ["vde_plug", "null://", f"hub://{path}"]):
        victim = subprocess.Popen(command)
        wait_until(lambda: os.path.exists(f"{path}/ctl"))
        client = Client(path)
        victim.kill()
        victim.wait()
        client.close()
        leftover = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        leftover.bind(f"{path}/.00001-00000")
        leftover.close()
        assert len(os.listdir(path)) == 3
        with node(f"switch://{path}") as switch, clients(switch, 2) as (a, b):
            a.send(frame(BROADCAST, mac(1)))
            assert len(b.received(1)) == 1
        assert not os.path.exists(path)


def test_directories_that_are_not_ours(tmp_path: Path) -> None:
    occupied, file, link = tmp_path / "occupied", tmp_path / "file", tmp_path / "link"
    occupied.mkdir(0o755)
    (occupied / "letter").write_text("dear")
    file.write_text("")
    link.symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    long = "x" * 100
    for path, error, message in (
        (occupied, RequestError, 'holds "letter", which is no VDE socket'),
        (file, RequestError, "is not a directory"),
        (link, RequestError, "is not a directory"),
        (tmp_path / "no" / "where", HostError, "No such file or directory; create the directory first"),
        (tmp_path / long, RequestError, "too long for the name of a socket"),
        ("/", RequestError, "can't be made a switch"),
    ):
        with pytest.raises(error, match=message):
            registry.parse(f"switch://{path}").open()
    assert permissions(str(occupied)) == 0o755
    assert os.listdir(occupied) == ["letter"]
    assert not (tmp_path / long).exists()


def test_a_directory_of_another_user(root: None, tmp_path: Path) -> None:
    path = tmp_path / "sw"
    path.mkdir()
    os.chown(path, NOBODY_UID, -1)
    with pytest.raises(PrivilegeError, match=f"belongs to user {NOBODY_UID}"):
        registry.parse(f"switch://{path}").open()


@pytest.mark.parametrize(
    "options", ["mode=9", "mode=10000", "grp=no-such-group", "hashsize=-1", "expiretime=x", "colour=red"]
)
def test_bad_options(options: str) -> None:
    with pytest.raises(VnlError):
        registry.parse(f"switch:///tmp/never[{options}]")


def test_unknown_group_on_the_command_line(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no-such-group: no such group"):
        registry.parse(f"hub://{tmp_path}/hub").open(OpenContext(group="no-such-group"))
    assert not os.path.exists(f"{tmp_path}/hub")
