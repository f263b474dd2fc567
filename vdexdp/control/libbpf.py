# SPDX-License-Identifier: GPL-2.0-or-later
"""ctypes over libbpf.so.1: maps, programs, links, test runs.

libbpf's low-level calls return a descriptor or 0, or a negative errno, and so every function here raises OSError or
returns.  Keys and values are ctypes objects or bytes in the map's own layout (see :mod:`vdexdp.control.abi`).
Descriptors are close-on-exec, as the kernel makes them.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
from collections.abc import Iterator
from functools import cache
from typing import Any, Final

from vdexdp.errors import KernelFeatureError

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
PROG_TYPES: Final = {"tc": 3, "xdp": 6}
ATTACH_XDP: Final = 37
ATTACH_TCX_INGRESS: Final = 46
ATTACH_TCX_EGRESS: Final = 47
TCX_BEFORE: Final = 1 << 3
"""Attach in front of all programs that are at the hook already (BPF_F_BEFORE)."""
XDP_FLAGS_SKB_MODE: Final = 1 << 1
XDP_FLAGS_DRV_MODE: Final = 1 << 2

Data = bytes | bytearray | ctypes.Structure | ctypes.Array  # type: ignore[type-arg]


@cache
def library() -> ctypes.CDLL:
    """libbpf itself, for the modules beside this one."""
    try:
        lib = ctypes.CDLL("libbpf.so.1", use_errno=True)
    except OSError as error:
        raise KernelFeatureError(
            "libbpf.so.1", "not found", 'install it with "apt-get install libbpf1", or use --accel off'
        ) from error
    lib.bpf_map_create.argtypes = [
        ctypes.c_int,
        ctypes.c_char_p,
        ctypes.c_uint32,
        ctypes.c_uint32,
        ctypes.c_uint32,
        ctypes.c_void_p,
    ]
    lib.bpf_prog_load.argtypes = [
        ctypes.c_int,
        ctypes.c_char_p,
        ctypes.c_char_p,
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_void_p,
    ]
    lib.bpf_map_lookup_elem.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
    lib.bpf_map_update_elem.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint64]
    lib.bpf_map_delete_elem.argtypes = [ctypes.c_int, ctypes.c_void_p]
    lib.bpf_map_get_next_key.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
    lib.bpf_map_lookup_batch.argtypes = [ctypes.c_int] + [ctypes.c_void_p] * 5 + [ctypes.c_void_p]
    lib.bpf_link_create.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_void_p]
    lib.bpf_link_detach.argtypes = [ctypes.c_int]
    lib.bpf_link_update.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_void_p]
    lib.bpf_prog_test_run_opts.argtypes = [ctypes.c_int, ctypes.c_void_p]
    lib.bpf_obj_get_info_by_fd.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_uint32)]
    lib.libbpf_num_possible_cpus.argtypes = []
    # Diagnostics come as exceptions; libbpf's own lines on descriptor 2 would repeat them.
    lib.libbpf_set_print.argtypes = [ctypes.c_void_p]
    lib.libbpf_set_print(None)
    return lib


def check(result: int) -> int:
    """What a call returned, unless that is an error: then raises OSError."""
    if result < 0:
        number = -result if result < -1 else ctypes.get_errno() or errno.EPERM
        raise OSError(number, os.strerror(number))
    return result


@cache
def possible_cpus() -> int:
    """How many values a per-CPU map has for each key."""
    return check(library().libbpf_num_possible_cpus())


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


class _ProgOptions(ctypes.Structure):
    _fields_ = [
        ("sz", ctypes.c_size_t),
        ("attempts", ctypes.c_int),
        ("expected_attach_type", ctypes.c_int),
        ("prog_btf_fd", ctypes.c_uint32),
        ("prog_flags", ctypes.c_uint32),
        ("prog_ifindex", ctypes.c_uint32),
        ("kern_version", ctypes.c_uint32),
        ("attach_btf_id", ctypes.c_uint32),
        ("attach_prog_fd", ctypes.c_uint32),
        ("attach_btf_obj_fd", ctypes.c_uint32),
        ("fd_array", ctypes.c_void_p),
        ("func_info", ctypes.c_void_p),
        ("func_info_cnt", ctypes.c_uint32),
        ("func_info_rec_size", ctypes.c_uint32),
        ("line_info", ctypes.c_void_p),
        ("line_info_cnt", ctypes.c_uint32),
        ("line_info_rec_size", ctypes.c_uint32),
        ("log_level", ctypes.c_uint32),
        ("log_size", ctypes.c_uint32),
        ("log_buf", ctypes.c_void_p),
    ]


class _LinkOptions(ctypes.Structure):
    _fields_ = [
        ("sz", ctypes.c_size_t),
        ("flags", ctypes.c_uint32),
        ("iter_info", ctypes.c_void_p),
        ("iter_info_len", ctypes.c_uint32),
        ("target_btf_id", ctypes.c_uint32),
        ("rest", ctypes.c_uint64 * 2),
    ]


class _TestRunOptions(ctypes.Structure):
    _fields_ = [
        ("sz", ctypes.c_size_t),
        ("data_in", ctypes.c_void_p),
        ("data_out", ctypes.c_void_p),
        ("data_size_in", ctypes.c_uint32),
        ("data_size_out", ctypes.c_uint32),
        ("ctx_in", ctypes.c_void_p),
        ("ctx_out", ctypes.c_void_p),
        ("ctx_size_in", ctypes.c_uint32),
        ("ctx_size_out", ctypes.c_uint32),
        ("retval", ctypes.c_uint32),
        ("repeat", ctypes.c_int),
        ("duration", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("cpu", ctypes.c_uint32),
        ("batch_size", ctypes.c_uint32),
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


def ring_create(size: int) -> int:
    """A ring buffer of ``size`` bytes, a power of two and of pages: its descriptor.  Raises OSError."""
    options = _MapOptions(sz=ctypes.sizeof(_MapOptions))
    return check(library().bpf_map_create(MAP_TYPES["RINGBUF"], b"ring", 0, 0, size, ctypes.byref(options)))


def prog_load(kind: str, name: str, instructions: bytes, *, prog_flags: int = 0, log: bool = True) -> int:
    """Loads a program ("tc" or "xdp") and returns its descriptor.

    Raises PermissionError-like OSError where bpf(2) is not allowed, KernelFeatureError with the verifier's last useful
    lines in its cause where the kernel refuses the program; the whole log is the exception's ``log``.  Without ``log``
    a refusal, too, is an OSError, and cheap.
    """
    options = _ProgOptions(sz=ctypes.sizeof(_ProgOptions), attempts=5, prog_flags=prog_flags)
    image = ctypes.create_string_buffer(instructions, len(instructions))
    args = (PROG_TYPES[kind], name.encode()[:15], b"GPL", image, len(instructions) // 8)
    fd: int = library().bpf_prog_load(*args, ctypes.byref(options))
    if fd >= 0:
        return fd
    if -fd == errno.EPERM or not log:
        raise OSError(-fd, os.strerror(-fd))
    size = 1 << 24
    buffer = ctypes.create_string_buffer(size)
    options.log_buf, options.log_size, options.log_level = ctypes.addressof(buffer), size, 1
    fd = library().bpf_prog_load(*args, ctypes.byref(options))
    if fd >= 0:
        return fd
    text = buffer.value.decode(errors="replace")
    useful = [line for line in text.splitlines() if line and not line.startswith(("processed ", "verification time"))]
    refusal = KernelFeatureError(
        f"program {name}",
        f"the kernel's verifier refused it ({os.strerror(-fd)}): " + " / ".join(useful[-2:]),
        '"vdexdp -v daemon" shows all of its log, CONTRIBUTING.md how to read it; --accel off does without',
    )
    refusal.log = text
    raise refusal


def link_create(prog_fd: int, ifindex: int, attach_type: int, flags: int = 0) -> int:
    """Attaches a program to an interface of the caller's network namespace, for as long as the descriptor lives."""
    options = _LinkOptions(sz=ctypes.sizeof(_LinkOptions), flags=flags)
    return check(library().bpf_link_create(prog_fd, ifindex, attach_type, ctypes.byref(options)))


