# SPDX-License-Identifier: GPL-2.0-or-later
"""Initial RAM disks: busybox, some modules, a script."""

from __future__ import annotations

import gzip
import io
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path

from tests.vm.kernels import NotToBeHad, module_bytes

_INIT = """#!/bin/busybox sh
alias b=/bin/busybox
for module in {modules}; do b insmod /lib/$module; done
"""


def initrd(script: str, modules: list[Path], files: Mapping[str, bytes] | None = None) -> bytes:
    """An archive whose /init loads the modules in their order and goes on with a busybox script, in which ``b`` is
    busybox.  ``files`` are added, executable.  Raises NotToBeHad.
    """
    busybox = shutil.which("busybox")
    if not busybox:
        raise NotToBeHad("busybox is missing: install busybox-static")
    names = {path: path.name.removesuffix(".xz") for path in modules}
    content = {
        "bin/busybox": Path(busybox).read_bytes(),
        "init": (_INIT.format(modules=" ".join(names.values())) + script).encode(),
        **{f"lib/{name}": module_bytes(path) for path, name in names.items()},
        **(files or {}),
    }
    archive = io.BytesIO()
    for directory in ("bin", "dev", "lib", "proc", "sys", "root"):
        _add(archive, directory, stat.S_IFDIR | 0o755, b"")
    for name, data in content.items():
        _add(archive, name, stat.S_IFREG | 0o755, data)
    _add(archive, "TRAILER!!!", 0, b"")
    return gzip.compress(archive.getvalue(), 1)


def _add(archive: io.BytesIO, name: str, mode: int, data: bytes) -> None:
    """One member of a cpio archive in the "newc" format, the kernel's (Documentation/driver-api/early-userspace)."""
    fields = (archive.tell(), mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
    archive.write(b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0")
    archive.write(bytes(-archive.tell() % 4) + data)
    archive.write(bytes(-archive.tell() % 4))
