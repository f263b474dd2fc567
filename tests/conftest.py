# SPDX-License-Identifier: GPL-2.0-or-later
"""Fixtures, and the proof that nothing stays behind.

As root the whole session runs in a network namespace of its own: no test can touch the host's network, and
whatever interface is left in it at the end is ours.  Each lab checks when it closes that every process started
in it, however indirectly, has ended once its own have: an on-demand daemon that does not leave fails its test.
Nothing of vdexdp is pinned, so BPF programs, maps and links live only through processes and devices; with no
process, no namespace, no interface and no pin left there can be none.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.labkit import TwoHosts
from tests.legacy import Node, node
from vdexdp.lab import Lab, marked, sweep_dead
from vdexdp.lab.lab import PREFIX
from vdexdp.lab.namespace import CLONE_NEWNET, RUN_NETNS

ORPHAN_PATIENCE = 3.0
"""Seconds within which a daemon has to leave after its last plug."""

SESSION_PREFIX = f"{PREFIX}{os.getpid()}-"
PINS = Path("/sys/fs/bpf")


def pytest_configure() -> None:
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(CLONE_NEWNET):
            raise pytest.UsageError(f"no network namespace of our own: {os.strerror(ctypes.get_errno())}")
        os.system("ip link set lo up")


def _pins() -> set[str]:
    return set(os.listdir(PINS)) if PINS.is_dir() else set()


@pytest.fixture(scope="session", autouse=True)
def nothing_left_behind() -> Iterator[None]:
    pins = _pins()
    if os.geteuid() == 0:
        sweep_dead()
    yield
    if os.geteuid():
        return
    namespaces = (
        [name for name in os.listdir(RUN_NETNS) if name.startswith(SESSION_PREFIX)] if RUN_NETNS.is_dir() else []
    )
    interfaces = [line.split(":")[0].strip() for line in Path("/proc/thread-self/net/dev").read_text().splitlines()[2:]]
    left = {
        "namespaces": namespaces,
        "processes": [pid for name in namespaces for pid in marked(name.rpartition("-")[0] + "-")],
        "interfaces": [name for name in interfaces if name != "lo"],
        "pins": sorted(_pins() - pins),
    }
    assert not any(left.values()), f"left behind: {left}"


@pytest.fixture(scope="session")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What scripts/package makes: wheel, installer, Debian package."""
    made = tmp_path_factory.mktemp("dist")
    command = [str(Path(__file__).parents[1] / "scripts/package"), "--deb", str(made)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return made


@pytest.fixture(scope="session")
def root() -> None:
    if os.geteuid():
        pytest.fail("this test needs root; run: sudo scripts/test")


def _lab() -> Iterator[Lab]:
    with Lab() as made:
        yield made
        left = made.close(ORPHAN_PATIENCE)
    assert not left, f"still running after everything in the lab was ended: {left}"


@pytest.fixture
def lab(root: None) -> Iterator[Lab]:
    """An empty laboratory."""
    yield from _lab()


@pytest.fixture(scope="module")
def shared_lab(root: None) -> Iterator[Lab]:
    """A laboratory for all tests of a module."""
    yield from _lab()


@pytest.fixture
def two_hosts(lab: Lab) -> TwoHosts:
    """Two hosts, underlay with jumbo MTU, a guest on each; nothing is plugged yet."""
    left, right = lab.host("left"), lab.host("right")
    lab.underlay(left, right, mtu=9000)
    return TwoHosts(left, right, lab.guest(left, "g1", 1), lab.guest(right, "g2", 2))


@pytest.fixture
def switch(tmp_path: Path) -> Iterator[Node]:
    """A ``switch://`` of ours in this process, without clients."""
    with node(f"switch://{tmp_path}/sw") as made:
        yield made


@pytest.fixture
def public_path() -> Iterator[Path]:
    """A directory that other users can reach; pytest's own is closed to them."""
    with tempfile.TemporaryDirectory(prefix="vdexdp-test-") as path:
        os.chmod(path, 0o755)
        yield Path(path)
