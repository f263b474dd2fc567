# SPDX-License-Identifier: GPL-2.0-or-later
"""Users other than root: what the policy grants them, and that they get nothing else, whatever they send.

Real processes under other uids and gids; the hostile ones speak the protocol themselves.
"""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.control.rig import START, call, daemon, kill, links_held, looks, ping, same, until
from tests.labkit import VDEXDP, TwoHosts, lacking
from tests.unprivileged import as_user, with_tun
from vdexdp.control.protocol import RUN_DIR
from vdexdp.lab import Lab, Namespace, Process
from vdexdp.lab.namespace import command_line, marked

SOCKET = 70000
"""The gid of those who may talk to the daemon."""
ALICE = as_user(70001, 70100, SOCKET)
BOB = as_user(70002, 70200, SOCKET)
MALLORY = as_user(70003, 70300, SOCKET)
STRANGER = as_user(70004, 70400)

POLICY = f"""
group = {SOCKET}

[rule.tenants]
groups = [70100, 70200]
networks = ["vxvdex://"]
plugs = 4

[rule.alice]
users = [70001]
networks = ["vxvde://234.0.0.1"]
interfaces = ["own", "vm-*"]
plugs = 4
"""


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    file = tmp_path / "policy.toml"
    file.write_text(POLICY)
    return file


@pytest.fixture
def host(lab: Lab) -> Namespace:
    """A host with an uplink, and nothing running."""
    made = lab.host("host")
    lab.underlay(made, lab.host("other"), mtu=9000)
    return made


def inside(host: Namespace, user: tuple[str, ...], number: int, *command: str, network: str = "vxvdex://") -> Process:
    """A user's vdens in the kernel path, with the lab's guest address of that number."""
    script = f"ip address add 10.0.0.{number}/24 dev vde0; ip link set vde0 up; echo up; {' '.join(command)}"
    vdens = (*VDEXDP, "vdens", "-v", "--accel", "require", network, "sh", "-c", script)
    process = host.spawn(*user, *vdens)
    process.wait_output("up", START)
    return process


def plugs(host: Namespace) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = call(host, "show")["plugs"]
    return found


def test_root_only_by_default(host: Namespace) -> None:
    daemon(host)
    path = RUN_DIR / f"{host.inode}.sock"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    process = host.spawn(*ALICE, *VDEXDP, "vde_plug", "null://", "vxvde://234.0.0.1")
    said = process.wait_output("in userspace", START)
    assert "you may not talk to the daemon; run as root, or ask root for a policy" in said


def test_two_groups_of_users(two_hosts: TwoHosts, policy: Path) -> None:
    left, right = two_hosts.left, two_hosts.right
    for one in (left, right):
        daemon(one, "--policy", str(policy))
        assert stat.S_IMODE((RUN_DIR / f"{one.inode}.sock").stat().st_mode) == 0o660
    far = inside(right, ALICE, 2, "exec sleep 60")
    also = inside(left, BOB, 3, "exec ping -i 0.05 10.0.0.9 >/dev/null")
    near = inside(
        left,
        ALICE,
        1,
        "ping -c 3 -i 0.1 -w 5 10.0.0.2 && ! ping -c 2 -i 0.2 -w 1 10.0.0.3",
        "&& cat /proc/net/dev && echo well; exec sleep 60",
    )
    near.wait_output("well")
    bytes_in = next(line.split()[1] for line in near.output().splitlines() if line.strip().startswith("vde0:"))
    assert int(bytes_in) < 1500, "nothing of Bob's broadcasts"
    names = {one["name"].partition(" via")[0]: one["fdb"] for one in call(left, "show")["switches"]}
    assert set(names) == {"vxvde 239.1.17.212:14789 vni 70100", "vxvde 239.1.18.56:14789 vni 70200"}
    root = left.run(
        *VDEXDP,
        "vdens",
        "vxvde:///grp=70100",
        "sh",
        "-c",
        "ip link set vde0 up; ip address add 10.0.0.4/24 dev vde0; ping -c 3 -i 0.1 -w 5 10.0.0.2",
        check=False,
    )
    assert root.returncode == 0, "an administrator joins"
    shown = json.loads(left.run(*BOB, *VDEXDP, "show", "--json").stdout)
    assert [one["user"] for one in shown["plugs"]] == ["70002"]
    assert [one["name"].split()[-3] for one in shown["switches"]] == ["70200"]
    assert {one["plug"] for one in shown["ports"]} == {shown["plugs"][0]["id"], None}
    assert left.run(*BOB, *VDEXDP, "fdb", "--json").stdout.count('"mac"') == 1, "his own"
    refused = left.run(*BOB, *VDEXDP, "fdb", "flush", check=False)
    assert refused.returncode == 1
    assert "user 70002 may not ask it for that" in refused.stderr
    told = left.run(*BOB, *VDEXDP, "doctor", check=False).stdout
    assert "rule tenants; networks vxvdex://; interfaces own; 4 plugs, 1 in use" in " ".join(told.split())
    explained = left.run(*BOB, *VDEXDP, "explain", "null://", "vxvdex://").stdout
    assert "The daemon's policy grants it to you: rule tenants." in explained
    explained = left.run(*BOB, *VDEXDP, "explain", "--json", "null://", "vxvde://234.0.0.1").stdout
    assert json.loads(explained)["why"].endswith("the policy does not grant you this network")
    for process in (near, far, also):
        process.stop()


