# SPDX-License-Identifier: GPL-2.0-or-later
"""capture, trace and mirror over real plugs: what is shown is what passed, and frames pass as if nobody looked.

The left host has two guests and a LAC with the right host, whose guest is the third.  Each test leaves the programs
behind the links that were there before it.  Those are the observed ones at first, kept by an observer who wants nothing
that there is, since loading them is what takes time.
"""

from __future__ import annotations

import json
import os
import re
import signal
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.control.rig import START, attached, behind_links, call, daemon, kill, listening, ping, until
from tests.frameshapes import BROADCAST, LOCAL, MARK, filler, mac_of, shapes
from tests.kernelkit import PacketEnd
from tests.labkit import VDEXDP, require_tool
from tests.pcapngkit import Capture, parse
from vdexdp.cli.main import run
from vdexdp.control.sighting import Watch
from vdexdp.control.wish import Wish
from vdexdp.lab import UNDERLAY, Lab, Namespace
from vdexdp.lab.measure import iperf_server, tcp
from vdexdp.lab.namespace import Process

MTU = 8900
GROUP = "234.0.0.1"


@dataclass
class Net:
    left: Namespace
    right: Namespace
    guests: dict[str, Namespace]
    master: Process
    ends: dict[str, PacketEnd]
    plugs: list[Process] = field(default_factory=list)
    keeper: Watch | None = None

    def let_go(self) -> None:
        """From here on nobody watches but the tests themselves."""
        if self.keeper is not None:
            self.keeper.close()
            self.keeper = None

    def send(self, source: str, target: str, size: int = 100) -> bytes:
        """One test frame from one port to another's MAC."""
        data = self.ends[target].mac + self.ends[source].mac + LOCAL.to_bytes(2, "big") + filler(size - 14)
        self.ends[source].send(data)
        return data


@pytest.fixture(scope="module")
def net() -> Iterator[Net]:
    if os.geteuid():
        pytest.fail("this test needs root; run: sudo scripts/test")
    with Lab() as lab:
        left, right = lab.host("left"), lab.host("right")
        lab.underlay(left, right, mtu=9000)
        guests = {
            name: lab.guest(host, name, n, mtu=MTU)
            for n, (name, host) in enumerate((("g1", left), ("g2", right), ("g3", left)), 1)
        }
        master = daemon(left)
        daemon(right)
        ends = {name: PacketEnd(n, "", guest, "eth0") for n, (name, guest) in enumerate(guests.items(), 1)}
        net = Net(left, right, guests, master, ends)
        for name in guests:
            host = right if name == "g2" else left
            plug = host.spawn(*VDEXDP, "vde_plug", "--accel", "require", f"netdev://{name}", f"vxvde://{GROUP}")
            plug.wait_output("in the kernel", START)
            net.plugs.append(plug)
        teach(net)
        with left.entered():
            net.keeper = Watch(Wish(ethertype=0x9999))
        yield net
        net.let_go()
        for end in ends.values():
            end.close()


def teach(net: Net) -> None:
    """All switches learn where the test addresses are."""
    macs = {end.mac.hex(":") for end in net.ends.values()}

    def learnt() -> bool:
        for end in net.ends.values():
            end.send(BROADCAST + end.mac + LOCAL.to_bytes(2, "big") + filler(50))
        return all(
            macs <= {one["mac"] for one in call(host, "fdb", action="list")["entries"]}
            for host in (net.left, net.right)
        )

    until(learnt, "all addresses to be learnt")


def programs(net: Net) -> dict[str, str]:
    """The ids of the programs behind all links that the left host's plugs hold, by link; and of those without links."""
    found = {name: name for name in attached(net.left, "g1", "g3", UNDERLAY)}
    return found | behind_links(call(net.left, "show")["plugs"], "prog_id")


@pytest.fixture
def alone() -> None:
    """Asked for by tests, the last ones of this file, that begin with the normal programs."""


@pytest.fixture(autouse=True)
def same_programs(net: Net, request: pytest.FixtureRequest) -> Iterator[None]:
    if "alone" in request.fixturenames:
        net.let_go()
        until(lambda: not call(net.left, "show")["watching"], "nobody to watch")
    before, master = programs(net), net.master
    assert len(before) >= 2
    yield
    if net.master is master:
        until(lambda: programs(net) == before, "the programs to be those that were there before")


def mirrors(host: Namespace) -> list[dict[str, Any]]:
    """As ``show`` has them, who answers while plugs of another daemon are coming back, too."""
    found: list[dict[str, Any]] = call(host, "show").get("watching", {}).get("mirrors", [])
    return found


