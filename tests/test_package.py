# SPDX-License-Identifier: GPL-2.0-or-later
"""The wheel: built, installed where there is neither bcc nor a cache, plugged, uninstalled without a trace.

What vdexdp depends on is lent to the new environment from the one that runs the tests, so that no network is needed.
"""

from __future__ import annotations

import os
import subprocess
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.control.rig import START, ping
from vdexdp.lab import Lab

EMPTY = "mkdir -p /var/cache/vdexdp && mount -t tmpfs none /var/cache/vdexdp && cd / && exec"
"""In a shell of a lab's namespace: nobody has compiled anything on this host."""


@dataclass(frozen=True)
class Place:
    prefix: Path
    local: Path
    dist: Path

    def install(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        environment |= {"PREFIX": str(self.prefix), "LOCAL": str(self.local), "PIP_NO_INDEX": "1", "PIP_NO_DEPS": "1"}
        command = [str(self.dist / "install"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    @property
    def bytecode(self) -> Path:
        (found,) = self.prefix.glob("lib/python3*/site-packages/vdexdp/_bytecode")
        return found


@pytest.fixture(scope="module")
def place(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    top = tmp_path_factory.mktemp("package")
    made = Place(top / "opt", top / "local", dist)
    (wheel,) = map(str, dist.glob("*.whl"))
    done = made.install(wheel)
    assert done.returncode == 0, done.stderr
    (packages,) = made.prefix.glob("lib/python3*/site-packages")
    (packages / "lent.pth").write_text(sysconfig.get_path("purelib"))
    done = made.install(wheel)
    assert done.returncode == 0, f"a second time: {done.stderr}"
    yield made
    done = made.install("--uninstall")
    assert done.returncode == 0, done.stderr
    assert [path for path in made.local.rglob("*") if not path.is_dir()] == []
    assert not made.prefix.exists()
    assert made.install("--uninstall").returncode == 2


def test_everything_is_in_its_place(place: Place) -> None:
    for name in ("bin/vdexdp", "lib/systemd/system/vdexdp.service", "share/man/man1/vdexdp-up.1"):
        assert (place.local / name).resolve().is_relative_to(place.prefix), name
    assert (place.local / "share/bash-completion/completions/vdexdp").exists()
    python = place.prefix / "bin/python"
    done = subprocess.run([python, "-c", "import bcc"], capture_output=True, text=True, check=False, cwd="/")
    assert "No module named 'bcc'" in done.stderr
    done = subprocess.run(
        [python, "-c", "import vdexdp; print(vdexdp.__file__)"], capture_output=True, text=True, cwd="/", check=True
    )
    assert done.stdout.startswith(str(place.prefix)), "not the checkout's"


def test_it_plugs_without_a_compiler(place: Place, lab: Lab) -> None:
    host = lab.host("host")
    lab.underlay(host, lab.host("other"))
    guests = [lab.guest(host, f"g{n}", n, mtu=1400) for n in (1, 2)]
    plugs = f"{place.local}/bin/vdexdp vde_plug --accel require netdev://g%d vxvde://234.0.0.1"
    processes = [host.spawn("sh", "-c", f"{EMPTY} {plugs % n}") for n in (1, 2)]
    for process in processes:
        process.wait_output("in the kernel", START)
    assert ping(guests[0], "10.0.0.2")
    for process in processes:
        assert process.stop() == 0


def test_damaged_programs_are_not_loaded(place: Place, lab: Lab) -> None:
    host = lab.host("host")
    (path,) = place.bytecode.glob("port_tc-*.bpf")
    whole = path.read_bytes()
    try:
        path.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
        done = host.run("sh", "-c", f"{EMPTY} {place.local}/bin/vdexdp daemon", check=False)
        assert done.returncode == 1
        assert (
            "port_tc, flood_all, flood_group: neither shipped nor in the bytecode cache, and bcc is not" in done.stderr
        )
    finally:
        path.write_bytes(whole)
