# SPDX-License-Identifier: GPL-2.0-or-later
"""Schemes that are not ours: the example package, installed, and C modules of libvdeplug.

Shows: an installed package's scheme works in the command and nested, with its options and mistakes; any
libvdeplug_X.so works as X:// (Debian's vdesl on a terminal, one compiled here with every behaviour), where
libvdeplug looks for it and nowhere else.
"""

from __future__ import annotations

import importlib
import os
import pty
import subprocess
import sys
import tty
from contextlib import closing
from pathlib import Path

import pytest

from tests.labkit import VDEXDP, require_tool
from tests.streamkit import collect, frame, holdings, offer, open_end, run_until
from vdexdp.errors import HangUp, HostError, VnlError
from vdexdp.plugins import registry
from vdexdp.plugins.base import Batch, NoKernelEnd, OpenContext, Parsed
from vdexdp.plugins.cmodule import find, module_path
from vdexdp.wire.vdestream import encode

EXAMPLE = Path(__file__).parent.parent / "docs" / "example-plugin"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which the example package is installed."""
    target = tmp_path_factory.mktemp("site")
    options = ["--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, "--target", target, EXAMPLE], check=True)
    return {**os.environ, "PYTHONPATH": f"{target}:{os.getcwd()}"}


def plug(environment: dict[str, str], *words: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*VDEXDP, "vde_plug", *words], input=stdin, capture_output=True, env=environment, timeout=20, check=False
    )


@pytest.mark.parametrize("nested", ["{}", "restart://1{{{}}}"])
def test_example_package(installed: dict[str, str], tmp_path: Path, nested: str) -> None:
    """Frames into a recorded command that sends them back, and what tcpdump makes of the file."""
    path = tmp_path / "frames"
    frames = [frame(number, 60 + 20 * number) for number in range(3)]
    echo = nested.format(f"record://{path}[head=64]{{cmd://head -c {sum(map(len, map(encode, frames)))}}}")
    done = plug(installed, echo, stdin=b"".join(map(encode, frames)))
    assert b"in userspace" in done.stderr
    dump = subprocess.run([require_tool("tcpdump"), "-enr", path], capture_output=True, text=True, check=True).stdout
    lines = [line for line in dump.splitlines() if "02:00:00:00:00:02 > 02:00:00:00:00:01, ethertype Unknown" in line]
    assert [line.split("length ")[1].split(":")[0] for line in lines[:3]] == ["60", "80", "100"]
    assert plug({**os.environ}, echo).returncode == 2, "without the package there is no such scheme"


def test_example_package_s_mistakes(installed: dict[str, str], tmp_path: Path) -> None:
    for vnl, status, cause in (
        ("record://{null://}", 2, "needs a file"),
        ("record:///tmp/x", 2, "needs a file"),
        ("record:///tmp/x[head=3]{null://}", 2, "head=3 is out of range"),
        ("record:///tmp/x{nosuch://}", 2, "unknown scheme"),
        (f"record://{tmp_path}/no/such{{null://}}", 1, "No such file or directory"),
    ):
        done = plug(installed, vnl)
        assert done.returncode == status
        assert cause in done.stderr.decode()
        assert b"Traceback" not in done.stderr


def test_example_package_and_a_full_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What can't be recorded passes all the same."""
    monkeypatch.syspath_prepend(EXAMPLE)
    plugin = importlib.import_module("vdexdp_record").RecordPlugin()
    stream = plugin.open(plugin.parse(Parsed("/dev/full", {}, f"ptp://{tmp_path}/p")), OpenContext())
    assert "No space left on device; recording has ended" in stream.fault()
    run_until([stream], (tmp_path / "p").exists)
    with closing(open_end(f"ptp://{tmp_path}/p")) as peer:
        run_until([stream, peer], lambda: not peer.fault())
        offer(peer, [frame(1)])
        assert collect(stream, 1, enough=1) == [frame(1)]
        offer(stream, [frame(2)])
        assert collect(peer, 1, enough=1) == [frame(2)]
    stream.close()


SOURCE = r"""
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
/* A loop: what is sent comes back.  The VNL says how to misbehave. */
struct conn { void *handle, *module; int fd[2], ctl[2]; char how; };
struct args { int port; char *group; unsigned mode; };
static void *loop_open(char *vnl, char *descr, int version, struct args *args) {
    if (*vnl == 'E') return errno = EACCES, NULL;
    if (*vnl == 'A' && (args->port != 7 || strcmp(args->group, "g") || args->mode != 0750 || version != 1
        || strncmp(descr, "who ", 4))) return errno = EINVAL, NULL;
    struct conn *c = calloc(1, sizeof(*c));
    socketpair(AF_UNIX, SOCK_SEQPACKET, 0, c->fd);
    pipe(c->ctl);
    c->how = *vnl;
    return c;
}
static ssize_t loop_recv(struct conn *c, void *buf, size_t len, int flags) {
    ssize_t got = recv(c->fd[0], buf, len, 0);
    switch (c->how) {
        case '1': return 1;
        case '0': return 0;
        case 'W': return errno = EAGAIN, -1;
        case 'X': return errno = EIO, -1;
        default: return got;
    }
}
static ssize_t loop_send(struct conn *c, const void *buf, size_t len, int flags) {
    if (c->how == 'C') write(c->ctl[1], "", 1);
    if (c->how == 'H') shutdown(c->fd[1], SHUT_RDWR), close(c->fd[1]), c->fd[1] = -1;
    if (c->how == 'R') return errno = EPERM, -1;
    return c->how == 'F' ? send(c->fd[0], buf, len, 0) : send(c->fd[1], buf, len, MSG_DONTWAIT);
}
static int loop_datafd(struct conn *c) { return c->fd[0]; }
static int loop_ctlfd(struct conn *c) { return c->ctl[0]; }
static int loop_close(struct conn *c) {
    close(c->fd[0]); close(c->ctl[0]); close(c->ctl[1]);
    if (c->fd[1] >= 0) close(c->fd[1]);
    free(c);
    return 0;
}
struct { int flags; void *open, *recv, *send, *datafd, *ctlfd, *close; } vdeplug_ops = {
    0, loop_open, loop_recv, loop_send, loop_datafd, loop_ctlfd, loop_close };
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with libvdeplug_loop.so in it."""
    directory = tmp_path_factory.mktemp("modules")
    (directory / "loop.c").write_text(SOURCE)
    command: list[str | Path] = [
        require_tool("gcc"),
        "-w",
        "-shared",
        "-fPIC",
        "-o",
        directory / "libvdeplug_loop.so",
        directory / "loop.c",
    ]
    subprocess.run(command, check=True)
    return directory


