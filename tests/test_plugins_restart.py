# SPDX-License-Identifier: GPL-2.0-or-later
"""restart://: an end that fails or hangs up and comes back.

Shows: attempts no closer than the period, at once after a long life; what is lost meanwhile and what was counted
before; a first attempt that fails; mistakes that waiting can't mend; nesting; a real stock switch that is stopped
and started.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.labkit import require_tool
from tests.streamkit import collect, frame, offer, open_end, run_until
from vdexdp.errors import PrivilegeError, RequestError, VnlError
from vdexdp.plugins import registry
from vdexdp.plugins.restart import PERIOD_MAX, RestartSpec


def counting(log: Path, script: str, period: int = 1) -> str:
    """A VNL whose inner end notes in ``log`` whenever it is started."""
    return f"restart://{period}{{cmd://sh -c 'date +%s.%N >>{log}; {script}'}}"


def starts(log: Path) -> list[float]:
    return [float(line) for line in log.read_text().split()] if log.exists() else []


def test_attempts_keep_their_distance(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "log"
    end = open_end(counting(log, "exit 3"))
    run_until([end], lambda: len(starts(log)) == 3)
    first, second, third = starts(log)
    assert 0.9 < second - first < 1.5
    assert 0.9 < third - second < 1.5
    run_until([end], lambda: "ended with status 3" in end.fault())
    assert "cmd://sh ended with status 3; opening it again" in capfd.readouterr().err
    end.close()
    assert end.readers() == ()


def test_back_at_once_after_a_long_life(tmp_path: Path) -> None:
    log = tmp_path / "log"
    end = open_end(counting(log, "sleep 1.2"))
    run_until([end], lambda: len(starts(log)) == 2)
    first, second = starts(log)
    assert second - first < 1.6
    end.close()


def test_what_is_lost_is_counted(tmp_path: Path) -> None:
    """Frames while it is away, and on the old end's account; the new one goes on counting there."""
    link = tmp_path / "p"
    end = open_end(f"restart://1{{ptp://{link}}}")
    assert offer(end, [frame(0)] * 5) == 5
    assert end.drops == {"no-peer": 5}
    log = tmp_path / "log"
    other = open_end(counting(log, 'head -c 20 /dev/zero; printf "\\\\000\\\\005abcde"; exit 1'))
    run_until([other], other.fault)
    assert offer(other, [frame(0)] * 7) == 7
    assert other.drops == {"away": 7, "runt": 1}
    run_until([other], lambda: other.drops["runt"] == 2)
    end.close()
    other.close()


def test_nested(tmp_path: Path) -> None:
    log = tmp_path / "log"
    end = open_end(f"restart://1{{{counting(log, 'exit 1')}}}")
    run_until([end], lambda: len(starts(log)) == 2 and end.fault())
    offer(end, [frame(0)])
    assert end.drops == {"away": 1}
    end.close()
    spec = registry.parse("restart://{restart://7{restart://0{vde:///tmp/a\\}b}}}").spec
    assert isinstance(spec, RestartSpec)
    assert spec.period == 20
    assert spec.inner.spec.period == 7
    assert spec.inner.spec.inner.spec.period == 1
    assert spec.inner.spec.inner.spec.inner.spec.path == "/tmp/a}b"


def test_the_first_attempt_may_fail(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    link = tmp_path / "p"
    link.write_text("in the way")
    end = open_end(f"restart://1{{ptp://{link}}}")
    assert "is not a socket" in end.fault()
    assert "trying again every 1 s" in capfd.readouterr().err
    link.unlink()
    other = open_end(f"ptp://{link}")
    run_until([end, other], lambda: not end.fault() and not other.fault())
    assert "is back" in capfd.readouterr().err
    offer(other, [frame(1)])
    assert collect(end, 1, enough=1) == [frame(1)]
    end.close()
    other.close()


def test_what_waiting_can_t_mend(root: None) -> None:
    with pytest.raises(RequestError, match="command not found"):
        open_end("restart://1{cmd://no-such-command-anywhere}")
    os.seteuid(65534)
    try:
        with pytest.raises(PrivilegeError):
            open_end("restart://1{tap://restart0}")
    finally:
        os.seteuid(0)


@pytest.mark.parametrize(
    "vnl",
    [
        "restart://",
        "restart://5",
        "restart://x{null://}",
        "restart:///k=1{null://}",
        "restart://1{nosuch://}",
        "restart://-1{null://}",
    ],
)
def test_mistakes(vnl: str) -> None:
    with pytest.raises(VnlError):
        registry.parse(vnl)


def test_long_periods_are_cut() -> None:
    assert registry.parse("restart://99999999{null://}").spec.period == PERIOD_MAX


@pytest.fixture
def switch(tmp_path: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """The stock switches that the test starts."""
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for process in started:
        process.kill()
        process.wait()


def test_stock_switch_comes_and_goes(tmp_path: Path, switch: list[subprocess.Popen[bytes]]) -> None:
    directory = tmp_path / "sw"

    def start() -> None:
        command = [require_tool("vde_switch"), "-s", str(directory)]
        switch.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL))

    ends = [open_end(f"restart://1{{vde://{directory}}}") for _ in range(2)]
    assert all(end.fault() for end in ends)
    for _ in range(2):
        start()
        run_until(ends, lambda: not any(end.fault() for end in ends))
        offer(ends[0], [frame(1)])
        assert collect(ends[1], 1, enough=1) == [frame(1)]
        switch[-1].kill()
        switch[-1].wait()
        run_until(ends, lambda: all(end.fault() for end in ends))
        time.sleep(0.1)
    for end in ends:
        end.close()
