# SPDX-License-Identifier: GPL-2.0-or-later
"""The packaged man pages and completion are what the commands say now; man and a shell can use them."""

from __future__ import annotations

import difflib
import os
import subprocess
import sys
from pathlib import Path

from tests.labkit import require_tool
from vdexdp.cli.main import available

PACKAGED = Path(__file__).parents[1] / "packaging"


def _read(directory: Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): path.read_text(encoding="utf-8")
        for place in ("man", "completion")
        for path in (directory / place).rglob("*")
        if path.is_file()
    }


def test_packaged_files_are_up_to_date(tmp_path: Path) -> None:
    """Made by a process of their own: click remembers how a command that was called by itself names its help option."""
    subprocess.run([sys.executable, "-m", "vdexdp.cli.manual", str(tmp_path)], check=True)
    made, there = _read(tmp_path), _read(PACKAGED)
    stale = [name for name in made.keys() | there.keys() if made.get(name) != there.get(name)]
    differing = [
        line
        for name in sorted(stale)
        for line in difflib.unified_diff(there.get(name, "").splitlines(), made.get(name, "").splitlines(), name, n=0)
    ]
    assert not stale, "run scripts/gen-man; not up to date:\n" + "\n".join(differing[:20])


def test_each_command_has_a_page_that_man_reads() -> None:
    for name in available():
        assert (PACKAGED / f"man/vdexdp-{name}.1").exists()
    groff = require_tool("groff")
    for page in sorted((PACKAGED / "man").iterdir()):
        done = subprocess.run(
            [groff, "-man", "-Tutf8", "-ww", "-Kutf8", "-P-cbou", str(page)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, ""), page
        assert "NAME" in done.stdout
        assert "SYNOPSIS" in done.stdout


def test_bash_completes_commands_and_options() -> None:
    script = f"""
    source {PACKAGED}/completion/bash/vdexdp
    COMP_WORDS=(vdexdp do) COMP_CWORD=1; _vdexdp_completion vdexdp; echo "${{COMPREPLY[@]}}"
    COMP_WORDS=(vdexdp up --pr) COMP_CWORD=2 COMPREPLY=(); _vdexdp_completion vdexdp; echo "${{COMPREPLY[@]}}"
    """
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, check=True, env={**os.environ, "PATH": path}
    )
    assert done.stdout.splitlines() == ["doctor down", "--prune"], done.stderr
