# SPDX-License-Identifier: GPL-2.0-or-later
"""``vdexdp wirefilter`` beside stock wirefilter, on the same pipes, and ``wirefilter://`` around a stream.

Shows that both count lengths alike, blink alike and answer a management client alike; that the filter delays, passes
one way or both, obeys its console, its rc file and its management socket; that frames keep flowing to the right while
nobody takes those from there; and that it leaves no file behind.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.labkit import VDEXDP, require_tool
from vdexdp.errors import VnlError
from vdexdp.lab import wait_until
from vdexdp.plugins import registry
from vdexdp.plugins.base import Batch, Stream
from vdexdp.wirefilter.filter import FilterStream

TOOLS = {"ours": (*VDEXDP, "wirefilter"), "stock": ("wirefilter",)}
both = pytest.mark.parametrize("tool", TOOLS.values(), ids=TOOLS)


def frame(size: int, fill: int = 0) -> bytes:
    return bytes([fill]) * size


class Running:
    """A filter between pipes: the left end on its stdin and stdout, the right one on its alternate descriptors."""

    def __init__(self, argv: tuple[str, ...], mono: bool) -> None:
        require_tool(argv[0])
        pipes = {name: os.pipe() for name in ("left_in", "left_out", "right_in", "right_out")}
        inner = {
            0: pipes["left_in"][0],
            1: pipes["left_out"][1],
            10: pipes["right_in"][0],
            11: pipes["right_out"][1],
        }
        alternate = {"ALTERNATE_STDIN": "10", "ALTERNATE_STDOUT": "11"}
        self.pid = os.posix_spawnp(
            argv[0],
            argv,
            {**os.environ, **({} if mono else alternate)},
            file_actions=[(os.POSIX_SPAWN_DUP2, here, there) for there, here in inner.items()],
        )
        for fd in inner.values():
            os.close(fd)
        self.into = {"left": pipes["left_in"][1], "right": pipes["right_in"][1]}
        self.out = {"left": pipes["left_out"][0], "right": pipes["right_out"][0]}
        self.status: int | None = None

    def send(self, side: str, *frames: bytes) -> None:
        os.write(self.into[side], b"".join(len(one).to_bytes(2, "big") + one for one in frames))

    def received(self, side: str, wait: float = 2.0) -> bytes:
        """The next frame; empty for none."""
        fd = self.out[side]
        if not select.select([fd], [], [], wait)[0]:
            return b""
        return os.read(fd, int.from_bytes(os.read(fd, 2), "big"))

    def close(self) -> int:
        for fd in (*self.into.values(), *self.out.values()):
            os.close(fd)
        self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.status


@contextmanager
def running(tool: tuple[str, ...], *options: str, mono: bool = False) -> Iterator[Running]:
    made = Running((*tool, *options), mono)
    try:
        yield made
    finally:
        assert made.close() == 0


class Manager:
    """A client of the management socket."""

    def __init__(self, path: Path) -> None:
        wait_until(path.exists, what=str(path))
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(str(path))
        self.socket.settimeout(3)
        self.banner = self._until_prompt()

    def _until_prompt(self) -> str:
        text = b""
        while not text.endswith(b"\nVDEwf$ "):
            data = self.socket.recv(4096)
            if not data:
                break
            text += data
        return text.decode()

    def ask(self, line: str) -> list[str]:
        self.socket.send(f"{line}\n".encode())
        return self._until_prompt().removesuffix("\nVDEwf$ ").splitlines()


@both
def test_lengths_count_alike(tool: tuple[str, ...]) -> None:
    """``-m 100`` counts the two bytes of the length."""
    with running(tool, "-m", "100") as filter:
        filter.send("left", frame(99), frame(98, 1), frame(100), frame(60, 2))
        assert filter.received("right") == frame(98, 1)
        assert filter.received("right") == frame(60, 2)
        filter.send("right", frame(99), frame(98, 3))
        assert filter.received("left") == frame(98, 3)


@both
def test_one_way(tool: tuple[str, ...]) -> None:
    with running(tool, mono=True) as filter:
        filter.send("left", frame(60, 1))
        assert filter.received("left") == frame(60, 1)


@both
def test_delay_per_direction(tool: tuple[str, ...]) -> None:
    with running(tool, "-d", "LR150") as filter:
        filter.send("right", frame(60, 1))
        assert filter.received("left") == frame(60, 1)  # it runs
        start = time.monotonic()
        filter.send("left", frame(60, 2))
        assert filter.received("right") == frame(60, 2)
        assert 0.14 < time.monotonic() - start < 0.3
        start = time.monotonic()
        filter.send("right", frame(60, 3))
        assert filter.received("left") == frame(60, 3)
        assert time.monotonic() - start < 0.1


@both
def test_blink(tool: tuple[str, ...], tmp_path: Path) -> None:
    path = f"{tmp_path}/blink"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(path)
        listener.settimeout(3)
        with running(tool, "--blink", path, "--blinkid", "wire") as filter:
            filter.send("left", frame(60))
            assert listener.recv(100) == b"wire LR 62\n"
            filter.send("right", frame(98))
            assert listener.recv(100) == b"wire RL 100\n"


SETTINGS = (
    "loss LR5+1",
    "lostburst 3",
    "delay 100+50N",
    "dup RL2.5",
    "bandwidth 1M",
    "speed 10K",
    "noise 7",
    "mtu 1516",
)
MARKOV = ("markov-numnodes 3", "markov-time 1000000", "markov-name 1,bad", "setedge 0,1,0.25", "delay 9[1]", "fifo 0")
QUESTIONS = (
    "showinfo",
    "showinfo 1",
    "showedges 0",
    "showcurrent",
    "chanbufsize 5K",
    "loss 4[9]",
    "nonsense",
    "showinfo 9",
)


@pytest.mark.parametrize("mono", [False, True], ids=["both-ways", "one-way"])
def test_management_answers_alike(tmp_path: Path, mono: bool) -> None:
    answers = {}
    for name, tool in TOOLS.items():
        path = tmp_path / name
        with running(tool, "-M", str(path), mono=mono):
            manager = Manager(path)
            assert "wirefilter" in manager.banner
            answers[name] = [manager.ask(line) for line in (*SETTINGS, *MARKOV, *QUESTIONS)]
    for line, ours, stock in zip((*SETTINGS, *MARKOV, *QUESTIONS), answers["ours"], answers["stock"], strict=True):
        assert ours == [text.replace("weigth", "weight") for text in stock], line


def test_every_stock_command(tmp_path: Path) -> None:
    offered = {}
    for name, tool in TOOLS.items():
        with running(tool, "-M", str(tmp_path / name)):
            lines = Manager(tmp_path / name).ask("help")
            offered[name] = {line.split()[0] for line in lines[3:-2]}
    assert offered["ours"] == offered["stock"]


def test_management_socket(tmp_path: Path) -> None:
    """Mode, several clients, a trace of states, log-out, a stale socket file, shut-down."""
    path = tmp_path / "mgmt"
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()
    pidfile = tmp_path / "pid"
    filter = Running((*TOOLS["ours"], "-M", str(path), "--mgmtmode", "0620", "--pidfile", str(pidfile)), mono=False)
    wait_until(lambda: pidfile.exists() and pidfile.read_text() == f"{filter.pid}\n", what="the pid file")
    assert path.stat().st_mode & 0o777 == 0o620
    first, second = Manager(path), Manager(path)
    assert first.ask("logout") == ["1000 Success"]
    assert first.socket.recv(10) == b""
    for line in ("markov-debug 1", "markov-numnodes 2", "markov-time 20", "setedge 0,1,100", "setedge 1,0,100"):
        assert second.ask(line)[-1] == "1000 Success", line
    assert re.search(r'3801 Node 0 "" -> 1 ""', second.socket.recv(200).decode())
    second.socket.send(b"x" * 10_000)
    third = Manager(path)
    third.socket.send(b"shutdown\n")
    assert os.waitstatus_to_exitcode(os.waitpid(filter.pid, 0)[1]) == 0
    assert not path.exists()
    assert not pidfile.exists()


def test_unruly_clients(tmp_path: Path) -> None:
    """Many that come and go, one that never reads, garbage: descriptors return, others and the frames feel nothing."""
    path = tmp_path / "mgmt"
    with running(TOOLS["ours"], "-M", str(path)) as filter:
        manager = Manager(path)
        before = len(os.listdir(f"/proc/{filter.pid}/fd"))
        for _ in range(300):
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(path))
        deaf = Manager(path).socket
        deaf.settimeout(0.2)
        with contextlib.suppress(OSError):
            for _ in range(10_000):
                deaf.send(b"showinfo\n" * 10)
        Manager(path).socket.send(os.urandom(4096))
        filter.send("left", frame(60, 1))
        assert filter.received("right") == frame(60, 1)
        assert manager.ask("loss 0") == ["1000 Success"]
        deaf.close()
        wait_until(lambda: len(os.listdir(f"/proc/{filter.pid}/fd")) == before, what="as many descriptors as before")


def test_vdeterm(tmp_path: Path) -> None:
    """Stock's terminal, on a terminal, shows what it asked for."""
    require_tool("vdeterm")
    path = tmp_path / "mgmt"
    with running(TOOLS["ours"], "-M", str(path)):
        wait_until(path.exists)
        shell = (
            f"(sleep 0.3; echo 'delay 7'; sleep 0.3; echo showinfo; sleep 0.3) | script -qec 'vdeterm {path}' /dev/null"
        )
        shown = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, timeout=10, check=False).stdout
    assert "Success" in shown
    assert "Delay  L->R 7+0U   R->L 7+0U" in shown


