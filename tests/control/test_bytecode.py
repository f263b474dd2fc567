# SPDX-License-Identifier: GPL-2.0-or-later
"""The cache of compiled programs keeps those of other versions, and does not grow for ever."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vdexdp.control import bytecode


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
