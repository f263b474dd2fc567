# SPDX-License-Identifier: GPL-2.0-or-later
"""Shows that a missing kernel feature skips a test only on a kernel that is too old for it, and that the probes answer.
Needs root.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests import labkit
from tests.labkit import FEATURES, Feature, kernel_option, kernel_version, require


@pytest.mark.parametrize("name", FEATURES)
def test_probes_answer(root: None, name: str) -> None:
    """Where the kernel's version promises the feature, the probe has to find it."""
    require(name)


@pytest.mark.parametrize(
    ("since", "option", "outcome"),
    [
        ((99, 0), "", pytest.skip.Exception),
        ((2, 6), "", pytest.fail.Exception),
        ((2, 6), "UNOBTAINIUM", pytest.skip.Exception),
        ((2, 6), "NET", pytest.fail.Exception),
        ((99, 0), "NET", pytest.skip.Exception),
    ],
)
def test_missing_feature(
    monkeypatch: pytest.MonkeyPatch, since: tuple[int, int], option: str, outcome: type[BaseException]
) -> None:
    if option == "UNOBTAINIUM" and kernel_option("NET") is None:
        outcome = pytest.fail.Exception  # a kernel that hides its options is taken to have them all
    monkeypatch.setitem(labkit.FEATURES, "unobtainium", Feature(lambda: False, since, option))
    monkeypatch.setattr(labkit, "_probed", {})
    with pytest.raises(outcome, match="unobtainium"):
        require("unobtainium")


def test_every_skip_goes_through_require() -> None:
    """No other file of the tests skips, or expects to fail."""
    words = re.compile(r"\b(skip|skipif|xfail|importorskip|SkipTest|skipTest|skipUnless)\b *[(.]")
    tests = Path(labkit.__file__).parent
    found = {
        str(path.relative_to(tests))
        for path in tests.rglob("*.py")
        if words.search(path.read_text()) and path.name not in ("labkit.py", Path(__file__).name)
    }
    assert not found, "these should call require(), require_tool() or lacking() of tests/labkit.py"
    assert len(words.findall(Path(labkit.__file__).read_text())) == 1


def test_kernel_version_is_plausible() -> None:
    assert (5, 0) < kernel_version() < (99, 0)
