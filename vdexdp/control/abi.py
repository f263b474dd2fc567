# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel half's contract, derived from ``bpf/abi.h``.

Nothing is typed in twice: this module reads the header's restricted dialect (the rules stand at its top) and makes
ctypes structures, constants and map definitions of it.  ``tests/bpf/test_abi.py`` compares the result with what a C
compiler makes of the same header: sizes, offsets, values.

* ``K``: every ``#define`` and enumerator with an integer value, by name;
* ``S``: every struct, by name, as a :class:`ctypes.Structure`;
* ``enum(name)``: the enumerators in order, with their help texts;
* ``record(name)``: a struct as a :class:`struct.Struct`, for many of them at once;
* ``MAPS``: the map table; ``OBSERVE_MAPS``: that of the observed build.

``__be16`` and ``__be32`` members hold network byte order, everything else the host's.
"""

from __future__ import annotations

import ctypes
import re
import struct
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

_PACKAGE = Path(__file__).resolve().parent.parent

_SCALARS: dict[str, type[Any]] = {
    "__u8": ctypes.c_uint8,
    "__u16": ctypes.c_uint16,
    "__be16": ctypes.c_uint16,
    "__u32": ctypes.c_uint32,
    "__be32": ctypes.c_uint32,
    "__u64": ctypes.c_uint64,
}


def source_dir() -> Path:
    """Where the C sources are: inside an installed package, or beside it in a checkout."""
    installed = _PACKAGE / "_bpf"
    return installed if installed.is_dir() else _PACKAGE.parent / "bpf"


@dataclass(frozen=True)
class Enumerator:
    name: str
    value: int
    help: str

    @property
    def label(self) -> str:
        """The name without its prefix, in lower case, as metrics and ``show`` print it: DROP_NO_ROOM → no_room."""
        return self.name.split("_", 1)[1].lower()


@dataclass(frozen=True)
class MapDefinition:
    name: str
    kind: str  # as in BPF_MAP_TYPE_<kind>
    key: type[Any]
    value: type[Any]
    entries: int
    flags: int

    @property
    def percpu(self) -> bool:
        return self.kind.startswith("PERCPU")


def _integer(text: str, known: dict[str, int]) -> int | None:
    text = text.strip()
    if text in known:
        return known[text]
    try:
        return int(text, 0)
    except ValueError:
        return None


def _parse(text: str) -> tuple[dict[str, int], dict[str, type[Any]], dict[str, list[Enumerator]]]:
    constants: dict[str, int] = {}
    structs: dict[str, type[Any]] = {}
    enums: dict[str, list[Enumerator]] = {}
    for name, value in re.findall(r"^#define\s+(\w+)\s+(\w+)\b", text, re.M):
        number = _integer(value, constants)
        if number is not None:
            constants[name] = number
    for name, body in re.findall(r"^enum\s+(\w+)\s*\{(.*?)^\};", text, re.M | re.S):
        rows = re.findall(r"(\w+)\s*=\s*(\w+),(?:\s*/\*\s*(.*?)\s*\*/)?", body, re.S)
        enums[name] = [Enumerator(key, int(value, 0), help_text) for key, value, help_text in rows]
        constants.update({row.name: row.value for row in enums[name]})
    for name, body in re.findall(r"^struct\s+(\w+)\s*\{(.*?)^\};", text, re.M | re.S):
        body = re.sub(r"/\*.*?\*/", "", body, flags=re.S)
        fields: list[tuple[str, type[Any]]] = []
        for kind, field, count in re.findall(r"(\w+)\s+(\w+)(?:\[(\w+)\])?;", body):
            scalar = _SCALARS[kind]
            length = _integer(count, constants) if count else None
            fields.append((field, scalar * length if length is not None else scalar))
        structs[name] = type(name, (ctypes.Structure,), {"_fields_": fields})
    return constants, structs, enums


def _typed(cell: str) -> type[Any]:
    return S[cell.removeprefix("struct ")] if cell.startswith("struct ") else _SCALARS[cell]


def _parse_maps(text: str, table: str) -> dict[str, MapDefinition]:
    maps: dict[str, MapDefinition] = {}
    rows = text[text.index(f"#define {table}(M)") :].partition("\n\n")[0]
    for row in re.findall(r"\bM\((\w+, [^)]*)\)", rows):
        name, kind, key, value, entries, flags = (cell.strip() for cell in row.split(","))
        size, bits = _integer(entries, K), _integer(flags, K)
        if size is None or bits is None:
            raise ValueError(f"abi.h: map {name}: {entries} or {flags} is not a constant")
        maps[name] = MapDefinition(name, kind, _typed(key), _typed(value), size, bits)
    return maps


_TEXT = (source_dir() / "abi.h").read_text()
K, S, _ENUMS = _parse(_TEXT)
MAPS = _parse_maps(_TEXT, "VDEXDP_MAPS")
OBSERVE_MAPS = _parse_maps(_TEXT, "VDEXDP_OBSERVE_MAPS")


@cache
def enum(name: str) -> tuple[Enumerator, ...]:
    """The enumerators of ``enum name``, without the closing ``…_MAX``."""
    return tuple(row for row in _ENUMS[name] if not row.name.endswith("_MAX"))


_CODES = {ctypes.c_uint8: "B", ctypes.c_uint16: "H", ctypes.c_uint32: "I", ctypes.c_uint64: "Q"}


@cache
def record(name: str) -> tuple[struct.Struct, tuple[str, ...]]:
    """The layout of ``struct name`` and the names of its members in order; an array is one bytes object."""
    fields = S[name]._fields_
    codes = (_CODES.get(kind) or f"{ctypes.sizeof(kind)}s" for _, kind in fields)
    return struct.Struct("=" + "".join(codes)), tuple(field for field, _ in fields)
