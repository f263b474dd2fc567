# SPDX-License-Identifier: GPL-2.0-or-later
"""``vlan://`` and ``agno://`` as streams around another stream; what they do to a frame is shown with their codecs.

Shows that VNLs parse to the policy that they mean, that ends nest to any depth, that a full inner end loses and repeats
nothing, that losses are counted, and that key files are read by stock's rules.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from pathlib import Path

import pytest

from vdexdp.errors import HostError, VnlError
from vdexdp.plugins import registry
from vdexdp.plugins.agno import AgnoPlugin, AgnoSpec, AgnoStream, read_key
from vdexdp.plugins.base import Batch, Stream
from vdexdp.plugins.stream import ByteStream
from vdexdp.plugins.vlan import VlanSpec, VlanStream
from vdexdp.wire.agno import Codec
from vdexdp.wire.dot1q import Mapper
from vdexdp.wire.ethernet import DOT1AD, DOT1Q

MACS = bytes.fromhex("020000000001020000000002")
KEY = bytes(range(16))


def plain(payload: bytes = b"\0" * 46) -> bytes:
    return MACS + b"\x08\x00" + payload


def tagged(vid: int, payload: bytes = b"\0" * 46, tpid: int = DOT1Q) -> bytes:
    return MACS + tpid.to_bytes(2, "big") + vid.to_bytes(2, "big") + b"\x08\x00" + payload


def batch_of(*frames: bytes) -> Batch:
    batch = Batch()
    for one in frames:
        batch.append(one)
    return batch


def received(stream: Stream, wait: float = 1.0) -> list[bytes]:
    select.select(list(stream.readers()), [], [], wait)
    batch = Batch()
    stream.recv(batch)
    return [bytes(one) for one in batch]


def pair() -> tuple[ByteStream, ByteStream]:
    """Two ends of a byte stream, which has back-pressure."""
    (a_in, b_out), (b_in, a_out) = os.pipe2(os.O_CLOEXEC), os.pipe2(os.O_CLOEXEC)
    return ByteStream(a_in, a_out, "a", own=True), ByteStream(b_in, b_out, "b", own=True)


@pytest.mark.parametrize(
    ("vnl", "mapper"),
    [
        ("vlan://3{null://}", Mapper(untagged=3)),
        ("vlan://{null://}", Mapper()),
        (
            "vlan://3/untag=4/trunk/tag=10:11-12.12-11{null://}",
            Mapper(3, 4, ((10, 10), (11, 12), (12, 11)), trunk=True),
        ),
        ("vlan://3[u=4/x/t=10]{null://}", Mapper(3, 4, ((10, 10),), trunk=True)),
        ("vlan://5/qinq{null://}", Mapper(5, tpid=DOT1AD)),
        ("vlan://0x10/ad{null://}", Mapper(16, tpid=DOT1AD)),
        ("vlan:///tr/q{null://}", Mapper(trunk=True, tpid=DOT1AD)),
    ],
)
def test_vlan_vnls(vnl: str, mapper: Mapper) -> None:
    spec = registry.parse(vnl).spec
    assert isinstance(spec, VlanSpec)
    assert spec.mapper == mapper
    assert spec.inner.vnl == "null://"


@pytest.mark.parametrize(
    "vnl",
    [
        "vlan://3",
        "vlan://4096{null://}",
        "vlan://three{null://}",
        "vlan://3/tag=1{null://}",
        "vlan://3/tag=10-4095{null://}",
        "vlan://3/untag=-1{null://}",
        "vlan://3/color=red{null://}",
        "vlan://3{nonsense://}",
        "agno://",
        "agno://relative{null://}",
        "agno:///key[ethtype=0x5ff]{null://}",
        "agno:///key[ethtype=red]{null://}",
        "agno:///key[size=1]{null://}",
    ],
)
def test_mistakes(vnl: str) -> None:
    with pytest.raises(VnlError):
        registry.parse(vnl)


def test_nesting() -> None:
    """A frame of VLAN 4 inside of service VLAN 5, both ways."""
    a, b = pair()
    with_tags = VlanStream(VlanStream(a, Mapper(5, tpid=DOT1AD)), Mapper(4))
    assert with_tags.send(batch_of(plain(b"x" * 46))) == 1
    double = MACS + b"\x88\xa8\x00\x05\x81\x00\x00\x04\x08\x00" + b"x" * 46
    assert received(b) == [double]
    b.send(batch_of(double, tagged(4), tagged(5, tpid=DOT1AD)))
    assert received(with_tags) == [plain(b"x" * 46)]
    assert with_tags.drops["vlan"] == a.drops["vlan"] == 2
    with_tags.close()
    b.close()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda inner: VlanStream(inner, Mapper(7)),
        lambda inner: AgnoStream(inner, Codec(KEY)),
        lambda inner: AgnoStream(VlanStream(inner, Mapper(7)), Codec(KEY)),
    ],
    ids=["vlan", "agno", "agno-in-vlan"],
)
def test_full_inner_end(wrap: Callable[[Stream], Stream]) -> None:
    """More than the pipe holds: every frame arrives once, in order, and ``writer`` says when to go on."""
    a, b = pair()
    near, far = wrap(a), wrap(b)
    sent = [plain(index.to_bytes(4, "big") * 300) for index in range(400)]
    waiting = list(sent)
    got: list[bytes] = []
    batch, start, stalls = Batch(), 0, 0
    while len(got) < len(sent):
        if near.writer() is not None:
            stalls += 1
            got += received(far)
            near.flush()
        if near.writer() is None:
            if start == batch.count:
                batch, start = batch_of(*waiting[:64]), 0
                del waiting[:64]
            start += near.send(batch, start)
        if not waiting and start == batch.count:
            got += received(far)
    assert got == sent
    assert stalls
    assert not near.drops
    assert not far.drops
    near.close()
    far.close()


def test_too_big() -> None:
    a, b = pair()
    near = VlanStream(a, Mapper(7))
    assert near.send(batch_of(plain(bytes(9234 - 14)), plain(bytes(9230 - 14)))) == 2
    assert near.drops["too-big"] == 1
    assert [len(frame) for frame in received(b)] == [9234]
    near.close()
    b.close()


def test_agno_counts_why() -> None:
    a, b = pair()
    clock = [1000.0]
    near, far = AgnoStream(a, Codec(KEY)), AgnoStream(b, Codec(KEY, clock=lambda: clock[0]))
    other = Codec(bytes(16), clock=lambda: clock[0])
    near.send(batch_of(plain()))
    a.send(batch_of(other.encrypt(plain()), plain(b"")))
    assert received(far) == []
    assert far.drops == {"agno-time": 1, "agno-key": 1, "agno-short": 1}
    assert "another key" in far.fault()
    near.close()
    far.close()


@pytest.mark.parametrize(
    ("address", "expected"),
    [("", "~/.vde_agno_key"), ("/etc/key", "/etc/key"), ("~/keys/a", "~/keys/a")],
)
def test_key_path(address: str, expected: str) -> None:
    spec = registry.parse(f"agno://{address}[ethtype=rand]{{null://}}").spec
    assert spec == AgnoSpec(expected, "rand", registry.parse("null://"))


def test_key_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = tmp_path / "key"
    with pytest.raises(HostError, match="No such file"):
        read_key(str(key))
    key.write_text("no digits")  # "d" is one
    with pytest.raises(HostError, match="32 hex digits"):
        read_key(str(key))
    key.write_text("00 01-02:03040506070809\n0A0b0c0d0e0f, and more")
    key.chmod(0o644)
    assert read_key(str(key)) == bytes.fromhex("000102030405060708090" + "10b0c0d0e0f")
    said = capsys.readouterr().err
    assert '"A" in the key counts as 1' in said
    assert "other users can read this key" in said
    read_key(str(key))
    assert not capsys.readouterr().err, "said twice"
    key.chmod(0o600)


def test_agno_warns_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = tmp_path / "key"
    key.write_text("00112233445566778899aabbccddeeff")
    key.chmod(0o600)
    plugin = AgnoPlugin()
    for _ in range(2):
        end = registry.parse(f"agno://{key}{{null://}}")
        end.open().close()
    assert capsys.readouterr().err.count("not authenticated") <= 1
    assert "userspace" in str(plugin.kernel_end(end.spec))
