# SPDX-License-Identifier: GPL-2.0-or-later
"""``vdexdp vdens`` with a VNL that the kernel can carry.

Shows that the path is in the kernel when root asks for it, also against a stock vdens, that frames flow on while every
vdexdp process is stopped, that nothing is left behind, and when and why it is in userspace instead.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.labkit import VDEXDP, require_tool
from vdexdp.lab import Lab, Namespace, Process, wait_until
from vdexdp.lab.namespace import command_line, marked

VDENS = (*VDEXDP, "vdens", "-v")
NETWORK = "vxvde://234.0.0.1"


@pytest.fixture
def hosts(lab: Lab) -> tuple[Namespace, Namespace]:
    left, right = lab.host("left"), lab.host("right")
    lab.underlay(left, right, mtu=9000)
    return left, right


def guest(host: Namespace, tool: tuple[str, ...], number: int, command: str) -> Process:
    up = f"ip address add 10.0.0.{number}/24 dev vde0; ip address add fd00::{number}/64 dev vde0 nodad"
    return host.spawn(*tool, NETWORK, "sh", "-c", f"{up}; ip link set vde0 up; {command}")


@contextmanager
def stopped(lab: Lab) -> Iterator[list[str]]:
    """All processes of ours in the lab, by their command lines, stand still."""
    ours = [pid for pid in marked(lab.prefix) if "vdexdp" in command_line(pid)]
    for pid in ours:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield [command_line(pid) for pid in ours]
    finally:
        for pid in ours:
            os.kill(pid, signal.SIGCONT)


def test_in_the_kernel(lab: Lab, hosts: tuple[Namespace, Namespace]) -> None:
    left, right = hosts
    server = guest(left, VDENS, 1, "iperf3 -s -1 --forceflush; exec sleep 3")
    server.wait_output("listening")
    checks = "ping -c 3 -i 0.05 -w 5 10.0.0.1 && iperf3 -c 10.0.0.1 -t 1 --bidir && ping -c 3 -i 0.05 -w 5 fd00::1"
    client = guest(
        right, VDENS, 2, f"{checks} && echo go && sleep 0.5 && ping -c 10 -i 0.05 -w 3 10.0.0.1 && echo done"
    )
    client.wait_output("go")
    with stopped(lab) as names:
        assert any("daemon" in name for name in names)
        assert any("vdens" in name for name in names)
        client.wait_output("done")
    assert client.wait() == 0, client.output()
    for plug in (server, client):
        assert "in the kernel" in plug.output()
    assert server.wait() == 0
    for host in hosts:
        wait_until(lambda host=host: "vde0" not in host.ip("-br link"), what="the end of the veth")  # type: ignore[misc]


def test_against_stock(lab: Lab) -> None:
    """Over an underlay that finishes checksums, as a NIC does: stock reads inner frames from a socket."""
    left, right = lab.host("left"), lab.host("right")
    lab.underlay(left, right, like_a_wire=True)
    guest(right, (require_tool("vdens"),), 2, "iperf3 -s -1 --forceflush; exec sleep 2").wait_output("listening")
    checks = "ping -c 3 -i 0.05 -w 5 10.0.0.2 && iperf3 -c 10.0.0.2 -t 1 --bidir && ping -c 3 -i 0.05 -w 5 fd00::2"
    client = guest(left, VDENS, 1, checks)
    assert client.wait(30) == 0, client.output()
    assert "in the kernel" in client.output()


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("--accel", "off", NETWORK), 0, "in userspace (--accel off)"),
        (("null://",), 0, "in userspace (null://"),
        (("--accel", "require", "null://"), 1, "runs in userspace: null://"),
        ((f"{NETWORK}/if=nosuch",), 2, "nosuch"),
    ],
)
def test_other_paths(hosts: tuple[Namespace, Namespace], words: tuple[str, ...], status: int, said: str) -> None:
    found = hosts[0].run(*VDENS, *words, "true", check=False)
    assert found.returncode == status, found.stderr
    assert said in found.stderr


def test_user_without_rights(hosts: tuple[Namespace, Namespace]) -> None:
    """Is told what is missing."""
    drop = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all")
    found = hosts[0].run(*drop, *VDENS, "--accel", "require", NETWORK, "true", check=False)
    assert found.returncode == 1
    assert "only root may start it" in found.stderr
