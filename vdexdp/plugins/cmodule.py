# SPDX-License-Identifier: GPL-2.0-or-later
"""Any libvdeplug module (``libvdeplug_SCHEME.so``) as a scheme, driven through libvdeplug.so.2.

A scheme that neither this package nor another Python package knows is looked for where libvdeplug looks: in the
directories of VDEPLUGIN_PATH, where that is set, and nowhere else; otherwise beside libvdeplug itself, in
LD_LIBRARY_PATH and in /lib and /usr/lib (each: subdirectory ``vdeplug``), and last wherever the dynamic linker
finds it.  ``find`` only looks; the module is loaded by libvdeplug when the end is opened, with the VNL untouched.

Limits.  A module has no batches and no way to say that it is full: each frame costs a call, and a ``vde_send`` that
waits makes the whole cable wait.  So where the module's data descriptor is one that can be asked (a socket, a pipe,
a terminal: not an epoll set), a frame for which it has no room is dropped and counted.  A module that crashes takes
the plug with it.

``vde_recv`` answers 1 for "nothing for you", -1 for an error; the cable ends when the control descriptor
says anything at all, or the data descriptor hangs up.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import select
import stat
from collections.abc import Iterator, Sequence
from functools import cache
from typing import ClassVar

from vdexdp.errors import HangUp, HostError
from vdexdp.plugins.base import FRAME_MAX, FRAME_MIN, Batch, NoKernelEnd, OpenContext, Parsed, Plugin, Stream

LIBRARY = "libvdeplug.so.2"
INTERFACE_VERSION = 1


class _OpenArgs(ctypes.Structure):
    """struct vde_open_args of libvdeplug.h."""

    _fields_: ClassVar = [("port", ctypes.c_int), ("group", ctypes.c_char_p), ("mode", ctypes.c_uint)]


class _DlInfo(ctypes.Structure):
    """Dl_info of dlfcn.h."""

    _fields_: ClassVar = [
        ("fname", ctypes.c_char_p),
        ("fbase", ctypes.c_void_p),
        ("sname", ctypes.c_char_p),
        ("saddr", ctypes.c_void_p),
    ]


@cache
def _library() -> ctypes.CDLL | None:
    """libvdeplug with the types of the six calls declared; None where it is not installed.

    Its symbols are global, because modules that nest call vde_open without being linked to the library that has it.
    """
    try:
        lib = ctypes.CDLL(LIBRARY, ctypes.RTLD_GLOBAL, use_errno=True)
    except OSError:
        return None
    lib.vde_open_real.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int, ctypes.POINTER(_OpenArgs)]
    lib.vde_open_real.restype = ctypes.c_void_p
    for name in ("vde_recv", "vde_send"):
        call = getattr(lib, name)
        call.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        call.restype = ctypes.c_ssize_t
    for name in ("vde_datafd", "vde_ctlfd", "vde_close"):
        getattr(lib, name).argtypes = [ctypes.c_void_p]
    return lib


def _library_directory(lib: ctypes.CDLL) -> str:
    info = _DlInfo()
    dladdr = ctypes.CDLL(None).dladdr
    if not dladdr(ctypes.cast(lib.vde_open_real, ctypes.c_void_p), ctypes.byref(info)) or not info.fname:
        return ""
    return os.path.dirname(os.fsdecode(info.fname))


def _candidates(scheme: str, lib: ctypes.CDLL) -> Iterator[str]:
    """Paths in libvdeplug's order."""
    name = f"libvdeplug_{scheme}.so"
    only = os.environ.get("VDEPLUGIN_PATH")
    if only is not None:
        yield from (f"{directory}/{name}" for directory in only.split(":"))
        return
    own = _library_directory(lib)
    if own:
        yield f"{own}/vdeplug/{name}"
        yield f"{own}/{name}"
    for directory in [*os.environ.get("LD_LIBRARY_PATH", "").split(":"), "/lib", "/usr/lib"]:
        if directory:
            yield f"{directory}/vdeplug/{name}"


