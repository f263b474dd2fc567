# SPDX-License-Identifier: GPL-2.0-or-later
"""Stock libvdeplug through ctypes, as the oracle for the codecs and the VNL grammar."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from dataclasses import dataclass

import pytest


@functools.cache
def library(name: str) -> ctypes.CDLL:
    """A stock library by its soname; its absence is a failure, as scripts/setup installs it."""
    try:
        return ctypes.CDLL(name)
    except OSError as error:
        pytest.fail(f"no oracle: {error}; install Debian's libvdeplug2")


class _Parameter(ctypes.Structure):
    _fields_ = (("tag", ctypes.c_char_p), ("value", ctypes.POINTER(ctypes.c_char_p)))


@dataclass(frozen=True)
class Answer:
    """What stock code makes of a VNL body; ``values`` by variable, None where no option set it."""

    address: bytes
    values: tuple[bytes | None, ...]
    nested: bytes | None


def parse(body: bytes, function: str, table: Sequence[tuple[str, int]], *, nested: bool) -> Answer | None:
    """Stock libvdeplug's parse of ``body``; ``table`` names keys and the index of the variable that they set.

    None where libvdeplug refuses.  ``function`` is vde_parseparms or vde_parsepathparms; with ``nested``
    vde_parsenestparms comes before it, as in stock plugins.
    """
    lib = library("libvdeplug_mod.so.2")
    lib.vde_parsenestparms.restype = ctypes.c_void_p
    variables = [ctypes.c_char_p(None) for _ in range(1 + max((index for _, index in table), default=0))]
    parameters = (_Parameter * (len(table) + 1))()
    for slot, (key, index) in zip(parameters, table, strict=False):
        slot.tag = key.encode()
        slot.value = ctypes.pointer(variables[index])
    # vde_parsenestparms writes a NUL behind the end of a text without a brace.
    text = ctypes.create_string_buffer(body, len(body) + 16)
    inner: bytes | None = None
    if nested:
        where = lib.vde_parsenestparms(text)
        inner = ctypes.string_at(where) if where else None
    if getattr(lib, function)(text, parameters):
        return None
    return Answer(text.value, tuple(variable.value for variable in variables), inner)
