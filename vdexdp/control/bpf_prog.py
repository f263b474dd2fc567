# SPDX-License-Identifier: GPL-2.0-or-later
"""BPF programs, over libbpf: loading them, what the verifier says to it, and test runs."""

from __future__ import annotations

import ctypes
import errno
import os
import re
from typing import Final

from vdexdp.control.libbpf import check, library
from vdexdp.errors import KernelFeatureError

PROG_TYPES: Final = {"tc": 3, "xdp": 6}


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


def load(kind: str, name: str, instructions: bytes, *, prog_flags: int = 0, log: bool = True) -> int:
    """Loads a program ("tc" or "xdp") and returns its descriptor.

    Raises PermissionError-like OSError where bpf(2) is not allowed, KernelFeatureError with the verifier's last useful
    lines in its cause where the kernel refuses the program; the whole log is the exception's ``log``.  Without ``log``
    a refusal, too, is an OSError, and cheap.
    """
    fd = _load(kind, name, instructions, prog_flags)
    if fd >= 0:
        return fd
    if -fd == errno.EPERM or not log:
        raise OSError(-fd, os.strerror(-fd))
    log_text = ctypes.create_string_buffer(1 << 24)
    fd = _load(kind, name, instructions, prog_flags, log_text, log_level=1)
    if fd >= 0:
        return fd
    text = log_text.value.decode(errors="replace")
    refusal = KernelFeatureError(
        f"program {name}",
        f"the kernel's verifier refused it ({os.strerror(-fd)}): {last_words(text)}",
        '"vdexdp -v daemon" shows all of its log, CONTRIBUTING.md how to read it; --accel off does without',
    )
    refusal.log = text
    raise refusal


def _load(
    kind: str,
    name: str,
    instructions: bytes,
    prog_flags: int,
    log: ctypes.Array[ctypes.c_char] | None = None,
    log_level: int = 0,
) -> int:
    """The descriptor of a program, or a negative errno.  ``log`` takes what the verifier says at ``log_level``."""
    options = _ProgOptions(sz=ctypes.sizeof(_ProgOptions), attempts=5, prog_flags=prog_flags)
    if log is not None:
        options.log_buf, options.log_size, options.log_level = ctypes.addressof(log), len(log), log_level
    image = ctypes.create_string_buffer(instructions, len(instructions))
    args = (PROG_TYPES[kind], name.encode()[:15], b"GPL", image, len(instructions) // 8, ctypes.byref(options))
    return int(library().bpf_prog_load(*args))


def last_words(log: str) -> str:
    """What a verifier's log says of the refusal in its last two lines.

    Since Linux 7.3 an explanation of many lines stands behind them, which begins with "Verification failed".
    """
    said = log.partition("\nVerification failed")[0].splitlines()
    return " / ".join([line for line in said if line and not line.startswith(("processed ", "verification time"))][-2:])


def verified_instructions(kind: str, name: str, instructions: bytes, prog_flags: int = 0) -> int:
    """How many instructions the verifier walks through before it takes a program; from its own statistics, which every
    kernel since 5.2 prints.  Raises KernelFeatureError where it takes it not.
    """
    log = ctypes.create_string_buffer(1 << 16)
    fd = _load(kind, name, instructions, prog_flags, log, log_level=4)
    text = log.value.decode(errors="replace")
    if fd < 0:
        raise KernelFeatureError(f"program {name}", f"{os.strerror(-fd)}: {text[-200:]}")
    os.close(fd)
    found = re.search(r"processed (\d+) insns", text)
    return int(found[1]) if found else 0


class TestRun:
    """What BPF_PROG_TEST_RUN returned: ``verdict``, the packet ``data`` after the program, its context, ns per run."""

    __test__ = False
    __slots__ = ("context", "data", "duration", "verdict")

    def __init__(self, verdict: int, data: bytes, context: bytes, duration: int) -> None:
        self.verdict = verdict
        self.data = data
        self.context = context
        self.duration = duration


def run(prog_fd: int, data: bytes, context: bytes = b"", repeat: int = 1, flags: int = 0, batch: int = 0) -> TestRun:
    """Runs a program on one packet (BPF_PROG_TEST_RUN).  With ``flags`` 2 (BPF_F_TEST_XDP_LIVE_FRAMES) what it
    redirects is really sent.
    """
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


def name_of(prog_id: int) -> str:
    """The name that a program of anybody's was loaded by.  Raises OSError; EPERM without CAP_SYS_ADMIN."""
    fd = check(library().bpf_prog_get_fd_by_id(ctypes.c_uint32(prog_id)))
    try:
        info, size = _ProgInfo(), ctypes.c_uint32(ctypes.sizeof(_ProgInfo))
        check(library().bpf_obj_get_info_by_fd(fd, ctypes.byref(info), ctypes.byref(size)))
        return bytes(info.name).decode(errors="replace")
    finally:
        os.close(fd)
