# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernels of virtual machines: Debian's cloud flavour, downloaded and unpacked into ``.cache``, not installed.

A kernel has a name here ("5.10"), a metapackage and the suites that may have it; the names of the real packages
carry an ABI number and change with every security update.  The mirror is the one that apt uses on this machine, the
suites are mostly not: they are read through a private apt directory.  From 7.x on an image package is empty and
depends on linux-binary and linux-modules.  Modules are compressed from 6.12 on.
"""

from __future__ import annotations

import functools
import lzma
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

CACHE = Path(__file__).resolve().parents[2] / ".cache" / "vm"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_PARTS = re.compile(r"linux-(image|binary|modules)-")


class NotToBeHad(Exception):
    """Something that is fetched isn't there; the text says what and how to get it."""


@dataclass(frozen=True)
class Kernel:
    """``suites``: the newest kernel that any of them has; none for the machine's own apt sources."""

    name: str
    suites: tuple[str, ...]
    package: str = "linux-image-cloud-amd64"


KERNELS = {
    kernel.name: kernel
    for kernel in (
        Kernel("5.10", ("bullseye-security",)),
        Kernel("6.1", ("bookworm-security",)),
        Kernel("6.12", ("bookworm-security",), "linux-image-6.12-cloud-amd64"),
        Kernel("newest", ("trixie-backports", "sid", "experimental")),
    )
}
OWN = Kernel("own", ())
"""What the machine's own apt sources have, without another update: for the tests' small guest."""


@dataclass(frozen=True)
class Unpacked:
    """``root`` holds boot/ and the modules; ``version`` is Debian's, ``release`` what uname -r says."""

    root: Path
    version: str

    @property
    def modules(self) -> Path:
        return self.root / "lib/modules"

    @property
    def release(self) -> str:
        return next(self.modules.iterdir()).name

    @property
    def image(self) -> Path:
        old = self.root / f"boot/vmlinuz-{self.release}"
        return old if old.exists() else self.modules / self.release / "vmlinuz"

    @property
    def config(self) -> Path:
        """What it was built with; need not be there."""
        return self.root / f"boot/config-{self.release}"

    def load_order(self, *names: str) -> list[Path]:
        """The files of these modules and of what they depend on, in the order of their loading; built-in ones have
        none.
        """
        tree = self.modules / self.release
        depends = {}
        for line in (tree / "modules.dep").read_text().splitlines():
            path, _, others = line.partition(":")
            depends[_module(path)] = [path, *others.split()]
        order: dict[str, None] = {}
        for name in names:
            order |= dict.fromkeys(reversed(depends.get(name, [])))
        return [tree / path for path in order]


def _module(path: str) -> str:
    return Path(path).name.split(".")[0].replace("-", "_")


def module_bytes(path: Path) -> bytes:
    data = path.read_bytes()
    return lzma.decompress(data) if path.suffix == ".xz" else data


def unpacked(kernel: Kernel) -> Unpacked | None:
    """The kernel, if it was fetched."""
    root = CACHE / "kernels" / kernel.name
    return Unpacked(root, (root / "version").read_text()) if root.is_dir() else None


def fetch(kernel: Kernel) -> Unpacked:
    """Download and unpack the kernel, if it is not there yet.  Raises NotToBeHad."""
    if there := unpacked(kernel):
        return there
    source, version = _newest(kernel)
    target = CACHE / "kernels" / kernel.name
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as place:
        root = Path(place) / "root"
        root.mkdir()
        for package in source.parts(kernel.package):
            source.run("apt-get", "-qq", "-o", "Acquire::Retries=3", "download", package, place=place)
        packages = sorted(Path(place).glob("*.deb"))
        for path in packages:
            run("dpkg", "-x", str(path), str(root))
        if not (root / "lib").exists():
            (root / "lib").symlink_to("usr/lib")  # where depmod looks
        found = Unpacked(root, version)
        if not found.modules.is_dir() or not found.image.exists():
            raise NotToBeHad(f"{kernel.package} {version}: no kernel in {', '.join(path.name for path in packages)}")
        run("depmod", "-b", str(root), found.release)
        (root / "version").write_text(version)
        os.chmod(root, 0o755)
        os.rename(root, target)
    return Unpacked(target, version)