def test_socket_in_use(tmp_path: Path) -> None:
    path = tmp_path / "mgmt"
    with running(TOOLS["ours"], "-M", str(path)):
        wait_until(path.exists)
        found = subprocess.run(
            [*TOOLS["ours"], "-M", str(path)], stdin=subprocess.PIPE, capture_output=True, text=True, check=False
        )
    assert found.returncode == 1
    assert "choose another path" in found.stderr


def test_console_and_rc(tmp_path: Path) -> None:
    """With two VNLs the terminal is a management session, and its end is the end."""
    script = tmp_path / "rc"
    script.write_text("delay 7\nnonsense\n")
    found = subprocess.run(
        [*TOOLS["ours"], "-f", str(script), "-v", "null://:null://"],
        input="showinfo\n",
        capture_output=True,
        text=True,
        timeout=10,
        check=False,
    )
    assert found.returncode == 0
    assert "Delay  L->R 7+0U   R->L 7+0U" in found.stdout
    assert 'rc: "nonsense"' in found.stderr


def test_daemon(tmp_path: Path) -> None:
    """The launcher returns when all stands, with status 0; where it can't stand, it says why."""
    path, pidfile = tmp_path / "mgmt", tmp_path / "pid"
    words = [*TOOLS["ours"], "--daemon", "--pidfile", str(pidfile), "-M", str(path), "null://", "null://"]
    first = subprocess.run(words, capture_output=True, text=True, timeout=5, check=False)
    assert (first.returncode, first.stdout + first.stderr) == (0, "")
    assert os.getsid(int(pidfile.read_text())) == int(pidfile.read_text())
    second = subprocess.run(words, capture_output=True, text=True, timeout=5, check=False)
    assert second.returncode == 1
    assert "choose another path" in second.stderr
    Manager(path).socket.send(b"shutdown\n")
    wait_until(lambda: not pidfile.exists(), what="the end of the daemon")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-d", "soon"], "not understood"),
        (["-v", "null://"], "two plugs"),
        (["null://"], "two VNLs or none"),
        (["--mgmtmode", "9", "null://", "null://"], "octal"),
        (["-f", "/nonexistent", "null://", "null://"], "No such file"),
        (["-v", "-:-"], "both ends are the same"),
    ],
)
def test_mistakes(arguments: list[str], said: str) -> None:
    found = subprocess.run([*TOOLS["ours"], *arguments], input="", capture_output=True, text=True, check=False)
    assert found.returncode in (1, 2)
    assert said in found.stderr
    assert found.stderr.count("\n") == 1


