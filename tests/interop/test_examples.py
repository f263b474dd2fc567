# SPDX-License-Identifier: GPL-2.0-or-later
"""Each example of docs/vnl.md is plugged as it is printed there, and carries pings to a peer, stock's if it has one.

Two hosts, joined by eth0, whose /tmp, /run and /etc are their own, so that the paths in the examples can be what they
are.  The host that the example of cmd:// names is an alias in their /etc/ssh.  Each example takes the path that the
table promises, and ends tidily, with its device and its sockets.  Needs root.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from tests.labkit import VDEXDP, require, require_tool
from vdexdp.lab import Lab, Namespace, Process, wait_until
from vdexdp.lab.measure import ping
from vdexdp.plugins import registry
from vdexdp.plugins.table import page

CHECKOUT = Path(__file__).parents[2]
LEFT, RIGHT = "10.0.0.1", "10.0.0.2"
ENTER_PLACE = """
place=$1 keep="$2 $3"; shift 3
for tree in $keep; do
    case $tree in /tmp/*) mkdir -p "$place$tree"; mount --bind "$tree" "$place$tree";; esac
done
for directory in etc run tmp; do mount --rbind "$place/$directory" "/$directory"; done
exec "$@"
"""
SSHD_CONFIG = """\
HostKey /etc/ssh/key
AuthorizedKeysFile /etc/ssh/key.pub
PidFile none
UsePAM no
StrictModes no
PermitRootLogin yes
"""
SSH_CONFIG = """\
Host host
    HostName 192.0.2.7
    User root
    IdentityFile /etc/ssh/key
    BatchMode yes
    StrictHostKeyChecking no
    UserKnownHostsFile /dev/null
"""


class Scene:
    """``left``, where examples are plugged, and ``right``, where peers are.  What is started ends with ``undo``."""

    def __init__(self, lab: Lab, left: Namespace, right: Namespace, place: Path, undo: ExitStack) -> None:
        self.lab = lab
        self.left, self.right = left, right
        self.place = place
        self.undo = undo

    def spawn(self, host: Namespace, *argv: str, stdin: int | None = None, stdout: int | None = None) -> Process:
        keep = (str(self.place), str(CHECKOUT), sys.prefix)
        process = host.spawn("unshare", "-m", "sh", "-ec", ENTER_PLACE, "sh", *keep, *argv, stdin=stdin, stdout=stdout)
        self.undo.callback(process.close)
        return process

    def plug(
        self, *ends: str, says: str = "in userspace (", stdin: int | None = None, stdout: int | None = None
    ) -> Process:
        """Ours, on the left; with the path that it takes."""
        process = self.spawn(self.left, *VDEXDP, "vde_plug", *ends, stdin=stdin, stdout=stdout)
        process.wait_output(says, 20)
        return process

    def peer(self, *ends: str, stdin: int | None = None, stdout: int | None = None) -> None:
        """A stock plug on the right, with a tap t0."""
        self.spawn(self.right, require_tool("vde_plug"), *ends, "tap://t0", stdin=stdin, stdout=stdout)
        wait_until(lambda: self.right.exists("t0"), what="the peer's tap")
        self.address(self.right, "t0", RIGHT)

    def switch(self, path: str) -> None:
        """A stock switch."""
        read, write = os.pipe2(os.O_CLOEXEC)  # it ends with its stdin
        self.undo.callback(os.close, write)
        self.spawn(self.left, require_tool("vde_switch"), "-s", path, stdin=read)
        os.close(read)
        wait_until(Path(f"{self.place}{path}/ctl").exists, what=f"a switch at {path}")

    def address(self, host: Namespace, device: str, address: str) -> None:
        host.ip(f"address add {address}/24 dev {device}")
        host.ip(f"link set {device} up")

    def meet(self, device: str = "t0", *, guest: Namespace | None = None) -> None:
        """The left address, on this device, and the right one reach each other."""
        near = guest or self.left
        self.address(near, device, LEFT)
        for host, address in ((near, RIGHT), (self.right, LEFT)):
            wait_until(lambda h=host, a=address: ping(h, a, 1, timeout=0.3).received, 10, f"ping {address}")  # type: ignore[misc]


Case = Callable[[Scene, str], Process]
CASES: dict[str, Case] = {}
"""By scheme: plug the example, show that it works, and return it, still running."""


def case(*schemes: str) -> Callable[[Case], Case]:
    def keep(function: Case) -> Case:
        CASES.update(dict.fromkeys(schemes, function))
        return function

    return keep


@case("vde")
def a_port(scene: Scene, example: str) -> Process:
    scene.switch("/tmp/myswitch")
    plug = scene.plug("tap://t0", example)
    scene.peer("vde:///tmp/myswitch")
    scene.meet()
    return plug


@case("hub", "switch", "multi", "bonding")
def a_node(scene: Scene, example: str) -> Process:
    plug = scene.plug("tap://t0", example, says="bridged into the kernel")
    scene.peer("vde://" + registry.parse(example).spec.path)
    scene.meet()
    return plug


@case("wirefilter", "agno", "restart")
def in_front_of_a_switch(scene: Scene, example: str) -> Process:
    scene.switch("/tmp/sw")
    (scene.place / "etc/vde.key").write_text("00112233445566778899aabbccddeeff")
    plug = scene.plug("tap://t0", example)
    scene.peer(example if example.startswith("agno") else "vde:///tmp/sw")
    scene.meet()
    return plug


@case("vlan")
def tagged(scene: Scene, example: str) -> Process:
    scene.plug("null://", "hub:///tmp/sw")  # stock's switch drops tags that it was not told of
    plug = scene.plug("tap://t0", example)
    scene.peer("vlan://3{vde:///tmp/sw}")
    scene.meet()
    return plug


@case("ptp")
def a_socket(scene: Scene, example: str) -> Process:
    plug = scene.plug("tap://t0", example)
    scene.peer(example)
    scene.meet()
    return plug


@case("udp")
def datagrams(scene: Scene, example: str) -> Process:
    plug = scene.plug("tap://t0", example)
    scene.peer("udp://192.0.2.7:3000->192.0.2.1:2000")
    scene.meet()
    return plug


@case("vxvde")
def a_network(scene: Scene, example: str) -> Process:
    plug = scene.plug("tap://t0", example, says="in the kernel")
    scene.peer(example)
    scene.meet()
    return plug


@case("vxlan")
def a_network_of_the_kernel(scene: Scene, example: str) -> Process:
    """Linux is the peer; stock's module receives nothing."""
    require("vxlan")
    plug = scene.plug("tap://t0", example, says="in the kernel")
    group, vni, device = re.findall(r"//(.*)/vni=(.*)/if=(.*)", example)[0]
    scene.right.ip(f"link add t0 type vxlan group {group} id {vni} dstport 4789 dev {device}")
    scene.undo.callback(scene.right.ip, "link delete t0")
    scene.address(scene.right, "t0", RIGHT)
    scene.meet()
    return plug


@case("vxvdex")
def a_network_by_group(scene: Scene, example: str) -> Process:
    plug = scene.plug("tap://t0", example, says="in the kernel")
    scene.peer(f"vxvde:///grp={os.getegid()}")
    scene.meet()
    return plug


@case("tap")
def a_tap(scene: Scene, example: str) -> Process:
    plug = scene.plug(example, "vxvde://", says="in the kernel")
    scene.peer("vxvde://")
    scene.meet("tap0")
    return plug


@case("netdev")
def a_veth(scene: Scene, example: str) -> Process:
    guest = scene.lab.namespace("guest")
    scene.lab.pair(scene.left, "veth0", guest, "eth0")
    scene.undo.callback(scene.left.ip, "link delete veth0")
    plug = scene.plug(example, "vxvde://", says="in the kernel")
    scene.peer("vxvde://")
    scene.meet("eth0", guest=guest)
    return plug


@case("macvtap", "pcap")
def beside_the_host(scene: Scene, example: str) -> Process:
    """A tap as one more machine on the LAN of eth0."""
    scene.left.ip("tuntap add mode tap name t0")
    scene.undo.callback(scene.left.ip, "link delete t0")
    kernel = example.startswith("macvtap")
    if kernel:
        require("macvtap")
        scene.left.ip("link add link eth0 name macvtap0 type macvtap mode bridge")
        scene.undo.callback(scene.left.ip, "link delete macvtap0")
        scene.left.ip("link set macvtap0 up addrgenmode none")
        scene.left.ip(f"link set t0 address {scene.left.mac('macvtap0')}")
    plug = scene.plug("tap://t0", example, says="in the kernel" if kernel else "in userspace (")
    scene.address(scene.right, "eth0", RIGHT)
    scene.undo.callback(scene.right.ip, f"address del {RIGHT}/24 dev eth0")
    scene.meet()
    return plug


@case("cmd")
def over_ssh(scene: Scene, example: str) -> Process:
    ssh = scene.place / "etc/ssh"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", ssh / "key"], check=True)
    (ssh / "ssh_config").write_text(SSH_CONFIG)
    (ssh / "sshd_config").write_text(SSHD_CONFIG)
    (scene.place / "run/sshd").mkdir()
    scene.spawn(scene.right, "/usr/sbin/sshd", "-D", "-e").wait_output("listening")
    plug = scene.plug("tap://t0", example)
    scene.peer("vxvde://")
    scene.meet()
    return plug


@case("seqpacket")
def a_descriptor(scene: Scene, example: str) -> Process:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with near, far:
        shell = ("sh", "-c", 'exec "$@" 3<&0 </dev/null', "sh")
        plug = scene.spawn(scene.left, *shell, *VDEXDP, "vde_plug", "tap://t0", example, stdin=near.fileno())
        plug.wait_output("in userspace (")
        scene.peer("seqpacket://0", stdin=far.fileno())
    scene.meet()
    return plug


@case("stream")
def a_pipe(scene: Scene, example: str) -> Process:
    near, far = socket.socketpair()
    with near, far:
        plug = scene.plug("tap://t0", example, stdin=near.fileno(), stdout=near.fileno())
        scene.peer(stdin=far.fileno(), stdout=far.fileno())
    scene.meet()
    return plug


@case("null")
def a_sink(scene: Scene, example: str) -> Process:
    plug = scene.plug("tap://t0", example)
    scene.address(scene.left, "t0", LEFT)
    assert ping(scene.left, RIGHT, 1, timeout=0.3).received == 0
    assert plug.poll() is None
    return plug


@case("slirp")
def the_internet(scene: Scene, example: str) -> Process:
    """The guest reaches the router, and the host the guest's port."""
    path = scene.place / "tmp/guest"
    plug = scene.plug("ptp:///tmp/guest", example)
    wait_until(path.exists)
    scene.peer("ptp:///tmp/guest")
    scene.address(scene.right, "t0", "10.0.2.15")
    wait_until(lambda: ping(scene.right, "10.0.2.2", 1, timeout=0.3).received, what="an answer of the router")
    with scene.right.entered():
        server = socket.create_server(("10.0.2.15", 80))
    with closing(server), scene.left.entered(), socket.create_connection(("127.0.0.1", 8080), 5) as client:
        server.settimeout(5)
        with closing(server.accept()[0]) as accepted:
            accepted.sendall(b"hello")
        assert client.recv(5, socket.MSG_WAITALL) == b"hello"
    return plug


@pytest.fixture(scope="module")
def stage(shared_lab: Lab) -> tuple[Lab, Namespace, Namespace]:
    left, right = shared_lab.host("left"), shared_lab.host("right")
    shared_lab.underlay(left, right, device="eth0", mtu=1600)
    right.ip("address add 192.0.2.7/24 dev eth0")
    return shared_lab, left, right


@pytest.fixture
def scene(stage: tuple[Lab, Namespace, Namespace], tmp_path: Path) -> Iterator[Scene]:
    for directory in ("run/user/1000", "tmp"):
        (tmp_path / directory).mkdir(parents=True)
    subprocess.run(["cp", "-a", "/etc", tmp_path], check=True)
    with ExitStack() as undo:
        yield Scene(*stage, tmp_path, undo)


def devices(host: Namespace) -> set[str]:
    return {line.split()[0] for line in host.ip("-br link").splitlines()}


@pytest.mark.parametrize("scheme", registry.BUILTIN)
def test_example(scene: Scene, scheme: str) -> None:
    example = registry.get(scheme).example
    assert f"| `{example}` |" in page()
    before = devices(scene.left)
    assert CASES[scheme](scene, example).stop() == 0
    scene.undo.close()
    wait_until(lambda: devices(scene.left) <= before, what="the end of what the plug had made")
    assert not [path for path in scene.place.glob("tmp/**") if path.is_socket()], "sockets are left"