def start(net: Net, *command: str, stdout: int | None = None) -> Process:
    """A command that watches, on the left host."""
    process = net.left.spawn(*VDEXDP, *command, stdout=stdout)
    process.wait_output("watching", START)
    return process


def finish(process: Process, status: int = 0) -> str:
    process.signal(signal.SIGINT)
    assert process.wait() == status, process.output()
    return process.output()


@contextmanager
def captured(net: Net, path: Path, *arguments: str) -> Iterator[Capture]:
    """What is captured of what passes meanwhile; filled afterwards, with the test's own frames only."""
    found = Capture()
    process = start(net, "capture", *arguments, "-w", str(path))
    yield found
    assert re.search(r"\d+ frames; 0 lost; ", finish(process)), process.output()
    whole = parse(path.read_bytes())
    found.__dict__.update(whole.__dict__)
    found.packets = [one for one in whole.packets if one.data[6:9] == MARK]


@pytest.mark.parametrize(("source", "target"), [("g1", "g2"), ("g2", "g1"), ("g1", "g3")])
def test_captured_frames_are_those_that_were_sent(net: Net, tmp_path: Path, source: str, target: str) -> None:
    frames = shapes(net.ends[source].mac, net.ends[target].mac, MTU)
    port = "g1" if "g1" in (source, target) else "g3"
    began = time.time()
    with captured(net, tmp_path / "one.pcapng", port, "--buffer", "32") as found:
        for frame in frames.values():
            net.ends[source].send(frame)
            time.sleep(0.001)
        net.ends[target].seen.clear()
        net.ends[target].collect(len(frames), 3.0)
    got = {one.data: one for one in found.packets}
    lacking = [name for name, frame in frames.items() if frame not in got]
    assert not lacking
    assert len(found.packets) == len(frames)
    for one in found.packets:
        assert found.names()[one.interface] == port
        assert one.direction == ("in" if source == port else "out")
        assert one.length == len(one.data)
        assert began - 1 < one.time < time.time() + 1
        assert one.comment.startswith("from 192.0.2.2 port " if source == "g2" else f"from {source}, "), one.comment
    wanted = "sent to 192.0.2.2 port " if target == "g2" else f"sent to {target}"
    for name, frame in frames.items():
        tagged = "802.1" in name or "tag" in name or "QinQ" in name
        assert wanted in got[frame].comment or (tagged and "flooded to " in got[frame].comment), name
    listing = subprocess.run(
        [require_tool("tcpdump"), "-n", "-r", tmp_path / "one.pcapng"], capture_output=True, text=True, check=False
    )
    assert listing.returncode == 0, listing.stderr
    assert len(listing.stdout.splitlines()) >= len(frames)


def test_verdicts(net: Net, tmp_path: Path) -> None:
    with captured(net, tmp_path / "one.pcapng", GROUP) as found:
        net.ends["g1"].send(net.ends["g3"].mac + mac_of(1) + bytes.fromhex("88b5") + filler(50))
        net.ends["g3"].send(BROADCAST + mac_of(3) + bytes.fromhex("88b5") + filler(60))
        net.ends["g1"].send(mac_of(1) + mac_of(1) + bytes.fromhex("88b5") + filler(70))
        net.ends["g1"].send(net.ends["g2"].mac + mac_of(1) + bytes.fromhex("88b5") + filler(80))
        time.sleep(0.3)
    said = [(found.names()[one.interface], one.comment) for one in found.packets]
    assert said[0] == ("g1", "from g1, sent to g3")
    assert said[1] == ("g3", "from g3, flooded to 1 local port and the network's group")
    assert said[2][1].startswith("from g1, dropped: same_port (")
    assert re.fullmatch(r"from g1, sent to 192\.0\.2\.2 port \d+", said[3][1])
    assert [struct.unpack("=Bq", one.options[7]) for one in found.packets] == [(1, 7), (1, 7), (1, 2), (1, 7)]
    assert {one.direction for one in found.packets} == {"in"}
    assert b"vdexdp" in found.section[4]


