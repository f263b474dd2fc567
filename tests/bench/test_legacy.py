# SPDX-License-Identifier: GPL-2.0-or-later
"""Shows that ``vdexdp bench legacy`` measures what it names: both contestants of a family in every metric (as root)."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from vdexdp.bench import legacy
from vdexdp.cli.bench import bench


def test_one_family(root: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(legacy, "STEADY_SECONDS", 0.3)
    result = CliRunner().invoke(bench, ["legacy", "--runs", "1", "--seconds", "1", "--only", "switch", "--json", "-q"])
    report = json.loads(result.output)
    assert [one["key"] for one in report["contestants"]] == ["switch-stock", "switch-ours"]
    for one in report["contestants"]:
        assert one["absent"] is None
        metrics = {name: metric["median"] for name, metric in one["metrics"].items()}
        assert metrics["tcp_out"] > 20e6
        assert metrics["tcp_in"] > 20e6
        assert metrics["frames"] > 5e3
        assert 0 < metrics["cpu"] < 1e-3
        assert 0 < metrics["rtt"] < 0.1


def test_the_floor_is_no_contestant_for_the_targets(root: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(legacy, "STEADY_SECONDS", 0.3)
    words = ["legacy", "--runs", "1", "--seconds", "1", "--only", "ptp", "--only", "cmd", "--floor", "-q"]
    result = CliRunner().invoke(bench, words)
    assert result.exit_code == 0, result.output
    rows = [line for line in result.output.splitlines() if "bare loop /" in line]
    assert len(rows) == 2
    for row in rows:
        assert row.count("×") == len(legacy.METRICS)
    assert "floor" not in " ".join(line for line in result.output.splitlines() if line.startswith(("met", "MISSED")))


def test_an_unknown_family() -> None:
    result = CliRunner().invoke(bench, ["legacy", "--only", "tokenring"])
    assert result.exit_code == 2
    assert "tokenring; known are switch, lac, ptp, cmd" in result.output