def _is_loadable(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def module_path(scheme: str) -> str | None:
    """Where libvdeplug would find its module of that name; without a directory where only the linker knows it."""
    if not re.fullmatch(r"[A-Za-z0-9_+-]+", scheme):
        return None
    lib = _library()
    if lib is None:
        return None
    path = next((path for path in _candidates(scheme, lib) if os.path.isfile(path)), None)
    if path is None and "VDEPLUGIN_PATH" not in os.environ and _is_loadable(f"libvdeplug_{scheme}.so"):
        return f"libvdeplug_{scheme}.so"
    return path


def find(scheme: str) -> Plugin | None:
    """The plugin for libvdeplug's module of that name; None where there is none (or no libvdeplug)."""
    path = module_path(scheme)
    if path is None:
        return None
    found = {"scheme": scheme, "summary": f"libvdeplug's C module {path}", "example": f"{scheme}://"}
    plugin = type(f"CModulePlugin_{scheme}", (CModulePlugin,), found)()
    assert isinstance(plugin, CModulePlugin)
    return plugin


class CModuleStream(Stream):
    """One VDECONN."""

    def __init__(self, vnl: str, context: OpenContext) -> None:
        super().__init__()
        self._vnl = vnl
        lib = _library()
        if lib is None:
            raise HostError(vnl, f"{LIBRARY} is not there", "install the package libvdeplug2")
        self._lib = lib
        group = context.group.encode() if context.group is not None else None
        args = _OpenArgs(context.port or 0, group, context.mode if context.mode is not None else 0o700)
        ctypes.set_errno(0)
        conn = lib.vde_open_real(os.fsencode(vnl), os.fsencode(context.description), INTERFACE_VERSION, args)
        if not conn:
            code = ctypes.get_errno()
            raise HostError(vnl, f"its C module refused it: {os.strerror(code) if code else 'no reason given'}")
        self._conn: int | None = conn
        self._data: int = lib.vde_datafd(conn)
        self._control: int = lib.vde_ctlfd(conn)
        self._hung_up = False
        self._poll = select.poll()
        for fd in self.readers():
            self._poll.register(fd, select.POLLIN)
        self._room: select.poll | None = None
        # An epoll set (no file type: an anonymous inode) is never writable; nothing can be learnt from it.
        if self._data >= 0 and stat.S_IFMT(os.fstat(self._data).st_mode):
            self._room = select.poll()
            self._room.register(self._data, select.POLLOUT)

    def readers(self) -> Sequence[int]:
        return [fd for fd in (self._data, self._control) if fd >= 0] if self._conn else ()

    def recv(self, batch: Batch) -> None:
        while not batch.full and self._readable():
            row = batch.rows[batch.count]
            got = self._lib.vde_recv(self._conn, ctypes.addressof(ctypes.c_char.from_buffer(row)), FRAME_MAX, 0)
            if got < 0:
                code = ctypes.get_errno()
                if code in (errno.EAGAIN, errno.EINTR):
                    return
                raise HostError(self._vnl, f"its C module failed to receive: {os.strerror(code)}")
            if got < FRAME_MIN:
                if self._hung_up:
                    raise HangUp(f"{self._vnl}: hung up")
                return
            batch.lengths[batch.count] = min(got, FRAME_MAX)
            batch.count += 1

    def send(self, batch: Batch, start: int = 0) -> int:
        for index in range(start, len(batch)):
            frame = batch[index]
            if self._room is not None and not self._room.poll(0):
                self.drops["full"] += 1
                continue
            address = ctypes.addressof(ctypes.c_char.from_buffer(frame))
            if self._lib.vde_send(self._conn, address, len(frame), 0) < 0:
                self.drops["full" if ctypes.get_errno() == errno.EAGAIN else "refused"] += 1
        return len(batch) - start

    def close(self) -> None:
        if self._conn:
            self._lib.vde_close(self._conn)
            self._conn = None

    def _readable(self) -> bool:
        """Whether ``vde_recv`` would find something; it may wait where there is nothing.  Raises HangUp."""
        readable = False
        for fd, events in self._poll.poll(0):
            if fd == self._control and fd != self._data:
                raise HangUp(f"{self._vnl}: the other side has closed the connection")
            readable = bool(events & select.POLLIN)
            self._hung_up = bool(events & (select.POLLHUP | select.POLLERR | select.POLLNVAL))
            if not readable:
                raise HangUp(f"{self._vnl}: hung up")
        return readable


class CModulePlugin(Plugin):
    """The class behind every scheme that ``find`` finds; the spec is the VNL: only the module knows what it means."""

    scheme = ""
    grammar = "raw"
    summary = "a libvdeplug C module"
    address = "whatever the module takes"

    def parse(self, parsed: Parsed) -> str:
        return f"{self.scheme}://{parsed.address}"

    def open(self, spec: str, context: OpenContext) -> CModuleStream:
        return CModuleStream(spec, context)

    def kernel_end(self, spec: str) -> NoKernelEnd:
        return NoKernelEnd(f"{self.scheme}:// is a C module, run through libvdeplug")