def test_without_the_daemon(host: Namespace, policy: Path, lab: Lab) -> None:
    """Frames flow although their users hold nothing of it, the next daemon gets everything back, and who dies meanwhile
    leaves nothing.
    """
    before = looks(host)
    first = daemon(host, "--policy", str(policy))
    idle = looks(host)
    flow = inside(host, ALICE, 1, "exec ping -i 0.02 -W 1 10.0.0.2")
    target = inside(host, ALICE, 2, "exec sleep 60")
    bridged = host.spawn(*ALICE, *VDEXDP, "vde_plug", "cmd://sleep 60", "vxvde://234.0.0.1")
    bridged.wait_output("bridged into the kernel", START)
    pid = next(one["pid"] for one in plugs(host) if one["rule"] == "alice")
    held = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
    assert any("tun" in one for one in held), held
    assert not any("bpf" in one for one in held), held
    tap = next(one["name"] for one in call(host, "show")["ports"] if one["bridge"])
    assert host.run("sysctl", "-n", f"net.ipv4.conf.{tap}.rp_filter").stdout.strip() == "1"
    flow.wait_output("icmp_seq=10 ")
    kill(first)
    count = flow.output().count("icmp_seq")
    until(lambda: flow.output().count("icmp_seq") > count + 20, "frames without a daemon")
    second = daemon(host, "--policy", str(policy))
    until(lambda: len(plugs(host)) == 3, "all plugs with the new daemon", START)
    pids = {one["pid"] for one in plugs(host)}
    assert len(pids) == 3
    until(lambda: second.output().count("claimed by its user") == 3, "their users")
    assert {one["rule"] for one in plugs(host)} == {"tenants", "alice"}
    numbers = [int(line.split("icmp_seq=")[1].split()[0]) for line in flow.output().splitlines() if "icmp_seq=" in line]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers))), "none lost"
    kill(bridged)
    until(lambda: len(plugs(host)) == 2, "the end of a killed plug")
    kill(second)
    kill(target)
    flow.stop()
    same(host, before)
    for pid in marked(lab.prefix):
        if command_line(pid) == "sleep 60":  # what ran in the killed ones
            os.kill(pid, signal.SIGTERM)
    third = daemon(host, "--policy", str(policy))
    until(lambda: not plugs(host), "nothing left")
    same(host, idle)
    third.stop()


def test_the_end_of_the_keeper(host: Namespace, policy: Path) -> None:
    """Alone it is started again; with the daemon, the next daemon cleans up."""
    first = daemon(host, "--policy", str(policy))
    held = inside(host, ALICE, 1, "exec sleep 60")
    for _ in range(2):
        (keeper,) = [pid for pid in children(host) if links_held(pid)]
        os.kill(keeper, signal.SIGKILL)
        until(lambda gone=keeper: any(pid != gone and links_held(pid) for pid in children(host)), "another keeper")  # type: ignore[misc]
    (keeper,) = [pid for pid in children(host) if links_held(pid)]
    first.signal(signal.SIGSTOP)
    os.kill(keeper, signal.SIGKILL)
    kill(first)
    assert "vdxv0" in host.ip("link"), "nobody could remove it"
    daemon(host, "--policy", str(policy))
    until(lambda: "vdxv0" not in host.ip("link"), "the new daemon to do it")
    held.wait_output("vde0 is gone")
    assert host.run("ip", "link", "show", "type", "veth").stdout.count("lan0"), "and nothing else"
    also = inside(host, ALICE, 1, "exec sleep 60")
    call(host, "stop")
    also.wait_output("the daemon was stopped; vde0 is gone")
    until(lambda: not {"vdxp0", "vdxv0"} & set(re.split(r"[\s:@]+", host.ip("link"))), "the end of what it had made")
    held.stop()
    also.stop()


