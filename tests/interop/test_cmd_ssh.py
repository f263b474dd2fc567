# SPDX-License-Identifier: GPL-2.0-or-later
"""cmd:// over a real ssh, between two namespaces with an sshd of our own in one of them.

Shows: ping, TCP both ways and both at once with frames of odd length, and ping again, with vdexdp and with stock
vde_plug on the far side; that a refused key is told as what it is; that the far side ends with the near one.  Needs
root.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kernelkit import transfer
from tests.labkit import VDEXDP, require_tool, settled
from vdexdp.lab import Lab, Namespace, wait_until
from vdexdp.lab.measure import iperf_server, ping, tcp

PORT = 2222
ODD = ("-M", "1401")
"""An MSS that makes frames of 1455 bytes."""

SSHD_CONFIG = """\
Port {port}
HostKey {directory}/host
AuthorizedKeysFile {directory}/user.pub
PidFile none
UsePAM no
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin yes
"""


@pytest.fixture
def hosts(lab: Lab, tmp_path: Path) -> tuple[Namespace, Namespace]:
    """Two hosts; the right one lets those in who have the key tmp_path/user."""
    left, right = lab.host("left"), lab.host("right")
    lab.underlay(left, right)
    require_tool("ssh")
    for name in ("host", "user", "stranger"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / name], check=True)
    config = tmp_path / "sshd_config"
    config.write_text(SSHD_CONFIG.format(port=PORT, directory=tmp_path))
    os.makedirs("/run/sshd", exist_ok=True)  # where sshd locks its unprivileged half in
    right.spawn("/usr/sbin/sshd", "-D", "-e", "-f", str(config)).wait_output("listening")
    return left, right


def vnl(directory: Path, key: str, *command: str) -> str:
    options = f"-F none -i {directory}/{key} -p {PORT} -o BatchMode=yes -o IdentitiesOnly=yes"
    options += " -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"
    return f"cmd://ssh {options} root@192.0.2.2 {' '.join(command)}"


@pytest.mark.parametrize("far", ["ours", "stock"])
def test_both_ways(lab: Lab, hosts: tuple[Namespace, Namespace], tmp_path: Path, far: str) -> None:
    left, right = hosts
    command = (sys.executable, "-m", "vdexdp", "vde_plug") if far == "ours" else (require_tool("vde_plug"),)
    near = left.spawn(*VDEXDP, "vde_plug", "tap://t1", vnl(tmp_path, "user", *command, "tap://t2"))
    wait_until(lambda: right.exists("t2"), what="t2")
    lab.address(left, "t1", 1)
    lab.address(right, "t2", 2)
    wait_until(lambda: ping(left, "10.0.0.2", count=1, timeout=0.5).received, what="the first answer")
    assert ping(right, "10.0.0.1", count=50, interval=0.002, size=1001).received == 50
    iperf_server(right)
    for reverse in ((), ("-R",)):
        transfer(left, "10.0.0.2", 20, *ODD, *reverse)
    for size in ((), ODD):
        print(tcp(left, "10.0.0.2", seconds=1, options=("--bidir", *size)))
    settled(left, "10.0.0.2")
    settled(right, "fd00::1")
    near.stop()
    wait_until(lambda: not right.exists("t2"), what="the far side's end")


def test_refused(hosts: tuple[Namespace, Namespace], tmp_path: Path) -> None:
    left, _ = hosts
    near = left.spawn(*VDEXDP, "vde_plug", "tap://t1", vnl(tmp_path, "stranger", "vde_plug", "null://"))
    near.wait(10)
    assert "Permission denied (publickey)" in near.output()
    assert "cmd://ssh ended with status 255" in near.output()
