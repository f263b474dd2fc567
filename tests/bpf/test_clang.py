# SPDX-License-Identifier: GPL-2.0-or-later
"""The C sources build with plain clang as well as with bcc, without a warning, and declare the same maps."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from vdexdp.control import abi, bytecode


@pytest.mark.parametrize("name", bytecode.PROGRAMS)
def test_builds_with_clang(tmp_path: Path, name: str) -> None:
    if shutil.which("clang") is None:
        pytest.fail("no clang; scripts/setup installs it")
    program = bytecode.PROGRAMS[name]
    built = tmp_path / "program.o"
    command = [
        *("clang", "-target", "bpf", "-g", "-O2", "-Wall", "-Wextra", "-Werror"),
        *("-Wno-sign-compare", "-Wno-unused-function", "-Wno-unused-variable"),
        *("-I", f"/usr/include/{os.uname().machine}-linux-gnu"),
        *(f"-D{define}" for define in program.defines),
        *("-c", str(abi.source_dir() / program.source), "-o", str(built)),
    ]
    subprocess.run(command, check=True, timeout=60)
    symbols = subprocess.run(["llvm-nm", built], check=True, capture_output=True, text=True).stdout.split()
    assert program.function in symbols
    assert set(abi.MAPS) | set(abi.OBSERVE_MAPS if "OBSERVED_BUILD" in program.defines else ()) <= set(symbols)
