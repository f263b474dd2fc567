# SPDX-License-Identifier: GPL-2.0-or-later
"""Shows that a QEMU guest on our ``switch://`` (``-netdev vde,sock=``) reaches a vdens beside it and a stock vxvde
node on another host: ping, TCP both ways byte for byte, ping again.

Needs root, QEMU and busybox; fetches a kernel once (see tests/microvm.py).
"""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path

import pytest

from tests.labkit import VDEXDP, require_tool
from tests.microvm import ECHO_PORT, boot
from vdexdp.lab import Lab, wait_until
from vdexdp.lab.measure import ping

SIZE = 400_000


def echo(connection: socket.socket) -> None:
    """What is sent comes back."""
    sent, back = os.urandom(SIZE), b""
    connection.settimeout(10)
    view = memoryview(sent)
    while len(back) < SIZE:
        if view:
            view = view[connection.send(view[:20000]) :]
        back += connection.recv(20000) if len(back) < SIZE - len(view) else b""
    assert back == sent


@pytest.mark.vm
def test_a_guest_on_our_switch(lab: Lab) -> None:
    left, right = lab.host("left"), lab.host("right")
    lab.underlay(left, right)
    with tempfile.TemporaryDirectory(prefix="vdexdp-test-") as place:
        path = Path(place, "sw")
        left.spawn(*VDEXDP, "vde_plug", f"switch://{path}", "vxvde://234.0.0.1")
        right.spawn(require_tool("vde_plug"), "tap://t0", "vxvde://234.0.0.1")
        wait_until(lambda: (path / "ctl").exists() and right.exists("t0"))
        lab.address(right, "t0", 2)
        guest = boot(left, "10.0.0.9", "-netdev", f"vde,id=net,sock={path}")
        wait_until(lambda: ping(right, "10.0.0.9", count=1, timeout=0.5).received, timeout=10)
        setup = "ip link set vde0 up; ip address add 10.0.0.3/24 dev vde0"
        script = f"{setup}; ping -c 1 -w 5 10.0.0.9; exec ping -i 0.1 -c 5 -w 10 10.0.0.9"
        beside = left.spawn(require_tool("vdens"), str(path), "sh", "-c", script)
        beside.wait_output("5 packets transmitted, 5 received", timeout=20)
        beside.stop()  # stock vdens does not always see its command's end
        with right.entered():
            connection = socket.create_connection(("10.0.0.9", ECHO_PORT), timeout=10)
        with connection:
            echo(connection)
        after = ping(right, "10.0.0.9", count=5)
        assert after.received == after.sent
        assert guest.poll() is None, guest.output()
        guest.kill()
        wait_until(lambda: os.listdir(path) == ["ctl"], what="the guest's port to go")
