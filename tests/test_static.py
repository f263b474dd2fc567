# SPDX-License-Identifier: GPL-2.0-or-later
"""Shows that every source file is clean for ruff (rules and format), mypy --strict and its licence line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = ["vdexdp", "tests"]


@pytest.mark.parametrize(
    "command",
    [["ruff", "check", "--quiet"], ["ruff", "format", "--check", "--quiet", "--diff"], ["mypy", "--no-error-summary"]],
    ids=["ruff-check", "ruff-format", "mypy"],
)
def test_tool(command: list[str]) -> None:
    result = subprocess.run(
        [sys.executable, "-m", *command, *SOURCES], cwd=ROOT, capture_output=True, text=True, timeout=110, check=False
    )
    assert result.returncode == 0, f"{' '.join(command)}:\n{result.stdout}{result.stderr}"


def test_licence_lines() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout: the list of files comes from git")
    missing = [
        name
        for name in listed.stdout.split("\0")
        if Path(name).suffix in {".py", ".c", ".h", ".sh"}
        and (text := (ROOT / name).read_text()).strip()
        and "SPDX-License-Identifier: GPL-2.0-or-later" not in text.split("\n\n")[0]
    ]
    assert not missing, "without an SPDX line at their top"