def batch_of(*frames: bytes) -> Batch:
    batch = Batch()
    for one in frames:
        batch.append(one)
    return batch


@contextmanager
def opened(options: str, path: str) -> Iterator[tuple[FilterStream, Stream]]:
    """A ``wirefilter://`` around a ptp end, and the other end of that."""
    peer = registry.parse(f"ptp://{path}").open()
    stream = registry.parse(f"wirefilter://{options}{{ptp://{path}}}").open()
    assert isinstance(stream, FilterStream)
    wait_until(lambda: received(peer) == [] and peer.fault() == "", what="the ptp")
    try:
        yield stream, peer
    finally:
        stream.close()
        peer.close()


def received(stream: Stream) -> list[bytes]:
    batch = Batch()
    stream.recv(batch)
    return [bytes(one) for one in batch]


def test_scheme_delivers_while_nobody_reads(tmp_path: Path) -> None:
    """Only chores are done, as when the other direction is blocked: frames to the right still leave in time."""
    with opened("[delay=LR50]", f"{tmp_path}/p") as (stream, peer):
        stream.send(batch_of(frame(60, 1)))
        got: list[bytes] = []
        end = time.monotonic() + 2
        while not got and time.monotonic() < end:
            select.select([*stream.chores()], [], [], 0.5)
            stream.do_chores()
            got = received(peer)
        assert got == [frame(60, 1)]


def test_scheme_speed_is_back_pressure(tmp_path: Path) -> None:
    """At 10 kB/s the second frame of 1000 bytes has to wait, and the gate opens without anybody receiving."""
    with opened("[speed=10000]", f"{tmp_path}/p") as (stream, _peer):
        batch = batch_of(frame(1000, 1), frame(1000, 2))
        start = time.monotonic()
        assert stream.send(batch) == 1
        gate = stream.writer()
        assert gate is not None
        while gate == stream.writer():
            assert not select.select([], [gate], [], 0)[1]
            select.select([*stream.chores()], [], [], 1)
            stream.do_chores()
        assert 0.09 < time.monotonic() - start < 0.3
        assert stream.send(batch, 1) == 1


def test_scheme_counts_losses(tmp_path: Path) -> None:
    with opened("[loss=100/mgmtmode=0700]", f"{tmp_path}/p") as (stream, peer):
        assert stream.send(batch_of(frame(60), frame(60))) == 2
        assert stream.drops["loss"] == 2
        assert received(peer) == []


@pytest.mark.parametrize(
    "vnl",
    [
        "wirefilter://[loss=x]{null://}",
        "wirefilter://",
        "wirefilter://here{null://}",
        "wirefilter://[delay=1[2]]{null://}",
    ],
)
def test_scheme_mistakes(vnl: str) -> None:
    with pytest.raises(VnlError):
        registry.parse(vnl)
