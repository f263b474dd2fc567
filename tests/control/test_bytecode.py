# SPDX-License-Identifier: GPL-2.0-or-later
"""The cache of compiled programs keeps those of other versions, and does not grow for ever."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from vdexdp.control import bytecode
from vdexdp.errors import KernelFeatureError


def test_versions_beside_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bytecode, "cache_dir", lambda: tmp_path)
    one, other = (bytecode.PROGRAMS[name] for name in ("flood_all", "flood_group"))
    bytecode.store(other, bytes(8))
    for number in range(2 * bytecode.VERSIONS):
        monkeypatch.setattr(bytecode, "_sources_digest", lambda number=number: f"{number:024x}")
        bytecode.store(one, bytes(8))
        path = tmp_path / bytecode.file_name(one)
        assert path.exists()
        os.utime(path, ns=(number, number))
    left = {int(path.stem.rpartition("-")[2], 16) for path in tmp_path.glob(f"{one.name}-*")}
    assert left == set(range(bytecode.VERSIONS, 2 * bytecode.VERSIONS))
    assert len(list(tmp_path.glob(f"{other.name}-*"))) == 1


@pytest.mark.parametrize("text", ["raise ModuleNotFoundError(\"No module named 'bcc'\")", "", "import no_such_library"])
def test_a_compiler_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Missing, another project of that name, or one that does not load: the message says what to install."""
    (tmp_path / "bcc.py").write_text(text)
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{tmp_path}:$PYTHONPATH" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(KernelFeatureError) as caught:
        bytecode.compile_programs(["flood_all"])
    assert str(caught.value).startswith("program flood_all: neither shipped nor in the bytecode cache, and bcc is not")
    assert "python3-bpfcc" in caught.value.hint
    assert "ships the programs" in caught.value.hint
    assert "bcc" in bytecode.compiler_problem() or "no_such_library" in bytecode.compiler_problem()