@pytest.fixture
def modules(compiled: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VDEPLUGIN_PATH", f"/nowhere:{compiled}")
    monkeypatch.setattr(registry, "_plugins", {})
    return compiled


def test_where_modules_are_found(modules: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert module_path("loop") == f"{modules}/libvdeplug_loop.so"
    assert find("vdesl") is None, "VDEPLUGIN_PATH is the only place"
    assert find("../loop") is None
    monkeypatch.delenv("VDEPLUGIN_PATH")
    assert find("loop") is None
    assert find("vdesl") is not None
    monkeypatch.setenv("LD_LIBRARY_PATH", f"{modules}")
    assert find("loop") is None, "in LD_LIBRARY_PATH it has to be in a subdirectory"
    (modules / "vdeplug").mkdir()
    (modules / "vdeplug" / "libvdeplug_loop.so").symlink_to("../libvdeplug_loop.so")
    assert find("loop") is not None
    with pytest.raises(VnlError, match="unknown scheme"):
        registry.parse("nosuchmodule://")


@pytest.mark.usefixtures("modules")
def test_module_carries_frames() -> None:
    end = registry.parse("loop://x")
    reason = end.kernel_end()
    assert isinstance(reason, NoKernelEnd)
    assert "C module" in reason.reason
    assert "libvdeplug_loop.so" in end.plugin.summary
    stream = end.open()
    for size in (14, 60, 61, 1514, 9234):
        frames = [frame(number, size) if size > 14 else bytes(14) for number in range(10)]
        offer(stream, frames)
        assert collect(stream, 1, enough=10) == frames
    offer(stream, [frame(number, 1514) for number in range(2000)])
    lost = stream.drops["full"]
    assert 0 < lost < 2000
    assert collect(stream, 2, enough=2000 - lost) == [frame(number, 1514) for number in range(2000 - lost)]
    stream.close()
    stream.close()


@pytest.mark.usefixtures("modules")
def test_module_that_has_no_room_never_waits() -> None:
    """Its own send would block; the descriptor says so beforehand."""
    stream = open_end("loop://F")
    offer(stream, [frame(number, 1514) for number in range(2000)])
    assert 0 < stream.drops["full"] < 2000
    stream.close()


@pytest.mark.usefixtures("modules")
def test_module_s_answers() -> None:
    for how in "10W":
        stream = open_end(f"loop://{how}")
        offer(stream, [frame(1)])
        assert collect(stream, 0.05) == []
        stream.close()
    with pytest.raises(HostError, match="loop://E: its C module refused it: Permission denied"):
        open_end("loop://E")
    stream = open_end("loop://X")
    offer(stream, [frame(1)])
    with pytest.raises(HostError, match="failed to receive: Input/output error"):
        collect(stream)
    stream.close()
    stream = open_end("loop://R")
    offer(stream, [frame(1)])
    assert stream.drops == {"refused": 1}
    stream.close()
    for how, cause in (("C", "the other side has closed the connection"), ("H", "hung up")):
        stream = open_end(f"loop://{how}")
        offer(stream, [frame(1)])
        with pytest.raises(HangUp, match=cause):
            stream.recv(Batch())
        stream.close()


@pytest.mark.usefixtures("modules")
def test_module_gets_what_the_command_line_says() -> None:
    open_end("loop://A", OpenContext(description="who", port=7, group="g", mode=0o750)).close()


@pytest.mark.usefixtures("modules")
def test_1000_opens_of_a_module() -> None:
    before: tuple[list[str], int] = ([], 0)
    for number in range(1100):
        if number == 100:
            before = holdings()
        stream = open_end("loop://x")
        offer(stream, [frame(1)])
        collect(stream, 0.1, enough=1)
        stream.close()
    kinds, memory = holdings()
    assert kinds == before[0]
    assert memory < before[1] + 2000


def test_vdesl_over_a_terminal() -> None:
    """Debian's libvdeplug-vdesl on one end of a terminal, ourselves on the other."""
    master, slave = pty.openpty()
    tty.setraw(master)
    line = open_end(f"vdesl://{os.ttyname(slave)}[speed=115200]")
    far = open_end(f"stream://{master},{master}")
    os.set_blocking(master, False)
    frames = [frame(number, 60 + 2 * number) for number in range(20)]
    for each in frames:
        offer(line, [each])
        assert collect(far, 2, enough=1) == [each]
        offer(far, [each])
        assert collect(line, 2, enough=1) == [each]
    line.close()
    far.close()
    os.close(slave)
    os.close(master)
    run_until([], lambda: True)
    with pytest.raises(HostError, match="No such file or directory"):
        open_end("vdesl:///dev/no-such-line")
