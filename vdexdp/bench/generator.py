# SPDX-License-Identifier: GPL-2.0-or-later
"""Small frames, as fast as the path takes them, and what arrives of them.

The flood: an XDP program of four instructions that redirects to the guest's device, run by BPF_PROG_TEST_RUN with live
frames (Linux ≥ 5.18).  The kernel recycles pages by the batch and builds no socket buffers: the sender's own cost
nearly vanishes.  What follows in softirq runs on the sender's processor; where all of the path is in the kernel, the
sender waits until its frames have been dealt with, and needs no pacing.

The paced sender: a packet socket, at rates that rise until frames get lost.  Contestants that run as processes need
it: a flood takes a processor from them only to fill a queue that is full anyway, and a slower sender shows more of what
they can do (measured: up to twice as much on two processors).

The receiver is a tc program on the far guest's device: what is compared is how frames get from one guest's device to
the other's.  Device counters would depend on how a frame is handed over.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass

from vdexdp.control import bpf_link, bpf_map, bpf_prog
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

OVERHEADS = 3
"""How often the cost of a call is measured; the least counts."""

PACE_FIRST, PACE_STEP, PACE_LOSS = 40_000.0, 1.3, 0.25
"""Frames per second to begin with, the factor between two rates, and the share of lost frames that ends the search."""


@dataclass(frozen=True)
class Frames:
    """Frames per second offered by the sender, and received by the far guest's device."""

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


class Sink:
    """Counts frames of ``FRAME`` bytes as they come in on eth0 of a namespace, and drops them there.

    A tc program (tcx, Linux ≥ 6.6): what the guest's own stack would do with a frame is not what is compared.  Frames
    of any other length pass.
    """

    def __init__(self, namespace: Namespace) -> None:
        self.map = bpf_map.Map.create("bench_sink", "PERCPU_ARRAY", ctypes.c_uint32, ctypes.c_uint64, 1)
        self.link = -1
        code = (
            (0x61, 0x11, 0, 0),  # r1 = skb->len
            (0x55, 0x01, 12, FRAME),  # another length: to the end, with r0 = TC_ACT_UNSPEC
            (0x62, 0x0A, -4, 0),  # key = 0
            (0x18, 0x11, 0, self.map.fd),
            (0x00, 0x00, 0, 0),
            (0xBF, 0xA2, 0, 0),  # r2 = fp
            (0x07, 0x02, 0, -4),
            (0x85, 0x00, 0, 1),  # r0 = bpf_map_lookup_elem(map, &key)
            (0x15, 0x00, 3, 0),
            (0x79, 0x01, 0, 0),  # ++*r0
            (0x07, 0x01, 0, 1),
            (0x7B, 0x10, 0, 0),
            (0xB7, 0x00, 0, 2),  # TC_ACT_SHOT
            (0x95, 0x00, 0, 0),
            (0xB7, 0x00, 0, -1),
            (0x95, 0x00, 0, 0),
        )
        program = bpf_prog.load("tc", "bench_sink", b"".join(struct.pack("=BBhi", *row) for row in code))
        try:
            with namespace.entered():
                self.link = bpf_link.create(program, socket.if_nametoindex("eth0"), bpf_link.ATTACH_TCX_INGRESS)
        except OSError as error:
            self.map.close()
            raise KernelFeatureError("frame sink", f"tcx: {error.strerror}", "needs Linux 6.6") from None
        finally:
            os.close(program)

    def received(self) -> int:
        return int(sum(self.map.lookup(0)))

    def close(self) -> None:
        os.close(self.link)
        self.map.close()


def _redirect_program(ifindex: int) -> int:
    """``return bpf_redirect(ifindex, 0)``, loaded; a descriptor."""
    instructions = ((0xB7, 1, 0, ifindex), (0xB7, 2, 0, 0), (0x85, 0, 0, 23), (0x95, 0, 0, 0))
    return bpf_prog.load("xdp", "bench_send", b"".join(struct.pack("=BBhi", *code) for code in instructions))


def _live(program: int, frame: bytes, count: int) -> float:
    """Send ``count`` frames; the seconds that took by the clock on the wall, as the kernel's own figure leaves out the
    time in which others had the processor.
    """
    start = time.monotonic()
    bpf_prog.run(program, frame, repeat=count, flags=LIVE_FRAMES, batch=BATCH)
    return time.monotonic() - start


def flood(source: Namespace, target: Namespace, frame: bytes, seconds: float) -> Frames:
    """Send ``frame`` from the device eth0 of ``source`` for about ``seconds``, as fast as the path lets.

    eth0 must take redirected frames: a tap, or a veth whose far end polls (GRO on, or an XDP program there).  Raises
    KernelFeatureError where the kernel has no live frames.
    """
    with closing(Sink(target)) as sink, source.entered():
        program = _redirect_program(socket.if_nametoindex("eth0"))
        try:
            overhead = min(_live(program, frame, BATCH) for _ in range(OVERHEADS))
            count = PROBE
            while (took := _live(program, frame, count) - overhead) < 0.05:
                count *= 4
            count = max(1, int(count * seconds / took))
            before = sink.received()
            elapsed = _live(program, frame, count) - overhead
            received = sink.received() - before
        except OSError as error:
            raise KernelFeatureError("frame generator", f"live frames: {error.strerror}", "needs Linux 5.18") from None
        finally:
            os.close(program)
    if received > count * 1.05 + 100:
        raise HostError("frame generator", f"{received} frames arrived, {count} were sent: something else is talking")
    return Frames(count / elapsed, received / elapsed)


def _paced_once(writer: Writer, batch: Batch, sink: Sink, seconds: float, rate: float) -> Frames:
    before, start, sent = sink.received(), time.monotonic(), 0
    while (now := time.monotonic()) < start + seconds:
        if sent > (now - start) * rate:
            time.sleep(0.0003)
            continue
        sent += writer.send(batch)
    elapsed = time.monotonic() - start
    return Frames(sent / elapsed, (sink.received() - before) / elapsed)


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
    with _sender(source, frame) as (writer, batch), closing(Sink(target)) as sink:
        best, rate, misses = Frames(0, 0), PACE_FIRST, 0
        while misses < 2:
            now = _paced_once(writer, batch, sink, seconds, rate)
            if now.received > best.received:
                best = now
            misses += now.received < rate * (1 - PACE_LOSS)
            rate *= PACE_STEP
    return best


def steady(source: Namespace, target: Namespace, frame: bytes, seconds: float, rate: float) -> Frames:
    """Send ``frame`` from eth0 of ``source`` at ``rate`` frames per second for ``seconds``."""
    with _sender(source, frame) as (writer, batch), closing(Sink(target)) as sink:
        return _paced_once(writer, batch, sink, seconds, rate)
