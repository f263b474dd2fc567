# SPDX-License-Identifier: GPL-2.0-or-later
"""cmd:// and the vdestream end with commands of every behaviour.

Shows: any fragmentation both ways; stock's readers keep in step under saturation (frames of odd length into
vde_plug's standard input, whole records for its cmd://); how a command ends is told; nothing of it stays behind.
"""

from __future__ import annotations

import fcntl
import os
import random
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.labkit import VDEXDP, require_tool
from tests.streamkit import collect, frame, holdings, offer, open_end, run_until
from vdexdp.errors import HangUp, PrivilegeError, ProtocolError, RequestError, VnlError
from vdexdp.plugins import cmd, registry
from vdexdp.plugins.base import Batch, Stream
from vdexdp.plugins.stream import GREETING, ByteStream
from vdexdp.wire.vdestream import encode

SIZES = [14, 15, 60, 61, 65, 1513, 1514, 4093, 4095, 9233, 9234]


def mixed(count: int, seed: int = 1) -> list[bytes]:
    choice = random.Random(seed).choice
    return [frame(number, max(18, choice(SIZES))) for number in range(count)]


def ending(stream: Stream, seconds: float = 3.0) -> str:
    """Why the stream hung up."""
    batch = Batch()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        due = stream.timeout()
        select.select(stream.readers(), [], [], 1 if due is None else due)
        batch.clear()
        try:
            stream.recv(batch)
        except HangUp as hang_up:
            return str(hang_up)
    pytest.fail(f"still there after {seconds} s")


@pytest.fixture
def pipes() -> Iterator[tuple[ByteStream, int, int]]:
    """A stream on two pipes, the descriptor to write what it reads, and the one to read what it writes."""
    source, to_stream = os.pipe()
    from_stream, sink = os.pipe()
    stream = ByteStream(source, sink, "the peer", own=True)
    yield stream, to_stream, from_stream
    stream.close()
    os.close(to_stream)
    os.close(from_stream)


def test_two_of_us(tmp_path: Path) -> None:
    """Exact frames of all sizes, both ways at once, once both know one another."""
    other = tmp_path / "other"
    child = " ".join([*VDEXDP, "vde_plug", f"ptp://{other}"])
    near = open_end(f"cmd://{child}")
    run_until([near], other.exists)
    far = open_end(f"ptp://{other}")
    run_until([near, far], lambda: not far.fault() and not getattr(near, "_stock"))  # noqa: B009
    frames = mixed(1000)
    for source, sink in ((near, far), (far, near)):
        for start in range(0, 1000, 50):
            part = frames[start : start + 50]
            offer(source, part)
            assert collect(sink, 5, enough=50) == part
    near.close()
    far.close()


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 1461])
def test_any_fragmentation(pipes: tuple[ByteStream, int, int], piece: int) -> None:
    stream, to_stream, _ = pipes
    frames = [frame(number, size) for number, size in enumerate((60, 61, 1514, 18, 9234, 65))]
    data = b"".join(map(encode, frames))
    data = b"\0\0" + data + encode(bytes(13)) + encode(bytes(9236)) + encode(frames[0])
    found = []
    batch = Batch()
    for start in range(0, len(data), piece):
        os.write(to_stream, data[start : start + piece])
        batch.clear()
        stream.recv(batch)
        found += [bytes(batch[index]) for index in range(len(batch))]
    assert found == [*frames, frames[0]]
    assert stream.drops == {"runt": 1, "too-big": 1}


def test_garbage(pipes: tuple[ByteStream, int, int]) -> None:
    stream, to_stream, _ = pipes
    os.write(to_stream, b"Permission denied\n")
    with pytest.raises(ProtocolError, match="not a vdestream"):
        collect(stream)


def test_padding_and_greeting(pipes: tuple[ByteStream, int, int]) -> None:
    stream, to_stream, from_stream = pipes
    offer(stream, [frame(0, 61), frame(1, 60)])
    assert os.read(from_stream, 9999) == encode(frame(0, 61) + b"\0") + encode(frame(1, 60))
    os.write(to_stream, GREETING)
    collect(stream, 0.01)
    offer(stream, [frame(0, 61)])
    assert os.read(from_stream, 9999) == GREETING + encode(frame(0, 61))


def test_records_go_whole_into_a_pipe(pipes: tuple[ByteStream, int, int]) -> None:
    """At any moment, what is in the pipe ends with a record, as stock's cmd:// needs it."""
    stream, _, from_stream = pipes
    batch = Batch()
    for number in range(64):
        batch.append(frame(number, 1514))
    taken = stream.send(batch)
    assert 0 < taken < 64
    assert stream.writer() is not None
    data = b""
    while len(data) < taken * 1516:
        data += os.read(from_stream, 9999)
    assert data == b"".join(encode(batch[index]) for index in range(taken))
    assert taken * 1516 > 40000, "and the pipe was filled"


