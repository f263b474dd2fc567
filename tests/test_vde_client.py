# SPDX-License-Identifier: GPL-2.0-or-later
"""Shows that the vde client asks as stock clients do, finds its switch, never waits for one that does not answer or
does not read, says clearly what is wrong, and leaves no name behind.

The switches here are small programs of this file, which can misbehave; tests/interop has the real ones.
"""

from __future__ import annotations

import os
import pwd
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.legacy import BROADCAST, MAGIC, Client, clients, frame, mac, node
from tests.unprivileged import NOBODY_UID
from vdexdp.errors import HangUp, HostError, PrivilegeError, ProtocolError, RequestError, VnlError
from vdexdp.lab import wait_until
from vdexdp.plugins import registry, vde
from vdexdp.plugins.base import Batch, OpenContext, Stream


class FakeSwitch:
    """Listens at ``directory/name``; hands each connection and its request to ``answer`` in a thread."""

    def __init__(self, directory: Path, answer: Callable[[FakeSwitch, socket.socket], None], name: str = "ctl") -> None:
        directory.mkdir(exist_ok=True)
        self.directory = directory
        self.requests: list[bytes] = []
        self.found: list[os.stat_result] = []
        self.data = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.data.bind(f"{directory}/001.{id(self.data)}")
        os.chmod(self.data.getsockname(), 0o777)
        self.control: socket.socket | None = None
        self._answer = answer
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(f"{directory}/{name}")
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        control, _ = self._listener.accept()
        self.control = control
        request = control.recv(256)
        if request:
            self.requests.append(request)
            self._answer(self, control)

    def connect(self) -> bytes:
        """Connect to the client's data socket; the answer that a switch gives."""
        path = os.fsdecode(self.requests[-1][14:].partition(b"\0")[0])
        self.found.append(os.stat(path))
        self.data.connect(path)
        return struct.pack("=H108s", socket.AF_UNIX, os.fsencode(self.data.getsockname()))

    def close(self) -> None:
        # A connection wakes the thread, if nobody has come.
        with socket.socket(socket.AF_UNIX) as knock:
            knock.connect_ex(self._listener.getsockname())
        if self.control:
            self.control.close()
        self._thread.join()
        self._listener.close()
        self.data.close()


def good(switch: FakeSwitch, control: socket.socket) -> None:
    control.sendall(switch.connect())


@contextmanager
def fake(
    directory: Path, answer: Callable[[FakeSwitch, socket.socket], None] = good, name: str = "ctl"
) -> Iterator[FakeSwitch]:
    switch = FakeSwitch(directory, answer, name)
    try:
        yield switch
    finally:
        switch.close()


@contextmanager
def plugged(vnl: str, context: OpenContext | None = None) -> Iterator[Stream]:
    stream = registry.parse(vnl).open(context)
    try:
        yield stream
    finally:
        stream.close()


def frames(stream: Stream, count: int = 1, timeout: float = 3.0) -> list[bytes]:
    batch = Batch()
    found: list[bytes] = []
    end = time.monotonic() + timeout
    while len(found) < count and time.monotonic() < end:
        batch.clear()
        stream.recv(batch)
        found += [bytes(one) for one in batch]
    return found


def send(stream: Stream, *what: bytes) -> None:
    batch = Batch()
    for one in what:
        batch.append(one)
    assert stream.send(batch) == len(what)


# The request


def test_the_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSH_CLIENT", "192.0.2.7 40000 22")
    with fake(tmp_path / "sw") as switch, plugged(f"vde://{tmp_path}/sw", OpenContext(description="lab")):
        magic, version, kind, family = struct.unpack_from("=IIIH", switch.requests[0])
        assert (magic, version, kind, family) == (MAGIC, 3, 0, socket.AF_UNIX)
        said = switch.requests[0][122:].decode()
        assert said == f"lab user={pwd.getpwuid(os.geteuid()).pw_name} pid={os.getpid()} SSH=192.0.2.7"
        name = switch.requests[0][14:].partition(b"\0")[0].decode()
        assert name == f"{tmp_path}/sw/.{os.getpid():05d}-00000"
    with (
        fake(tmp_path / "sx") as switch,
        plugged(f"vde://{tmp_path}/sx", OpenContext(description="x" * 200)),
    ):
        assert switch.requests[0][122:] == b"x" * 127


PORTS = [
    ("", None, 0),
    ("[5]", None, 5 << 8),
    ("[0]", None, 1),
    ("[port=5]", None, 5 << 8),
    ("[po=5]", None, 5 << 8),
    ("[portgroup=5]", 9, 5 << 8),
    ("", 9, 9 << 8),
    ("[]", 9, 9 << 8),
    ("[lan]", None, 0),
    ("[3/lan]", None, 0),
    ("[lan/3]", None, 3 << 8),
]


