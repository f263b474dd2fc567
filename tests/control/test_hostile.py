# SPDX-License-Identifier: GPL-2.0-or-later
"""Users other than root get nothing but what the policy grants them, and stop nobody, whatever they send.

Real processes under other uids and gids, which speak the protocol themselves.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from tests.control.guestkit import ALICE, BOB, HOSTILE, MALLORY, SOCKET, STRANGER, hostile, inside, plugs
from tests.control.rig import START, call, daemon, until
from tests.labkit import lacking
from tests.unprivileged import with_tun
from vdexdp.lab import Lab, Namespace


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
