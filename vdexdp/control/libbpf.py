# SPDX-License-Identifier: GPL-2.0-or-later
"""libbpf.so.1 by ctypes.

Its calls return a descriptor or 0, or a negative errno, and so every function over it (:mod:`vdexdp.control.bpf_map`,
:mod:`~vdexdp.control.bpf_prog`, :mod:`~vdexdp.control.bpf_link`) raises OSError or returns.  Descriptors are
close-on-exec, as the kernel makes them.
"""

from __future__ import annotations

import ctypes
import errno
import os
from functools import cache

from vdexdp.errors import KernelFeatureError


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
