# SPDX-License-Identifier: GPL-2.0-or-later
"""vxvde and vxlan: what their VNLs mean, and what a userspace node does with datagrams that no stock node would send.

The second half needs root, for a network namespace with an uplink.
"""

from __future__ import annotations

import grp
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator

import pytest

from tests.rawframes import dot1q, frame
from vdexdp.errors import HostError, VnlError
from vdexdp.lab import Lab, Namespace, wait_until
from vdexdp.plugins import registry
from vdexdp.plugins.base import Batch, Stream, Tunnel
from vdexdp.plugins.vxnet import VxSpec
from vdexdp.plugins.vxstream import MacTable, VxStream, is_local, mac_key

HEADER = b"\x08\0\0\0\0\0\1\0"


@pytest.mark.parametrize(
    ("vnl", "tunnel"),
    [
        ("vxvde://", Tunnel("vxvde", "239.0.0.1", 4, 14789, 1)),
        ("vxvde:///v6", Tunnel("vxvde", "ff05:56de::1", 6, 14789, 1)),
        ("vxvde:///v4/v6", Tunnel("vxvde", "ff05:56de::1", 6, 14789, 1)),
        ("vxvde:///v4", Tunnel("vxvde", "239.0.0.1", 4, 14789, 1)),
        ("vxvde://ff15::3/port=12345/vni=42", Tunnel("vxvde", "ff15::3", 6, 12345, 42)),
        ("vxvde://FF15:0::3", Tunnel("vxvde", "ff15::3", 6, 14789, 1)),
        ("vxvde://234.0.0.1/p=5/p=6/t=9/e=3/i=eth0/r=1M", Tunnel("vxvde", "234.0.0.1", 4, 6, 1, 9, "eth0", 1 << 20, 3)),
        ("vxvde:///expiretime=0", Tunnel("vxvde", "239.0.0.1", 4, 14789, 1)),
        ("vxvde:///vni=root", Tunnel("vxvde", "239.0.0.1", 4, 14789, 0)),
        ("vxvde:///grp=66051", Tunnel("vxvde", "239.1.2.3", 4, 14789, 66051)),
        ("vxvde:///v6/grp=66051", Tunnel("vxvde", "ff05:56de::1:203", 6, 14789, 66051)),
        ("vxvde:///grp=66051/vni=7", Tunnel("vxvde", "239.1.2.3", 4, 14789, 7)),
        ("vxvde:///bind=127.0.0.1", Tunnel("vxvde", "239.0.0.1", 4, 14789, 1, bind="127.0.0.1")),
        ("vxvde://ff02::1%25eth1", Tunnel("vxvde", "ff02::1", 6, 14789, 1, device="eth1")),
        ("vxvde:///vni=16777215", Tunnel("vxvde", "239.0.0.1", 4, 14789, 0xFFFFFF)),
        ("vxlan://", Tunnel("vxlan", "239.0.0.1", 4, 4789, 1)),
        ("vxlan:///v6/vni=0", Tunnel("vxlan", "ff05:56de::1", 6, 4789, 0)),
        ("vxlan://239.1.1.1/ttl=255/port=8472", Tunnel("vxlan", "239.1.1.1", 4, 8472, 1, 255)),
    ],
)
def test_what_a_vnl_means(vnl: str, tunnel: Tunnel) -> None:
    assert grp.getgrgid(0).gr_name == "root"
    assert registry.parse(vnl).spec == VxSpec(tunnel)


def test_hashsize_is_the_size_of_the_userspace_table() -> None:
    assert registry.parse("vxvde:///hashsize=0").spec.table == 0
    assert registry.parse("vxlan:///hash=5").spec.table == 5