def test_snap_length_filters_and_super_packets(net: Net, tmp_path: Path) -> None:
    server = iperf_server(net.guests["g3"])
    path = tmp_path / "tcp.pcapng"
    process = start(net, "capture", "g1", "-w", str(path), "-s", "96", "--l4-port", "5201", "-f", "tcp[13] & 2 == 0")
    speed = tcp(net.guests["g1"], "10.0.0.3", 1)
    output = finish(process)
    server.stop()
    found = parse(path.read_bytes())
    print(f"while captured: {speed}; {output.splitlines()[-1]}")
    assert found.packets
    assert max(len(one.data) for one in found.packets) == 96
    assert max(one.length for one in found.packets) > 20_000
    assert any("a super-packet of" in one.comment for one in found.packets)
    for one in found.packets:
        assert one.data[23] == 6
        assert not one.data[47] & 2, "no SYN"
        assert 5201 in struct.unpack("!HH", one.data[34:38])
    assert found.interfaces[0][11] == b"\0tcp[13] & 2 == 0"


def test_lost_frames_are_counted(net: Net, tmp_path: Path) -> None:
    path, count = tmp_path / "lost.pcapng", 3000
    process = start(net, "capture", "g1", "--ethertype", "88b5", "-w", str(path), "-B", "1")
    process.signal(signal.SIGSTOP)
    for _ in range(count):
        net.send("g1", "g3", 1000)
    process.signal(signal.SIGCONT)
    said = re.search(r"(\d+) frames; (\d+) lost, as they were not read in time", finish(process))
    assert said, process.output()
    written, lost = map(int, said.groups())
    found = parse(path.read_bytes())
    assert (len(found.packets), lost > 500, written + lost) == (written, True, count)
    assert (found.total(4), found.total(7), found.total(8)) == (count, lost, written)


def test_a_full_disk_ends_the_capture_and_nothing_else(net: Net, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], check=True)
    try:
        process = start(net, "capture", "g1", "-w", str(disk / "full.pcapng"))
        sent = 0
        while process.poll() is None and sent < 3000:
            net.send("g1", "g3", 1000)
            sent += 1
            time.sleep(0.0005)
        assert process.wait() == 1, process.output()
        (line,) = [line for line in process.output().splitlines() if "watching" not in line]
        assert line == (
            f"vdexdp: {disk}/full.pcapng: No space left on device; the capture has ended; forwarding has not"
        )
        assert len(parse((disk / "full.pcapng").read_bytes()).packets) > 100, "what there was room for can be read"
    finally:
        subprocess.run(["umount", disk], check=True)
    assert ping(net.guests["g1"], "10.0.0.2")


