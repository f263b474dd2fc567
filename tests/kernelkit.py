# SPDX-License-Identifier: GPL-2.0-or-later
"""What the tests of the kernel path against the real world share: ports of every kind, and frames of every shape.

An *end* is what is behind a port: a place to put a frame on, and to see which frames come out.  All test frames carry
a source address that begins with ``MARK``; whatever else the kernels of guests and hosts say to each other is passed
over.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import socket
import struct
import subprocess
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from tests.labkit import VDEXDP
from vdexdp.control import libbpf
from vdexdp.control.client import call
from vdexdp.errors import HostError, VdexdpError
from vdexdp.lab import Lab, Namespace, Process, wait_until
from vdexdp.plugins.stream import GREETING
from vdexdp.plugins.tap import open_tap

GROUP = "234.0.0.1"
NETWORK = f"vxvde://{GROUP}"
MARK = bytes((0x02, 0x4B, 0x49))
BROADCAST = b"\xff" * 6
JUMBO = 9216
"""Bytes: the largest MTU of the VDE family."""

_SOL_PACKET, _AUXDATA, _IGNORE_OUTGOING = 263, 8, 23
_SO_RCVBUFFORCE = 33


def mac_of(number: int) -> bytes:
    """The address that test frames of end ``number`` come from."""
    return MARK + number.to_bytes(3, "big")


class End(ABC):
    """What is behind one port; ``mac`` is its address, ``vnl`` plugs it."""

    def __init__(self, number: int, vnl: str) -> None:
        self.number = number
        self.mac = mac_of(number)
        self.vnl = vnl
        self.seen: list[bytes] = []

    def __repr__(self) -> str:
        return f"end {self.number} ({self.vnl})"

    @abstractmethod
    def fileno(self) -> int:
        """To wait on."""

    @abstractmethod
    def send(self, data: bytes) -> None: ...

    @abstractmethod
    def receive(self) -> list[bytes]:
        """The frames that are here; may wait only if there is none."""

    def collect(self, count: int, timeout: float) -> None:
        """Add to ``seen`` until it has ``count`` test frames, or ``timeout`` seconds are over."""
        end = time.monotonic() + timeout
        while len(self.seen) < count or timeout == 0:
            if not select.select([self], [], [], max(0.0, end - time.monotonic()))[0]:
                return
            self.seen += [data for data in self.receive() if data[6:9] == MARK]

    @abstractmethod
    def close(self) -> None: ...


class PacketEnd(End):
    """A packet socket on an interface: the far end of a veth, or the host's own side of a tap."""

    def __init__(self, number: int, vnl: str, namespace: Namespace, device: str) -> None:
        super().__init__(number, vnl)
        with namespace.entered():
            self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            self.socket.setsockopt(_SOL_PACKET, _AUXDATA, 1)
            self.socket.setsockopt(_SOL_PACKET, _IGNORE_OUTGOING, 1)
            self.socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 8 << 20)
            self.socket.bind((device, 3))

    def fileno(self) -> int:
        return self.socket.fileno()

    def send(self, data: bytes) -> None:
        self.socket.send(data)

    def receive(self) -> list[bytes]:
        data, ancillary, _, _ = self.socket.recvmsg(65600, 256)
        for _, _, payload in ancillary:
            status, tci, tpid = struct.unpack_from("=I12xHH", payload)
            if status & 0x10:  # the kernel has taken the outermost tag out
                data = data[:12] + struct.pack("!HH", tpid, tci) + data[12:]
        return [data]

    def close(self) -> None:
        self.socket.close()


class HeldEnd(End):
    """A tap that this process holds, as QEMU does."""

    def __init__(self, number: int, host: Namespace, name: str) -> None:
        super().__init__(number, f"netdev://{name}")
        with host.entered():
            self.fd, _ = open_tap(name)
        host.ip(f"link set {name} mtu {JUMBO} txqueuelen 5000 up")

    def fileno(self) -> int:
        return self.fd

    def send(self, data: bytes) -> None:
        os.write(self.fd, data)

    def receive(self) -> list[bytes]:
        return [os.read(self.fd, 65600)]

    def close(self) -> None:
        os.close(self.fd)


