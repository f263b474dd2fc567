# SPDX-License-Identifier: GPL-2.0-or-later
"""Shows that the README's demonstration passes within its two minutes, fails aloud when a stream fails, and tears
everything down, also when it is interrupted.  Needs root.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from vdexdp.lab import marked, wait_until
from vdexdp.lab.lab import PREFIX
from vdexdp.lab.namespace import RUN_NETNS

DEMO = (sys.executable, "-m", "vdexdp.lab.demo")


def namespaces_of(pid: int) -> list[str]:
    return [name for name in os.listdir(RUN_NETNS) if name.startswith(f"{PREFIX}{pid}-")]


@pytest.mark.slow
def test_demo_passes_and_cleans_up(root: None) -> None:
    start = time.monotonic()
    demo = subprocess.Popen(DEMO, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    said, _ = demo.communicate(timeout=110)
    assert demo.returncode == 0, said
    assert time.monotonic() - start < 110
    pairs = [line for line in said.splitlines() if "↔" in line]
    assert len(pairs) == 10
    assert all("ping 5/5" in line and "FAILED" not in line for line in pairs)
    assert "in userspace" not in said, "every cable of the demonstration belongs in the kernel"
    assert "one TCP stream on this lab: vdexdp" in said
    assert not namespaces_of(demo.pid)


def test_interrupted_demo_cleans_up(root: None) -> None:
    demo = subprocess.Popen(DEMO, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_until(lambda: any(name.endswith("-g1") for name in namespaces_of(demo.pid)), 10, "the demo's first guest")
    demo.send_signal(signal.SIGTERM)
    assert demo.wait(20) == 128 + signal.SIGTERM
    assert not namespaces_of(demo.pid)
    assert not marked(f"{PREFIX}{demo.pid}-1-")
