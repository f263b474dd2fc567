# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon as a service: units that systemd accepts, socket activation, readiness, few privileges, logs.

systemd runs the units in tests/test_debian.py; here only its programs do: systemd-analyze reads the units,
systemd-socket-activate hands the listening socket over.  The privileges of vdexdp.service are taken away by hand, and
the daemon has to do with the rest.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.control.rig import START, call, listening, looks, ping, plug, same, tunnel, until, wire
from tests.labkit import VDEXDP, TwoHosts, require_tool
from tests.unprivileged import as_user
from vdexdp.control.protocol import RUN_DIR
from vdexdp.lab import Lab

UNITS = Path(__file__).parents[2] / "systemd"
NAMES = ("vdexdp.socket", "vdexdp.service", "vde_plug@.service", "vdexdp-networks.service", "vdexdp-metrics.service")

CONFINED = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
for number in range(64):
    if number not in {kept}:
        libc.prctl(24, number, 0, 0, 0)  # PR_CAPBSET_DROP
libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
libc.prctl(65, 1, 0, 0, 0)  # PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN; kernels before 6.3 don't know it
os.execv(sys.argv[1], sys.argv[1:])
"""
CAPABILITIES = {
    "CAP_NET_BIND_SERVICE": 10,
    "CAP_NET_ADMIN": 12,
    "CAP_NET_RAW": 13,
    "CAP_SYS_RESOURCE": 24,
    "CAP_PERFMON": 38,
    "CAP_BPF": 39,
}


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units, with the program that is here instead of an installed one."""
    program = Path(sys.executable).parent / "vdexdp"
    for name in NAMES:
        text = (UNITS / name).read_text()
        assert "/usr/local/bin/vdexdp" in text or name == "vdexdp.socket"
        (tmp_path / name).write_text(text.replace("/usr/local/bin/vdexdp", str(program)))
    return tmp_path


def test_systemd_accepts_the_units(units: Path) -> None:
    analyze = require_tool("systemd-analyze")
    names = [str(units / name.replace("@.", "@vm0.")) for name in NAMES]
    (units / "vde_plug@vm0.service").symlink_to(units / "vde_plug@.service")
    environment = {**os.environ, "SYSTEMD_UNIT_PATH": f"{units}:"}
    done = subprocess.run(
        [analyze, "verify", "--man=no", *names], capture_output=True, text=True, env=environment, check=False
    )
    ours = [line for line in (done.stdout + done.stderr).splitlines() if "vde" in line]
    assert (done.returncode, ours) == (0, [])


