# SPDX-License-Identifier: GPL-2.0-or-later
"""The virtual machine's disks: a Debian root, the kernel's modules, and the checkout.

The root holds what ``scripts/setup --test`` would install, by its own list, and the Python environment that
pyproject.toml asks for, put together offline from wheels that this machine's pip fetches.  It is made once and kept
under a name that is the digest of all that went in.  ``mke2fs -d`` writes a file system from a directory without
mounting it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tarfile
import tempfile
import tomllib
from pathlib import Path

from tests.vm.kernels import CACHE, NotToBeHad, Unpacked, run, source_line
from vdexdp.control import bytecode

CHECKOUT = CACHE.parents[1]
GUEST_CHECKOUT = "/root/vdexdp"
GUEST_VENV = "/opt/venv"
_NOT_COPIED = {".venv", ".cache", ".git", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis"}
_ROOT_MEGABYTES = 3072
_RECIPE = 1
"""To be counted up with a change of the steps in ``_build``."""


def _codename() -> str:
    lines = Path("/etc/os-release").read_text().splitlines()
    found = dict(line.split("=", 1) for line in lines if "=" in line)
    if found.get("ID", "").strip('"') != "debian":
        raise NotToBeHad("the guest's root is made from this machine's own Debian release, and this is no Debian")
    return found["VERSION_CODENAME"].strip('"')


def root_disk() -> Path:
    """The image of the root file system, made if need be: two minutes, 1.5 GB.  Raises NotToBeHad."""
    packages = run(str(CHECKOUT / "scripts/setup"), "--list").split()
    project = (CHECKOUT / "pyproject.toml").read_bytes()
    version = (CHECKOUT / "vdexdp/__init__.py").read_bytes()
    inputs = repr((_RECIPE, _codename(), packages, project, version, sys.version_info[:2]))
    image = CACHE / f"root-{hashlib.sha256(inputs.encode()).hexdigest()[:16]}.ext4"
    if not image.exists():
        print("vm: making the root file system", file=sys.stderr)
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE, prefix="root-") as place:
            _build(Path(place), packages, project)
            made = Path(place) / "image"
            ext4(Path(place) / "root", made, _ROOT_MEGABYTES)
            for old in CACHE.glob("root-*.ext4"):
                old.unlink()
            os.rename(made, image)
    return image


def _build(place: Path, packages: list[str], project: bytes) -> None:
    root = place / "root"
    codename = _codename()
    (place / "sources.list").write_text(source_line(codename) + source_line(f"{codename}-security"))
    run(
        *("mmdebstrap", "--quiet", "--variant=apt", "--mode=root", "--dpkgopt=force-unsafe-io"),
        *('--aptopt=APT::Install-Recommends "false"', '--aptopt=Acquire::Languages "none"'),
        *(f"--include={','.join([*packages, 'kmod'])}", codename, str(root), str(place / "sources.list")),
    )
    metadata = tomllib.loads(project.decode())["project"]
    wanted = [*metadata["dependencies"], *metadata["optional-dependencies"]["test"]]
    wheels = root / "wheels"
    run(sys.executable, "-m", "pip", "wheel", "-q", "-w", str(wheels), *wanted)
    # An editable installation only points to where the checkout will be.
    checkout = root / GUEST_CHECKOUT.lstrip("/")
    for name in ("pyproject.toml", "README.md", "LICENSE", "packaging", "systemd", "bpf", "vdexdp"):
        source = CHECKOUT / name
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, checkout / name, ignore=shutil.ignore_patterns(*_NOT_COPIED))
        else:
            shutil.copy(source, checkout / name)
    pip = (f"{GUEST_VENV}/bin/python", "-m", "pip", "install", "-q", "--no-index", "--find-links=/wheels")
    run("chroot", str(root), "/usr/bin/python3", "-m", "venv", "--system-site-packages", GUEST_VENV)
    run("chroot", str(root), *pip, *wanted)
    run("chroot", str(root), *pip, "--no-build-isolation", "--no-deps", "-e", GUEST_CHECKOUT)
    run("chroot", str(root), f"{GUEST_VENV}/bin/python", "-m", "compileall", "-q", f"{GUEST_VENV}/lib")
    shutil.rmtree(wheels)
    shutil.rmtree(checkout)
    (root / "etc/hostname").write_text("guest\n")
    (root / "etc/hosts").write_text("127.0.0.1 localhost guest\n::1 localhost\n")


def ext4(directory: Path, image: Path, megabytes: int) -> None:
    """Write a directory into a new file system without a journal."""
    run("mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-d", str(directory), str(image), f"{megabytes}M")


def modules_disk(kernel: Unpacked) -> Path:
    """An image with the kernel's /lib/modules."""
    image = kernel.root.parent / f"{kernel.root.name}.modules.ext4"
    if not image.exists() or image.stat().st_mtime < (kernel.root / "version").stat().st_mtime:
        size = sum(path.lstat().st_size for path in kernel.modules.rglob("*"))
        image.unlink(missing_ok=True)
        ext4(kernel.modules, image, size // 1_000_000 * 5 // 4 + 32)
    return image


def checkout_disk(path: Path) -> None:
    """A tar of the checkout as it is, and of the compiled programs, so that nothing is compiled in emulation."""

    def keep(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        if _NOT_COPIED & set(member.name.split("/")) or member.name.startswith("dist/"):
            return None
        member.uid = member.gid = 0
        member.uname = member.gname = "root"
        return member

    with tempfile.TemporaryDirectory() as scratch, tarfile.open(path, "w") as archive:
        archive.add(CHECKOUT, GUEST_CHECKOUT.lstrip("/"), filter=keep)
        for name, image in bytecode.images(bytecode.PROGRAMS).items():
            compiled = Path(scratch) / bytecode.file_name(bytecode.PROGRAMS[name])
            bytecode.write(compiled, image)
            archive.add(compiled, f"var/cache/vdexdp/{compiled.name}", filter=keep)