@pytest.mark.parametrize(
    ("vnl", "says"),
    [
        ("vxvde://192.0.2.1", "192.0.2.1 is not a multicast address"),
        ("vxvde://2001:db8::1", "2001:db8::1 is not a multicast address"),
        ("vxvde://localhost", '"localhost" is not an IP address'),
        ("vxvde://234.0.0.1/v6", "234.0.0.1 is not an IPv6 address"),
        ("vxvde://ff15::1/v4", "ff15::1 is not an IPv4 address"),
        ("vxvde:///port=0", "port=0 is out of range"),
        ("vxvde:///port=65536", "port=65536 is out of range"),
        ("vxvde:///port=abc", "port=abc is not a number"),
        ("vxvde:///vni=16777216", "vni=16777216 is out of range"),
        ("vxvde:///vni=no-such-group", "vni=no-such-group names no group"),
        ("vxvde:///ttl=0", "ttl=0 is out of range"),
        ("vxvde:///ttl=256", "ttl=256 is out of range"),
        ("vxvde:///rcvbuf=many", "rcvbuf=many is not a size"),
        ("vxvde:///rcvbuf=2G", "rcvbuf=2G is more than a socket can have"),
        ("vxvde:///if=a-name-that-is-too-long", "is not an interface name"),
        ("vxvde:///bind=::1", "bind=::1 is not an IPv4 address"),
        ("vxvde:///colour=red", 'unknown key "colour"'),
        ("vxlan:///bind=127.0.0.1", 'unknown key "bind"'),
        ("vxlan:///grp=5", 'unknown key "grp"'),
        ("vxlan:///expiretime=-1", "expiretime=-1"),
    ],
)
def test_mistakes(vnl: str, says: str) -> None:
    with pytest.raises(VnlError) as caught:
        registry.parse(vnl)
    assert says in str(caught.value)
    assert vnl in str(caught.value)


def test_kernel_end() -> None:
    end = registry.parse("vxvde://234.0.0.1/if=lo")
    assert end.kernel_end() == Tunnel("vxvde", "234.0.0.1", 4, 14789, 1, device="lo")
    with pytest.raises(VnlError, match="no such interface"):
        registry.parse("vxlan:///if=no-such-if").kernel_end()
    with pytest.raises(VnlError, match="no such interface"):
        registry.parse("vxlan:///if=no-such-if").open()


def test_table_key_is_mac_and_vlan() -> None:
    plain, tagged, other = (frame(60, tags=tags) for tags in (b"", dot1q(5), dot1q(6, tpid=0x88A8)))
    keys = [mac_key(memoryview(data), 6) for data in (plain, tagged, other)]
    assert keys == [plain[6:12], plain[6:12] + b"\0\5", plain[6:12] + b"\0\6"]
    assert mac_key(memoryview(plain[:14]), 0) == b"\xff" * 6


def test_a_full_table_keeps_what_is_in_use() -> None:
    from vdexdp.plugins.vxstream import Endpoint

    table, here = MacTable(2, expiry=10.0), Endpoint(b"0123456789abcdef")
    for now, key in ((1.0, b"a"), (2.0, b"b"), (3.0, b"c")):
        table.learn(key, here, now)
    assert [table.find(key, 3.0) for key in (b"a", b"b", b"c")] == [here, here, None]
    table.learn(b"b", here, 9.0)
    assert table.find(b"a", 11.5) is None, "expired"
    table.learn(b"c", here, 11.5)
    assert [table.find(key, 11.5) for key in (b"b", b"c")] == [here, here]
    here.gone = True
    assert table.find(b"b", 11.5) is None


# Datagrams


@pytest.fixture
def net(lab: Lab) -> Iterator[Namespace]:
    """A namespace with an uplink, and nobody at its other end."""
    host = lab.host("only")
    host.ip("link add name up0 type veth peer name up1")
    host.ip("address add 192.0.2.1/24 dev up0")
    host.ip("address add 2001:db8::1/64 dev up0 nodad")
    host.ip("link set up1 up")
    host.ip("link set up0 up")
    # The kernel's IPv6 gets to know of the carrier a little later, and sends no multicast before.
    wait_until(lambda: "ff00::/8" in host.ip("-6 route show table all dev up0"), what="IPv6")
    with host.entered():
        yield host