def children(host: Namespace) -> list[int]:
    """The processes that the daemon has forked, its own children."""
    pid = call(host, "hello")["pid"]
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_interfaces(host: Namespace, lab: Lab, policy: Path, tmp_path: Path) -> None:
    daemon(host, "--policy", str(policy))
    guest = lab.guest(host, "vm-1", 1, mtu=1400)
    host.ip("tuntap add mode tap name t0 user 70001")
    host.ip("tuntap add mode tap name t1 user 70002")
    lab.address(host, "t0", 2)
    network = "vxvde://234.0.0.1"
    refused = {
        ("netdev://lan0", network): "the policy does not grant you lan0",
        ("netdev://t1", network): "the policy does not grant you t1",
        ("netdev://t0", network): "the host uses t0 itself",
        ("netdev://vm-1/hook=xdp", network): "hook=xdp is root's to say",
        ("netdev://vm-1", "vxvde://234.0.0.2"): "the policy does not grant you this network",
        ("netdev://vm-1", f"{network}/if=lo"): "the policy does not grant you this network",
        ("netdev://vm-1", f"{network}/ttl=9"): "the policy does not grant you this network",
        ("netdev://vm-1", f"{network}/rcvbuf=1G"): "rcvbuf= is for all of the network, and root's to say",
        ("netdev://vm-1", "vxvde://239.1.18.56/vni=70200"): "the policy does not grant you this network",
    }
    script = f"""
from vdexdp.plugins import registry
print(json.dumps([plug(*(registry.parse(vnl).kernel_end() for vnl in pair)) for pair in {list(refused)!r}]))
"""
    assert hostile(host, ALICE, script) == list(refused.values())
    done = host.run(*ALICE, *VDEXDP, "vde_plug", "--accel", "require", "netdev://lan0", network, check=False)
    assert (done.returncode, "does not grant you lan0" in done.stderr) == (1, True), done.stderr
    processes = []
    for name in ("netdev://vm-1", "tap://t0"):
        words = (*VDEXDP, "vde_plug", "--accel", "require", name, "vxvde://234.0.0.1")
        process = host.spawn(*with_tun(tmp_path), *ALICE, *words)
        process.wait_output("in the kernel", START)
        processes.append(process)
    assert ping(guest, "10.0.0.2")
    for process in processes:
        kill(process)
    until(lambda: not plugs(host), "the end of both")


def test_a_node_of_roots(host: Namespace, lab: Lab, policy: Path) -> None:
    """A user who may be its client joins it as one; what he brings along, the policy judges."""
    daemon(host, "--policy", str(policy))
    guests = [lab.guest(host, name, number, mtu=1400) for number, name in enumerate(("g1", "g2"), 1)]
    network = "vxvde://234.0.0.1"
    with tempfile.TemporaryDirectory(prefix="vdexdp-test-") as place:
        os.chmod(place, 0o755)
        options = "mode=0666/dirmode=0777"
        serving = host.spawn(*VDEXDP, "vde_plug", f"switch://{place}/sw[{options}]", "netdev://g1")
        serving.wait_output("bridged into the kernel", START)
        host.spawn(*VDEXDP, "vde_plug", "netdev://g2", network).wait_output("in the kernel", START)
        told = {f"{network}/vni=9": "in userspace", network: "bridged into the kernel"}
        for asked, way in told.items():
            joining = host.spawn(*ALICE, *VDEXDP, "vde_plug", f"vde://{place}/sw", asked)
            joining.wait_output(way, START)
            if asked == network:
                assert "only root joins a node in the kernel" in joining.output()
                assert ping(guests[0], "10.0.0.2")
            assert not [one for one in call(host, "show")["ports"] if one["kind"] == "patch"]
            joining.stop()
        root = host.spawn(*VDEXDP, "vde_plug", f"vde://{place}/sw", network)
        root.wait_output(": in the kernel", START)
        assert ping(guests[0], "10.0.0.2")
        root.stop()
        serving.stop()


