# SPDX-License-Identifier: GPL-2.0-or-later
"""ptp:// against peers that are written here from the protocol's description, well and badly.

Shows, on the SEQPACKET wire: the byte of welcome and that of refusal, the two seconds, stale and foreign files,
peers that die, say nothing or send garbage, a full peer, 1,000 connects; on both wires: either end first, restarts,
races.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.streamkit import collect, frame, holdings, offer, open_end, run_until
from vdexdp.errors import HostError, PrivilegeError, RequestError, VnlError
from vdexdp.plugins import registry
from vdexdp.plugins.base import OpenContext, Stream


@pytest.fixture(params=["sequenced", "datagram"])
def wire(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The wire that the installed libvdeplug speaks: Debian's is the datagram one; none is installed at all."""
    if request.param == "sequenced":
        monkeypatch.setenv("VDEPLUGIN_PATH", str(tmp_path))
    return str(request.param)


@pytest.fixture
def sequenced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VDEPLUGIN_PATH", str(tmp_path))


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "p"
    assert not [name for name in os.listdir(tmp_path) if name.startswith("p")], "a name was left behind"


class Opening:
    """``open_end`` in a thread, because it may wait for an answer that the test has to give."""

    def __init__(self, path: Path) -> None:
        self.stream: Stream | None = None
        self.error: HostError | None = None
        self._thread = threading.Thread(target=self._open, args=(path,))
        self._thread.start()

    def _open(self, path: Path) -> None:
        try:
            self.stream = open_end(f"ptp://{path}")
        except HostError as error:
            self.error = error

    @property
    def done(self) -> bool:
        return not self._thread.is_alive()

    def finish(self, *others: Stream) -> Stream | HostError:
        run_until(others, lambda: self.done)
        self._thread.join()
        result = self.stream or self.error
        assert result
        return result


def joined(path: Path, first: Stream) -> Stream:
    second = Opening(path).finish(first)
    assert isinstance(second, Stream), second
    run_until((first, second), lambda: not first.fault() and not second.fault())
    return second


def connector(path: Path) -> socket.socket:
    s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    s.settimeout(5)
    s.connect(str(path))
    return s


def listener(path: Path) -> socket.socket:
    s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    s.settimeout(5)
    s.bind(str(path))
    s.listen(1)
    return s


@pytest.mark.usefixtures("wire")
def test_frames_both_ways_and_a_third_is_refused(path: Path) -> None:
    first = open_end(f"ptp://{path}")
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert first.fault() == "no peer yet"
    second = joined(path, first)
    sizes = [14, 60, 61, 1514, 9234]
    frames = [frame(number, sizes[number % 5]) if number % 5 else bytes(14) for number in range(200)]
    for source, sink in ((first, second), (second, first)):
        assert offer(source, frames) == 200
        assert collect(sink, enough=200) == frames
    third = Opening(path).finish(first, second)
    assert isinstance(third, HostError)
    assert "already joins two ends" in third.cause
    assert not first.drops
    assert not second.drops
    first.close()
    second.close()


@pytest.mark.usefixtures("wire")
def test_mode_and_group_of_the_command_line(path: Path, root: None) -> None:
    first = open_end(f"ptp://{path}", OpenContext(mode=0o770, group="daemon"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o770
    assert path.stat().st_gid == 1
    first.close()
    with pytest.raises(RequestError, match="names no group"):
        open_end(f"ptp://{path}", OpenContext(group="no-such-group"))


@pytest.mark.usefixtures("wire")
def test_either_end_may_come_back(path: Path) -> None:
    first = open_end(f"ptp://{path}")
    second = joined(path, first)
    for _ in range(2):
        second.close()
        run_until([first], first.fault)
        assert offer(first, [frame(0)] * 3) == 3
        assert first.drops == {"no-peer": 3}
        second = joined(path, first)
        first, second = second, first
    offer(first, [frame(7)])
    assert collect(second, enough=1) == [frame(7)]
    first.close()
    second.close()


@pytest.mark.usefixtures("wire")
def test_both_at_once(path: Path) -> None:
    """However two starts interleave, also over a stale file, the two find each other."""
    for round_number in range(10):
        if round_number % 2:
            listener(path).close()
        openings = [Opening(path), Opening(path)]
        while not all(opening.done for opening in openings):
            for opening in openings:
                if opening.stream is not None:
                    collect(opening.stream, 0.01)
        ends = [opening.stream for opening in openings if opening.stream is not None]
        assert len(ends) == 2, [opening.error for opening in openings]
        run_until(ends, lambda ends=ends: not ends[0].fault() and not ends[1].fault())  # type: ignore[misc]
        for end in ends:
            end.close()


@pytest.mark.usefixtures("sequenced")
def test_the_listener_s_byte(path: Path) -> None:
    end = open_end(f"ptp://{path}")
    with connector(path) as peer, connector(path) as late:
        run_until([end], lambda: not end.fault())
        assert peer.recv(10) == b"\0"
        assert late.recv(10) == bytes([errno.EISCONN])
        assert late.recv(10) == b""
        peer.send(frame(1))
        assert collect(end, enough=1) == [frame(1)]
    run_until([end], end.fault)
    end.close()


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        (bytes([errno.EISCONN]), "already joins two ends"),
        (bytes([errno.EACCES]), "refuses: Permission denied"),
        (b"", "has hung up without an answer"),
        (None, "has not answered for 2 s"),
    ],
)
def test_a_listener_that_does_not_welcome(path: Path, answer: bytes | None, cause: str) -> None:
    server = listener(path)
    opening = Opening(path)
    peer, _ = server.accept()
    started = time.monotonic()
    if answer:
        peer.send(answer)
    elif answer is not None:
        peer.close()
    error = opening.finish()
    assert isinstance(error, HostError)
    assert cause in error.cause
    assert (time.monotonic() - started > 1.5) == (answer is None)
    peer.close()
    server.close()
    path.unlink()