@pytest.mark.parametrize("size", [65, 1513])
def test_stock_reader_keeps_in_step(tmp_path: Path, size: int) -> None:
    """As many frames as it can take into stock vde_plug's standard input; each comes out whole and in order."""
    link = tmp_path / "p"
    stock = open_end(f"cmd://{require_tool('vde_plug')} ptp://{link}")
    run_until([stock], link.exists)
    far = open_end(f"ptp://{link}")
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.extend(collect(far, 20, enough=20000)))
    reader.start()
    offer(stock, [frame(number, size) for number in range(20000)])
    reader.join()
    assert found == [frame(number, size) + b"\0" for number in range(20000)]
    stock.close()
    far.close()


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("exit 0", "cmd://sh ended with status 0"),
        ("exit 3", "cmd://sh ended with status 3"),
        ("kill -9 $$", "cmd://sh was ended by signal 9, Killed"),
        ("sleep 60 & exit 4", "cmd://sh ended with status 4"),
        ("exec >&-; sleep 60", "cmd://sh has closed its end of the stream"),
        ("exec >&-; sleep 0.1; exit 5", "cmd://sh ended with status 5"),
    ],
)
def test_the_end(script: str, message: str, capfd: pytest.CaptureFixture[str]) -> None:
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    before = children.read_text()
    stream = open_end(f"cmd://sh -c '{script}'")
    assert ending(stream) == message
    told = capfd.readouterr().err
    assert (message in told) == (" ended" in message and "status 0" not in message)
    stream.close()
    assert children.read_text() == before, "no zombie"


def test_last_frames_come_before_the_end() -> None:
    octal = "".join(f"\\{byte:03o}" for byte in encode(frame(1)))
    stream = open_end(f"cmd://sh -c 'printf \"{octal}{octal}\"; exit 7'".replace("\\", "\\\\"))
    assert collect(stream, 1) == [frame(1)] * 2
    assert ending(stream) == "cmd://sh ended with status 7"
    stream.close()


def test_a_command_that_reads_no_more() -> None:
    stream = open_end("cmd://sh -c 'exec <&-; sleep 0.2; exit 6'")
    time.sleep(0.1)
    assert offer(stream, mixed(100)) == 100
    assert stream.drops["no-peer"] > 0
    assert ending(stream) == "cmd://sh ended with status 6"
    stream.close()


def test_the_whole_group_goes(tmp_path: Path) -> None:
    """Also what ignores SIGTERM, and what was started behind the command's back."""
    pids = tmp_path / "pids"
    stream = open_end(f"""cmd://sh -c 'trap "" TERM; sleep 60 & echo $! $$ >{pids}; sleep 60; sleep 60'""")
    run_until([stream], lambda: pids.exists() and pids.read_text().endswith("\n"))
    started = time.monotonic()
    stream.close()
    assert time.monotonic() - started < 4

    def gone(pid: str) -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"  # waits for an init that is none of ours
        except OSError:
            return True

    run_until([], lambda: all(map(gone, pids.read_text().split())))


def test_stderr_passes_through_and_arguments_are_words(capfd: pytest.CaptureFixture[str]) -> None:
    words = r"""a\ b 'c "d' "e 'f" "" $HOME ;"""
    stream = open_end(f"""cmd://{sys.executable} -c 'import sys; print(sys.argv[1:], file=sys.stderr)' {words}""")
    ending(stream)
    stream.close()
    assert capfd.readouterr().err.strip() == repr(["a b", 'c "d', "e 'f", "", "$HOME", ";"])


def test_what_can_t_be_run(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="command not found"):
        open_end("cmd://no-such-command-anywhere")
    (tmp_path / "data").write_text("")
    with pytest.raises(PrivilegeError, match="may not be executed"):
        open_end(f"cmd://{tmp_path}/data")
    for vnl in ("cmd://", "cmd://   ", "cmd://sh 'x"):
        with pytest.raises(VnlError):
            registry.parse(vnl)


@pytest.mark.parametrize("size", [cmd.PIPE_SIZE, -1])
def test_pipes_are_large_where_they_may_be(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel refuses a size of -1, as it does any other to a user who has too many pages in pipes."""
    monkeypatch.setattr(cmd, "PIPE_SIZE", size)
    stream = open_end("cmd://cat")
    assert isinstance(stream, ByteStream)
    sizes = [fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ) for fd in (stream.source, stream.sink)]
    stream.close()
    assert sizes == [1 << 20, 1 << 20] if size > 0 else max(sizes) < 1 << 20


def test_1000_commands() -> None:
    before: tuple[list[str], int] = ([], 0)
    for number in range(1000):
        if number == 50:
            before = holdings()
        stream = open_end("cmd:///bin/true")
        ending(stream)
        stream.close()
    kinds, memory = holdings()
    assert kinds == before[0]
    assert memory < before[1] + 2000


def test_stock_parent_ours_saturated_child(tmp_path: Path) -> None:
    """Stock's cmd:// reads length and frame at once or loses its way; 20,000 frames through it come out whole."""
    near, far = tmp_path / "near", tmp_path / "far"
    child = " ".join([*VDEXDP, "vde_plug", f"ptp://{far}"])
    stock = subprocess.Popen([require_tool("vde_plug"), f"ptp://{near}", f"cmd://{child}"], stderr=subprocess.DEVNULL)
    try:
        run_until([], far.exists)
        inside, outside = open_end(f"ptp://{far}"), open_end(f"ptp://{near}")
        run_until([inside, outside], lambda: not inside.fault() and not outside.fault())
        found: list[bytes] = []
        done = threading.Event()

        def read() -> None:
            while not done.is_set():
                found.extend(collect(outside, 0.2))

        reader = threading.Thread(target=read)
        reader.start()
        for start in range(0, 20000, 100):
            offer(inside, [frame(number, 1514) for number in range(start, start + 100)])
            time.sleep(0.002)
        done.set()
        reader.join()
        numbers = [int.from_bytes(each[14:18], "big") for each in found]
        assert all(each == frame(number, 1514) for each, number in zip(found, numbers, strict=True))
        assert numbers == sorted(set(numbers)), "in order"
        assert len(found) + inside.drops["full"] > 15000
        assert len(found) > 3000
        inside.close()
        outside.close()
    finally:
        stock.terminate()
        stock.wait()
