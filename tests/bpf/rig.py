# SPDX-License-Identifier: GPL-2.0-or-later
"""A switch on the bench: one Dataplane over real maps, three local ports, one vxvde tunnel, no daemon.

Programs run under BPF_PROG_TEST_RUN, with the interface that the frame is supposed to have come in by in their
context.  Redirects show in the verdict; clones, which the kernel really sends, are caught on the far ends of the
ports' veth pairs.
"""

from __future__ import annotations

import ctypes
import socket
import struct
import subprocess
import time
from contextlib import suppress
from typing import Any

from tests.labkit import require
from vdexdp.control import abi, bpf_prog, libbpf
from vdexdp.control.dataplane import Dataplane
from vdexdp.wire.vxlan import encode_header

K, S = abi.K, abi.S

TC_NEXT = 0xFFFFFFFF
TC_SHOT = 2
TC_REDIRECT = 7
XDP_PASS = 2
XDP_REDIRECT = 4

WIRE1, WIRE2, STACK, TUNNEL, UPLINK, EXCEPTION = 1, 2, 3, 4, 5, 6
SWITCH = 1
PORTS = {WIRE1: "rig1", WIRE2: "rig2", STACK: "rig3", UPLINK: "rigup", EXCEPTION: "rigex"}

HOST, PEER, OTHER_PEER = "10.77.0.1", "10.77.0.2", "10.77.0.3"
HOST6, PEER6 = "fd77::1", "fd77::2"
GROUP, GROUP6 = "234.0.0.1", "ff05:56de::1"
GROUP_PORT, PORT, PEER_PORT, VNI = 14789, 40000, 40001, 7

A, B, C, D = (bytes.fromhex(f"0200000000{n:02x}") for n in (0xA, 0xB, 0xC, 0xD))
BROADCAST = b"\xff" * 6
UPLINK_MAC = bytes.fromhex("0a0000000001")


def fill(array: Any, data: bytes) -> None:
    ctypes.memmove(array, data, len(data))


def address(text: str) -> bytes:
    """An address as the maps hold it."""
    if ":" in text:
        return socket.inet_pton(socket.AF_INET6, text)
    return b"\0" * 10 + b"\xff\xff" + socket.inet_aton(text)


