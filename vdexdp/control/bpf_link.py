# SPDX-License-Identifier: GPL-2.0-or-later
"""BPF links, over libbpf: a program stays attached as long as somebody holds the link's descriptor."""

from __future__ import annotations

import ctypes
from typing import Final

from vdexdp.control.libbpf import check, library

ATTACH_XDP: Final = 37
ATTACH_TCX_INGRESS: Final = 46
ATTACH_TCX_EGRESS: Final = 47
TCX_BEFORE: Final = 1 << 3
"""Attach in front of all programs that are at the hook already (BPF_F_BEFORE)."""
XDP_FLAGS_SKB_MODE: Final = 1 << 1
XDP_FLAGS_DRV_MODE: Final = 1 << 2


class _LinkOptions(ctypes.Structure):
    _fields_ = [
        ("sz", ctypes.c_size_t),
        ("flags", ctypes.c_uint32),
        ("iter_info", ctypes.c_void_p),
        ("iter_info_len", ctypes.c_uint32),
        ("target_btf_id", ctypes.c_uint32),
        ("rest", ctypes.c_uint64 * 2),
    ]


def create(prog_fd: int, ifindex: int, attach_type: int, flags: int = 0) -> int:
    """Attaches a program to an interface of the caller's network namespace, for as long as the descriptor lives."""
    options = _LinkOptions(sz=ctypes.sizeof(_LinkOptions), flags=flags)
    return check(library().bpf_link_create(prog_fd, ifindex, attach_type, ctypes.byref(options)))


def update(link_fd: int, prog_fd: int) -> None:
    """Replaces the program behind a link under traffic."""
    check(library().bpf_link_update(link_fd, prog_fd, None))


def detach(link_fd: int) -> None:
    """Detaches at once, whoever else has the link's descriptor.  Kernel >= 5.9."""
    check(library().bpf_link_detach(link_fd))
