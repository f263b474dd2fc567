# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line of vde_plug: stock's options, what it says and how it ends.

Runs the real command on userspace ends that need no privilege: null://, streams, commands behind "=".
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.labkit import VDEXDP
from vdexdp.cli.plug_log import source_address
from vdexdp.cli.vde_plug import Arguments, parse_arguments
from vdexdp.errors import RequestError
from vdexdp.lab import wait_until
from vdexdp.plugins.base import OpenContext
from vdexdp.plugins.stream import GREETING

PLUG = (*VDEXDP, "vde_plug")


def run(*words: str, stdin: bytes = b"", timeout: float = 10) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*PLUG, *words], input=stdin, capture_output=True, timeout=timeout, check=False)


@contextmanager
def started(*words: str) -> Iterator[subprocess.Popen[bytes]]:
    """A plug that stands, with our ends of its stream."""
    with subprocess.Popen(
        [*PLUG, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stderr is not None
        process.line = process.stderr.readline().decode()  # type: ignore[attr-defined]
        try:
            yield process
        finally:
            process.kill()


# Parsing


def test_all_options_of_stock() -> None:
    line = (
        "-p file -d -l -L -v -m 0750 -M 700 -g staff --group2 users --port 5 --port2=6 -D descr --accel off "
        "vde:///tmp/a tap://b"
    )
    assert parse_arguments(line.split()) == Arguments(
        vnls=("vde:///tmp/a", "tap://b"),
        contexts=(
            OpenContext("descr", 5, "staff", 0o750, True),
            OpenContext("descr", 6, "users", 0o700, True),
        ),
        accel="off",
        pidfile="file",
        daemon=True,
        log=True,
        iplog=True,
        verbose=True,
    )
    long = "--pidfile=file --daemon --log --iplog --mod 0750 --mod2 700 --group staff --group2 users --descr descr"
    short = "-pfile -dlL -m0750 -M700 -gstaff -Gusers -Ddescr"
    assert parse_arguments(long.split()) == parse_arguments(short.split())


@pytest.mark.parametrize(
    ("line", "vnls", "command"),
    [
        ("", (None, None), ()),
        ("tap://a", ("tap://a", None), ()),
        ("tap://a tap://b", ("tap://a", "tap://b"), ()),
        ("= ssh -p 5 host vde_plug", (None, None), ("ssh", "-p", "5", "host", "vde_plug")),
        ("tap://a = ssh = -d", ("tap://a", None), ("ssh", "=", "-d")),
        ("tap://a -m 700 = cat", ("tap://a", None), ("cat",)),
        ("-- -odd", ("-odd", None), ()),
        ("- -", ("-", "-"), ()),
    ],
)
def test_places(line: str, vnls: tuple[str | None, str | None], command: tuple[str, ...]) -> None:
    found = parse_arguments(line.split())
    assert (found.vnls, found.command) == (vnls, command)
    assert not found.pidfile


@pytest.mark.parametrize(
    "line",
    ["a b c", "a b = c", "a =", "--accel maybe", "--port 0", "--port x", "-m 9", "-M 77777", "--bogus", "-Z", "-p"],
)
def test_mistakes(line: str) -> None:
    with pytest.raises(RequestError):
        parse_arguments(line.split())


# Running


def test_mistakes_are_one_line_and_status_2() -> None:
    for words, says in (
        (("tapp://x",), 'unknown scheme; did you mean "tap"?'),
        (("null://", "vxvde://10.0.0.1"), "not a multicast address"),
        (("null://", "netdev://no-such-if0"), "no such interface"),
        (("--accel", "off", "null://", "netdev://no-such-if0"), "no such interface"),
        (("--accel=never",), "write auto, require or off"),
        (("null://", "=", "/no/such/command"), "command not found"),
        (("a", "b", "c"), "one VNL too many"),
        (("-g", "no-such-group", "null://", "null://"), "-g no-such-group: no such group"),
        (("vxvde://234.0.0.1", "vxvde://234.0.0.1/ttl=2"), "both ends are the same network"),
        (("--accel", "off", "vxlan://234.0.0.1", "vxlan://234.0.0.1"), "both ends are the same network"),
        (("netdev://lo", "netdev://lo"), "both ends are the same interface"),
        (("tap://same0", "tap://same0"), "both ends are the same interface"),
    ):
        result = run(*words)
        assert result.returncode == 2, words
        assert result.stdout == b""
        lines = [line for line in result.stderr.decode().splitlines() if "in userspace" not in line]
        assert len(lines) == 1, lines
        assert says in lines[0]


def test_require_says_what_is_in_the_way() -> None:
    result = run("--accel", "require", "null://", "-")
    assert result.returncode == 1
    assert "runs in userspace: " in result.stderr.decode()
    assert "Traceback" not in result.stderr.decode()
    assert "Traceback" in run("-v", "--accel", "require", "null://", "-").stderr.decode()


def test_help_and_login_shell() -> None:
    result = run("-h")
    assert result.returncode == 0
    for option in ("--daemon", "--pidfile", "--mod2", "--group2", "--port2", "--iplog", "--accel", "-c vde_plug"):
        assert option in result.stdout.decode()
    for command in ("ls -l", "vde_plug tap://x", "/bin/sh"):
        refused = run("-c", command)
        assert refused.returncode == 2
        assert "it runs vde_plug only" in refused.stderr.decode()
    assert run("-c", "vde_plug", "null://").returncode == 0


def test_by_the_name_of_stock(tmp_path: Path) -> None:
    code = "import sys; sys.argv[:2] = sys.argv[1:2]; from vdexdp.__main__ import main; main()"
    for name in ("vde_plug", "/usr/local/bin/vde_plug"):
        result = subprocess.run(
            [sys.executable, "-c", code, name, "null://"], input=b"", capture_output=True, check=False
        )
        assert result.returncode == 0
        assert b"null:// -- -: in userspace" in result.stderr
    login = subprocess.run([sys.executable, "-c", code, "-vde_plug"], input=b"", capture_output=True, check=False)
    assert login.returncode == 2
    assert b"no login shell" in login.stderr


def test_stream_to_stream_and_the_end_of_input() -> None:
    frame = bytes(range(60))
    with started("stream://", "null://") as process:
        assert "stream:// -- null://: in userspace" in process.line  # type: ignore[attr-defined]
        assert process.stdin is not None
        process.stdin.write(GREETING + b"\0\x3c" + frame)
        process.stdin.close()
        assert process.wait(5) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_end_it_and_unwind(number: signal.Signals, tmp_path: Path) -> None:
    pidfile = tmp_path / "pid"
    with started("-p", str(pidfile), "null://") as process:
        assert pidfile.read_text() == f"{process.pid}\n"
        process.send_signal(number)
        assert process.wait(5) == 0
    assert not pidfile.exists()


def test_counters_on_request_and_at_the_end() -> None:
    with started("-v", "-", "null://") as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(GREETING + (b"\0\x3c" + bytes(60)) * 5 + b"\0\2ab")
        process.stdin.flush()
        time.sleep(0.2)
        process.send_signal(signal.SIGUSR1)
        line = process.stderr.readline().decode()
        assert "5 frames, 300 bytes to the right, 0 frames, 0 bytes to the left; lost at the left end: 1 runt" in line
        process.stdin.close()
        assert process.wait(5) == 0
        assert "standard input was closed; 5 frames" in process.stderr.readline().decode()


def test_nohup_is_respected() -> None:
    process = subprocess.Popen(
        ["nohup", *PLUG, "null://"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    assert process.stdin is not None
    while b"in userspace" not in process.stderr.readline():
        pass
    process.send_signal(signal.SIGHUP)
    time.sleep(0.2)
    assert process.poll() is None
    process.stdin.close()
    assert process.wait(5) == 0
    process.stderr.close()


def test_o_nonblock_is_put_back() -> None:
    reader, writer = os.pipe()
    out_reader, out_writer = os.pipe()
    process = subprocess.Popen([*PLUG, "null://"], stdin=reader, stdout=out_writer, stderr=subprocess.PIPE)
    assert process.stderr is not None
    process.stderr.readline()
    assert not os.get_blocking(reader)
    assert not os.get_blocking(out_writer)
    process.terminate()
    assert process.wait(5) == 0
    assert os.get_blocking(reader)
    assert os.get_blocking(out_writer)
    process.stderr.close()
    for fd in (reader, writer, out_reader, out_writer):
        os.close(fd)


def test_command_behind_the_equals_sign() -> None:
    """The command's frames reach the other end, and its status is ours when it is the one that ends."""
    for status in (0, 3):
        result = run("null://", "=", "sh", "-c", f"cat >/dev/null & exit {status}")
        assert result.returncode == status, result.stderr
    assert run("null://", "=", "sh", "-c", "kill -TERM $$").returncode == 128 + signal.SIGTERM


def test_a_command_that_does_not_notice_is_ended() -> None:
    with started("stream://", "=", "sh", "-c", "trap '' TERM; exec sleep 100") as process:
        assert process.stdin is not None
        process.stdin.close()
        begin = time.monotonic()
        assert process.wait(10) == 0
        assert time.monotonic() - begin < 6


def test_background(tmp_path: Path) -> None:
    """-d returns when the cable stands, with the daemon's pid in the file; and with its errors where it does not."""
    pidfile = tmp_path / "pid"
    socket = tmp_path / "ptp"
    result = subprocess.run(
        [*PLUG, "-d", "-p", "pid", f"ptp://{socket}", "null://"],
        cwd=tmp_path,
        capture_output=True,
        timeout=10,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
    )
    assert result.returncode == 0, result.stderr
    assert b"in userspace" in result.stderr
    pid = int(pidfile.read_text())
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    assert os.getsid(pid) == pid
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not pidfile.exists(), what="the pid file's end")
    failed = subprocess.run(
        [*PLUG, "-d", "null://", "vde:///no/such/switch"], capture_output=True, timeout=10, check=False
    )
    assert failed.returncode == 1
    assert b"/no/such/switch" in failed.stderr


def test_what_iplog_sees() -> None:
    ethernet = bytes(12)
    v4 = b"\x45" + bytes(11) + bytes((192, 0, 2, 1)) + bytes(4)
    v6 = b"\x60" + bytes(7) + bytes.fromhex("20010db8000000000000000000000001") + bytes(16)
    tag = b"\x81\x00\x60\x05"
    for data, expected in (
        (ethernet + b"\x08\x00" + v4, ("192.0.2.1", 0)),
        (ethernet + tag + b"\x08\x00" + v4, ("192.0.2.1", 5)),
        (ethernet + b"\x86\xdd" + v6, ("2001:db8::1", 0)),
        (ethernet + tag + b"\x86\xdd" + v6, ("2001:db8::1", 5)),
        (ethernet + b"\x08\x06" + v4, None),
        (ethernet + b"\x08\x00" + v4[:19], None),
        (ethernet + tag[:2], None),
    ):
        assert source_address(memoryview(data)) == expected
