# SPDX-License-Identifier: GPL-2.0-or-later
"""The contract in bpf/abi.h, as Python derives it, equals what a C compiler makes of it: sizes, offsets, values."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

from vdexdp.control import abi


def c_view(tmp_path: Path) -> dict[str, int]:
    """Every size, offset and value of abi.h, printed by a C program."""
    lines = []
    for name, struct in abi.S.items():
        lines.append(f'P("sizeof {name}", sizeof(struct {name}))')
        for field, *_ in struct._fields_:
            lines.append(f'P("offset {name}.{field}", __builtin_offsetof(struct {name}, {field}))')
            lines.append(f'P("size {name}.{field}", sizeof(((struct {name} *)0)->{field}))')
    lines += [f'P("value {name}", (unsigned long long){name})' for name in abi.K]
    source = tmp_path / "abi.c"
    source.write_text(
        "#include <stdio.h>\n#include <linux/types.h>\n"
        f'#include "{abi.source_dir() / "abi.h"}"\n'
        '#define P(name, value) printf("%s=%llu\\n", name, (unsigned long long)(value));\n'
        "int main(void) {\n" + "\n".join(lines) + "\nreturn 0; }\n"
    )
    program = tmp_path / "abi"
    subprocess.run(["gcc", "-Wall", "-Werror", "-o", program, source], check=True)
    output = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    return {name: int(value) for name, value in (line.rsplit("=", 1) for line in output.splitlines())}


def test_python_and_c_agree(tmp_path: Path) -> None:
    if shutil.which("gcc") is None:
        pytest.fail("no gcc; scripts/setup installs it")
    seen = c_view(tmp_path)
    for name, struct in abi.S.items():
        assert seen[f"sizeof {name}"] == ctypes.sizeof(struct), name
        for field, *_ in struct._fields_:
            descriptor = getattr(struct, field)
            assert seen[f"offset {name}.{field}"] == descriptor.offset, f"{name}.{field}"
            assert seen[f"size {name}.{field}"] == descriptor.size, f"{name}.{field}"
    for name, value in abi.K.items():
        assert seen[f"value {name}"] == value, name


def test_every_struct_and_enumerator_was_seen() -> None:
    """The small reader must not overlook what the header has."""
    text = (abi.source_dir() / "abi.h").read_text()
    assert text.count("\nstruct ") == len(abi.S)
    for name in ("PORT_EXCEPTION", "DROP_REDIRECT", "EV_GROUPED", "TUNNEL_F_XDP_OUT", "JUMP_BOUNCE", "MAX_FDB"):
        assert name in abi.K
    assert all(
        row.help for kind in ("drop_reason", "exception_reason", "event", "frame_path") for row in abi.enum(kind)
    )


def test_counter_arrays_hold_every_enumerator() -> None:
    counters = abi.S["counters"]
    sizes = {field: getattr(counters, field).size // 8 for field, *_ in counters._fields_}
    assert sizes["drops"] == abi.K["DROP_MAX"]
    assert sizes["exceptions"] == abi.K["EXC_MAX"]
    assert sizes["events"] == abi.K["EV_MAX"]
    assert sizes["rx_frames"] == abi.K["PATH_MAX"]