def test_the_policy_changes(host: Namespace, policy: Path) -> None:
    process = daemon(host, "--policy", str(policy))
    held = inside(host, ALICE, 1, "exec sleep 60", network="vxvde://234.0.0.1")
    stays = inside(host, BOB, 1, "exec sleep 60")
    policy.write_text(POLICY + "\n[rule.carol]\nusers = [true]\n")
    process.signal(signal.SIGHUP)
    process.wait_output("policy.toml:16: rule.carol.users: True is no user")
    assert len(plugs(host)) == 2
    assert call(host, "policy")["broken"]
    policy.write_text(POLICY.partition("[rule.alice]")[0])
    process.signal(signal.SIGHUP)
    held.wait_output("does not grant you this network; vde0 is gone")
    assert [one["user"] for one in plugs(host)] == ["70002"]
    stays.stop()


HOSTILE = """
import json, os, socket, subprocess, sys, time
from vdexdp.control import client
from vdexdp.control.channel import Channel
from vdexdp.control.protocol import PlugRequest, request
from vdexdp.errors import VdexdpError
from vdexdp.plugins.base import Inside, Netdev, Tunnel
from vdexdp.control.protocol import Bridge
OWN = os.getegid()
def tunnel(group="239.1.17.212", vni=70100, **more):
    return Tunnel(**dict(kind="vxvde", group=group, family=6 if ":" in group else 4, port=14789, vni=vni) | more)
def ask(body, fds=()):
    channel = client.open_channel()
    try:
        reply = client.ask(channel, body, list(fds))
        reply.close()
        return reply.body
    finally:
        channel.close()
def plug(first, second, fds=(), index=(None, None)):
    found = ask(PlugRequest((first, second), ("a", "b"), fd_index=index).to_json(), fds)
    return "allowed" if found["ok"] else found["cause"]
"""


def hostile(host: Namespace, user: tuple[str, ...], script: str, timeout: float = 30.0) -> Any:
    """What a user's program that speaks the protocol prints, as JSON."""
    process = host.spawn(*user, sys.executable, "-c", HOSTILE + script)
    process.wait(timeout)
    try:
        return json.loads(process.output().splitlines()[-1])
    except ValueError:
        pytest.fail(process.output())


def test_a_hostile_user(host: Namespace, policy: Path, lab: Lab) -> None:
    served = daemon(host, "--policy", str(policy))
    lab.guest(host, "vm-1", 1)
    victim = inside(host, ALICE, 1, "exec sleep 60")
    found = hostile(
        host,
        BOB,
        """
bridge = Bridge("x")
told = {
    "another group": plug(bridge, tunnel()),
    "its group by another name": plug(bridge, tunnel("ff05:56de::1:11d4")),
    "oddly spelt": plug(bridge, tunnel("FF05:56DE:0:0:0:0:0001:11D4")),
    "her VNI, his group": plug(bridge, tunnel("239.1.18.56")),
    "his VNI, her group": plug(bridge, tunnel(vni=70200)),
    "vxlan": plug(bridge, tunnel(kind="vxlan")),
    "interface": plug(Netdev("vm-1", "wire"), tunnel("239.1.18.56", 70200)),
    "uplink": plug(Netdev("lan0", "wire"), tunnel("239.1.18.56", 70200)),
    "uplink as a stack": plug(Netdev("lan0", "stack"), tunnel("239.1.18.56", 70200)),
    "two of them": plug(Netdev("lan0", "wire"), Netdev("vm-1", "wire")),
}
here = os.open("/proc/self/ns/net", os.O_RDONLY)
null = os.open("/dev/null", os.O_RDONLY)
ask(PlugRequest((Netdev("\\x1b[2J", "stack"), tunnel()), ("\\x1b[2J", "b")).to_json())
own = tunnel("239.1.18.56", 70200)
told["the host's namespace"] = plug(Inside("x0"), own, [here], (0, None))
told["no namespace"] = plug(Inside("x0"), own, [null], (0, None))
told["nothing"] = plug(Inside("x0"), own)
told["a tap that is none"] = plug(Netdev("lan0", "stack"), own, [null], (0, None))
child = subprocess.Popen(["unshare", "-Un", "sh", "-c", "echo; exec sleep 20"], stdout=subprocess.PIPE)
child.stdout.readline()
mine = os.open(f"/proc/{child.pid}/ns/net", os.O_RDONLY)
told["his own"] = plug(Inside("x0"), own, [mine], (0, None))
told["a path"] = plug(Inside("../x"), own, [mine], (0, None))
child.kill()
for op in ("stop", "log", "capture", "mirror"):
    told[op] = ask(request(op))["cause"]
told["resume"] = ask(request("resume", lease={"plug": {"id": 1}}, fds=[]))["cause"]
told["claim"] = ask(request("resume", lease={"token": "0" * 32}))["cause"]
told["flush"] = ask(request("fdb", action="flush"))["cause"]
told["switches"] = ask(request("fdb", switch=1)).get("cause", "listed")
print(json.dumps(told))
""",
    )
    no = "the policy does not grant you "
    assert {key for key, cause in found.items() if cause == "allowed"} == {"his own"}
    for key in ("another group", "oddly spelt", "her VNI, his group", "his VNI, her group", "vxlan"):
        assert found[key] == no + "this network", key
    assert found["interface"] == no + "vm-1"
    assert found["uplink"] == found["two of them"] == no + "lan0"
    assert found["uplink as a stack"] == "you have not opened lan0 in this network namespace"
    for key in ("no namespace", "a tap that is none"):
        assert found[key] == "a descriptor is neither a tap nor a network namespace", key
    for key in ("the host's namespace", "nothing"):
        assert found[key] == "that network namespace is not yours", key
    for key in ("stop", "log", "capture", "mirror", "resume", "flush"):
        assert found[key] == "user 70002 may not ask it for that", key
    assert found["claim"] == "its ports were given up meanwhile"
    assert found["switches"] == "no such switch"
    assert [one["user"] for one in plugs(host)] == ["70001"]
    assert "\x1b" not in served.output()
    assert "you have not opened ?[2J" in served.output()
    stranger = hostile(
        host, STRANGER, "try: client.open_channel()\nexcept VdexdpError as e: print(json.dumps(e.cause))"
    )
    assert stranger == "you may not talk to the daemon"
    assert "grants user 70003 nothing" in hostile(host, MALLORY, 'print(json.dumps(plug(Bridge("x"), tunnel())))')
    victim.stop()