def inet_sum(data: bytes) -> int:
    """The Internet checksum of RFC 1071, written independently of the C code."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return int(~total & 0xFFFF)


def ethernet(dst: bytes, src: bytes, proto: int, payload: bytes = b"", *tags: tuple[int, int]) -> bytes:
    return dst + src + b"".join(struct.pack("!HH", *tag) for tag in tags) + struct.pack("!H", proto) + payload


def udp4(payload: bytes, src: str = "10.1.0.1", dst: str = "10.1.0.2", *, checksum: str = "full") -> bytes:
    """An IPv4 packet; the UDP checksum is "full", "none", or "partial": the pseudo-header's sum alone, as a stack
    leaves it to hardware."""
    length = 8 + len(payload)
    pseudo = socket.inet_aton(src) + socket.inet_aton(dst) + struct.pack("!HH", 17, length)
    head = struct.pack("!HHH", 1000, 2000, length)
    check = {"none": 0, "partial": ~inet_sum(pseudo) & 0xFFFF, "full": inet_sum(pseudo + head + b"\0\0" + payload)}
    ip = struct.pack(
        "!BBHHHBBH4s4s", 0x45, 0, 20 + length, 1, 0, 64, 17, 0, socket.inet_aton(src), socket.inet_aton(dst)
    )
    ip = ip[:10] + struct.pack("!H", inet_sum(ip)) + ip[12:]
    return ip + head + struct.pack("!H", check[checksum]) + payload


def outer(
    inner: bytes,
    src: str = PEER,
    dst: str = HOST,
    sport: int = PEER_PORT,
    dport: int = PORT,
    *,
    header: bytes | None = None,
    source_mac: bytes = bytes.fromhex("0a0000000002"),
    flow: int = 0,
    fragment: int = 0,
    pad: bytes = b"",
) -> bytes:
    """A tunnel packet as it comes in by the uplink."""
    payload = (encode_header(VNI) if header is None else header) + inner
    udp = struct.pack("!HHHH", sport, dport, 8 + len(payload), 0) + payload
    if ":" in dst:
        ip = struct.pack("!IHBB", 0x60000000 | flow, len(udp), 17, 64) + address(src) + address(dst)
        return UPLINK_MAC + source_mac + b"\x86\xdd" + ip + udp + pad
    ip = (
        struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 1, fragment, 64, 17, 0) + address(src)[12:] + address(dst)[12:]
    )
    return UPLINK_MAC + source_mac + b"\x08\x00" + ip[:10] + struct.pack("!H", inet_sum(ip)) + ip[12:] + udp + pad


class Bench:
    """What is dear and the same for every test: the interfaces, and a Dataplane with its programs loaded."""

    current: Bench

    def __init__(self) -> None:
        for name in PORTS.values():
            subprocess.run(
                ["ip", "link", "add", name, "mtu", "9300", "type", "veth", "peer", "name", f"{name}f", "mtu", "9300"],
                check=True,
            )
            for end in (name, f"{name}f"):
                subprocess.run(["sysctl", "-qw", f"net.ipv6.conf.{end}.disable_ipv6=1"], check=True)
                subprocess.run(["ip", "link", "set", end, "up"], check=True)
        self.ifindex = {port: socket.if_nametoindex(name) for port, name in PORTS.items()}
        self.dataplane = Dataplane.create()
        self.taps = {port: self._tap(f"{name}f") for port, name in PORTS.items()}

    @staticmethod
    def _tap(name: str) -> socket.socket:
        tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        tap.bind((name, 0))
        tap.setsockopt(263, 23, 1)  # SOL_PACKET, PACKET_IGNORE_OUTGOING
        tap.setblocking(False)
        return tap

    def clear(self) -> None:
        """Forgets everything that a test put into the maps or that came out of the ports."""
        for name, one in self.dataplane.maps.items():
            definition = abi.MAPS[name]
            if "HASH" in definition.kind:
                for key in list(one.keys()):
                    one.delete(key)
            elif definition.kind == "DEVMAP":
                for port in PORTS:
                    one.delete(port)
            elif name != "jumps":
                size = min(8, definition.entries) if name != "generations" else definition.entries
                blank = (definition.value * (libbpf.possible_cpus() if definition.percpu else 1))()
                for index in range(size):
                    if name != "generations" or one.lookup(index).value:
                        one.update(index, blank)
        for tap in self.taps.values():
            with suppress(BlockingIOError):
                while True:
                    tap.recv(65536)

    def close(self) -> None:
        for tap in self.taps.values():
            tap.close()
        self.dataplane.close()
        for name in PORTS.values():
            subprocess.run(["ip", "link", "del", name], check=True)


class Rig:
    """One test's switch on the bench: three local ports, a tunnel, an uplink, the exception tap.  A context manager."""

    def __init__(self, *, v6: bool = False, mtu: int = 9000, kind: str = "TUNNEL_VXVDE", tunnel_flags: int = 0) -> None:
        self.v6, self.mtu, self.kind = v6, mtu, kind
        self.tunnel_flags = tunnel_flags | (K["TUNNEL_F_V6"] if v6 else 0)
        self.bench = Bench.current
        self.ifindex, self.dataplane, self.taps = self.bench.ifindex, self.bench.dataplane, self.bench.taps
        self.maps = self.dataplane.maps

    def __enter__(self) -> Rig:
        for port in (WIRE1, WIRE2, STACK):
            self.set_port(port, kind=K["PORT_STACK" if port == STACK else "PORT_WIRE"])
            self.maps["ingress"].update(self.ifindex[port], port)
        self.set_port(TUNNEL, kind=K["PORT_TUNNEL"])
        self.set_port(UPLINK, kind=K["PORT_UPLINK"], switch_id=0)
        self.set_port(EXCEPTION, kind=K["PORT_EXCEPTION"], switch_id=0)
        for port in (UPLINK, EXCEPTION):
            self.maps["ingress"].update(self.ifindex[port] | K["UPLINK_KEY"], port)
        self.maps["ingress"].update(self.ifindex[EXCEPTION], K["INGRESS_BOUNCED"])
        self.set_switch()
        local, group = (HOST6, GROUP6) if self.v6 else (HOST, GROUP)
        tunnel = S["tunnel_info"](
            uplink=self.ifindex[UPLINK],
            exception=self.ifindex[EXCEPTION],
            mtu=self.mtu,
            vni=VNI,
            src_port=socket.htons(PORT),
            group_port=socket.htons(GROUP_PORT),
            kind=K[self.kind],
            flags=self.tunnel_flags,
            ttl=1,
            uplink_port=UPLINK,
        )
        fill(tunnel.local, address(local))
        fill(tunnel.group, address(group))
        fill(tunnel.netmask, bytes.fromhex("ffffffffffffffff0000000000000000" if self.v6 else "ff" * 15 + "00"))
        fill(tunnel.uplink_mac, UPLINK_MAC)
        fill(tunnel.group_mac, bytes.fromhex("01005e000001"))
        self.maps["tunnels"].update(TUNNEL, tunnel)
        self.tunnel = tunnel
        for where, number in ((local, PORT), (group, GROUP_PORT)):
            key = S["endpoint_key"](uplink=self.ifindex[UPLINK], vni=VNI, udp_port=socket.htons(number))
            fill(key.addr, address(where))
            self.maps["endpoints"].update(key, TUNNEL)
        return self

    def __exit__(self, *_: object) -> None:
        self.bench.clear()

    def set_port(self, port: int, **fields: int) -> None:
        values = {"ifindex": self.ifindex.get(port, 0), "switch_id": SWITCH, "learn_limit": 100, **fields}
        self.maps["ports"].update(port, S["port_info"](**values))

    def set_switch(
        self, mode: str = "MODE_SWITCH", members: tuple[int, ...] = (WIRE1, WIRE2, STACK), **fields: int
    ) -> None:
        switch = S["switch_info"](
            **{"expiry": 128 * 10**9, "mode": K[mode], "tunnel": TUNNEL, "members": len(members), **fields}
        )
        for position, member in enumerate(members):
            switch.member[position] = member
        self.maps["switches"].update(SWITCH, switch)

    def learn(
        self,
        mac: bytes,
        port: int,
        peer: str = "",
        peer_port: int = PEER_PORT,
        vlan: int = 0,
        flags: int = 0,
        age: float = 0.0,
    ) -> None:
        """Puts an entry into the FDB as if a frame had taught it, ``age`` seconds ago; a peer is on our own link."""
        key = S["fdb_key"](switch_id=SWITCH, vlan=vlan)
        fill(key.mac, mac)
        entry = S["fdb_entry"](
            port=port,
            flags=flags | (K["FDB_F_ON_LINK"] if peer else 0),
            udp_port=socket.htons(peer_port) if peer else 0,
            last_seen=time.monotonic_ns() - int(age * 1e9),
        )
        if peer:
            fill(entry.addr, address(peer))
            fill(entry.next_hop, bytes.fromhex("0a0000000002"))
        self.maps["fdb"].update(key, entry)

    def entry(self, mac: bytes, vlan: int = 0) -> Any:
        key = S["fdb_key"](switch_id=SWITCH, vlan=vlan)
        fill(key.mac, mac)
        return self.maps["fdb"].lookup(key)

    def run(
        self, point: str, port: int, frame: bytes, *, gso_size: int = 0, gso_segs: int = 0, program: int = 0
    ) -> bpf_prog.TestRun:
        """One frame through the program at ``point`` of ``port``'s interface, or through another ``program`` there."""
        if point.endswith("_xdp"):
            require("xdp-test-context")
            context = struct.pack("=6I", 0, len(frame), 0, self.ifindex[port], 0, 0)
        else:
            skb = bytearray(192)
            struct.pack_into("=I", skb, 40, self.ifindex[port])
            struct.pack_into("=I", skb, 164, gso_segs)
            struct.pack_into("=I", skb, 176, gso_size)
            context = bytes(skb)
        return bpf_prog.run(program or self.dataplane.program(point), frame, context)

    def sent(self, port: int) -> list[bytes]:
        """Frames that came out of the far end of a port since the last call."""
        frames = []
        while True:
            try:
                frames.append(self.taps[port].recv(65536))
            except BlockingIOError:
                return frames

    def count(self, port: int, field: str, name: str) -> int:
        """One counter, over all CPUs; ``name`` is an enumerator."""
        return sum(getattr(cpu, field)[K[name]] for cpu in self.maps["counters"].lookup(port))

    def drops(self) -> dict[str, int]:
        """All drops that were counted anywhere, by enumerator."""
        totals = {
            reason.name: sum(self.count(port, "drops", reason.name) for port in range(1, 7))
            for reason in abi.enum("drop_reason")
        }
        return {name: total for name, total in totals.items() if total}