@pytest.mark.parametrize(("suffix", "given", "kind"), PORTS)
def test_ports(tmp_path: Path, suffix: str, given: int | None, kind: int) -> None:
    with (
        fake(tmp_path / "sw") as switch,
        plugged(f"vde://{tmp_path}/sw{suffix}", OpenContext(port=given)),
    ):
        assert struct.unpack_from("=I", switch.requests[0], 8) == (kind,)


@pytest.mark.parametrize("name", ["lan", "7"])
def test_a_port_group_has_its_own_socket(tmp_path: Path, name: str) -> None:
    with fake(tmp_path / "sw", name=name) as switch, plugged(f"vde://{tmp_path}/sw[{name}]"):
        assert struct.unpack_from("=I", switch.requests[0], 8) == (0,)


@pytest.mark.parametrize(
    ("suffix", "context", "mode", "gid"),
    [
        ("", OpenContext(), 0o700, None),
        ("", OpenContext(mode=0o660), 0o660, None),
        ("[mode=0640]", OpenContext(mode=0o660), 0o640, None),
        ("[group=1]", OpenContext(), 0o700, 1),
        ("", OpenContext(group="daemon", mode=0o770), 0o770, 1),
    ],
)
def test_mode_and_group(
    root: None, tmp_path: Path, suffix: str, context: OpenContext, mode: int, gid: int | None
) -> None:
    with fake(tmp_path / "sw") as switch, plugged(f"vde://{tmp_path}/sw{suffix}", context):
        assert stat.S_IMODE(switch.found[0].st_mode) == mode
        assert switch.found[0].st_gid == (os.getegid() if gid is None else gid)
        assert not [name for name in os.listdir(tmp_path / "sw") if name.startswith(".")], "the name is gone"


def test_a_switch_of_another_user_may_connect(root: None, public_path: Path) -> None:
    """Its group is let in for the handshake; where it is not ours to give, everybody is."""
    with fake(public_path / "sw") as switch:
        os.chown(public_path / "sw" / "ctl", NOBODY_UID, 1)
        with plugged(f"vde://{public_path}/sw"):
            assert stat.S_IMODE(switch.found[0].st_mode) == 0o770
            assert switch.found[0].st_gid == 1
    with fake(public_path / "sx") as switch:
        os.chmod(public_path / "sx" / "ctl", 0o777)
        os.chown(public_path / "sx" / "ctl", 1, 1)
        assert "connected" in as_nobody(f"vde://{public_path}/sx"), "named in /tmp, as it may not write there"
        assert stat.S_IMODE(switch.found[0].st_mode) == 0o777
        assert switch.requests[0][14:].startswith((b"/var/tmp/vde.", b"/tmp/vde."))


def as_nobody(vnl: str) -> str:
    """What becomes of opening a VNL as an unprivileged user."""
    program = f"""
import os, sys
from vdexdp.errors import VdexdpError
from vdexdp.plugins import registry, vde
end = registry.parse(sys.argv[1])
os.setgroups([]); os.setgid({NOBODY_UID}); os.setuid({NOBODY_UID})
try:
    end.open().close()
    print("connected")
except VdexdpError as error:
    print(type(error).__name__, error)
"""
    return subprocess.run([sys.executable, "-c", program, vnl], capture_output=True, text=True, check=True).stdout


def test_no_permission(root: None, public_path: Path) -> None:
    with node(f"switch://{public_path}/sw[dirmode=0755]"):
        assert as_nobody(f"vde://{public_path}/sw").startswith(
            f"PrivilegeError vde://{public_path}/sw: no permission; "
        )
    with node(f"switch://{public_path}/sw[mode=0666]"):
        assert as_nobody(f"vde://{public_path}/sw") == "connected\n"


# Finding the switch


@pytest.mark.parametrize("file", [".vdeplug/default", ".vde2/default.switch"])
def test_the_empty_vnl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / file
    path.parent.mkdir()
    with node(f"hub://{tmp_path}/sw") as hub:
        for content in (f"vde://{tmp_path}/sw\n", f"{tmp_path}/sw\nmore", f"{tmp_path}/sw"):
            path.write_text(content)
            with plugged(""):
                hub.settle(1)
            hub.settle(0)
        path.unlink()
        path.symlink_to(tmp_path / "sw")
        with plugged(""):
            hub.settle(1)


