# SPDX-License-Identifier: GPL-2.0-or-later
"""``vdexdp vdens`` beside stock vdens.

Shows a network for a command through userspace ends (our switch, with a stock vdens on it, ping and TCP), several
networks at once, every option, what the command may and may not do inside, and how both ends of its life are reported.
"""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.labkit import VDEXDP, require_tool
from tests.unprivileged import as_nobody
from vdexdp.lab import Lab, Namespace, Process, wait_until

VDENS = (*VDEXDP, "vdens")


def run(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*VDENS, *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=20,
        env={**os.environ, **env},
        check=False,
    )


def output(*words: str, **env: str) -> str:
    found = run(*words, **env)
    assert found.returncode == 0, found.stderr
    return found.stdout


@pytest.fixture
def host(lab: Lab) -> Namespace:
    return lab.host("host")


def switch(host: Namespace, path: Path) -> str:
    """A switch of ours; its path."""
    host.spawn(*VDEXDP, "vde_plug", f"switch://{path}", "null://").wait_output("in userspace")
    return str(path)


def guest(host: Namespace, tool: tuple[str, ...], vnl: str, number: int, command: str) -> Process:
    up = f"ip address add 10.0.0.{number}/24 dev vde0; ip address add fd00::{number}/64 dev vde0 nodad"
    return host.spawn(*tool, vnl, "sh", "-c", f"{up}; ip link set vde0 up; {command}")


def test_with_stock(host: Namespace, tmp_path: Path) -> None:
    """Two networks of one command each, ours and stock's, on one switch."""
    path = switch(host, tmp_path / "switch")
    server = guest(host, (require_tool("vdens"),), f"vde://{path}", 2, "iperf3 -s -1 --forceflush; sleep 2")
    server.wait_output("listening")
    client = guest(
        host,
        VDENS,
        f"vde://{path}",
        1,
        "ping -c 3 -i 0.1 -w 5 10.0.0.2 && iperf3 -c 10.0.0.2 -t 1 --bidir && ping -c 3 -i 0.1 -w 5 fd00::2",
    )
    assert client.wait(30) == 0, client.output()


def test_several_networks(host: Namespace, tmp_path: Path) -> None:
    """What is sent into eth0 comes back through eth1, both in one namespace: they are the two ends of one ptp."""
    ptp = f"ptp://{tmp_path}/ptp"
    inside = """
        ip link set eth0 up && ip link set eth1 up && ip address add fd00::1/64 dev eth0 nodad || exit 1
        for try in $(seq 50); do
            ping -c 1 -W 0.05 -I eth0 ff02::1 >/dev/null 2>&1
            [ $(cat /sys/class/net/eth1/statistics/rx_packets) -gt 0 ] && exit 0
        done
        exit 1
    """
    command = host.spawn(
        *VDENS, "-m", "-i", "eth", ptp, ptp, "--", "unshare", "-m", "sh", "-c", f"mount -t sysfs none /sys; {inside}"
    )
    assert command.wait(20) == 0, command.output()


def test_command_line() -> None:
    links = output("null://", "ip", "-br", "link").split("\n")
    assert [line.split()[0] for line in links if line] == ["lo", "vde0"]
    for none in ("-", "no", ""):
        assert "vde" not in output(none, "ip", "-br", "link")
    assert output("-i", "x", "=cat", "ip", "-br", "link", "show", "x0").startswith("x0")
    names = output("--multi", "null://", "null://", "null://", "--", "ip", "-br", "link")
    assert [line.split()[0] for line in names.splitlines()] == ["lo", "vde0", "vde1", "vde2"]
    for option in ("-c", "-u", "--clone", "--unshare"):
        assert output(option, "-", "echo", "x") == "x\n"


def test_shell() -> None:
    assert output("-", SHELL="/bin/pwd")
    assert output(SHELL="/bin/pwd")
    assert output("-m", "null://", SHELL="/bin/pwd")
    found = run("-", SHELL="")
    assert found.returncode == 1
    assert "SHELL: is not set" in found.stderr


def test_names_and_resolver(tmp_path: Path) -> None:
    before = Path("/etc/resolv.conf").read_text()
    assert output("-H", "inside.example", "-", "uname", "-n") == "inside.example\n"
    assert os.uname().nodename != "inside.example"
    two = "nameserver 10.0.2.3\nnameserver fd00::3\n"
    assert output("-R", "10.0.2.3,fd00::3", "-", "cat", "/etc/resolv.conf") == two
    assert output("-", "cat", "/etc/resolv.conf", VDE_RESOLVADDR="10.0.2.3,fd00::3") == two
    file = tmp_path / "resolv"
    file.write_text("search example\n")
    assert output("-r", str(file), "-", "cat", "/etc/resolv.conf") == "search example\n"
    assert output("-", "cat", "/etc/resolv.conf", VDE_RESOLVCONF=str(file)) == "search example\n"
    assert output("-r", str(file), "-R", "10.0.2.3", "-", "cat", "/etc/resolv.conf") == "nameserver 10.0.2.3\n"
    assert Path("/etc/resolv.conf").read_text() == before
    assert not list(Path("/tmp").glob("vdens-*"))


