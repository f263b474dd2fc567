# SPDX-License-Identifier: GPL-2.0-or-later
"""A small virtual machine as a guest: QEMU in software emulation, Debian's cloud kernel, busybox and nothing else.

The kernel comes from the machine's own apt sources and is unpacked into ``.cache``, not installed.  That is done by
``python -m tests.microvm`` as part of scripts/setup: the tests live in a network namespace that reaches no mirror.
"""

from __future__ import annotations

import gzip
import io
import lzma
import os
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

import pytest

from vdexdp.lab import Namespace, Process

CACHE = Path(__file__).parent.parent / ".cache" / "microvm"
PACKAGE = "linux-image-cloud-amd64"
MODULES = (  # in the order of their loading
    "virtio_ring",
    "virtio",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "failover",
    "net_failover",
    "virtio_net",
)
ECHO_PORT = 7
_INIT = """#!/bin/busybox sh
alias b=/bin/busybox
for module in {modules}; do b insmod /lib/$module.ko; done
b ip link set lo up
b ip link set eth0 up
b ip address add {address}/24 dev eth0
b echo guest is up
b nc -ll -p {port} -e /bin/busybox cat
"""


def boot(host: Namespace, address: str, *network: str) -> Process:
    """Start a guest that has ``address`` (IPv4, /24) on its eth0 and echoes on TCP port ECHO_PORT.

    ``network`` are QEMU's options for the network back-end, whose id has to be "net".  Skips the test where something
    is missing.
    """
    qemu = shutil.which("qemu-system-x86_64")
    if not qemu:
        pytest.skip("QEMU is missing: install qemu-system-x86")
    kernel, modules = _kernel()
    machine = ("-accel", "tcg,thread=multi", "-cpu", "qemu64", "-m", "96", "-nodefaults", "-nographic", "-no-reboot")
    with tempfile.NamedTemporaryFile(prefix="vdexdp-initrd-") as initrd:
        initrd.write(_initrd(modules, address))
        initrd.flush()
        guest = host.spawn(
            qemu,
            *machine,
            *("-serial", "stdio", "-kernel", str(kernel), "-initrd", initrd.name),
            *("-append", "console=ttyS0 quiet panic=-1"),
            *network,
            *("-device", "virtio-net-pci,netdev=net,romfile="),
        )
        guest.wait_output("guest is up", timeout=60)
    return guest


def fetch() -> None:
    """Download and unpack the kernel, if it is not there yet.  Raises RuntimeError where apt does not have it."""
    unpacked = CACHE / "root"
    if unpacked.is_dir():
        return
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as place:
        depends = subprocess.run(["apt-cache", "depends", PACKAGE], capture_output=True, text=True, check=False).stdout
        names = [line.split()[1] for line in depends.splitlines() if line.split()[:1] == ["Depends:"]]
        if names:
            apt = ("apt-get", "-qq", "-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=3")
            subprocess.run([*apt, "download", names[0]], cwd=place, check=False)
        packages = list(Path(place).glob("*.deb"))
        if not packages:
            raise RuntimeError(f"apt-get download of {PACKAGE} fails; try apt-get update")
        root = Path(place) / "root"
        subprocess.run(["dpkg", "-x", str(packages[0]), str(root)], check=True)
        os.rename(root, unpacked)


def _kernel() -> tuple[Path, list[Path]]:
    """The kernel and its modules MODULES."""
    unpacked = CACHE / "root"
    if not unpacked.is_dir():
        pytest.skip("the guest's kernel is missing; run: sudo scripts/setup --test")
    kernel = next((unpacked / "boot").glob("vmlinuz-*"))
    found = {path.name.split(".")[0]: path for path in unpacked.rglob("*.ko*")}
    return kernel, [found[name] for name in MODULES if name in found]


def _initrd(modules: list[Path], address: str) -> bytes:
    busybox = shutil.which("busybox")
    if not busybox:
        pytest.skip("busybox is missing: install busybox-static")
    names = " ".join(path.name.split(".")[0] for path in modules)
    archive = io.BytesIO()
    for directory in ("bin", "dev", "lib"):
        _add(archive, directory, stat.S_IFDIR | 0o755, b"")
    _add(archive, "bin/busybox", stat.S_IFREG | 0o755, Path(busybox).read_bytes())
    script = _INIT.format(modules=names, address=address, port=ECHO_PORT)
    _add(archive, "init", stat.S_IFREG | 0o755, script.encode())
    for path in modules:
        data = path.read_bytes()
        if path.suffix == ".xz":
            data = lzma.decompress(data)
        _add(archive, f"lib/{path.name.split('.')[0]}.ko", stat.S_IFREG | 0o644, data)
    _add(archive, "TRAILER!!!", 0, b"")
    return gzip.compress(archive.getvalue(), 1)


def _add(archive: io.BytesIO, name: str, mode: int, data: bytes) -> None:
    """One member of a cpio archive in the "newc" format, the kernel's (Documentation/driver-api/early-userspace)."""
    fields = (archive.tell(), mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
    archive.write(b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0")
    archive.write(bytes(-archive.tell() % 4) + data)
    archive.write(bytes(-archive.tell() % 4))


if __name__ == "__main__":
    fetch()