def link_update(link_fd: int, prog_fd: int) -> None:
    """Replaces the program behind a link under traffic."""
    check(library().bpf_link_update(link_fd, prog_fd, None))


def link_detach(link_fd: int) -> None:
    """Detaches at once, whoever else has the link's descriptor.  Kernel >= 5.9."""
    check(library().bpf_link_detach(link_fd))


class TestRun:
    """What BPF_PROG_TEST_RUN returned: ``verdict``, the packet ``data`` after the program, its context, ns per run."""

    __test__ = False
    __slots__ = ("context", "data", "duration", "verdict")

    def __init__(self, verdict: int, data: bytes, context: bytes, duration: int) -> None:
        self.verdict = verdict
        self.data = data
        self.context = context
        self.duration = duration


def prog_test_run(
    prog_fd: int, data: bytes, context: bytes = b"", repeat: int = 1, flags: int = 0, batch: int = 0
) -> TestRun:
    """Runs a program on one packet; ``flags`` 2 (BPF_F_TEST_XDP_LIVE_FRAMES) really sends what it redirects."""
    live = bool(flags & 2)
    out = ctypes.create_string_buffer(len(data) + 512)
    source = ctypes.create_string_buffer(data, len(data))
    ctx_in = ctypes.create_string_buffer(context, len(context)) if context else None
    ctx_out = ctypes.create_string_buffer(len(context)) if context and not live else None
    options = _TestRunOptions(
        sz=ctypes.sizeof(_TestRunOptions),
        data_in=ctypes.addressof(source),
        data_out=None if live else ctypes.addressof(out),
        data_size_in=len(data),
        data_size_out=0 if live else len(out),
        ctx_in=ctypes.addressof(ctx_in) if ctx_in is not None else None,
        ctx_out=ctypes.addressof(ctx_out) if ctx_out is not None else None,
        ctx_size_in=len(context),
        ctx_size_out=len(context) if ctx_out is not None else 0,
        repeat=repeat,
        flags=flags,
        batch_size=batch,
    )
    check(library().bpf_prog_test_run_opts(prog_fd, ctypes.byref(options)))
    return TestRun(
        options.retval,
        b"" if live else out.raw[: options.data_size_out],
        b"" if ctx_out is None else ctx_out.raw[: options.ctx_size_out],
        options.duration,
    )


