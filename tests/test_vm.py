# SPDX-License-Identifier: GPL-2.0-or-later
"""scripts/vm, on a root file system of busybox alone: a command's output, files and status come back, and a machine
that is not done in time is ended.  docs/kernels.md shows every kernel, without a failure.

The tests proper run on each kernel of the matrix by ``scripts/vm --matrix``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.labkit import lacking, require_tool
from tests.vm import kernels, machine, page, rootfs

APPLETS = ("cat", "hostname", "ip", "ls", "ln", "mkdir", "modprobe", "mount", "sh", "sleep", "stty", "sync", "tar")


@pytest.fixture
def kernel() -> kernels.Unpacked:
    found = kernels.unpacked(kernels.OWN)
    if not found:
        lacking("the guest's kernel", "run: sudo scripts/setup --test", known="VDEXDP_VM" not in os.environ)
    for tool in ("qemu-system-x86_64", "mke2fs"):
        require_tool(tool)
    return found


@pytest.fixture
def root_disk(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    for folder in ("bin", "dev", "lib/modules", "proc", "run", "sys", "tmp"):
        (root / folder).mkdir(parents=True)
    shutil.copy(require_tool("busybox"), root / "bin/busybox")
    for name in APPLETS:
        (root / "bin" / name).symlink_to("busybox")
    rootfs.ext4(root, tmp_path / "image", 32)
    return tmp_path / "image"


@pytest.mark.vm
def test_a_command(root: None, kernel: kernels.Unpacked, root_disk: Path, capfd: pytest.CaptureFixture[str]) -> None:
    script = "echo first; cat /proc/sys/kernel/osrelease; ls -1; echo kept >/results/file; exit 7"
    outcome = machine.run(kernel, ["sh", "-c", script], 60, 512, root_disk)
    said = capfd.readouterr().out.splitlines()
    assert (outcome.status, outcome.files) == (7, {"file": b"kept\n"}), outcome.why
    assert said[:2] == ["first", kernel.release]
    assert {path.name for path in rootfs.CHECKOUT.iterdir() if not path.name.startswith(".")} >= set(said[2:]) > {"bpf"}


@pytest.mark.vm
def test_a_machine_that_is_not_done_in_time(root: None, kernel: kernels.Unpacked, root_disk: Path) -> None:
    began = time.monotonic()
    outcome = machine.run(kernel, ["sleep", "60"], 1, 512, root_disk)
    assert (outcome.status, outcome.files) == (None, {})
    assert "not done within 1 s" in outcome.why
    assert time.monotonic() - began < 30
    processes = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(root_disk) not in processes


def test_the_page_shows_every_kernel() -> None:
    rows = page.rows_of((rootfs.CHECKOUT / "docs/kernels.md").read_text())
    assert len(rows) == len(kernels.KERNELS) + 1, "run: sudo scripts/vm --matrix"
    assert not [row for row in rows if "failed" in row or "passed" not in row]