def test_foreign_namespaces_and_taps(host: Namespace, policy: Path, tmp_path: Path) -> None:
    """A descriptor of what is another user's, or of another namespace's, is worth nothing."""
    daemon(host, "--policy", str(policy))
    victim = host.spawn(*ALICE, "unshare", "-Un", "sh", "-c", "echo up; exec sleep 60")
    victim.wait_output("up")
    namespace = f"/proc/{victim.pid}/ns/net"
    own = 'tunnel("239.1.18.56", 70200)'
    # Root opens it, and becomes Bob, who has now what he could not get himself.
    script = f"""
fd = os.open("{namespace}", os.O_RDONLY)
os.setgroups([{SOCKET}]); os.setresgid(70200, 70200, 70200); os.setresuid(70002, 70002, 70002)
told = plug(Inside("x0"), {own}, [fd], (0, None))
print(json.dumps(told))
"""
    assert hostile(host, (), script) == "that network namespace is not yours"
    # In a namespace of his own he makes a tap of the uplink's name.
    elsewhere = f"""
import ctypes
from vdexdp.plugins.tap import open_tap
channel = client.open_channel()
assert not ctypes.CDLL(None).unshare(0x50000000)
fd, name = open_tap("lan0")
body = PlugRequest((Netdev("lan0", "stack"), {own}), ("a", "b"), fd_index=(0, None)).to_json()
print(json.dumps(client.ask(channel, body, [fd]).body["cause"]))
"""
    assert hostile(host, (*with_tun(tmp_path), *BOB), elsewhere) == "you have not opened lan0 in this network namespace"
    victim.stop()


FILE_SYSTEM = """
import ctypes, struct, threading
libc = ctypes.CDLL(None, use_errno=True)
assert not libc.unshare(0x20000) and not libc.mount(b"none", b"/", None, 0x44000, None)
fuse = os.open("/dev/fuse", os.O_RDWR)
place = os.path.join(sys.argv[1], "file")
directory = os.open(sys.argv[1], os.O_RDONLY)  # its parents are closed to Bob
open(place, "w").close()
options = f"fd={fuse},rootmode=100000,user_id=0,group_id=0,allow_other".encode()
assert not libc.mount(b"fuse", place.encode(), b"fuse", 0, options), os.strerror(ctypes.get_errno())
waiting = []
def released():
    return "release" in os.listdir(directory)
def answer(unique, data=b""):
    os.write(fuse, struct.pack("=IiQ", 16 + len(data), 0, unique) + data)
def serve():
    while True:
        request = os.read(fuse, 1 << 17)
        _, code, unique = struct.unpack_from("=IIQ", request)
        if code == 26:  # INIT
            answer(unique, struct.pack("=IIIIHHIIHHI28x", 7, 31, 0, 0, 16, 12, 1 << 16, 1, 0, 0, 0))
        elif code == 3:  # GETATTR
            answer(unique, struct.pack("=QII6Q10I", 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0o100666, 1, 0, 0, 0, 4096, 0))
        elif code == 14:  # OPEN
            answer(unique, struct.pack("=QII", 1, 0, 0))
        elif code == 25 and not released():  # FLUSH, which close(2) waits for
            waiting.append(unique)
        elif code != 2 and code != 42:
            answer(unique)
threading.Thread(target=serve, daemon=True).start()
fd = os.open(place, os.O_RDWR)
os.setgroups([70000]); os.setresgid(70200, 70200, 70200); os.setresuid(70002, 70002, 70002)
"""