@pytest.mark.parametrize(("options", "expected"), [((), 0x3C00), (("-s",), 0x203C00)])
def test_rights_of_a_user(options: tuple[str, ...], expected: int) -> None:
    """The own uid, the networking capabilities (and CAP_SYS_ADMIN with -s), which survive the exec; no others."""
    drop = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    for tool in (VDENS, ("vdens",)):
        words = (*drop, *tool, *options, "-", "sh", "-c", "id -u; grep -E 'Cap(Amb|Eff)' /proc/self/status")
        found = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True, cwd="/")
        uid, *sets = found.stdout.split("\n")[:3]
        assert uid == "65534"
        assert [int(line.split()[1], 16) for line in sets] == [expected, expected], tool


@pytest.mark.parametrize(
    ("script", "status"), [("exit 0", 0), ("exit 5", 5), ("kill -9 $$", 128 + 9), ("exec false", 1)]
)
def test_status(script: str, status: int) -> None:
    assert run("null://", "sh", "-c", script).returncode == status


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("-", "no-such-command"), 1, "no-such-command: No such file"),
        (("nonsense://", "true"), 2, "unknown scheme"),
        (("vde:///nonexistent", "true"), 1, "nonexistent"),
        (("-i", "much-too-long-name", "null://", "true"), 2, "too long for an interface name"),
        (("-i", "a b", "null://", "true"), 2, "is not an interface name"),
        (("-r", "/nonexistent", "-", "true"), 1, "/nonexistent"),
    ],
)
def test_mistakes(words: tuple[str, ...], status: int, said: str) -> None:
    found = run(*words)
    assert found.returncode == status
    assert said in found.stderr
    assert found.stderr.count("\n") == 1


def test_no_tun_device(tmp_path: Path) -> None:
    words = as_nobody(tmp_path, *VDENS, "null://", "true", tun_mode="600")
    found = subprocess.run(words, capture_output=True, text=True, check=False)
    assert found.returncode == 1
    assert "/dev/net/tun: permission denied" in found.stderr


def test_user_on_a_lac(lab: Lab, tmp_path: Path) -> None:
    """Nobody joins a vxvde network with sockets of the own, and meets a stock vdens there."""
    left, right = lab.host("left"), lab.host("right")
    lab.underlay(left, right)
    network = "vxvde://234.0.0.1"
    guest(right, (require_tool("vdens"),), network, 2, "echo up; exec sleep 3").wait_output("up")
    up = "ip address add 10.0.0.1/24 dev vde0; ip link set vde0 up"
    script = f"{up}; ping -c 3 -i 0.2 -w 3 10.0.0.2 && ping -c 2 -i 0.2 -s 1472 -w 3 10.0.0.2"
    client = left.spawn(*as_nobody(tmp_path, *VDENS, network, "sh", "-c", script))
    assert client.wait() == 0, client.output()


def test_signals_reach_the_command() -> None:
    process = subprocess.Popen(
        [*VDENS, "null://", "sh", "-c", "trap 'exit 7' TERM; echo ready; while :; do sleep 0.05; done"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)  # is the terminal's affair
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 7
    process.stdout.close()


def test_network_goes_first(host: Namespace, tmp_path: Path) -> None:
    """When the switch ends the interface vanishes, which is said; the command lives on."""
    path = tmp_path / "switch"
    made = host.spawn(*VDEXDP, "vde_plug", f"switch://{path}", "null://")
    made.wait_output("in userspace")
    inside = "echo up; while [ -e /proc/sys/net/ipv4/conf/vde0 ]; do sleep 0.02; done; exit 3"
    command = host.spawn(*VDENS, f"vde://{path}", "sh", "-c", inside)
    command.wait_output("up")
    made.stop()
    assert command.wait(10) == 3
    assert "vde0 is gone" in command.output()


def test_command_goes_first(host: Namespace, tmp_path: Path) -> None:
    """The plug leaves the switch with the command."""
    path = switch(host, tmp_path / "switch")
    command = host.spawn(*VDENS, f"vde://{path}", "sleep", "0.2")
    assert command.wait(10) == 0
    wait_until(lambda: not [name for name in os.listdir(path) if name != "ctl"], what="the end of the port")