def test_fallbacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    fallbacks = (f"{tmp_path}/one", f"{tmp_path}/two")
    monkeypatch.setattr(vde, "FALLBACKS", fallbacks)
    for vnl in ("", "vde://"):
        with pytest.raises(HostError, match=f"no switch at {tmp_path}/one or {tmp_path}/two; name one"):
            registry.parse(vnl).open()
        with node(f"hub://{tmp_path}/two") as hub, plugged(vnl):
            hub.settle(1)


def test_a_vnl_in_a_file_and_a_bare_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text(f"vde://{tmp_path}/sw[3]\n")
    monkeypatch.chdir(tmp_path)
    with node(f"hub://{tmp_path}/sw") as hub:
        for vnl in (f"{tmp_path}/file", "file", f"{tmp_path}/sw", "sw", "vde://sw", "./sw[2]"):
            with plugged(vnl):
                hub.settle(1)
            hub.settle(0)


def test_no_switch(tmp_path: Path) -> None:
    path = tmp_path / "sw"
    with pytest.raises(HostError, match=f"vde://{path}: no switch there; start one, for instance: vdexdp vde_plug"):
        registry.parse(f"vde://{path}").open()
    path.mkdir()
    with pytest.raises(HostError, match="no switch there"):
        registry.parse(f"vde://{path}").open()
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(f"{path}/ctl")
    with pytest.raises(HostError, match="nobody serves this switch any more; start it again"):
        registry.parse(f"vde://{path}").open()
    (tmp_path / ("x" * 108)).mkdir()
    with pytest.raises(RequestError, match="too long for the name of a socket"):
        registry.parse(f"vde://{tmp_path}/{'x' * 108}").open()
    for bad in ("[group=no-such-group]", "[mode=9]", "[colour=red]", "[a/b=c]", "[%2Fetc]"):
        with pytest.raises(VnlError):
            registry.parse(f"vde://{path}{bad}")


# Switches that misbehave


def silent(switch: FakeSwitch, control: socket.socket) -> None:
    return


def half(switch: FakeSwitch, control: socket.socket) -> None:
    control.sendall(switch.connect()[:50])


def refusing(switch: FakeSwitch, control: socket.socket) -> None:
    control.close()


def talking_nonsense(switch: FakeSwitch, control: socket.socket) -> None:
    control.sendall(b"\xff" * 110)


def naming_nothing(switch: FakeSwitch, control: socket.socket) -> None:
    control.sendall(struct.pack("=H108s", socket.AF_UNIX, b"/nonexistent/socket"))


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (silent, HostError, "no answer from the switch within 0.4 s; it hangs"),
        (half, HostError, "no answer from the switch within 0.4 s; it hangs"),
        (refusing, HostError, "the switch refused the port; it is taken"),
        (talking_nonsense, ProtocolError, "address family 65535"),
        (naming_nothing, HostError, "No such file or directory"),
    ],
)
def test_bad_answers(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    answer: Callable[[FakeSwitch, socket.socket], None],
    error: type[HostError],
    message: str,
) -> None:
    monkeypatch.setattr(vde, "ANSWER_TIMEOUT", 0.4)
    descriptors = len(os.listdir("/proc/self/fd"))
    with fake(tmp_path / "sw", answer) as switch:
        start = time.monotonic()
        with pytest.raises(error, match=message):
            registry.parse(f"vde://{tmp_path}/sw").open()
        assert time.monotonic() - start < 2
        assert switch.requests
        assert not [name for name in os.listdir(tmp_path / "sw") if name.startswith(".")]
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_a_stock_node_never_answers_for_port_0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vde, "ANSWER_TIMEOUT", 0.4)
    stock = subprocess.Popen(["vde_plug", "null://", f"hub://{tmp_path}/hub"])
    try:
        wait_until(lambda: os.path.exists(f"{tmp_path}/hub/ctl"))
        with pytest.raises(HostError, match="stock's netnodes never answer a request for port 0; leave the port out"):
            registry.parse(f"vde://{tmp_path}/hub[0]").open()
    finally:
        stock.terminate()
        stock.wait()


def test_a_switch_that_accepts_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vde, "ANSWER_TIMEOUT", 0.4)
    (tmp_path / "sw").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{tmp_path}/sw/ctl")
        listener.listen(0)
        queue = [socket.socket(socket.AF_UNIX) for _ in range(4)]
        for one in queue:
            one.setblocking(False)
            one.connect_ex(f"{tmp_path}/sw/ctl")
        with pytest.raises(HostError, match="the switch takes no new connections"):
            registry.parse(f"vde://{tmp_path}/sw").open()
        for one in queue:
            one.close()