def test_the_daemon_is_not_exposed(units: Path) -> None:
    analyze = require_tool("systemd-analyze")
    command = [analyze, "security", "--offline=yes", "--threshold=35", "--no-pager", str(units / "vdexdp.service")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Overall exposure level" in done.stdout


def settings(name: str) -> list[str]:
    """All values of a setting of vdexdp.service, in order."""
    lines = (UNITS / "vdexdp.service").read_text().splitlines()
    return [line.partition("=")[2] for line in lines if line.startswith(f"{name}=")]


def system_calls(name: str) -> set[str]:
    """What a word in SystemCallFilter= stands for."""
    if not name.startswith("@"):
        return {name}
    command = [require_tool("systemd-analyze"), "syscall-filter", "--no-pager", name]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[1:]
    words = [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]
    return set().union(*map(system_calls, words))


def test_the_privileges_of_the_unit_are_enough(two_hosts: TwoHosts, tmp_path: Path) -> None:
    kept = {CAPABILITIES[name] for value in settings("CapabilityBoundingSet") for name in value.split()}
    assert settings("NoNewPrivileges") == settings("MemoryDenyWriteExecute") == ["yes"]
    allowed, forbidden = settings("SystemCallFilter")
    calls = set().union(*map(system_calls, allowed.split()))
    calls -= set().union(*map(system_calls, forbidden.removeprefix("~").split()))
    left, right = two_hosts.left, two_hosts.right
    before = looks(left)
    log, policy = tmp_path / "strace", tmp_path / "policy.toml"
    policy.write_text('group = 70000\n[rule.all]\ngroups = [70000]\nnetworks = ["vxvdex://"]\n')
    strace = (require_tool("strace"), "-f", "-qq", "-o", str(log))
    master = left.spawn(
        *strace, sys.executable, "-c", CONFINED.format(kept=kept), *VDEXDP, "daemon", "--policy", str(policy)
    )
    master.wait_output("serving", START)
    assert "the socket is not open to the policy's group" in master.output(), "that is for vdexdp.socket"
    pid = call(left, "hello")["pid"]
    os.chown(RUN_DIR / f"{left.inode}.sock", 0, 70000)
    os.kill(pid, signal.SIGHUP)
    user = as_user(70001, 70000)
    inside = left.spawn(*user, *VDEXDP, "vdens", "-v", "--accel", "require", "vxvdex://", "sh", "-c", "exec sleep 60")
    inside.wait_output("in the kernel", START)
    found = re.search(r"CapEff:\s+([0-9a-f]+)", Path(f"/proc/{pid}/status").read_text())
    assert found
    assert int(found[1], 16) & ~sum(1 << number for number in kept) == 0
    near, far = plug(left, wire("g1"), tunnel()), plug(right, wire("g2"), tunnel())
    assert ping(two_hosts.left_guest, "10.0.0.2")
    assert ping(two_hosts.left_guest, "10.0.0.2", size=20000), "by the exception path"
    assert call(left, "show")["worker"]["running"]
    inside.stop()
    near.close()
    far.close()
    same(left, before)
    call(left, "stop")
    master.wait()
    used = set(re.findall(r"^\d+ +(?:<\.\.\. )?(\w+)", log.read_text(), re.MULTILINE))
    assert {"bpf", "recvmsg"} <= used
    assert not used - calls


def test_socket_activation_and_readiness(lab: Lab, tmp_path: Path) -> None:
    activate = require_tool("systemd-socket-activate")
    host = lab.host("host")
    lab.underlay(host, lab.host("other"))
    lab.guest(host, "g1", 1, mtu=1400)
    said = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    said.bind(str(tmp_path / "notify"))
    said.settimeout(START)
    place, link = tmp_path / "host.sock", RUN_DIR / f"{host.inode}.sock"
    RUN_DIR.mkdir(exist_ok=True)
    link.symlink_to(place)  # as vdexdp.socket does
    try:
        environment = {"NOTIFY_SOCKET": str(tmp_path / "notify")}
        names = ("-E", "NOTIFY_SOCKET", "-E", "PYTHONPATH")
        command = (activate, "--seqpacket", *names, "-l", str(place), *VDEXDP, "daemon", "--log", "json")
        process = host.spawn(*command, env=environment)
        until(place.exists, "the socket")
        assert "serving" not in process.output(), "nobody has asked yet"
        held = plug(host, wire("g1"), tunnel())
        assert said.recv(100) == b"READY=1"
        assert not held.auto
        process.signal(signal.SIGTERM)
        process.wait()
        assert said.recv(100) == b"STOPPING=1"
        assert link.is_symlink(), "the service manager still listens there"
        assert place.exists()
        place.unlink()
        process = host.spawn(*command, env=environment)
        until(place.exists, "the socket again")

        def back() -> bool:
            with host.entered():
                if held.fileno() < 0 or (held.channel and held.channel.wait(0)):
                    held.serve()
                held.tick()
            return held.state == "plugged"

        with host.entered():
            held.serve()  # bye
            held.serve()  # hung up
        until(back, "the plug to be back", START)
        held.close()
        records = [json.loads(line) for line in process.output().splitlines() if line.startswith("{")]
        assert any("taken over" in one["message"] and one["plug"] == 1 for one in records), records
        assert all(one["level"] == "info" and one["time"] and one["pid"] for one in records)
        assert call(host, "log")["records"][: len(records)] == records, "the daemon keeps them"
    finally:
        link.unlink(missing_ok=True)
        said.close()


def test_the_service_takes_over_from_a_daemon_that_a_plug_started(lab: Lab, tmp_path: Path) -> None:
    activate = require_tool("systemd-socket-activate")
    host = lab.host("host")
    lab.underlay(host, lab.host("other"))
    one, _ = lab.guest(host, "g1", 1, mtu=1400), lab.guest(host, "g2", 2, mtu=1400)
    for device in ("g1", "g2"):
        process = host.spawn(*VDEXDP, "vde_plug", "--accel", "require", f"netdev://{device}", "vxvde://234.0.0.1")
        process.wait_output("in the kernel", START)
    first = call(host, "hello")
    assert first["auto"]
    place, link = tmp_path / "host.sock", RUN_DIR / f"{host.inode}.sock"
    service = host.spawn(activate, "--seqpacket", "-E", "PYTHONPATH", "-l", str(place), *VDEXDP, "daemon")
    until(place.exists, "the socket")
    try:
        link.unlink()
        link.symlink_to(place)  # as vdexdp.socket does
        os.kill(first["pid"], signal.SIGTERM)
        until(lambda: "taken over" in service.output(), "the service to serve", START)
        until(lambda: len(call(host, "show")["plugs"]) == 2, "both plugs in it", START)
        assert not call(host, "hello")["auto"]
        assert ping(one, "10.0.0.2")
    finally:
        for process in host.processes:
            process.stop()
        link.unlink(missing_ok=True)


def test_plugs_and_networks_say_that_they_are_ready(lab: Lab, tmp_path: Path) -> None:
    host = lab.host("host")
    file = tmp_path / "networks.toml"
    file.write_text('[plug.nothing]\nends = ["null://", "null://"]\n')
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as said:
        said.bind(str(tmp_path / "notify"))
        said.settimeout(START)
        for command in (("vde_plug", "null://", "null://"), ("up", "--stay", "-f", str(file))):
            process = host.spawn(*VDEXDP, *command, env={"NOTIFY_SOCKET": str(tmp_path / "notify")})
            assert said.recv(100) == b"READY=1"
            assert process.stop() == 0


def test_a_socket_of_another_kind_is_refused(lab: Lab, tmp_path: Path) -> None:
    activate = require_tool("systemd-socket-activate")
    host = lab.host("host")
    command = (activate, "--datagram", "-l", str(tmp_path / "sock"), *VDEXDP, "daemon")
    process = host.spawn(*command)
    until((tmp_path / "sock").exists, "the socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"x", str(tmp_path / "sock"))
    said = process.wait_output("LISTEN_FDS: not a listening SOCK_SEQPACKET socket", START)
    assert process.wait() == 2, said
    assert not listening(host)
