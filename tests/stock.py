# SPDX-License-Identifier: GPL-2.0-or-later
"""Stock libvdeplug through ctypes, as the oracle for the codecs and the VNL grammar."""

from __future__ import annotations

import ctypes
import functools
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass

import pytest


@functools.cache
def library(name: str) -> ctypes.CDLL:
    """A stock library by its soname; its absence is a failure, as scripts/setup installs it."""
    # Nested stock plugins use vde_open without naming the library that has it.
    try:
        return ctypes.CDLL(name, ctypes.RTLD_GLOBAL)
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


class Plug:
    """A stock plug: ``vnl`` around ``seqpacket://``, whose far end is ``wire``.

    ``vnl`` has ``{}`` where the inner VNL goes, e.g. ``vlan://3{}``.
    """

    def __init__(self, vnl: str) -> None:
        self.lib = library("libvdeplug.so.2")
        self.lib.vde_open_real.restype = ctypes.c_void_p
        self.lib.vde_send.restype = self.lib.vde_recv.restype = ctypes.c_ssize_t
        inner, self.wire = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.wire.setblocking(False)
        full = vnl.replace("{}", f"{{seqpacket://{inner.detach()}}}")
        handle = self.lib.vde_open_real(os.fsencode(full), b"test", 1, None)
        assert handle, f"stock libvdeplug does not open {full}"
        self.handle = ctypes.c_void_p(handle)

    def send(self, frame: bytes) -> bytes | None:
        """What comes out on the wire when the plug sends ``frame``; None for nothing."""
        buffer = ctypes.create_string_buffer(frame, len(frame))  # libvdeplug_vlan writes into it
        self.lib.vde_send(self.handle, buffer, ctypes.c_size_t(len(frame)), 0)
        try:
            return self.wire.recv(65536)
        except BlockingIOError:
            return None

    def recv(self, frame: bytes, size: int = 9234) -> bytes | None:
        """What the plug receives when ``frame`` comes from the wire; None for nothing (1, or an error)."""
        self.wire.send(frame)
        buffer = ctypes.create_string_buffer(size)
        got = self.lib.vde_recv(self.handle, buffer, ctypes.c_size_t(size), 0)
        return buffer.raw[:got] if got > 1 else None

    def close(self) -> None:
        self.lib.vde_close(self.handle)
        self.wire.close()

    def __enter__(self) -> Plug:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
