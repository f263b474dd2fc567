# SPDX-License-Identifier: GPL-2.0-or-later
"""``vdexdp top``: the rates come to what was sent, and the terminal is left as it was found."""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.control.rig import daemon, plug, tunnel, until, wire
from tests.labkit import VDEXDP
from tests.rawframes import RawPort, frame
from vdexdp.control import rates
from vdexdp.lab import Lab, Namespace

SENT, LOST, SIZE = 150, 60, 400


@pytest.fixture
def host(lab: Lab) -> Iterator[Namespace]:
    """Two guests on one LAC."""
    made = lab.host("host")
    lab.underlay(made, lab.host("other"))
    for number in (1, 2):
        lab.guest(made, f"g{number}", number, mtu=1400)
    daemon(made)
    plugs = [plug(made, wire(f"g{number}"), tunnel()) for number in (1, 2)]
    yield made
    for one in plugs:
        one.close()


def test_rates_come_to_what_was_sent(lab: Lab, host: Namespace) -> None:
    process = host.spawn(*VDEXDP, "top", "--json", "-d", "0.3", "--port", "g?", "--sort", "frames")
    sender = RawPort(lab.namespaces["g1"], "eth0")

    def said() -> list[dict[str, Any]]:
        return [json.loads(line) for line in process.output().splitlines(keepends=True) if line.endswith("\n")]

    until(said, "the first interval")
    for number in range(SENT + LOST):
        # Everything from one address; what goes back to it has nowhere to go.
        sender.send(frame(SIZE, number, dst="02:00:00:00:07:01" if number < LOST else "ff:ff:ff:ff:ff:ff"))
        time.sleep(0.004)

    def counted(name: str, key: str) -> float:
        rows = [(one["seconds"], row) for one in said() for row in one["ports"] if row["name"] == name]
        return float(sum(row[key] * seconds for seconds, row in rows))

    # A rate is rounded to a tenth, and guests have a word of their own to say.
    until(lambda: counted("g2", "tx_frames") > SENT - 0.5, "top to count what was sent")
    assert SENT + LOST - 2 < counted("g1", "rx_frames") < SENT + LOST + 30
    assert (SENT + LOST) * SIZE - 100 < counted("g1", "rx_bytes") < (SENT + LOST) * SIZE + 3000
    assert LOST - 3 <= counted("g1", "drops") < LOST + 3
    lines = said()
    assert [row["name"] for row in lines[-1]["ports"]] in (["g1", "g2"], ["g2", "g1"]), "only what was asked for"
    assert lines[-1]["ports"][0]["path"] == "tc"
    assert any("same_port" in row["reasons"] for one in lines for row in one["ports"])
    assert {row["name"]: row["dropped"] for row in lines[-1]["ports"]} == {"g1": LOST, "g2": 0}
    assert sum(one["seconds"] for one in lines[1:]) == pytest.approx(lines[-1]["time"] - lines[0]["time"], abs=1.0)
    process.signal(signal.SIGINT)
    assert process.wait() == 0

    text = host.run(*VDEXDP, "top", "--once", "-d", "0.1").stdout
    assert "exception path" in text
    assert "vxvde 234.0.0.1" in text
    elsewhere = [*VDEXDP, "top", "--once", "-d", "0.1", "--netns", host.full_name]
    assert "vxvde 234.0.0.1" in subprocess.run(elsewhere, capture_output=True, text=True, check=True).stdout
    wrong = host.run(*VDEXDP, "top", "--port", "nope", check=False)
    assert (wrong.returncode, wrong.stderr) == (2, 'vdexdp: --port nope: no such port; see "vdexdp show"\n')


def test_on_a_terminal(host: Namespace) -> None:
    terminal, side = os.openpty()

    def resize(lines: int, columns: int) -> None:
        fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("4H", lines, columns, 0, 0))

    def shows(word: str) -> str:
        """Everything until the word has appeared."""
        text, end = "", time.monotonic() + 15
        while word not in text and time.monotonic() < end:
            if select.select([terminal], [], [], 0.5)[0]:
                text += os.read(terminal, 65536).decode(errors="replace")
        assert word in text
        return text

    try:
        before = termios.tcgetattr(side)
        for ending in ("q", signal.SIGINT):
            resize(24, 120)
            process = host.spawn(
                *VDEXDP, "top", "-d", "60", stdin=side, stdout=side, env={"TERM": "xterm", "COLUMNS": "", "LINES": ""}
            )
            shows("sort: bits")
            assert termios.tcgetattr(side) != before, "keys come one by one"
            os.write(terminal, b"s")
            assert "dropped" in shows("sort: frames")
            resize(7, 60)
            process.signal(signal.SIGWINCH)
            assert "dropped" not in shows("more by")
            if isinstance(ending, str):
                os.write(terminal, ending.encode())
            else:
                process.signal(ending)
            shows("\x1b[?1049l")
            assert process.wait() == 0
            assert termios.tcgetattr(side) == before
    finally:
        os.close(terminal)
        os.close(side)


def _shown(frames: int, name: str = "p") -> dict[str, Any]:
    counters = {key: {"tc": frames, "exception": 0} for key in rates.FLOWS} | {"drops": {"runt": frames}}
    port = {"index": 1, "name": name, "switch": 1, "plug": 1, "kind": "wire", "hooks": ["tc"], "bridge": False}
    return {"switches": [{"id": 1, "name": "net"}], "ports": [port | {"counters": counters}], "uplinks": []}


@pytest.mark.parametrize(
    ("before", "rate"),
    [(_shown(10), 5.0), (_shown(40), 10.0), (_shown(10, "other"), 10.0), (None, 0.0)],
    ids=["grown", "began again", "another port", "first"],
)
def test_counters_that_begin_again(before: dict[str, Any] | None, rate: float) -> None:
    (row,) = rates.between(before, _shown(20), 2.0).rows
    assert (row.rx_frames, row.drops, row.dropped) == (rate, rate, 20)
    assert row.reasons == ({"runt": rate} if rate else {})
