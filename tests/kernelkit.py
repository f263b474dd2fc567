# SPDX-License-Identifier: GPL-2.0-or-later
"""What the tests of the kernel path against the real world share: ports of every kind, plugs, pings and streams.

An *end* is what is behind a port: a place to put a frame on, and to see which frames come out.  Only test frames
(``tests.frameshapes``) are seen; whatever else the kernels of guests and hosts say to each other is passed over.
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
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Literal

from tests.frameshapes import DOT1Q, JUMBO, MARK, mac_of
from tests.labkit import VDEXDP, kernel_version
from vdexdp.control import bpf_link, bpf_prog
from vdexdp.control.client import call
from vdexdp.control.features import Features
from vdexdp.control.netlink import Netlink
from vdexdp.errors import HostError, VdexdpError
from vdexdp.lab import SLOWNESS, Lab, Namespace, Process, wait_until
from vdexdp.plugins.stream import GREETING
from vdexdp.plugins.tap import open_tap

GROUP = "234.0.0.1"
NETWORK = f"vxvde://{GROUP}"

_SOL_PACKET, _AUXDATA, _IGNORE_OUTGOING = 263, 8, 23
_SO_RCVBUFFORCE = 33


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


def xdp_told(host: Namespace, device: str) -> bool:
    """Whether the kernel tells what a driver takes from XDP redirects.  Where it does not, tc carries everything."""
    with host.entered(), Netlink() as netlink:
        told = netlink.xdp_features(host.ifindex(device)) is not None
    assert told or kernel_version() < (6, 3)
    return told


def until(condition: Callable[[], object], what: str, timeout: float = 10.0) -> None:
    wait_until(condition, timeout, what)


SEGMENT = 1448
"""Bytes of TCP payload in a full segment of a 1500-byte MTU."""


def transfer(
    client: Namespace, address: str, megabytes: int, *options: str, timeout: float = 15.0
) -> tuple[float, float]:
    """Send to the iperf3 server at an address (from it with -R): Gbit/s, and retransmissions per segment.

    On a slow machine (SLOWNESS) less is sent, and the speed is what it would be on another that nobody else uses: it
    tells what is broken, not what is quick.  Raises HostError where it does not work, or takes longer than ``timeout``
    seconds.
    """
    size = f"{max(1, round(megabytes / SLOWNESS))}M"
    command = ("iperf3", "-J", "-c", address, "-n", size, "--connect-timeout", "5000", *options)
    end = time.monotonic() + timeout * SLOWNESS
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
    # Of what would be sent elsewhere: the one window that slow start sends too much is the same for a short stream.
    lost = int(sent.get("retransmits", 0)) / max(sent["bytes"] / SEGMENT, megabytes * 2**20 / SEGMENT)
    return float(received["bits_per_second"]) / 1e9 * SLOWNESS**2, lost


def streams(client: Namespace, address: str, least: float, megabytes: int = 20) -> None:
    """A TCP stream to the iperf3 server at an address and one from there, each with at least so many Gbit/s."""
    for direction in ((), ("-R",)):
        speed, lost = transfer(client, address, megabytes, *direction)
        assert speed > least, f"{client.name}, {address}, {direction}: {speed:.3f} Gbit/s, {lost:.2%} retransmitted"


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
    # r2 or r3 = a number; call a helper (18 pushes a tag, 19 pops one); return TC_ACT_UNSPEC
    load, helper, leave = "b7{:02x}0000{}", "85000000{:02x}000000", "b7000000ffffffff" + "95" + "00" * 7
    tpid = DOT1Q.to_bytes(2, "big") + bytes(2)
    push = load.format(2, tpid.hex()) + load.format(3, struct.pack("=I", vid).hex()) + helper.format(18) + leave
    pop = helper.format(19) + leave
    tcx = Features().tcx
    with ExitStack() as undo:
        with namespace.entered():
            netlink = undo.enter_context(Netlink())
            index = socket.if_nametoindex(device)
        sides: tuple[tuple[str, Literal["ingress", "egress"], int], ...] = (
            (push, "egress", bpf_link.ATTACH_TCX_EGRESS),
            (pop, "ingress", bpf_link.ATTACH_TCX_INGRESS),
        )
        for code, side, point in sides:
            program = bpf_prog.load("tc", "tagged", bytes.fromhex(code))
            undo.callback(os.close, program)
            if tcx:
                with namespace.entered():
                    undo.callback(os.close, bpf_link.create(program, index, point))
            else:
                undo.callback(netlink.clsact_detach, netlink.clsact_attach(index, side, program, 3))
        yield


def reaches(source: Namespace, address: str, count: int = 3, *options: str) -> bool:
    """Whether ``count`` pings are answered within five seconds.

    ``-W`` would not do: once something was answered, ping waits for the rest only twice as long as that took.
    """
    command = ("ping", "-n", "-q", "-c", str(count), "-i", "0.02", "-w", "5", *options, address)
    return source.run(*command, check=False).returncode == 0