class StreamEnd(End):
    """The far side of a vdestream on a plug's standard input and output."""

    def __init__(self, number: int) -> None:
        super().__init__(number, "")
        self.their_in, self.our_out = os.pipe()
        self.our_in, self.their_out = os.pipe()
        os.write(self.our_out, GREETING)
        self._data = b""

    def fileno(self) -> int:
        return self.our_in

    def send(self, data: bytes) -> None:
        os.write(self.our_out, len(data).to_bytes(2, "big") + data)

    def receive(self) -> list[bytes]:
        self._data += os.read(self.our_in, 65536)
        found = []
        while len(self._data) >= 2 and len(self._data) >= 2 + (size := int.from_bytes(self._data[:2], "big")):
            found.append(self._data[2 : 2 + size])
            self._data = self._data[2 + size :]
        return found

    def close(self) -> None:
        os.close(self.our_out)
        os.close(self.our_in)


def veth(
    lab: Lab, host: Namespace, number: int, options: str = "", *, here: bool = False, mtu: int = JUMBO
) -> PacketEnd:
    """A veth, whose far end is in a namespace of its own, or ``here`` in the host's."""
    name, far = f"v{number}", f"far{number}" if here else "eth0"
    guest = host if here else lab.namespace(f"guest{number}")
    lab.pair(host, name, guest, far, mtu)
    # A far end with GRO has the receive queue that XDP redirects need.
    guest.run("ethtool", "-K", far, "gro", "on")
    return PacketEnd(number, f"netdev://{name}{options}", guest, far)


def tap(host: Namespace, number: int, mtu: int = JUMBO) -> PacketEnd:
    """A tap that the plug opens; the end is the host's own stack."""
    name = f"t{number}"
    host.ip(f"tuntap add mode tap name {name}")
    host.ip(f"link set {name} mtu {mtu} up")
    return PacketEnd(number, f"tap://{name}", host, name)


def daemon(host: Namespace) -> None:
    """See that a daemon listens that the lab ends at once; those that start by themselves stay for a second."""
    if not any("daemon" in process.argv for process in host.processes):
        process = host.spawn(*VDEXDP, "daemon")
        until(lambda: listening(host) or process.poll() is not None, f"a daemon on {host.name}", 20)
        assert process.poll() is None, process.output()


def listening(host: Namespace) -> bool:
    with host.entered():
        try:
            call("hello")
        except VdexdpError:
            return False
        return True


def start(host: Namespace, *vnls: str) -> Process:
    """A plug that must take the kernel path."""
    daemon(host)
    return host.spawn(*VDEXDP, "vde_plug", "--accel", "require", *vnls)


def plug(host: Namespace, *vnls: str) -> Process:
    """The same, ready."""
    process = start(host, *vnls)
    process.wait_output("in the kernel", 20)
    return process


def plug_ends(host: Namespace, network: str, ends: Sequence[End]) -> list[Process]:
    """Plug every end into one network."""
    plugs = []
    daemon(host)
    for end in ends:
        if isinstance(end, StreamEnd):
            plugs.append(host.spawn(*VDEXDP, "vde_plug", network, stdin=end.their_in, stdout=end.their_out))
            os.close(end.their_in)
            os.close(end.their_out)
        else:
            plugs.append(start(host, end.vnl, network))
    for process in plugs:
        process.wait_output("vdexdp:", 20)
        assert "userspace (" not in process.output(), process.output()
    return plugs


def show(host: Namespace) -> dict[str, Any]:
    """What ``vdexdp show --json`` has."""
    with host.entered():
        return call("show")


def counters(host: Namespace, port: str) -> dict[str, Any]:
    """The counters of the port of that name, or that begins so."""
    found: dict[str, Any] = next(one for one in show(host)["ports"] if one["name"].startswith(port))["counters"]
    return found


def checksum(*parts: bytes) -> int:
    """The Internet checksum."""
    data = b"".join(parts)
    data += b"\0" * (len(data) & 1)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def filler(size: int) -> bytes:
    return bytes(index * 7 + (index >> 8) & 0xFF for index in range(size))