def _newest(kernel: Kernel) -> tuple[_Apt, str]:
    found: tuple[_Apt, str] | None = None
    for suite in kernel.suites or ("",):
        source = _Apt(suite)
        version = source.candidate(kernel.package)
        if version and (not found or _newer(version, found[1])):
            found = source, version
    if not found:
        where = ", ".join(kernel.suites) or "the machine's apt sources; try apt-get update"
        raise NotToBeHad(f"{kernel.package}: not in {where}")
    return found


def _newer(left: str, right: str) -> bool:
    return subprocess.run(["dpkg", "--compare-versions", left, "gt", right], check=False).returncode == 0


def run(*command: str, place: str | Path | None = None) -> str:
    """What a command printed.  Raises NotToBeHad with its messages where it fails."""
    if not shutil.which(command[0]):
        raise NotToBeHad(f"{command[0]} is missing; run: sudo scripts/setup --vm")
    result = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
    if result.returncode:
        raise NotToBeHad(f"{' '.join(command)}: {(result.stdout + result.stderr).strip()}")
    return result.stdout


@functools.cache
def mirror(archive: str) -> str:
    """The address of "debian" or "debian-security", from apt's own configuration.  Raises NotToBeHad."""
    for line in run("apt-get", "indextargets", "--format", "$(REPO_URI)").splitlines():
        if line.rstrip("/").endswith(f"/{archive}"):
            return line
    raise NotToBeHad(f"apt's configuration has no mirror of {archive}")


def source_line(suite: str) -> str:
    """A line for a sources.list."""
    archive = "debian-security" if suite.endswith("-security") else "debian"
    signed = f"[signed-by={KEYRING}] " if KEYRING.exists() else ""
    return f"deb {signed}{mirror(archive)} {suite} main\n"


class _Apt:
    """apt with one suite alone, in a private directory; the machine's own apt for the suite ""."""

    def __init__(self, suite: str) -> None:
        self.options = ["-o", "APT::Sandbox::User=root"]
        if not suite:
            return
        place = CACHE / "apt" / suite
        for part in ("lists/partial", "cache/archives/partial"):
            (place / part).mkdir(parents=True, exist_ok=True)
        (place / "status").touch()
        (place / "sources.list").write_text(source_line(suite))
        settings = {
            "Dir::Etc::sourcelist": place / "sources.list",
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::Etc::preferences": "/dev/null",
            "Dir::Etc::preferencesparts": "/dev/null",
            "Dir::State::lists": place / "lists",
            "Dir::State::status": place / "status",
            "Dir::Cache": place / "cache",
            "Acquire::Languages": "none",
        }
        self.options += [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
        self.run("apt-get", "-qq", "-o", "Acquire::Retries=3", "update")

    def run(self, command: str, *arguments: str, place: str | Path | None = None) -> str:
        return run(command, *self.options, *arguments, place=place)

    def candidate(self, package: str) -> str:
        """The version that would be installed, "" for none."""
        found = re.search(r"Candidate: (?!\(none\))(\S+)", self.run("apt-cache", "policy", package))
        return found[1] if found else ""

    def parts(self, package: str) -> list[str]:
        """The packages with the kernel's files that a metapackage stands for, itself included."""
        wanted = [package]
        for one in wanted:
            for line in self.run("apt-cache", "depends", "--important", one).splitlines():
                words = line.split()
                if words[0].endswith("Depends:") and _PARTS.match(words[1]) and words[1] not in wanted:
                    wanted.append(words[1])
        return wanted[1:] or wanted


if __name__ == "__main__":
    fetch(OWN)
