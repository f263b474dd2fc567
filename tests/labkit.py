# SPDX-License-Identifier: GPL-2.0-or-later
"""What tests share besides the lab: how to start vdexdp, and what to do where the kernel lacks something."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from vdexdp.control import libbpf
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
    program = libbpf.prog_load("xdp", "probe", RETURN_1)
    try:
        libbpf.prog_test_run(program, bytes(64), repeat=2, flags=2)
    except OSError:
        return False
    finally:
        os.close(program)
    return True


def _link(kind: str, attach_type: int, flags: int = 0) -> Callable[[], bool]:
    """A probe: does a BPF link of this type hold on the loopback of the session's own namespace?"""

    def probe() -> bool:
        program = libbpf.prog_load(kind, "probe", RETURN_1)
        try:
            os.close(libbpf.link_create(program, socket.if_nametoindex("lo"), attach_type, flags))
        except OSError:
            return False
        finally:
            os.close(program)
        return True

    return probe


@dataclass(frozen=True)
class Feature:
    """``since`` is the first kernel version that has it always, None for a matter of configuration."""

    since: tuple[int, int] | None
    probe: Callable[[], bool]


def cgroup2() -> str:
    """Where the unified cgroup hierarchy is mounted, "" if nowhere."""
    with open("/proc/mounts") as file:
        lines = [line.split() for line in file]
    return next((line[1] for line in lines if line[2] == "cgroup2"), "")


def _overlay() -> bool:
    subprocess.run(["modprobe", "-q", "overlay"], check=False)
    with open("/proc/filesystems") as file:
        return "\toverlay\n" in file.read()


FEATURES: dict[str, Feature] = {
    "bridge": Feature(None, _link_type("bridge")),
    "cgroup2": Feature(None, lambda: bool(cgroup2())),
    "overlay": Feature(None, _overlay),
    "vxlan": Feature(None, _link_type("vxlan", "id", "1", "dstport", "4789")),
    "live-frames": Feature((5, 18), _live_frames),
    "macvtap": Feature(None, _macvtap),
    "tcx": Feature((6, 6), _link("tc", libbpf.ATTACH_TCX_INGRESS)),
    "xdp-link": Feature((5, 9), _link("xdp", libbpf.ATTACH_XDP, libbpf.XDP_FLAGS_SKB_MODE)),
    "veth": Feature((2, 6), _link_type("veth")),
}
_probed: dict[str, bool] = {}


def require(feature: str) -> None:
    """Go on only where the kernel has the feature.

    Too old for it: the test is skipped, saying so.  New enough, and yet the probe failed: the test fails, because the
    probe or the code is wrong.
    """
    known = FEATURES[feature]
    if feature not in _probed:
        _probed[feature] = known.probe()
    if _probed[feature]:
        return
    if known.since and kernel_version() >= known.since:
        pytest.fail(
            f"{feature}: this kernel should have it (since {known.since[0]}.{known.since[1]}), the probe says no"
        )
    pytest.skip(f"the kernel lacks {feature}")


def require_tool(name: str) -> str:
    """The path of a program that scripts/setup installs; a test fails without it."""
    found = shutil.which(name)
    if not found:
        pytest.fail(f"{name} is missing; run: sudo scripts/setup --test")
    return found


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