def test_joins_a_listener_and_takes_its_place(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    server = listener(path)
    opening = Opening(path)
    peer, _ = server.accept()
    peer.send(b"\0")
    end = opening.finish()
    assert isinstance(end, Stream)
    monkeypatch.setenv("VDEPLUGIN_PATH", str(tmp_path))
    peer.close()
    server.close()  # killed: its file stays
    run_until([end], lambda: end.fault() == "no peer yet" and len(end.readers()) == 1)
    with connector(path) as peer:
        run_until([end], lambda: not end.fault())
        assert peer.recv(1) == b"\0"
    end.close()


@pytest.mark.usefixtures("sequenced")
def test_a_listener_whose_path_is_taken_away_starts_anew(path: Path) -> None:
    first = open_end(f"ptp://{path}")
    path.unlink()
    second = open_end(f"ptp://{path}")
    run_until((first, second), lambda: not first.fault() and not second.fault())
    first.close()
    second.close()


@pytest.mark.usefixtures("sequenced")
def test_garbage_and_silence(path: Path) -> None:
    end = open_end(f"ptp://{path}")
    with connector(path) as peer:
        for junk in (b"x", bytes(13), bytes(9235), bytes(60000)):
            peer.send(junk)
            assert collect(end, 0.05) == []
        peer.send(frame(1))
        assert collect(end) == [frame(1)]
    assert end.drops == {"runt": 2, "too-big": 2}
    run_until([end], end.fault)
    with connector(path) as silent:
        run_until([end], lambda: not end.fault())
        sent = [frame(number, 1514) for number in range(20000)]
        started = time.monotonic()
        assert offer(end, sent) == 20000, "a peer that does not read holds nobody"
        assert time.monotonic() - started < 5
        lost = end.drops["full"]
        assert 0 < lost < 20000
        assert silent.recv(1) == b"\0"
        received = [silent.recv(10000) for _ in range(20000 - lost)]
        assert received == sent[: 20000 - lost], "what was not lost came, in order"
    end.close()


@pytest.mark.usefixtures("wire")
def test_1000_connects(path: Path, wire: str) -> None:
    end = open_end(f"ptp://{path}")
    before: tuple[list[str], int] = ([], 0)
    for number in range(1100):
        if number == 100:
            before = holdings()
        if wire == "sequenced":
            connector(path).close()
        else:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
                s.connect(str(path))
                s.send(bytes(5))
        collect(end, 0.001)
    run_until([end], end.fault)
    kinds, memory = holdings()
    assert kinds == before[0]
    assert memory < before[1] + 2000
    end.close()


def test_what_is_not_a_socket(path: Path) -> None:
    path.write_text("precious")
    with pytest.raises(HostError, match="exists and is not a socket"):
        open_end(f"ptp://{path}")
    assert path.read_text() == "precious"
    path.unlink()
    path.symlink_to(path.parent / "nowhere")
    with pytest.raises(HostError, match="is a symbolic link to nothing"):
        open_end(f"ptp://{path}")
    path.unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.bind(str(path))
        other.listen()
        with pytest.raises(HostError, match="is a socket of another kind"):
            open_end(f"ptp://{path}")
    path.unlink()
    with pytest.raises(HostError, match="No such file or directory"):
        open_end(f"ptp://{path}/below")


def test_permission(path: Path, root: None) -> None:
    """As nobody, in a directory of root's."""
    path.parent.chmod(0o755)
    os.seteuid(65534)
    try:
        with pytest.raises(PrivilegeError):
            open_end(f"ptp://{path}")
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("vnl", ["ptp://", f"ptp:///{'x' * 107}", "ptp://a\0b"])
def test_no_path(vnl: str) -> None:
    with pytest.raises(VnlError):
        registry.parse(vnl)
