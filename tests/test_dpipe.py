# SPDX-License-Identifier: GPL-2.0-or-later
"""``vdexdp dpipe`` beside stock dpipe.

Shows that a command line is split as stock splits it, and every command gets the pipes that stock gives it; that
commands that would wait for one another for ever do not; that the chain ends when a command ends, with its status, and
when it is told to; that pid files come and go; and that it runs as session leader.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.labkit import VDEXDP, require_tool
from vdexdp.cli.dpipe import parse_chain
from vdexdp.cli.pipes import Pipe, circle
from vdexdp.errors import RequestError
from vdexdp.lab import wait_until

OURS = (*VDEXDP, "dpipe")

LEFT = 'echo from-left; read line; echo "left: $line" >&2'
RIGHT = 'read line; echo "right: $line" >&2; echo from-right'
UPPER = "sed -u y/abcdefghijklmnopqrstuvwxyz/ABCDEFGHIJKLMNOPQRSTUVWXYZ/"
BOTH_WAYS = 'read line; echo "$line+there" >&$ALTERNATE_STDOUT; read line <&$ALTERNATE_STDIN; echo "$line+back"'


def run(tool: Sequence[str], *words: str, timeout: float = 20.0) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*tool, *words], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, check=False
    )


def sh(script: str) -> tuple[str, str, str]:
    return "sh", "-c", script


CHAINS = {
    "two": (*sh(LEFT), "=", *sh(RIGHT)),
    "three": (*sh(LEFT), "=", *sh(BOTH_WAYS), "=", *sh(RIGHT)),
    "four": (*sh(LEFT), "=", *sh(BOTH_WAYS), "=", *sh(BOTH_WAYS), "=", *sh(RIGHT)),
    "to-right": (*sh(LEFT), "=}", *UPPER.split(), "}=", *sh(RIGHT)),
    "to-left": (*sh(LEFT), "={", *UPPER.split(), "{=", *sh(RIGHT)),
    "one-each": (*sh(LEFT), "=}", *UPPER.split(), "}={", "sed", "-u", "s/f/F/", "{=", *sh(RIGHT)),
    "two-to-right": (*sh(LEFT), "=}", *UPPER.split(), "}=}", "sed", "-u", "s/F/f/", "}=", *sh(RIGHT)),
    "open-bracket-stays": (*sh(LEFT), "=}", *UPPER.split(), "=", "sed", "-u", "s/F/f/", "}=", *sh(RIGHT)),
    "mixed": (*sh(LEFT), "=", *sh(BOTH_WAYS), "=}", *UPPER.split(), "}=", *sh(RIGHT)),
    "manual": (*sh(LEFT), "=}", *UPPER.split(), "}={", "cat", "{=", *sh(BOTH_WAYS), "=", *sh(RIGHT)),
}


@pytest.mark.parametrize("words", CHAINS.values(), ids=CHAINS)
def test_same_as_stock(words: tuple[str, ...]) -> None:
    ours = run(OURS, *words)
    stock = run((require_tool("dpipe"),), *words)
    assert ours.returncode == stock.returncode == 0
    assert sorted(ours.stderr.splitlines()) == sorted(stock.stderr.splitlines())
    assert ours.stderr.count("\n") == 2


@pytest.mark.parametrize(
    "words",
    [
        "",
        "a",
        "= a",
        "a =",
        "a = = b",
        "a =} b = c",
        "a =} b {= c",
        "a ={ b",
    ],
)
def test_mistakes(words: str) -> None:
    with pytest.raises(RequestError):
        parse_chain(words.split())


def test_other_words_with_signs_are_arguments() -> None:
    """Only the signs themselves separate; stock would split at ``=x``, too."""
    first, second = parse_chain(["a", "=x", "}=", "b=c", "=", "d"])
    assert first.argv == ("a", "=x", "}=", "b=c")
    assert second.argv == ("d",)


def test_circle() -> None:
    def pipe(writer: int, reader: int) -> Pipe:
        return Pipe(-1, writer, reader)

    there, back, beyond, aside = pipe(0, 1), pipe(1, 0), pipe(1, 2), pipe(3, 2)
    assert circle([there, back]) == [there, back]
    assert circle([there, beyond, aside]) == []
    assert circle([there, back, beyond]) == [there, back]
    assert circle([pipe(0, 1), pipe(1, 2), pipe(2, 0)])


def test_no_deadlock() -> None:
    """Each side writes more than a pipe holds before it reads; with stock dpipe this never ends."""
    left = "head -c 300000 /dev/zero; head -c 200000 | wc -c >&2"
    right = "head -c 200000 /dev/zero; head -c 300000 | wc -c >&2"
    found = run(OURS, *sh(left), "=", *sh(right))
    assert found.returncode == 0
    assert sorted(found.stderr.split()) == ["200000", "300000"]


def test_no_deadlock_in_a_ring() -> None:
    """Three commands in a circle, by two one-way filters."""
    greedy = "head -c 150000 /dev/zero; head -c 150000 >/dev/null"
    found = run(OURS, *sh(greedy), "=}", *sh(greedy), "}=", *sh(greedy))
    assert found.returncode == 0


ENDINGS = {
    ("exit 0", "exit 0"): 0,
    ("exit 5", "sleep 100"): 5,
    ("sleep 100", "exit 6"): 6,
    ("true", "cat >/dev/null; exit 7"): 7,
    ("exit 5", "sleep 0.3; exit 6"): 5,
    ("kill -9 $$", "cat >/dev/null"): 128 + 9,
    ("true", "sleep 100"): 0,
    ("exec no-such-command 2>/dev/null", "cat >/dev/null"): 127,
}


def test_ends_with_a_command_and_its_status() -> None:
    """All at once, as some take a while."""
    started = {
        (left, right): subprocess.Popen([*OURS, *sh(left), "=", *sh(right)], stdin=subprocess.DEVNULL)
        for left, right in ENDINGS
    }
    try:
        assert {commands: process.wait(20) for commands, process in started.items()} == ENDINGS
    finally:
        for process in started.values():
            process.kill()
            process.wait()


def test_command_not_found() -> None:
    found = run(OURS, "cat", "=", "no-such-command")
    assert found.returncode == 127
    assert found.stderr == "no-such-command: No such file or directory\n"


def test_data_is_not_cut_off() -> None:
    """A reader that takes its time after the writer has ended is not disturbed."""
    found = run(OURS, *sh("head -c 60000 /dev/zero"), "=", *sh("sleep 3; wc -c >&2"))
    assert found.stderr.split() == ["60000"]


def test_session_leader() -> None:
    """Stock dpipe refuses."""
    found = subprocess.run(
        [*OURS, "true", "=", "true"], stdin=subprocess.DEVNULL, start_new_session=True, timeout=10, check=False
    )
    assert found.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_end_the_chain(tmp_path: Path, number: signal.Signals) -> None:
    script = f"echo $$ >>{tmp_path}/pids; exec sleep 100"
    process = subprocess.Popen(
        [*OURS, "-p", f"{tmp_path}/pid", *sh(script), "=", *sh(script)], stdin=subprocess.DEVNULL
    )
    pids = tmp_path / "pids"
    wait_until(lambda: pids.exists() and pids.read_text().count("\n") == 2)
    assert (tmp_path / "pid").read_text() == f"{process.pid}\n"
    process.send_signal(number)
    assert process.wait(10) == 128 + number
    assert not (tmp_path / "pid").exists()
    for pid in pids.read_text().split():
        assert not Path(f"/proc/{pid}").exists()


def test_group_file_and_daemon(tmp_path: Path) -> None:
    """The launcher returns at once; the group, all of it, ends with one signal to the number in the file."""
    pid, group = tmp_path / "pid", tmp_path / "group"
    words = ("-d", "-p", str(pid), "-P", str(group), *sh("exec sleep 100"), "=", *sh("exec sleep 100"))
    assert run(OURS, *words, timeout=5).returncode == 0
    wait_until(lambda: group.exists() and group.read_text().endswith("\n"), what="the group file")
    number = int(group.read_text())
    assert number < 0
    daemon = int(pid.read_text())
    assert os.getsid(daemon) == daemon
    os.kill(number, signal.SIGTERM)
    wait_until(lambda: not pid.exists() and not group.exists(), what="the end of the daemon")


@pytest.mark.parametrize("option", ["-n", "-N"])
def test_without_a_process_of_its_own(tmp_path: Path, option: str) -> None:
    """dpipe becomes the last command, whose status counts; -n cleans up, -N does not."""
    pid = tmp_path / "pid"
    process = subprocess.Popen(
        [*OURS, option, "-p", str(pid), "cat", "=", *sh(f"echo $$ >{tmp_path}/last; sleep 0.3; exit 9")],
        stdin=subprocess.DEVNULL,
    )
    assert process.wait(10) == 9
    assert (tmp_path / "last").read_text() == f"{process.pid}\n"
    if option == "-n":
        wait_until(lambda: not pid.exists(), what="the clean-up")
    else:
        time.sleep(0.2)
        assert pid.read_text() == f"{process.pid}\n"


def test_nested_in_a_chain() -> None:
    """The ends of an inner dpipe do not see the outer one's alternate descriptors."""
    inner = " ".join(OURS) + " sh -c 'echo ${ALTERNATE_STDIN:-none} >&2; cat >/dev/null' = true"
    found = run(OURS, "true", "=", *sh(inner), "=", "true")
    assert found.stderr == "none\n"