def node(vnl: str) -> VxStream:
    stream = registry.parse(vnl).open()
    assert isinstance(stream, VxStream)
    return stream


def send(stream: Stream, *frames: bytes) -> None:
    batch = Batch()
    for data in frames:
        batch.append(data)
    assert stream.send(batch) == len(frames)


def received(stream: Stream, patience: float = 2.0) -> list[bytes]:
    select.select(stream.readers(), [], [], patience)
    batch = Batch()
    stream.recv(batch)
    return [bytes(batch[index]) for index in range(batch.count)]


A, B = "02:00:00:00:07:01", "02:00:00:00:07:02"
HELLO = frame(60, 1, src=1)


@pytest.fixture(params=["vxvde://234.0.0.1/if=up0", "vxvde:///v6/if=up0"])
def pair(net: Namespace, request: pytest.FixtureRequest) -> Iterator[tuple[VxStream, VxStream]]:
    first, second = node(request.param), node(request.param)
    yield first, second
    first.close()
    second.close()


def test_flood_learn_unicast_goodbye(pair: tuple[VxStream, VxStream]) -> None:
    first, second = pair
    third = node(f"vxvde://{first.tunnel.group}/if=up0")
    send(first, HELLO)
    assert received(second) == [HELLO] == received(third)
    assert received(first, 0.1) == [], "our own copy"
    answer = frame(60, 2, dst=A, src=2)
    send(second, answer)
    assert received(first) == [answer]
    assert received(third, 0.1) == [], "unicast goes to the one endpoint only"
    unknown = frame(60, 3, dst="02:00:00:00:07:09", src=2)
    send(second, unknown)
    assert received(first) == [unknown] == received(third)
    first.close()
    assert received(second, 0.1) == []
    send(second, answer)
    assert received(third) == [answer], "after the goodbye the address is unknown again"
    third.close()


def test_expiry_and_moves(net: Namespace) -> None:
    first, second, third = (node("vxvde://234.0.0.1/if=up0/expiretime=1") for _ in range(3))
    send(first, HELLO)
    assert received(second) == [HELLO] == received(third)
    send(third, HELLO)
    assert received(second) == [HELLO]
    assert received(first) == [HELLO]
    to_a = frame(60, 2, dst=A, src=2)
    send(second, to_a)
    assert (received(first), received(third)) == ([], [to_a]), "the address has moved"
    time.sleep(1.1)
    send(second, to_a)
    assert (received(first), received(third)) == ([to_a], [to_a])
    for stream in (first, second, third):
        stream.close()


def test_garbage_is_counted_and_harmless(net: Namespace) -> None:
    stream = node("vxvde://234.0.0.1/if=up0")
    port = stream._sockets[1].getsockname()[1]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as alien:
        for data in (
            b"",
            HEADER[:7],
            b"\x08\0\0\0\0\0\2\0" + HELLO,  # another VNI
            b"\x08\0\0\1\0\0\1\0" + HELLO,  # a reserved bit: vxvde compares all of the header
            b"\x0c\0\0\0\0\0\1\0" + HELLO,
            HEADER + HELLO[:13],
            HEADER + HELLO[:14],
            HEADER + frame(9234, 4),
            HEADER + frame(9235, 4),
            HEADER + HELLO,
            HEADER,
        ):
            alien.sendto(data, ("127.0.0.1", port))
        assert received(stream) == [HELLO[:14], frame(9234, 4), HELLO]
        assert stream.drops == {"bad-header": 5, "runt": 1, "too-big": 1}
    stream.close()


def test_networks_keep_apart(net: Namespace) -> None:
    nodes = {vnl: node(vnl) for vnl in (
        "vxvde://234.0.0.1/if=up0",
        "vxvde://234.0.0.1/if=up0/vni=2",
        "vxvde://234.0.0.2/if=up0",
        "vxvde://234.0.0.1/if=up0/port=5000",
    )}  # fmt: skip
    for sender in nodes.values():
        send(sender, HELLO)
    for vnl, stream in nodes.items():
        assert received(stream, 0.1) == [], vnl
        stream.close()


