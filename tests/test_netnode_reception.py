# SPDX-License-Identifier: GPL-2.0-or-later
"""Shows that a node takes every client that the protocol knows; that no client, whatever it sends or omits, harms the
node or the others; and that those that are gone leave nothing in the process.

All with real sockets; some tests need root.
"""

from __future__ import annotations

import gc
import os
import resource
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.legacy import BROADCAST, Client, Node, clients, connect, frame, introduce, mac, node, request_v1, request_v3
from tests.unprivileged import NOBODY_UID
from vdexdp.lab import wait_until
from vdexdp.plugins import reception

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

    gc.collect()  # what failed tests have left
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
