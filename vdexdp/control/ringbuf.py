# SPDX-License-Identifier: GPL-2.0-or-later
"""The reading end of a BPF ring buffer (Linux >= 5.8).

Reading is libbpf's, which knows what barriers each architecture needs.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

from vdexdp.control.libbpf import check, library

_ENOUGH = -4
"""What a callback returns to stop after the record that it has just taken."""

_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


class Ring:
    """The reading end, one in all processes.  ``fileno`` is for poll."""

    def __init__(self, fd: int) -> None:
        lib = library()
        lib.ring_buffer__new.restype = ctypes.c_void_p
        lib.ring_buffer__new.argtypes = [ctypes.c_int, _CALLBACK, ctypes.c_void_p, ctypes.c_void_p]
        lib.ring_buffer__consume.argtypes = lib.ring_buffer__epoll_fd.argtypes = [ctypes.c_void_p]
        lib.ring_buffer__free.argtypes = [ctypes.c_void_p]
        lib.ring_buffer__free.restype = None
        self._records: list[bytes] = []
        self._limit = 0
        self._callback = _CALLBACK(self._take)
        self._ring: Any = lib.ring_buffer__new(fd, self._callback, None, None)
        if not self._ring:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def _take(self, context: int, data: int, size: int) -> int:
        self._records.append(ctypes.string_at(data, size))
        return _ENOUGH if len(self._records) >= self._limit else 0

    def fileno(self) -> int:
        return int(library().ring_buffer__epoll_fd(self._ring))

    def read(self, limit: int = 256) -> list[bytes]:
        """The records that are there, at most ``limit``."""
        self._limit = limit
        result = library().ring_buffer__consume(self._ring)
        if result < 0 and result != _ENOUGH:
            check(result)
        records, self._records = self._records, []
        return records

    def close(self) -> None:
        if self._ring:
            library().ring_buffer__free(self._ring)
            self._ring = None