def ipv4(protocol: int, payload: bytes, *, fragment: int = 0, options: bytes = b"") -> bytes:
    """A packet between two addresses that nobody has."""
    size = 20 + len(options) + len(payload)
    head = struct.pack("!BBHHHBBH", 0x45 + len(options) // 4, 0, size, 7, fragment, 9, protocol, 0)
    addresses = bytes((10, 99, 0, 1, 10, 99, 0, 2))
    check = checksum(head, addresses, options)
    return head[:10] + check.to_bytes(2, "big") + addresses + options + payload


def udp4(payload: bytes, *, summed: bool = True, damaged: bool = False) -> bytes:
    size = 8 + len(payload)
    head = struct.pack("!HHH", 5555, 6666, size)
    pseudo = bytes((10, 99, 0, 1, 10, 99, 0, 2, 0, 17)) + size.to_bytes(2, "big")
    check = checksum(pseudo, head, payload) if summed else 0
    if damaged:
        check ^= 0x1234
    return ipv4(17, head + check.to_bytes(2, "big") + payload)


def tcp4(payload: bytes) -> bytes:
    head = struct.pack("!HHIIBBH", 5555, 6666, 1, 2, 0x50, 0x10, 512)
    pseudo = bytes((10, 99, 0, 1, 10, 99, 0, 2, 0, 6)) + (20 + len(payload)).to_bytes(2, "big")
    check = checksum(pseudo, head, bytes(4), payload)
    return ipv4(6, head + check.to_bytes(2, "big") + bytes(2) + payload)


def ipv6(next_header: int, payload: bytes) -> bytes:
    source, target = (bytes.fromhex("fd99" + "00" * 13) + bytes((last,)) for last in (1, 2))
    return struct.pack("!IHBB", 0x60000000, len(payload), next_header, 9) + source + target + payload


def udp6(payload: bytes, *, summed: bool = True) -> bytes:
    size = 8 + len(payload)
    head = struct.pack("!HHH", 5555, 6666, size)
    addresses = ipv6(17, b"")[8:40]
    check = checksum(addresses, struct.pack("!II", size, 17), head, payload) if summed else 0
    return ipv6(17, head + check.to_bytes(2, "big") + payload)


IPV4, IPV6, ARP, DOT1Q, DOT1AD, LOCAL = 0x0800, 0x86DD, 0x0806, 0x8100, 0x88A8, 0x88B5
_ARP = bytes.fromhex("0001080006040001") + MARK + bytes(3) + bytes((10, 99, 0, 1)) + bytes(6) + bytes((10, 99, 0, 2))
_PAYLOADS: dict[str, tuple[int, bytes]] = {
    "arp": (ARP, _ARP),
    "arp padded": (ARP, _ARP + bytes(18)),
    "udp4": (IPV4, udp4(filler(100))),
    "udp4 without checksum": (IPV4, udp4(filler(101), summed=False)),
    "udp4 with a wrong checksum": (IPV4, udp4(filler(100), damaged=True)),
    "udp4 empty": (IPV4, udp4(b"")),
    "udp4 padded": (IPV4, udp4(b"abc") + bytes(15)),
    "tcp4": (IPV4, tcp4(filler(300))),
    "ipv4 fragment": (IPV4, ipv4(17, filler(64), fragment=0x2003)),
    "ipv4 options": (IPV4, ipv4(17, filler(64), options=b"\x94\x04\0\0")),
    "ipv4 cut": (IPV4, udp4(filler(100))[:30]),
    "ipv4 cut within the header": (IPV4, udp4(filler(100))[:9]),
    "ipv4 protocol 253": (IPV4, ipv4(253, filler(77))),
    "udp6": (IPV6, udp6(filler(100))),
    "udp6 without checksum": (IPV6, udp6(filler(100), summed=False)),
    "ipv6 hop-by-hop": (IPV6, ipv6(0, bytes((59, 0, 1, 4, 0, 0, 0, 0)))),
    "ipv6 cut": (IPV6, udp6(filler(100))[:20]),
    "mpls": (0x8847, filler(90)),
    "pppoe": (0x8864, filler(90)),
    "length field": (0x0026, b"\x42\x42\x03" + filler(43)),
    "ethertype 0": (0, filler(46)),
    "vxlan in it": (IPV4, udp4(b"\x08\0\0\0\0\0\1\0" + filler(64))),
}


def tag(tpid: int, vid: int, priority: int = 5) -> bytes:
    return struct.pack("!HH", tpid, priority << 13 | vid)


TAGS: dict[str, bytes] = {
    "802.1Q": tag(DOT1Q, 7),
    "802.1ad": tag(DOT1AD, 7),
    "QinQ": tag(DOT1AD, 7) + tag(DOT1Q, 8),
    "priority tag": tag(DOT1Q, 0),
    "three tags": tag(DOT1Q, 7) + tag(DOT1Q, 8) + tag(DOT1Q, 4094, 7),
}


def shapes(source: bytes, target: bytes, mtu: int = JUMBO) -> dict[str, bytes]:
    """Frames of every shape by name, up to the MTU (bytes) and a tag beyond."""
    addresses = target + source
    found: dict[str, bytes] = {}
    for size in (14, 15, 16, 59, 60, 64, 590, 1514, mtu + 14):
        found[f"{size} bytes"] = addresses + LOCAL.to_bytes(2, "big") + filler(size - 14)
    for name, (ethertype, payload) in _PAYLOADS.items():
        found[name] = addresses + ethertype.to_bytes(2, "big") + payload
        found[f"{name}, 802.1Q"] = addresses + TAGS["802.1Q"] + ethertype.to_bytes(2, "big") + payload
    for name, tags in TAGS.items():
        # Packet sockets allow an 802.1Q tag, and nothing else, beyond the MTU.
        longest = mtu + 18 if tags[:2] == DOT1Q.to_bytes(2, "big") else mtu + 14
        shortest = max(14 + len(tags), 20)  # the kernel drops, at any device, a tag with less behind it
        for size in (shortest, shortest + 1, 64, 1514, longest):
            body = LOCAL.to_bytes(2, "big") + filler(size - 14 - len(tags))
            found[f"{name}, {size} bytes"] = addresses + tags + body
        for inner in ("udp4", "udp6", "tcp4"):
            ethertype, payload = _PAYLOADS[inner]
            found[f"{name}, {inner}"] = addresses + tags + ethertype.to_bytes(2, "big") + payload
    big = udp4(filler(mtu - 28)), udp6(filler(mtu - 48)), tcp4(filler(mtu - 40))
    for name, ethertype, packet in zip(("udp4", "udp6", "tcp4"), (IPV4, IPV6, IPV4), big, strict=True):
        found[f"{name}, MTU"] = addresses + ethertype.to_bytes(2, "big") + packet
        found[f"{name}, MTU, 802.1Q"] = addresses + TAGS["802.1Q"] + ethertype.to_bytes(2, "big") + packet
    return found


def differences(sent: dict[str, bytes], seen: list[bytes]) -> list[str]:
    """What is wrong with what came, in words; nothing when it is what was sent, in any order."""
    came = Counter(seen)
    missing = []
    for name, data in sent.items():
        if came[data]:
            came[data] -= 1
        else:
            missing.append((name, data))
    words = []
    left = list((+came).elements())
    for name, data in missing:
        like = next((one for one in left if one[:14] == data[:14] and abs(len(one) - len(data)) < 64), None)
        if like is None:
            words.append(f"{name}: lost")
        else:
            left.remove(like)
            at = next(
                (i for i, (a, b) in enumerate(zip(data, like, strict=False)) if a != b), min(len(data), len(like))
            )
            words.append(
                f"{name}: {len(data)} bytes became {len(like)}, differ at {at}: {data[at : at + 8].hex()} became "
                f"{like[at : at + 8].hex()}"
            )
    return words + [f"came too often, or from nowhere: {one[:40].hex()}… ({len(one)} bytes)" for one in left]


def until(condition: Callable[[], object], what: str, timeout: float = 10.0) -> None:
    wait_until(condition, timeout, what)


SEGMENT = 1448
"""Bytes of TCP payload in a full segment of a 1500-byte MTU."""


def transfer(
    client: Namespace, address: str, megabytes: int, *options: str, timeout: float = 15.0
) -> tuple[float, float]:
    """Send to the iperf3 server at an address (from it with -R): Gbit/s, and retransmissions per segment.

    Raises HostError where it does not work, or takes longer than ``timeout`` seconds.
    """
    command = ("iperf3", "-J", "-c", address, "-n", f"{megabytes}M", "--connect-timeout", "5000", *options)
    end = time.monotonic() + timeout
    while True:
        try:
            result = client.run(*command, check=False, timeout=timeout)
        except subprocess.TimeoutExpired:
            raise HostError(f"{client.name}: iperf3 {address}", f"not done within {timeout} s") from None
        report: dict[str, Any] = json.loads(result.stdout) if result.stdout else {"error": result.stderr}
        # The server may not have put the last stream away yet.
        if "busy" not in str(report.get("error")) or time.monotonic() > end:
            break
        time.sleep(0.05)
    if "error" in report:
        raise HostError(f"{client.name}: iperf3 {address}", str(report["error"]))
    sent, received = report["end"]["sum_sent"], report["end"]["sum_received"]
    lost = int(sent.get("retransmits", 0)) / (sent["bytes"] / SEGMENT)
    return float(received["bits_per_second"]) / 1e9, lost


def bad_checksums(namespace: Namespace) -> int:
    """How many TCP and UDP packets came to this namespace with a wrong checksum."""
    names = ("TcpInCsumErrors", "UdpInCsumErrors", "Udp6InCsumErrors")
    lines = namespace.run("nstat", "-asz", *names).stdout.splitlines()
    return sum(int(line.split()[1]) for line in lines if "Csum" in line)


_TUNSETIFF, _TUNSETOFFLOAD, _IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x400454CA, 0x400454D0, 0x0002, 0x1000, 0x4000
_CSUM_TSO4_TSO6_ECN = 0x0F


class VirtualMachine:
    """What QEMU does for a guest with virtio-net and all its offloads.

    It holds the tap ``name`` on the host, and copies frames with their virtio headers, super-packets and unfinished
    checksums included, to and from ``eth0`` of a guest, a namespace here.
    """

    def __init__(self, lab: Lab, host: Namespace, name: str, number: int) -> None:
        self.guest = lab.namespace(f"vm-{name}")
        self.fds = [self._tap(host, name), self._tap(self.guest, "eth0")]
        host.ip(f"link set {name} up")
        lab.address(self.guest, "eth0", number)
        self._wake, self._stop = os.pipe()
        self._thread = threading.Thread(target=self._copy, daemon=True)
        self._thread.start()

    @staticmethod
    def _tap(namespace: Namespace, name: str) -> int:
        with namespace.entered():
            fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            request = struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR)
            fcntl.ioctl(fd, _TUNSETIFF, request)
            fcntl.ioctl(fd, _TUNSETOFFLOAD, _CSUM_TSO4_TSO6_ECN)
        return fd

    def _copy(self) -> None:
        ways = {self.fds[0]: self.fds[1], self.fds[1]: self.fds[0]}
        while True:
            ready = select.select([*ways, self._wake], [], [])[0]
            if self._wake in ready:
                return
            for source in ready:
                for _ in range(32):
                    try:
                        data = os.read(source, 1 << 17)
                    except BlockingIOError:
                        break
                    with suppress(OSError):  # the other side is down
                        os.write(ways[source], data)

    def close(self) -> None:
        os.write(self._stop, b"x")
        self._thread.join()
        for fd in (*self.fds, self._wake, self._stop):
            os.close(fd)


