# SPDX-License-Identifier: GPL-2.0-or-later
"""Small frames, as fast as the path takes them, and what arrives of them.

The flood: an XDP program of four instructions that redirects to the guest's device, run by BPF_PROG_TEST_RUN with live
frames (Linux ≥ 5.18).  The kernel recycles pages by the batch and builds no socket buffers: the sender's own cost
nearly vanishes.  What follows in softirq runs on the sender's processor; where all of the path is in the kernel, the
sender waits until its frames have been dealt with, and needs no pacing.

The paced sender: a packet socket, at rates that rise until frames get lost.  Contestants that run as processes need
it: a flood takes a processor from them only to fill a queue that is full anyway, and a slower sender shows more of what
they can do (measured: up to twice as much on two processors).

The receiver is the far guest's IP layer (InReceives in /proc/net/snmp).  Device counters would depend on how a frame is
handed over; this number says that the frame has reached its destination's stack.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vdexdp.control import libbpf
from vdexdp.errors import HostError, KernelFeatureError
from vdexdp.lab import Namespace
from vdexdp.plugins.base import BATCH, Batch
from vdexdp.plugins.mmsg import Writer

FRAME = 64
"""Bytes, Ethernet header included, FCS not."""

UDP_DISCARD = 9
ETH_P_NONE = 0
SOL_PACKET, PACKET_QDISC_BYPASS = 263, 20
LIVE_FRAMES = 2  # BPF_F_TEST_XDP_LIVE_FRAMES
PROBE = 20_000
"""Frames sent first, to learn the rate.  What counts is sent in one call, as each call waits some 20 ms for RCU."""

PACE_FIRST, PACE_STEP, PACE_LOSS = 40_000.0, 1.3, 0.25
"""Frames per second to begin with, the factor between two rates, and the share of lost frames that ends the search."""


@dataclass(frozen=True)
class Frames:
    """Frames per second offered by the sender and received by the far guest's IP layer."""

    offered: float
    received: float


def udp_frame(source_mac: str, target_mac: str, source: str, target: str) -> bytes:
    """One UDP datagram over IPv4 to the discard port, ``FRAME`` bytes in all, its UDP checksum left out."""
    payload = FRAME - 14 - 20 - 8
    udp = struct.pack(">HHHH", 40000, UDP_DISCARD, 8 + payload, 0) + bytes(payload)
    addresses = socket.inet_aton(source) + socket.inet_aton(target)
    header = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, socket.IPPROTO_UDP, 0) + addresses
    total = sum(struct.unpack(">10H", header))
    total = (total & 0xFFFF) + (total >> 16)
    header = header[:10] + struct.pack(">H", ~(total + (total >> 16)) & 0xFFFF) + header[12:]
    macs = (bytes.fromhex(mac.replace(":", "")) for mac in (target_mac, source_mac))
    return b"".join(macs) + b"\x08\x00" + header + udp


def _ip_received(namespace: Namespace) -> int:
    with namespace.entered():
        text = Path("/proc/thread-self/net/snmp").read_text()
    names, values = [line.split() for line in text.splitlines() if line.startswith("Ip:")]
    return int(values[names.index("InReceives")])


@contextmanager
def _discard(namespace: Namespace) -> Iterator[None]:
    """A socket on the discard port that nobody reads: without it each frame would ask for an ICMP error."""
    with namespace.entered():
        sink = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sink:
        sink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        sink.bind(("0.0.0.0", UDP_DISCARD))
        yield


def _redirect_program(ifindex: int) -> int:
    """``return bpf_redirect(ifindex, 0)``, loaded; a descriptor."""
    instructions = ((0xB7, 1, 0, ifindex), (0xB7, 2, 0, 0), (0x85, 0, 0, 23), (0x95, 0, 0, 0))
    return libbpf.prog_load("xdp", "bench_send", b"".join(struct.pack("=BBhi", *code) for code in instructions))


def _live(program: int, frame: bytes, count: int) -> float:
    """Send ``count`` frames; the seconds that took by the clock on the wall, as the kernel's own figure leaves out the
    time in which others had the processor.
    """
    start = time.monotonic()
    libbpf.prog_test_run(program, frame, repeat=count, flags=LIVE_FRAMES, batch=BATCH)
    return time.monotonic() - start


def flood(source: Namespace, target: Namespace, frame: bytes, seconds: float) -> Frames:
    """Send ``frame`` from the device eth0 of ``source`` for about ``seconds``, as fast as the path lets.

    eth0 must take redirected frames: a tap, or a veth whose far end polls (GRO on, or an XDP program there).  Raises
    KernelFeatureError where the kernel has no live frames.
    """
    with _discard(target), source.entered():
        program = _redirect_program(socket.if_nametoindex("eth0"))
        try:
            overhead = _live(program, frame, BATCH)
            count = PROBE
            while (took := _live(program, frame, count) - overhead) < 0.05:
                count *= 4
            count = max(1, int(count * seconds / took))
            before = _ip_received(target)
            elapsed = _live(program, frame, count) - overhead
            received = _ip_received(target) - before
        except OSError as error:
            raise KernelFeatureError("frame generator", f"live frames: {error.strerror}", "needs Linux 5.18") from None
        finally:
            os.close(program)
    if received > count * 1.05 + 100:
        raise HostError("frame generator", f"{received} frames arrived, {count} were sent: something else is talking")
    return Frames(count / elapsed, received / elapsed)


def _paced_once(writer: Writer, batch: Batch, target: Namespace, seconds: float, rate: float) -> Frames:
    before, start, sent = _ip_received(target), time.monotonic(), 0
    while (now := time.monotonic()) < start + seconds:
        if sent > (now - start) * rate:
            time.sleep(0.0003)
            continue
        sent += writer.send(batch)
    elapsed = time.monotonic() - start
    return Frames(sent / elapsed, (_ip_received(target) - before) / elapsed)


@contextmanager
def _sender(source: Namespace, frame: bytes) -> Iterator[tuple[Writer, Batch]]:
    """A packet socket on eth0 of ``source``, and a batch full of ``frame``."""
    batch = Batch()
    for _ in range(BATCH):
        batch.append(frame)
    with source.entered():
        sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, ETH_P_NONE)
        sender.bind(("eth0", ETH_P_NONE))
    with sender:
        sender.setsockopt(SOL_PACKET, PACKET_QDISC_BYPASS, 1)
        yield Writer(sender.fileno(), Counter()), batch


def paced(source: Namespace, target: Namespace, frame: bytes, seconds: float) -> Frames:
    """Send ``frame`` from eth0 of ``source`` at rising rates, each for ``seconds``; the best that arrived."""
    with _sender(source, frame) as (writer, batch), _discard(target):
        best, rate, misses = Frames(0, 0), PACE_FIRST, 0
        while misses < 2:
            now = _paced_once(writer, batch, target, seconds, rate)
            if now.received > best.received:
                best = now
            misses += now.received < rate * (1 - PACE_LOSS)
            rate *= PACE_STEP
    return best


def steady(source: Namespace, target: Namespace, frame: bytes, seconds: float, rate: float) -> Frames:
    """Send ``frame`` from eth0 of ``source`` at ``rate`` frames per second for ``seconds``."""
    with _sender(source, frame) as (writer, batch), _discard(target):
        return _paced_once(writer, batch, target, seconds, rate)
