# SPDX-License-Identifier: GPL-2.0-or-later
"""The control protocol's codec.

What was sent arrives, with its descriptors; garbage raises ProtocolError and leaks none.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vdexdp.control.channel import PACKET_MAX, Channel, decode
from vdexdp.control.protocol import (
    Bridge,
    EndPath,
    PlugReply,
    PlugRequest,
    check_reply,
    check_request,
    end_from_json,
    end_to_json,
    failure,
    request,
)
from vdexdp.errors import ProtocolError, RequestError
from vdexdp.plugins.base import Netdev, Tunnel


@pytest.fixture
def pair() -> Iterator[tuple[Channel, Channel]]:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with left, right:
        yield Channel(left, spill=True), Channel(right)


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


ENDS: list[Netdev | Tunnel | Bridge] = [
    Netdev("tap0", "stack", "tap", learn_limit=7),
    Netdev("eth-far", "wire", hook="xdp"),
    Tunnel("vxvde", "234.0.0.1", 4, 14789, 1, rcvbuf=1 << 20, bind="10.0.0.1"),
    Tunnel("vxlan", "ff05:56de::1", 6, 4789, (1 << 24) - 1, 255, "eth0"),
    Bridge("vde:///tmp/x"),
]


@pytest.mark.parametrize("end", ENDS, ids=lambda end: type(end).__name__)
def test_ends_survive_the_trip(end: Netdev | Tunnel | Bridge) -> None:
    assert end_from_json(json.loads(json.dumps(end_to_json(end, 3)))) == (end, 3)
    assert end_from_json(json.loads(json.dumps(end_to_json(end)))) == (end, None)


def test_plug_request_and_reply_with_descriptors(pair: tuple[Channel, Channel]) -> None:
    client, server = pair
    before = open_fds()
    asked = PlugRequest((ENDS[0], ENDS[2]), ("tap://tap0", "vxvde://234.0.0.1"), "require", 12, "me", (0, None))
    with open("/dev/null") as null:
        client.send(asked.to_json(), [null.fileno()])
        message = server.recv()
        assert message is not None
        assert check_request(message.body) == "plug"
        assert PlugRequest.from_json(message.body) == asked
        assert os.path.samestat(os.fstat(message.fds[0]), os.fstat(null.fileno()))
        reply = PlugReply(1, [EndPath("tap0", "tc", "veth")], ["a note"], {"x": [1]}, {"map:fdb": message.fds[0]})
        server.send(reply.to_json(), list(reply.fds.values()))
        message.close()
    answer = client.recv()
    assert answer is not None
    got = PlugReply.from_message(answer)
    assert (got.plug, got.paths, got.notes, got.lease, list(got.fds)) == (
        1,
        reply.paths,
        ["a note"],
        {"x": [1]},
        ["map:fdb"],
    )
    os.close(got.fds["map:fdb"])
    assert open_fds() == before


def test_large_replies_travel_in_a_memfd(pair: tuple[Channel, Channel]) -> None:
    client, server = pair
    before = open_fds()
    server.send({"ok": True, "list": list(range(100_000))})
    answer = client.recv()
    assert answer is not None
    assert check_reply(answer.body)["list"][-1] == 99_999
    assert not answer.fds
    client.send({"v": 1, "op": "show", "big": "x" * PACKET_MAX})
    message = server.recv()
    assert message is not None
    assert "op" not in message.body, "a daemon never reads what a client spilled"
    message.close()
    assert open_fds() == before


@pytest.mark.parametrize(
    "data",
    [b"\xff\xfe", b"{", b"[]", b"17", b'"x"', b"[" * 5000, b'{"a":' * 30 + b"1" + b"}" * 30, b'{"v":NaN', b"\0" * 100],
)
def test_garbage_is_refused_and_leaks_nothing(pair: tuple[Channel, Channel], data: bytes) -> None:
    client, server = pair
    before = open_fds()
    client._send(data, [0, 1, 2])
    with pytest.raises(ProtocolError):
        server.recv()
    assert open_fds() == before
    client.send(request("show"))
    message = server.recv()
    assert message is not None
    assert check_request(message.body) == "show", "the connection is still usable"


def test_oversized_packet(pair: tuple[Channel, Channel]) -> None:
    client, server = pair
    client._send(b'{"v":1,"op":"' + b"x" * PACKET_MAX + b'"}', [0])
    with pytest.raises(ProtocolError, match="longer than"):
        server.recv()
    client.close()
    assert server.recv() is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    try:
        decode(data)
    except ProtocolError:
        pass


KEYS = st.sampled_from(
    ["kind", "name", "side", "hook", "group", "family", "port", "vni", "tunnel", "learn_limit", "fd"]
)
WORDS = JSON | st.sampled_from(
    ["netdev", "tunnel", "bridge", "stack", "wire", "auto", "vxvde", "234.0.0.1", 4, 6, 1, -1, True]
)


@given(st.dictionaries(KEYS, WORDS), st.lists(JSON, max_size=3))
def test_any_request_is_an_end_or_a_protocol_error(body: dict[str, object], vnls: list[object]) -> None:
    try:
        end_from_json(body)
    except (ProtocolError, RequestError):
        pass
    try:
        PlugRequest.from_json({"v": 1, "op": "plug", "ends": [body, body], "vnls": vnls})
    except (ProtocolError, RequestError):
        pass


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"vni": 1 << 24}, "out of range"),
        ({"port": 0}, "out of range"),
        ({"group": "10.0.0.1"}, "not a multicast address"),
        ({"group": "ff02::1"}, "not an IPv4 address"),
        ({"device": "x" * 16}, "not an interface name"),
        ({"ttl": "1"}, "wrong type"),
        ({"family": 5}, "wrong type"),
        ({"extra": 5}, "unknown key"),
    ],
)
def test_values_out_of_range(change: dict[str, object], cause: str) -> None:
    with pytest.raises((ProtocolError, RequestError), match=cause):
        end_from_json(end_to_json(ENDS[2]) | change)


@pytest.mark.parametrize(
    "body", [{"op": "show"}, {"v": 2, "op": "show"}, {"v": True, "op": "show"}, {"v": 1}, {"v": 1, "op": 3}]
)
def test_versions_and_operations(body: dict[str, object]) -> None:
    with pytest.raises(ProtocolError):
        check_request(body)


def test_errors_keep_their_class_and_words() -> None:
    with pytest.raises(RequestError) as caught:
        check_reply(failure(RequestError("tap0", "no such interface", "create it")))
    assert str(caught.value) == "tap0: no such interface; create it"