@contextmanager
def tagged(namespace: Namespace, device: str, vid: int) -> Iterator[None]:
    """All that a namespace sends on a device leaves with an 802.1Q tag, and tags are taken off what comes.

    As a VLAN device on top would do, offloads included, on kernels that have none.
    """
    load, helper, leave = "b7{:02x}0000{}", "85000000{:02x}000000", "b7000000ffffffff" + "95" + "00" * 7
    tpid = DOT1Q.to_bytes(2, "big") + bytes(2)
    push = load.format(2, tpid.hex()) + load.format(3, struct.pack("=I", vid).hex()) + helper.format(18) + leave
    pop = helper.format(19) + leave
    with ExitStack() as undo, namespace.entered():
        index = socket.if_nametoindex(device)
        for name, code, point in (("push", push, libbpf.ATTACH_TCX_EGRESS), ("pop", pop, libbpf.ATTACH_TCX_INGRESS)):
            program = libbpf.prog_load("tc", name, bytes.fromhex(code))
            undo.callback(os.close, program)
            undo.callback(os.close, libbpf.link_create(program, index, point))
        held = undo.pop_all()
    with held:
        yield


def reaches(source: Namespace, address: str, count: int = 3, *options: str) -> bool:
    """Whether ``count`` pings are answered within five seconds.

    ``-W`` would not do: once something was answered, ping waits for the rest only twice as long as that took.
    """
    command = ("ping", "-n", "-q", "-c", str(count), "-i", "0.02", "-w", "5", *options, address)
    return source.run(*command, check=False).returncode == 0
