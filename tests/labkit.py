# SPDX-License-Identifier: GPL-2.0-or-later
"""What tests share besides the lab: how to start vdexdp, and what to do where the kernel lacks something."""

from __future__ import annotations

import gzip
import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest

from vdexdp.control import bpf_prog
from vdexdp.control.features import Features
from vdexdp.lab import Namespace, wait_until
from vdexdp.lab.measure import ping

VDEXDP = (sys.executable, "-m", "vdexdp")
"""The command under test, from this checkout."""


RETURN_1 = bytes.fromhex("b700000001000000 9500000000000000")
"""The smallest program: XDP_DROP, or TC_ACT_RECLASSIFY."""


def kernel_version() -> tuple[int, int]:
    """Major and minor number of the running kernel."""
    found = re.match(r"(\d+)\.(\d+)", os.uname().release)
    assert found
    return int(found[1]), int(found[2])


def _link_type(kind: str, *options: str) -> Callable[[], bool]:
    """A probe: does the kernel make this kind of device?  Works in the session's own network namespace."""

    def probe() -> bool:
        name = "probe0"
        made = subprocess.run(
            ["ip", "link", "add", "name", name, "type", kind, *options], capture_output=True, check=False
        )
        if made.returncode == 0:
            subprocess.run(["ip", "link", "delete", name], check=True)
        return made.returncode == 0

    return probe


def _macvtap() -> bool:
    for command in ("add name probe1 type veth peer name probe2", "add link probe1 name probe3 type macvtap"):
        made = subprocess.run(["ip", "link", *command.split()], capture_output=True, check=False)
    subprocess.run(["ip", "link", "delete", "probe1"], check=True)
    return made.returncode == 0


def _live_frames() -> bool:
    program = bpf_prog.load("xdp", "probe", RETURN_1)
    try:
        bpf_prog.run(program, bytes(64), repeat=2, flags=2)
    except OSError:
        return False
    finally:
        os.close(program)
    return True


def _xdp_test_context() -> bool:
    program = bpf_prog.load("xdp", "probe", RETURN_1)
    try:
        bpf_prog.run(program, bytes(64), struct.pack("=6I", 0, 64, 0, 0, 0, 0))
    except OSError:
        return False
    finally:
        os.close(program)
    return True


def kernel_option(name: str) -> bool | None:
    """Whether the running kernel was built with CONFIG_<name>, as a module too; None where it does not tell."""
    packed, plain = Path("/proc/config.gz"), Path(f"/boot/config-{os.uname().release}")
    if packed.exists():
        text = gzip.decompress(packed.read_bytes()).decode()
    elif plain.exists():
        text = plain.read_text()
    else:
        return None
    return re.search(rf"^CONFIG_{name}=[ym]$", text, re.MULTILINE) is not None


@dataclass(frozen=True)
class Feature:
    """``probe``: is it here?  ``since``: the first kernel version that has it, if built with CONFIG_<``option``>."""

    probe: Callable[[], bool]
    since: tuple[int, int]
    option: str = ""

    def expected(self) -> bool:
        """Whether it is known to exist here, whatever the probe says.  A kernel that hides its options has them all."""
        return kernel_version() >= self.since and (not self.option or kernel_option(self.option) is not False)


def cgroup2() -> str:
    """Where the unified cgroup hierarchy is mounted, "" if nowhere."""
    with open("/proc/mounts") as file:
        lines = [line.split() for line in file]
    return next((line[1] for line in lines if line[2] == "cgroup2"), "")


def _overlay() -> bool:
    subprocess.run(["modprobe", "-q", "overlay"], check=False)
    with open("/proc/filesystems") as file:
        return "\toverlay\n" in file.read()


_features = Features()
FEATURES: dict[str, Feature] = {
    "veth": Feature(_link_type("veth"), (2, 6), "VETH"),
    "bridge": Feature(_link_type("bridge"), (2, 6), "BRIDGE"),
    "vxlan": Feature(_link_type("vxlan", "id", "1", "dstport", "4789"), (3, 7), "VXLAN"),
    "macvtap": Feature(_macvtap, (2, 6), "MACVTAP"),
    "cgroup2": Feature(lambda: bool(cgroup2()), (4, 5), "CGROUPS"),
    "overlay": Feature(_overlay, (3, 18), "OVERLAY_FS"),
    "xdp-test-context": Feature(_xdp_test_context, (5, 15)),
    "live-frames": Feature(_live_frames, (5, 18)),
    "xdp_link": Feature(lambda: _features.xdp_link, (5, 9)),
    "redirect_peer": Feature(lambda: _features.redirect_peer, (5, 10)),
    "coarse_clock": Feature(lambda: _features.coarse_clock, (5, 11)),
    "encap_ethernet": Feature(lambda: _features.encap_ethernet, (5, 13)),
    "broadcast": Feature(lambda: _features.broadcast, (5, 14)),
    "frags": Feature(lambda: _features.frags, (5, 18)),
    "decap_typed": Feature(lambda: _features.decap_typed, (6, 3)),
    "tcx": Feature(lambda: _features.tcx, (6, 6)),
}
_probed: dict[str, bool] = {}


def require(feature: str) -> None:
    """Go on only where the kernel has the feature.

    Too old for it, or built without: the test is skipped, saying so.  Known to have it, and yet the probe failed: the
    test fails, because the probe or the code is wrong.
    """
    known = FEATURES[feature]
    if feature not in _probed:
        _probed[feature] = known.probe()
    if _probed[feature]:
        return
    since = f"kernels since {known.since[0]}.{known.since[1]} have it, and yet the probe says no"
    lacking(feature, since, known=known.expected())


def lacking(what: str, why: str, *, known: bool) -> NoReturn:
    """The only place where a test is skipped: ``what`` is not here.  Where it is ``known`` to exist, the test fails."""
    if known:
        pytest.fail(f"{what}: should be here; {why}")
    pytest.skip(f"{what}: not on this machine (Linux {os.uname().release})")


def require_tool(name: str) -> str:
    """The path of a program that scripts/setup installs; a test fails without it."""
    found = shutil.which(name)
    return found or lacking(name, "run: sudo scripts/setup --test", known=True)


@dataclass(frozen=True)
class TwoHosts:
    """Two hosts on an underlay, a guest on each: ``left_guest`` is joined to ``left`` by the device ``g1``
    there and has the lab's guest addresses number 1, ``right_guest`` is joined to ``right`` by ``g2`` and has
    number 2.
    """

    left: Namespace
    right: Namespace
    left_guest: Namespace
    right_guest: Namespace


def settled(source: Namespace, address: str, **how: Any) -> None:
    """Five pings of five come back: at once, or as soon as a load that went before has drained from the queues."""
    wait_until(lambda: ping(source, address, count=5, **how).received == 5, 10.0, f"five pings of five to {address}")
