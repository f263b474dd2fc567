# SPDX-License-Identifier: GPL-2.0-or-later
"""Shows that every source file is clean for ruff (rules and format), mypy --strict and its licence line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = ["vdexdp", "tests", "packaging", "docs"]


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
    missing = [
        str(path)
        for folder in ("bpf", "docs", "packaging", "scripts", "tests", "vagrant", "vdexdp")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in {".py", ".c", ".h", ".sh"}
        and (text := path.read_text()).strip()
        and "SPDX-License-Identifier: GPL-2.0-or-later" not in text.split("\n\n")[0]
    ]
    assert not missing, "without an SPDX line at their top"
