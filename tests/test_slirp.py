# SPDX-License-Identifier: GPL-2.0-or-later
"""``slirp://`` as a stream, in this process and without a guest.

Shows that its VNL is read as stock's, that DHCP offers and TFTP serves what the options say, that ARP answers for the
addresses that are set, that no frame however strange stops it, and that its descriptors and its thread go with it.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path
from random import Random

import pytest

from vdexdp.errors import HostError, VnlError
from vdexdp.plugins import registry
from vdexdp.plugins.base import Batch, Stream
from vdexdp.plugins.slirp import GuestForward, PortForward, SlirpSpec, SlirpStream, describe

GUEST = bytes.fromhex("020000000001")
BROADCAST = b"\xff" * 6
ANY = IPv4Address("0.0.0.0")


def opened(options: str = "") -> Stream:
    return registry.parse(f"slirp:///{options}").open()


def spec(options: str) -> SlirpSpec:
    found = registry.parse(f"slirp:///{options}").spec
    assert isinstance(found, SlirpSpec)
    return found


def exchange(stream: Stream, frame: bytes, kind: int, wait: float = 3.0, mark: bytes = b"") -> bytes:
    """Send a frame; the first answer to the guest with this ethertype, and with ``mark`` in it, or b""."""
    batch = Batch()
    batch.append(frame)
    assert stream.send(batch) == 1
    end = time.monotonic() + wait
    while (left := end - time.monotonic()) > 0:
        select.select(list(stream.readers()), [], [], left)
        batch.clear()
        stream.recv(batch)
        for answer in batch:
            to_guest = bytes(answer[:6]) in (GUEST, BROADCAST) and mark in bytes(answer)
            if to_guest and answer[12] << 8 | answer[13] == kind:
                return bytes(answer)
    return b""


def checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def udp4(source: str, target: str, source_port: int, target_port: int, data: bytes, to: bytes = BROADCAST) -> bytes:
    packet = struct.pack("!HHHH", source_port, target_port, 8 + len(data), 0) + data
    addresses = IPv4Address(source).packed + IPv4Address(target).packed
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(packet), 1, 0, 64, 17, 0) + addresses
    head = head[:10] + checksum(head).to_bytes(2, "big") + head[12:]
    return to + GUEST + b"\x08\x00" + head + packet


def arp(address: str, source: str = "10.0.2.15") -> bytes:
    head = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1)
    addresses = GUEST + IPv4Address(source).packed + bytes(6) + IPv4Address(address).packed
    return (BROADCAST + GUEST + b"\x08\x06" + head + addresses).ljust(60, b"\0")


def dhcp_offer(stream: Stream) -> tuple[str, dict[int, bytes], bytes]:
    """The address offered, the options, and the boot file."""
    request = struct.pack("!BBBBIHH", 1, 1, 6, 0, 0x1234, 0, 0) + bytes(16) + GUEST.ljust(16, b"\0") + bytes(192)
    request += bytes.fromhex("63825363") + b"\x35\x01\x01\xff"
    answer = exchange(stream, udp4("0.0.0.0", "255.255.255.255", 68, 67, request), 0x0800)
    assert answer, "no DHCP offer"
    data = answer[14 + 20 + 8 :]
    options: dict[int, bytes] = {}
    at = 240
    while data[at] != 255:
        size = data[at + 1]
        options[data[at]] = data[at + 2 : at + 2 + size]
        at += 2 + size
    return str(IPv4Address(data[16:20])), options, data[108:236].rstrip(b"\0")


def test_default_dhcp() -> None:
    stream = opened()
    address, options, _ = dhcp_offer(stream)
    assert address == "10.0.2.15"
    assert options[1] == bytes([255, 255, 255, 0])
    assert options[3] == bytes([10, 0, 2, 2])
    assert options[6] == bytes([10, 0, 2, 3])
    stream.close()


def test_dhcp_with_every_option(tmp_path: Path) -> None:
    stream = opened(
        f"addr=172.16.9.1%2F20/dhcp=172.16.5.50/vnameserver=172.16.9.9/hostname=box/vdnssearch=a.example,b.example"
        f"/vdomainname=lab.example/tftp_server_name=boot.example/tftp_path={str(tmp_path).replace('/', '%2F')}"
        "/bootfile=pxe.0"
    )
    address, options, bootfile = dhcp_offer(stream)
    assert address == "172.16.5.50"
    assert options[1] == bytes([255, 255, 240, 0])
    assert options[3] == bytes([172, 16, 9, 1])
    assert options[6] == bytes([172, 16, 9, 9])
    assert options[12] == b"box"
    assert options[15] == b"lab.example"
    assert options[66] == b"boot.example"
    assert b"\x01a\x07example\x00" in options[119]
    assert bootfile == b"pxe.0"
    stream.close()


def test_tftp(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"contents")
    stream = opened(f"tftp_path={str(tmp_path).replace('/', '%2F')}")
    dhcp_offer(stream)
    request = b"\0\x01file\0octet\0"
    answer = exchange(stream, udp4("10.0.2.15", "10.0.2.2", 3000, 69, request), 0x0800)
    assert answer[14 + 20 + 8 :] == b"\0\x03\0\x01contents"
    stream.close()


def test_addresses_answer() -> None:
    stream = opened("host=10.0.2.9%2F24/vnameserver=10.0.2.11/cmdfwd=10.0.2.77:9:cat")
    for address, there in (("10.0.2.9", True), ("10.0.2.11", True), ("10.0.2.77", True), ("10.0.2.2", False)):
        assert bool(exchange(stream, arp(address), 0x0806, 1.0 if there else 0.2)) is there, address
    stream.close()


@pytest.mark.parametrize(("options", "v4", "v6"), [("", True, True), ("v4", True, False), ("v6", False, True)])
def test_families(options: str, v4: bool, v6: bool) -> None:
    stream = opened(options)
    assert bool(exchange(stream, arp("10.0.2.2"), 0x0806, 1.0 if v4 else 0.2)) is v4
    assert (spec(options).v4, spec(options).v6) == (v4, v6)
    assert spec("v4/v6") == spec("")
    stream.close()


def test_strange_frames() -> None:
    """Random bytes, damaged requests, runts and jumbo frames; then it still answers."""
    stream = opened()
    rng = Random(7)
    proper = [arp("10.0.2.2"), udp4("10.0.2.15", "10.0.2.3", 53, 53, bytes(30))]
    for number in range(200):
        batch = Batch()
        while len(batch) < 10:  # no more than the socket holds, whatever their size
            if rng.random() < 0.5:
                frame = bytearray(rng.choice(proper))
                frame[rng.randrange(12, len(frame))] = rng.randrange(256)
                batch.append(frame[: rng.randrange(14, len(frame) + 1)])
            else:
                kind = rng.choice((b"\x08\x00\x45", b"\x08\x06\x00", b"\x86\xdd\x60"))
                batch.append(BROADCAST + GUEST + kind + rng.randbytes(rng.choice((0, 1, 40, 1500, 9200))))
        assert stream.send(batch) == 10
        # The answer to this very request, and to none of the damaged ones: all that was sent has been read by then.
        asker = IPv4Address("10.9.0.0") + number
        assert exchange(stream, arp("10.0.2.2", str(asker)), 0x0806, 30.0, asker.packed)
    assert stream.drops["too-big"]
    assert not stream.drops["full"]
    stream.close()


def test_nothing_is_left() -> None:
    opened("tcpfwd=127.0.0.1:18081::80/udpfwd=127.0.0.1:18081::80").close()
    before = len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))
    for _ in range(20):
        stream = opened("tcpfwd=127.0.0.1:18081::80/udpfwd=127.0.0.1:18081::80")
        exchange(stream, arp("10.0.2.2"), 0x0806)
        stream.close()
        stream.close()
    assert (len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))) == before


def test_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(HostError, match=f"tcpfwd 127.0.0.1:{port}: Address already in use"):
            opened(f"tcpfwd=127.0.0.1:{port}:10.0.2.15:80")


def test_forwards() -> None:
    found = spec("tcpfwd=8080:10.0.2.15:80,127.0.0.1:22::22/udpfwd=:53:10.0.2.15:53/unixfwd=6000:'/tmp/x:y'")
    assert found.ports == (
        PortForward(False, ANY, 8080, IPv4Address("10.0.2.15"), 80),
        PortForward(False, IPv4Address("127.0.0.1"), 22, ANY, 22),
        PortForward(True, ANY, 53, IPv4Address("10.0.2.15"), 53),
    )
    assert found.guests == (GuestForward(ANY, 6000, "/tmp/x:y", False),)
    assert "TCP forward     0.0.0.0:8080 to 10.0.2.15:80" in describe(found)
    assert spec("addr=192.168.7.1").host == IPv4Interface("192.168.7.1/24")
    assert str(spec("addr=192.168.7.1").dhcp) == "192.168.7.15"


def test_missing_directory() -> None:
    with pytest.raises(HostError, match="no such directory"):
        SlirpStream(spec("tftp_path='/nonexistent'"))


@pytest.mark.parametrize(
    "vnl",
    [
        "slirp://v4",
        "slirp:///host=10.0.2",
        "slirp:///host=10.0.2.2%2F31",
        "slirp:///host=fd00::1",
        "slirp:///host6=10.0.0.1",
        "slirp:///dhcp=10.0.3.1",
        "slirp:///vnameserver=1.1.1.1",
        "slirp:///vnameserver6=2001:db8::1",
        "slirp:///mtu=9001",
        "slirp:///tcpfwd=80",
        "slirp:///tcpfwd=80:10.0.2.15:x",
        "slirp:///tcpfwd=0:10.0.2.15:80",
        "slirp:///unixfwd=80",
        "slirp:///cmdfwd=10.0.2.2:80:cat",
        "slirp:///cmdfwd=10.0.3.2:80:cat",
        "slirp:///port=1",
    ],
)
def test_mistakes(vnl: str) -> None:
    with pytest.raises(VnlError):
        registry.parse(vnl)
