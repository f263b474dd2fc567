# SPDX-License-Identifier: GPL-2.0-or-later
"""BPF maps, over libbpf.

Keys and values are ctypes objects or bytes in the map's own layout (see :mod:`vdexdp.control.abi`).
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from typing import Any, Final

from vdexdp.control.libbpf import check, library, possible_cpus

MAP_TYPES: Final = {
    "HASH": 1,
    "ARRAY": 2,
    "PROG_ARRAY": 3,
    "PERCPU_HASH": 5,
    "PERCPU_ARRAY": 6,
    "LRU_HASH": 9,
    "ARRAY_OF_MAPS": 12,
    "DEVMAP": 14,
    "DEVMAP_HASH": 25,
    "RINGBUF": 27,
}

Data = bytes | bytearray | ctypes.Structure | ctypes.Array  # type: ignore[type-arg]


class _MapOptions(ctypes.Structure):
    _fields_ = [
        ("sz", ctypes.c_size_t),
        ("btf_fd", ctypes.c_uint32),
        ("btf_key_type_id", ctypes.c_uint32),
        ("btf_value_type_id", ctypes.c_uint32),
        ("btf_vmlinux_value_type_id", ctypes.c_uint32),
        ("inner_map_fd", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
        ("map_extra", ctypes.c_uint64),
        ("numa_node", ctypes.c_uint32),
        ("map_ifindex", ctypes.c_uint32),
    ]


def _pointer(data: Data | None) -> Any:
    if data is None:
        return None
    if isinstance(data, bytes):
        return ctypes.cast(ctypes.create_string_buffer(data, len(data)), ctypes.c_void_p)
    if isinstance(data, bytearray):
        return ctypes.cast((ctypes.c_char * len(data)).from_buffer(data), ctypes.c_void_p)
    return ctypes.cast(ctypes.pointer(data), ctypes.c_void_p)


class Map:
    """One BPF map: a descriptor and the types of its keys and values."""

    def __init__(self, fd: int, key: type[Any], value: type[Any], *, percpu: bool = False) -> None:
        self.fd = fd
        self.key = key
        self.value = value
        self.percpu = percpu
        self._value_type: type[Any] = value * possible_cpus() if percpu else value

    @classmethod
    def create(
        cls, name: str, kind: str, key: type[Any], value: type[Any], entries: int, flags: int = 0, inner: int = 0
    ) -> Map:
        """``inner`` is the descriptor of a map like those that this one will hold.

        Raises OSError; EPERM where the caller may not use bpf(2).
        """
        options = _MapOptions(sz=ctypes.sizeof(_MapOptions), map_flags=flags, inner_map_fd=inner)
        fd = check(
            library().bpf_map_create(
                MAP_TYPES[kind],
                name.encode()[:15],
                ctypes.sizeof(key),
                ctypes.sizeof(value),
                entries,
                ctypes.byref(options),
            )
        )
        return cls(fd, key, value, percpu=kind.startswith("PERCPU"))

    def _key(self, key: Any) -> Any:
        return _pointer(self.key(key) if isinstance(key, int) else key)

    def lookup(self, key: Any) -> Any:
        """The value, for a per-CPU map the array of values; None where there is none."""
        value = self._value_type()
        try:
            check(library().bpf_map_lookup_elem(self.fd, self._key(key), ctypes.byref(value)))
        except OSError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        return value

    def update(self, key: Any, value: Any, flags: int = 0) -> None:
        data = self.value(value) if isinstance(value, int) else value
        check(library().bpf_map_update_elem(self.fd, self._key(key), _pointer(data), flags))

    def delete(self, key: Any) -> bool:
        """False where there was no such key."""
        try:
            check(library().bpf_map_delete_elem(self.fd, self._key(key)))
        except OSError as error:
            if error.errno == errno.ENOENT:
                return False
            raise
        return True

    def keys(self) -> Iterator[Any]:
        """Every key, as far as the map holds still meanwhile."""
        current: Any = None
        while True:
            following = self.key()
            try:
                check(
                    library().bpf_map_get_next_key(
                        self.fd, None if current is None else ctypes.byref(current), ctypes.byref(following)
                    )
                )
            except OSError as error:
                if error.errno == errno.ENOENT:
                    return
                raise
            yield following
            current = following

    def items(self) -> Iterator[tuple[Any, Any]]:
        for key in self.keys():
            value = self.lookup(key)
            if value is not None:
                yield key, value

    def bytes_batch(self, chunk: int = 4096) -> Iterator[tuple[memoryview, memoryview]]:
        """Keys in one piece and their values in another, for ``struct.iter_unpack``: thousands in a system call.

        What it yields stands until the next step.  Hash maps, kernel >= 5.6 (EINVAL); the map may not be per-CPU.
        """
        keys, values = (self.key * chunk)(), (self.value * chunk)()
        token_in: Any = None
        while True:
            token_out = ctypes.create_string_buffer(max(8, ctypes.sizeof(self.key)))
            count = ctypes.c_uint32(chunk)
            done = False
            try:
                check(
                    library().bpf_map_lookup_batch(
                        self.fd,
                        token_in,
                        token_out,
                        ctypes.byref(keys),
                        ctypes.byref(values),
                        ctypes.byref(count),
                        None,
                    )
                )
            except OSError as error:
                if error.errno != errno.ENOENT:
                    raise
                done = True
            yield (
                memoryview(keys).cast("B")[: count.value * ctypes.sizeof(self.key)],
                memoryview(values).cast("B")[: count.value * ctypes.sizeof(self.value)],
            )
            if done:
                return
            token_in = token_out

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def create_ring(size: int) -> int:
    """A ring buffer of ``size`` bytes, a power of two and of pages: its descriptor.  Raises OSError."""
    options = _MapOptions(sz=ctypes.sizeof(_MapOptions))
    return check(library().bpf_map_create(MAP_TYPES["RINGBUF"], b"ring", 0, 0, size, ctypes.byref(options)))


class Info(ctypes.Structure):
    """The start of struct bpf_map_info (uapi/linux/bpf.h)."""

    _fields_ = [
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("key_size", ctypes.c_uint32),
        ("value_size", ctypes.c_uint32),
        ("max_entries", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
        ("name", ctypes.c_char * 16),
    ]


def info_of(fd: int) -> Info:
    """Raises OSError, EINVAL where ``fd`` is no map."""
    info, size = Info(), ctypes.c_uint32(ctypes.sizeof(Info))
    check(library().bpf_obj_get_info_by_fd(fd, ctypes.byref(info), ctypes.byref(size)))
    return info