class _ProgInfo(ctypes.Structure):
    """The start of struct bpf_prog_info (uapi/linux/bpf.h)."""

    _fields_ = [("before", ctypes.c_uint8 * 64), ("name", ctypes.c_char * 16)]


def prog_name(prog_id: int) -> str:
    """The name that a program of anybody's was loaded by.  Raises OSError; EPERM without CAP_SYS_ADMIN."""
    fd = check(library().bpf_prog_get_fd_by_id(ctypes.c_uint32(prog_id)))
    try:
        info, size = _ProgInfo(), ctypes.c_uint32(ctypes.sizeof(_ProgInfo))
        check(library().bpf_obj_get_info_by_fd(fd, ctypes.byref(info), ctypes.byref(size)))
        return bytes(info.name).decode(errors="replace")
    finally:
        os.close(fd)


class MapInfo(ctypes.Structure):
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


def map_info(fd: int) -> MapInfo:
    """Raises OSError, EINVAL where ``fd`` is no map."""
    info, size = MapInfo(), ctypes.c_uint32(ctypes.sizeof(MapInfo))
    check(library().bpf_obj_get_info_by_fd(fd, ctypes.byref(info), ctypes.byref(size)))
    return info


def verified_instructions(kind: str, name: str, instructions: bytes, prog_flags: int = 0) -> int:
    """How many instructions the verifier walks through before it takes a program; from its own statistics, which every
    kernel since 5.2 prints.  Raises KernelFeatureError where it takes it not.
    """
    log = ctypes.create_string_buffer(1 << 16)
    options = _ProgOptions(
        sz=ctypes.sizeof(_ProgOptions),
        attempts=5,
        prog_flags=prog_flags,
        log_level=4,
        log_size=len(log),
        log_buf=ctypes.addressof(log),
    )
    image = ctypes.create_string_buffer(instructions, len(instructions))
    fd: int = library().bpf_prog_load(
        PROG_TYPES[kind], name.encode()[:15], b"GPL", image, len(instructions) // 8, ctypes.byref(options)
    )
    text = log.value.decode(errors="replace")
    if fd < 0:
        raise KernelFeatureError(f"program {name}", f"{os.strerror(-fd)}: {text[-200:]}")
    os.close(fd)
    found = re.search(r"processed (\d+) insns", text)
    return int(found[1]) if found else 0