def test_standard_output_goes_to_a_reader_at_once(net: Net) -> None:
    reader, writer = os.pipe()
    process = net.left.spawn(*VDEXDP, "capture", "g1", "--ethertype", "arp", "-w", "-", stdout=writer)
    os.close(writer)
    with subprocess.Popen(
        [require_tool("tcpdump"), "-n", "-l", "-r", "-"], stdin=reader, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as tcpdump:
        os.close(reader)
        process.wait_output("watching", START)
        net.guests["g1"].run("ping", "-c", "1", "-W", "1", "10.0.0.99", check=False)
        assert tcpdump.stdout is not None
        assert b"who-has 10.0.0.99" in tcpdump.stdout.readline()
        tcpdump.terminate()
        tcpdump.communicate()
    net.guests["g1"].run("ping", "-c", "1", "-W", "1", "10.0.0.98", check=False)
    assert process.wait() == 0
    assert "the reader has ended" in process.output()


def test_trace(net: Net) -> None:
    mac = mac_of(1).hex(":")
    process = start(net, "trace", "--mac", mac, "--json", "-c", "3")
    net.send("g1", "g2")
    net.ends["g1"].send(BROADCAST + mac_of(1) + bytes.fromhex("88b5") + filler(60))
    net.send("g1", "g1")
    assert process.wait() == 0, process.output()
    unicast, flood, drop = [json.loads(line) for line in process.output().splitlines() if line.startswith("{")]
    assert (unicast["hook"], unicast["source"], unicast["target"]) == ("tc ingress of g1", "known", "found")
    assert (unicast["told"], unicast["path"], unicast["endpoint"][0]) == ("sent", "tc", "192.0.2.2")
    assert (flood["target"], flood["flooded"], flood["copies"]) == ("group", True, 1)
    assert (drop["told"], drop["detail"]) == ("dropped", "same_port")
    process = start(net, "trace", "g1", "--dropped", "-c", "1")
    net.send("g1", "g2")
    net.send("g1", "g1")
    assert process.wait() == 0, process.output()
    lines = process.output()
    assert f"  target   {mac} is at g1, heard of " in lines
    assert "  verdict  dropped: same_port (the destination is behind the port the frame came from)" in lines


def test_mistakes(net: Net, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(status: int, *command: str) -> str:
        with net.left.entered():
            assert run(list(command)) == status
        (line,) = capsys.readouterr().err.splitlines()
        return str(line)

    assert "g9: neither a port nor a network" in refused(2, "capture", "g9")
    assert "syntax error" in refused(2, "capture", "g1", "-f", "tcp port port")
    assert "not a MAC address" in refused(2, "trace", "--mac", "nonsense")
    kept = tmp_path / "kept"
    kept.write_text("what was there")
    refused(2, "capture", "g9", "-w", str(kept))
    assert kept.read_text() == "what was there"
    assert "No such file or directory" in refused(1, "capture", "-w", str(tmp_path / "no" / "file"))
    assert "no local port of this namespace" in refused(2, "mirror", "g9", "g3")
    assert "can't be mirrored to itself" in refused(2, "mirror", "g1", "g1")
    assert "no such interface" in refused(2, "mirror", "g1", "g9")
    assert "the uplink of a network" in refused(2, "mirror", "g1", "lan0")
    assert "not mirrored" in refused(2, "mirror", "--off", "g1")
    with net.left.entered():
        nobody = subprocess.run(
            ["setpriv", "--reuid=65534", "--clear-groups", *VDEXDP, "capture"],
            capture_output=True,
            text=True,
            check=False,
        )
    assert nobody.returncode == 1
    assert len(nobody.stderr.splitlines()) == 1, nobody.stderr


def test_a_killed_observer_and_a_slow_one_leave_nothing(net: Net, alone: None) -> None:
    before = programs(net)
    first, second = start(net, "capture", "g1", "-w", os.devnull), start(net, "trace", "g3")
    assert "Watched: 2 captures and traces" in net.left.run(*VDEXDP, "show").stdout
    assert set(programs(net).values()).isdisjoint(before.values())
    kill(first)
    time.sleep(0.1)
    assert set(programs(net).values()).isdisjoint(before.values()), "the other one still watches"
    second.signal(signal.SIGSTOP)
    kill(second)
    until(lambda: programs(net) == before, "the normal programs")
    third = start(net, "capture", "-w", os.devnull)
    assert set(programs(net).values()).isdisjoint(before.values())
    finish(third)
    assert programs(net) == before, "before it says that it has ended"
    assert ping(net.guests["g1"], "10.0.0.2")


def test_mirror(net: Net, alone: None) -> None:
    left, g1, g3 = net.left, net.guests["g1"], net.guests["g3"]
    left.ip("link add mon0 mtu 9100 type veth peer name mon1 mtu 9100")
    left.ip("link set mon0 up")
    left.ip("link set mon1 up")
    monitor = PacketEnd(9, "", left, "mon1")
    left.run(*VDEXDP, "mirror", "g1", "mon0")
    assert "is mirrored to mon0 already" in left.run(*VDEXDP, "mirror", "g1", "mon0", check=False).stderr
    there, back = shapes(mac_of(1), mac_of(2), MTU), shapes(mac_of(2), mac_of(1), MTU)
    for one, other in zip(there.values(), back.values(), strict=True):
        net.ends["g1"].send(one)
        net.ends["g2"].send(other)
        time.sleep(0.001)
    monitor.collect(len(there) * 2, 3.0)
    assert set(monitor.seen) == {*there.values(), *back.values()}
    assert len(monitor.seen) == len(there) * 2
    server = iperf_server(g3)
    speed = tcp(g1, "10.0.0.3", 1)
    print(f"TCP while mirrored: {speed}")
    assert "mirrors: g1 to mon0;" in left.run(*VDEXDP, "show").stdout
    (about,) = json.loads(left.run(*VDEXDP, "mirror", "--json").stdout)
    assert (about["name"], about["target"], about["refused"]) == ("g1", "mon0", 0)
    assert about["frames"] > len(there) * 2 + 100
    received = int(left.run("cat", "/sys/class/net/mon1/statistics/rx_bytes").stdout)
    assert received > 10_000_000, "super-packets came as they are"
    server.stop()
    monitor.close()

    # The mirror outlives the daemon.
    net.master.signal(signal.SIGKILL)
    net.master.wait()
    net.master = daemon(left)
    until(lambda: listening(left) and len(call(left, "show")["plugs"]) == 2, "both plugs to be back", START)
    until(lambda: mirrors(left), "the mirror", START)
    monitor = PacketEnd(9, "", left, "mon1")
    sent = net.send("g1", "g3")
    monitor.collect(1, 2.0)
    monitor.close()
    assert monitor.seen == [sent]

    left.ip("link del mon0")
    until(lambda: not mirrors(left), "the mirror to end with its interface")
    assert ping(g1, "10.0.0.2")
