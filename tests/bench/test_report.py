# SPDX-License-Identifier: GPL-2.0-or-later
"""Shows how a benchmark's samples become medians, ratios and verdicts: the worst direction counts, what was not
measured is neither met nor missed.
"""

from __future__ import annotations

import json

import pytest

from vdexdp.bench.report import Metric, Report, Result, Target

FAST, LAG = Metric("fast", "fast", "bit/s"), Metric("lag", "lag", "s", less_is_better=True)


def report(ours: dict[str, list[float]], theirs: dict[str, list[float]]) -> Report:
    return Report(
        "test",
        "nothing",
        3,
        (FAST, Metric("fast2", "fast2", "bit/s"), LAG),
        (Target("speed", "us", "them", ("fast", "fast2"), 2.0), Target("lag", "us", "them", ("lag",), 1.0)),
        [Result("us", "us", "", samples=ours), Result("them", "them", "", samples=theirs)],
    )


@pytest.mark.parametrize(
    ("ours", "theirs", "reached", "met"),
    [
        ({"fast": [9, 4, 1], "fast2": [6]}, {"fast": [1, 2, 3], "fast2": [2]}, 2.0, True),
        ({"fast": [9], "fast2": [3]}, {"fast": [1], "fast2": [2]}, 1.5, False),
        ({"fast": [9]}, {"fast": [1], "fast2": [2]}, None, None),
        ({}, {}, None, None),
    ],
    ids=["median-and-worst-direction", "one-direction-misses", "half-measured", "absent"],
)
def test_more_is_better(
    ours: dict[str, list[float]], theirs: dict[str, list[float]], reached: float | None, met: bool | None
) -> None:
    found = report(ours, theirs)
    assert found.reached(found.targets[0]) == reached
    assert found.met(found.targets[0]) is met


@pytest.mark.parametrize(("ours", "met"), [([1.0], True), ([0.5, 0.7, 3.0], True), ([1.5, 1.2, 0.1], False)])
def test_less_is_better(ours: list[float], met: bool) -> None:
    found = report({"lag": ours}, {"lag": [1.0]})
    assert found.met(found.targets[1]) is met


def test_json_has_all_samples_and_verdicts() -> None:
    found = json.loads(json.dumps(report({"lag": [1.0, 3.0]}, {"lag": [4.0]}).as_json()))
    assert found["contestants"][0]["metrics"]["lag"] == {"median": 2.0, "samples": [1.0, 3.0]}
    assert [target["met"] for target in found["targets"]] == [None, True]
