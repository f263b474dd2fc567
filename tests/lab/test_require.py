# SPDX-License-Identifier: GPL-2.0-or-later
"""Shows that a missing kernel feature skips a test only on a kernel that is too old for it, and that the probes answer.
Needs root.
"""

from __future__ import annotations

import pytest

from tests import labkit
from tests.labkit import FEATURES, Feature, kernel_version, require


@pytest.mark.parametrize("name", FEATURES)
def test_probes_answer(root: None, name: str) -> None:
    """Where the kernel's version promises the feature, the probe has to find it."""
    require(name)


@pytest.mark.parametrize(
    ("since", "outcome"),
    [((99, 0), pytest.skip.Exception), (None, pytest.skip.Exception), ((2, 6), pytest.fail.Exception)],
)
def test_missing_feature(
    monkeypatch: pytest.MonkeyPatch, since: tuple[int, int] | None, outcome: type[BaseException]
) -> None:
    monkeypatch.setitem(labkit.FEATURES, "unobtainium", Feature(since, lambda: False))
    monkeypatch.setattr(labkit, "_probed", {})
    with pytest.raises(outcome, match="unobtainium"):
        require("unobtainium")


def test_kernel_version_is_plausible() -> None:
    assert (5, 0) < kernel_version() < (99, 0)