def test_hang_up_comes_after_the_last_frame(tmp_path: Path) -> None:
    with node(f"hub://{tmp_path}/hub") as hub, plugged(f"vde://{tmp_path}/hub") as stream:
        last = frame(BROADCAST, mac(1))
        hub.send(*[last] * 64)
        hub.send(*[last] * 36)
        hub.close()
        assert frames(stream, 100) == [last] * 100
        with pytest.raises(HangUp, match="the switch has closed the port"):
            frames(stream)
        send(stream, last)
        assert stream.drops == {"refused": 1}


def test_a_switch_that_does_not_read(tmp_path: Path) -> None:
    with fake(tmp_path / "sw") as switch, plugged(f"vde://{tmp_path}/sw") as stream:
        batch = Batch()
        count, start = 100, time.monotonic()
        for number in range(count):
            batch.clear()
            for index in range(64):
                batch.append(frame(mac(1), mac(2), (64 * number + index).to_bytes(4, "big")))
            assert stream.send(batch) == 64
        assert time.monotonic() - start < 2
        switch.data.setblocking(False)
        arrived = 0
        while True:
            try:
                assert int.from_bytes(switch.data.recv(100)[14:18], "big") == arrived, "the first ones, in order"
            except BlockingIOError:
                break
            arrived += 1
        assert 100 < arrived < 64 * count
        assert stream.drops == {"full": 64 * count - arrived}


# Names


def test_leftovers_of_killed_clients(tmp_path: Path) -> None:
    """A client killed in the handshake leaves a name; the next client removes it, but none that may be in use."""
    with node(f"hub://{tmp_path}/hub") as hub:
        dead, newborn, live = (f"{hub.directory}/.{pid:05d}-00000" for pid in (11, 12, 13))
        ends = []
        for name in (dead, newborn, live):
            end = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            end.bind(name)
            ends.append(end)
        for end in ends[:2]:
            end.close()
        for name in (dead, live):
            os.utime(name, (time.time() - 60, time.time() - 60))
        Path(f"{hub.directory}/.00014-00000").write_text("no socket")
        with plugged(f"vde://{hub.directory}"):
            hub.settle(1)
        assert [os.path.exists(name) for name in (dead, newborn, live)] == [False, True, True]
        os.unlink(f"{hub.directory}/.00014-00000")
    ends[2].close()
    assert not os.path.exists(f"{tmp_path}/hub"), "a node that closes takes them all"


def test_a_taken_name(tmp_path: Path) -> None:
    with node(f"hub://{tmp_path}/hub") as hub:
        taken = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        taken.bind(f"{hub.directory}/.{os.getpid():05d}-00000")
        with plugged(f"vde://{hub.directory}") as stream, Client(hub.directory) as other:
            send(stream, frame(BROADCAST, mac(1)))
            assert other.received(1) == [frame(BROADCAST, mac(1))]
        taken.close()


def test_open_and_close_leave_nothing(tmp_path: Path) -> None:
    with node(f"switch://{tmp_path}/sw") as switch, clients(switch, 1) as (peer,):
        descriptors = len(os.listdir("/proc/self/fd"))
        for number in range(200):
            stream = registry.parse(f"vde://{tmp_path}/sw").open()
            send(stream, frame(BROADCAST, mac(number)))
            stream.close()
            stream.close()
            switch.settle(1)
        assert len(peer.received(200)) == 200
        wait_until(lambda: len(os.listdir("/proc/self/fd")) == descriptors, what="all descriptors to be closed")
        assert len(os.listdir(switch.directory)) == 2


def test_two_nodes_and_a_cable(tmp_path: Path) -> None:
    """Jumbo and minimal frames through client, switch, client, byte for byte, both ways at once."""
    with (
        node(f"switch://{tmp_path}/sw"),
        plugged(f"vde://{tmp_path}/sw") as left,
        plugged(f"vde://{tmp_path}/sw") as right,
    ):
        sizes = [14, 15, 60, 1514, 9018, 9234]
        there = [(mac(2) + mac(1) + b"\x88\xb5" + os.urandom(9234))[:size] for size in sizes]
        back = [(mac(1) + mac(2) + b"\x88\xb5" + os.urandom(9234))[:size] for size in sizes]
        send(left, *there)
        send(right, *back)
        assert frames(right, len(sizes)) == there
        assert frames(left, len(sizes)) == back
        with pytest.raises(PrivilegeError if os.geteuid() else HostError):
            registry.parse("vde:///proc/1").open()
