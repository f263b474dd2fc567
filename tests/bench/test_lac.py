# SPDX-License-Identifier: GPL-2.0-or-later
"""Shows that ``vdexdp bench lac`` measures all contestants in one run, and goes on without stock VDE where that is not
installed, saying so.  What it measures is not judged here: a machine that runs tests is busy.  Needs root.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.labkit import VDEXDP, require, require_tool
from vdexdp.bench.contest import compete
from vdexdp.bench.lac import ABOUT, METRICS, TARGETS, Stock, describe
from vdexdp.bench.report import Report, Result
from vdexdp.cli.bench import bench, show

BENCH = (*VDEXDP, "bench", "lac", "--runs", "1", "--seconds", "1")


@pytest.mark.slow
def test_all_contestants_are_measured(root: None) -> None:
    require("live-frames")
    done = CliRunner().invoke(bench, ["lac", "--runs", "1", "--seconds", "1", "--json"])
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    contestants = {one["key"]: one for one in found["contestants"]}
    assert {key: one["absent"] for key, one in contestants.items()} == {
        "veth": None,
        "kernel": None,
        "stock": None,
        "vdexdp": None,
        "vdexdp-xdp": None,
    }
    for one in contestants.values():
        assert set(one["metrics"]) == {"tcp_out", "tcp_in", "frames", "paced", "rtt", "cpu_per_bit"}
        assert all(len(metric["samples"]) == 1 and metric["median"] > 0 for metric in one["metrics"].values())
    assert [target["met"] is not None for target in found["targets"]] == [True] * 5
    assert done.stderr.count("round 1/1") == 5


def test_without_stock_vde(
    root: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a search path that has everything but vde_plug its row is left out, with the reason; nothing is judged."""
    (tmp_path / "ip").symlink_to(require_tool("ip"))
    monkeypatch.setenv("PATH", str(tmp_path))
    said: list[str] = []
    results = compete([Stock(1)], 1, said.append, describe)
    assert said == ["stock vde_plug: left out: vde_plug: not installed; run scripts/setup"]
    results += [Result("vdexdp", "vdexdp", "", samples={"tcp_out": [3e9], "tcp_in": [1e9]})]
    show(Report("lac", ABOUT, 1, METRICS, TARGETS[1:2], results))
    printed = capsys.readouterr().out
    assert "left out: vde_plug: not installed; run scripts/setup" in printed
    assert "not measured  TCP against stock vde_plug: ≥ 15×" in printed
    assert "3.00" in printed
    assert "1.00" in printed


def test_missing_tool_is_one_line(root: None, tmp_path: Path) -> None:
    done = subprocess.run(
        BENCH, env={**os.environ, "PATH": str(tmp_path)}, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "vdexdp: ip, iperf3, ping, ethtool: not installed; run scripts/setup\n"