def test_descriptors_of_a_file_system_that_does_not_answer(host: Namespace, policy: Path, tmp_path: Path) -> None:
    """The daemon waits for none of them, not even at its end, and after too many it takes no more."""
    if "\tfuse\n" not in Path("/proc/filesystems").read_text():
        lacking("fuse", "Debian's kernels have it as a module", known=False)
    first = daemon(host, "--policy", str(policy))
    process = host.spawn(
        sys.executable,
        "-c",
        HOSTILE
        + FILE_SYSTEM
        + """
own = tunnel("239.1.18.56", 70200)
try:
    print(json.dumps([plug(Inside("x0"), own, [fd], (0, None)) for _ in range(9)]), flush=True)
finally:
    while not released():
        time.sleep(0.02)
    for unique in waiting:
        answer(unique)
    os.close(fd)  # else this process could not end either
""",
        str(tmp_path),
    )
    try:
        process.wait_output("]")
        causes = json.loads(process.output())
        assert causes[:8] == ["a descriptor is neither a tap nor a network namespace"] * 8
        assert causes[8].startswith("more than 0 descriptors")
        first.stop()
        daemon(host, "--policy", str(policy))
    finally:
        (tmp_path / "release").touch()
        process.wait()


def test_floods(host: Namespace, policy: Path, lab: Lab) -> None:
    """Many connections, many requests, garbage, descriptors nobody wants: others are served meanwhile."""
    served = daemon(host, "--policy", str(policy))
    fds = len(os.listdir(f"/proc/{call(host, 'hello')['pid']}/fd"))
    held = host.spawn(
        *MALLORY,
        sys.executable,
        "-c",
        HOSTILE
        + """
channels, told = [client.open_channel() for _ in range(12)], []
for one in channels:
    body = client.ask(one, request("hello")).body
    told.append(body.get("cause", "served"))
channels = []
end = time.monotonic() + 2
print("go", flush=True)
while time.monotonic() < end:
    try:
        one = client.open_channel(limit=0.5)
        one.sock.settimeout(0.2)
        channels.append(one)
        one.send(request("show"), [0, 1])
        one.sock.send(b"garbage")
        one.send(request("policy"), [0] * 150)
        channels[0].send(request("show"))
    except (VdexdpError, OSError):
        pass
    channels[10:] = []
print(json.dumps(told))
""",
    )
    held.wait_output("go", START)
    times = []
    while held.poll() is None:
        begin = os.times().elapsed
        call(host, "show")
        times.append(os.times().elapsed - begin)
    assert len(times) > 3
    assert sorted(times)[len(times) // 2] < 1, times
    told = json.loads(held.output().splitlines()[-1])
    assert told == ["served"] * 8 + ["you have 8 connections already"] * 4
    until(lambda: len(os.listdir(f"/proc/{served_pid(host)}/fd")) <= fds + 2, "no descriptor left")
    assert served.poll() is None
    many = hostile(
        host,
        BOB,
        """
import fcntl
made, causes = [], []
for _ in range(7):
    try: made.append(client.plug(PlugRequest((Bridge("x"), tunnel("239.1.18.56", 70200)), ("a", "b")), []))
    except VdexdpError as error: causes.append(error.cause)
kept = [fcntl.ioctl(one.bridge, 0x400454CB, 1) for one in made]  # TUNSETPERSIST
print(json.dumps([len(made), causes]))
""",
    )
    assert many == [4, ["you have 4 plugs, and rule tenants allows no more"] * 3]
    until(lambda: "vdxb" not in host.ip("link"), "the end of taps that were told to stay")


def served_pid(host: Namespace) -> int:
    pid: int = call(host, "hello")["pid"]
    return pid