def test_a_flood_of_addresses_is_bounded(net: Namespace) -> None:
    first, second = node("vxvde://234.0.0.1/if=up0"), node("vxvde://234.0.0.1/if=up0/hashsize=50")
    send(first, HELLO)
    received(second)
    for number in range(40):
        send(
            first,
            *(frame(60)[:6] + struct.pack("!HI", 0x0200, number * 64 + index) + HELLO[12:] for index in range(64)),
        )
        received(second)
    assert len(second._table._entries) == 50
    received(first)
    send(second, frame(60, 2, dst=A, src=2))
    assert received(first)
    first.close()
    second.close()


def test_vxlan_answers_to_its_port_and_ignores_reserved_bits(net: Namespace) -> None:
    stream = node("vxlan://239.1.1.1/if=up0/vni=5")
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as home,
    ):
        peer.bind(("127.0.0.2", 33333))
        home.bind(("127.0.0.3", 0))
        home.settimeout(1)
        peer.sendto(b"\x8c\1\2\3\0\0\5\xff" + HELLO, ("127.0.0.1", 4789))
        peer.sendto(b"\x00\0\0\0\0\0\5\0" + HELLO, ("127.0.0.1", 4789))
        peer.sendto(b"\x08\0\0\0\0\0\6\0" + HELLO, ("127.0.0.1", 4789))
        assert received(stream) == [HELLO]
        assert stream.drops == {"bad-header": 2}
        endpoint = stream._table.find(HELLO[6:12], time.monotonic())
        assert endpoint is not None
        assert endpoint.bytes == struct.pack("=HH4s8x", socket.AF_INET, socket.htons(4789), b"\x7f\0\0\2")
    with pytest.raises(HostError, match="UDP port 4789 is used"):
        node("vxlan://239.1.1.2/if=up0")
    stream.close()


def test_what_the_socket_has_no_room_for_is_counted(net: Namespace) -> None:
    first, second = node("vxvde://234.0.0.1/if=up0"), node("vxvde://234.0.0.1/if=up0/rcvbuf=100K")
    for _ in range(10):
        send(first, *[frame(1500, number) for number in range(64)])
    arrived = 0
    while count := len(received(second)):
        arrived += count
    assert 64 < arrived < 640
    assert second.drops["overrun"] == 640 - arrived
    first.close()
    second.close()


def test_no_route_and_no_ipv6(lab: Lab) -> None:
    host = lab.host("bare")
    with host.entered():
        with pytest.raises(HostError, match="no route to the group"):
            node("vxvde://234.0.0.1")
        with pytest.raises(HostError, match=r"192\.0\.2\.9 is not an address"):
            node("vxvde://234.0.0.1/if=lo/bind=192.0.2.9")
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(5):
            with pytest.raises(HostError):
                node("vxvde://234.0.0.1")
        assert len(os.listdir("/proc/self/fd")) == before


def test_is_local(lab: Lab) -> None:
    host = lab.host("addresses")
    host.ip("address add 192.0.2.7/24 dev lo")
    host.ip("address add 2001:db8::7/64 dev lo nodad")
    v4: Callable[[str], bytes] = lambda a: struct.pack("=HH4s8x", 2, 0, socket.inet_aton(a))  # noqa: E731
    v6: Callable[[str], bytes] = lambda a: struct.pack("=HHI16sI", 10, 0, 0, socket.inet_pton(10, a), 0)  # noqa: E731
    with host.entered():
        assert all(is_local(v4(a)) for a in ("127.0.0.1", "192.0.2.7", "0.0.0.0"))
        assert not any(is_local(v4(a)) for a in ("192.0.2.8", "8.8.8.8"))
        assert [is_local(v6(a)) for a in ("::1", "2001:db8::7", "2001:db8::8")] == [True, True, False]
