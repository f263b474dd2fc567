# SPDX-License-Identifier: GPL-2.0-or-later
"""udp:// and seqpacket:// in this process, with real sockets on the loopback of the tests' own namespace.

Shows: frames of all sizes both ways, IPv4, IPv6 and names; a peer that is not there yet; strangers and garbage; an
overrun that is counted; descriptors of the wrong kind; 1,000 opens.
"""

from __future__ import annotations

import os
import socket

import pytest

from tests.streamkit import collect, frame, holdings, offer, open_end
from vdexdp.errors import HangUp, HostError, VnlError
from vdexdp.plugins import registry
from vdexdp.plugins.base import Batch
from vdexdp.plugins.udp import UdpSpec

SIZES = [18, 60, 61, 1514, 1518, 9234]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("udp://4001->127.0.0.1:4002", "udp://127.0.0.1:4002->127.0.0.1:4001"),
        ("udp://[::1]:4001->[::1]:4002", "udp://4002->::1:4001"),
        ("udp://:4001->localhost:4002", "udp://localhost:4002->localhost:4001"),
    ],
)
def test_both_ways(first: str, second: str) -> None:
    ends = open_end(first), open_end(second)
    for source, sink in (ends, ends[::-1]):
        for start in range(0, 120, 12):
            frames = [frame(number, SIZES[number % len(SIZES)]) for number in range(start, start + 12)]
            offer(source, frames)
            assert collect(sink, 1, enough=12) == frames
    for end in ends:
        assert not end.drops
        end.close()


def test_a_peer_that_comes_later() -> None:
    first = open_end("udp://4001->127.0.0.1:4002")
    for number in range(10):
        offer(first, [frame(number)])
        assert collect(first, 0.01) == []
    assert 0 < first.drops["refused"] <= 20
    second = open_end("udp://4002->127.0.0.1:4001")
    offer(first, [frame(1)] * 2)
    assert frame(1) in collect(second, 1, enough=1)
    offer(second, [frame(2)])
    assert collect(first, 1, enough=1) == [frame(2)]
    second.close()
    offer(first, [frame(3)] * 3)
    assert collect(first, 0.05) == []
    first.close()


def test_strangers_and_garbage() -> None:
    end = open_end("udp://4001->127.0.0.1:4002")
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other,
    ):
        peer.bind(("127.0.0.1", 4002))
        for data in (b"", b"x", bytes(13), bytes(9235), bytes(60000), frame(1)):
            peer.sendto(data, ("127.0.0.1", 4001))
            other.sendto(frame(9), ("127.0.0.1", 4001))
        assert collect(end, 0.2) == [frame(1)]
    assert end.drops == {"runt": 3, "too-big": 2}
    end.close()


def test_an_overrun_is_counted() -> None:
    """Nothing is lost without a trace: received and counted frames are all that were sent."""
    end = open_end("udp://4001->127.0.0.1:4002")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.bind(("127.0.0.1", 4002))
        for number in range(20000):
            peer.sendto(frame(number, 1514), ("127.0.0.1", 4001))
    received = collect(end, 1)
    assert 0 < len(received) < 20000
    assert received == [frame(number, 1514) for number in range(len(received))]
    assert len(received) + end.drops["overrun"] == 20000
    end.close()


@pytest.mark.parametrize(
    "vnl",
    [
        "udp://",
        "udp://4001",
        "udp://4001->",
        "udp://4001->host",
        "udp://4001->:99",
        "udp://4001->h:99999",
        "udp://99999->h:1",
    ],
)
def test_vnls_that_say_too_little(vnl: str) -> None:
    with pytest.raises(VnlError):
        registry.parse(vnl)


def test_parse() -> None:
    assert registry.parse("udp://a:1->b:2").spec == UdpSpec("a", "1", "b", "2")
    assert registry.parse("udp://->b:domain").spec == UdpSpec("", "", "b", "domain")


def test_addresses_that_do_not_work() -> None:
    with pytest.raises(HostError, match=r"^no\.such\.host\.invalid:1: "):
        open_end("udp://4001->no.such.host.invalid:1")
    end = open_end("udp://4001->127.0.0.1:4002")
    with pytest.raises(HostError, match="Address already in use; another process has this port"):
        open_end("udp://4001->127.0.0.1:4003")
    end.close()


def test_1000_opens() -> None:
    before: tuple[list[str], int] = ([], 0)
    for number in range(1050):
        if number == 50:
            before = holdings()
        end = open_end("udp://4001->127.0.0.1:4002")
        offer(end, [frame(1)])
        end.close()
    kinds, memory = holdings()
    assert kinds == before[0]
    assert memory < before[1] + 2000


def test_seqpacket() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    end = open_end(f"seqpacket://{ours.detach():#x}")
    frames = [frame(number, SIZES[number % len(SIZES)]) for number in range(24)]
    for each in frames:
        theirs.send(each)
    theirs.send(b"x")
    theirs.send(bytes(9999))
    assert collect(end, 1, enough=24) == frames
    offer(end, frames)
    assert [theirs.recv(10000) for _ in frames] == frames
    offer(end, [frame(number, 1514) for number in range(20000)])
    lost = end.drops["full"]
    assert 0 < lost < 20000
    assert [theirs.recv(10000)[14:18] for _ in range(20000 - lost)] == [
        n.to_bytes(4, "big") for n in range(20000 - lost)
    ]
    collect(end, 0.01)
    assert end.drops == {"runt": 1, "too-big": 1, "full": lost}
    theirs.close()
    end.recv(Batch())
    with pytest.raises(HangUp):
        end.recv(Batch())
    end.close()
    end.close()


def test_seqpacket_is_not_made_non_blocking() -> None:
    """Whoever shares the socket would see it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    end = open_end(f"seqpacket://{os.dup(ours.fileno())}")
    assert collect(end, 0.01) == []
    assert os.get_blocking(ours.fileno())
    end.close()
    ours.close()
    theirs.close()


def test_seqpacket_of_the_wrong_kind() -> None:
    with pytest.raises(HostError, match="Bad file descriptor; the parent has to leave it open"):
        open_end("seqpacket://999")
    with open("/dev/null") as file, pytest.raises(HostError, match="Socket operation on non-socket"):
        open_end(f"seqpacket://{file.fileno()}")
    with socket.socket() as stream:
        with pytest.raises(HostError, match="does not keep packets apart"):
            open_end(f"seqpacket://{stream.fileno()}")
        os.fstat(stream.fileno())
    for vnl in ("seqpacket://", "seqpacket://x", "seqpacket://-1", "seqpacket://99999999999"):
        with pytest.raises(VnlError):
            registry.parse(vnl)
