# SPDX-License-Identifier: GPL-2.0-or-later
"""Shows that agno frames are exchanged with stock libvdeplug_agno, and which frames are refused."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import stock
from vdexdp.wire import agno
from vdexdp.wire.agno import Codec, OuterType, Rejected

KEY_TEXT = "00112233 44556677\n8899aabb-ccDDeeFA 0 and more"
KEY = bytes.fromhex("00112233445566778899aabbccDDeeF1")
"""Not what one would think: libvdeplug_agno takes ``A`` for 1."""

FRAMES = st.binary(min_size=14, max_size=120) | st.sampled_from([1499, 1500, 1514, 9216]).map(
    lambda size: bytes(i * 7 & 0xFF for i in range(size))
)
quick = settings(deadline=None)


def codec(now: float = 1e9, key: bytes = KEY, ethertype: OuterType = agno.ETHERTYPE) -> Codec:
    counter = itertools.count()
    return Codec(
        key, ethertype, clock=lambda: now, random=lambda size: (next(counter) * 0x9E3779B1 % 2**32).to_bytes(8)[-size:]
    )


@pytest.fixture(scope="module")
def plug(tmp_path_factory: pytest.TempPathFactory) -> Iterator[stock.Plug]:
    file = tmp_path_factory.mktemp("agno") / "key"
    file.write_text(KEY_TEXT)
    with stock.Plug(f"agno://{file}{{}}") as opened:
        yield opened


@quick
@given(st.lists(FRAMES, min_size=1, max_size=4))
def test_stock_decrypts_ours(plug: stock.Plug, frames: list[bytes]) -> None:
    sender = Codec(KEY)
    for frame in frames:
        assert plug.recv(sender.encrypt(frame)) == frame


@quick
@given(st.lists(FRAMES, min_size=1, max_size=4))
def test_we_decrypt_stock(plug: stock.Plug, frames: list[bytes]) -> None:
    receiver = Codec(KEY)
    for frame in frames:
        encrypted = plug.send(frame)
        assert encrypted is not None
        assert encrypted[:14] == frame[:12] + agno.ETHERTYPE.to_bytes(2)
        assert receiver.decrypt(encrypted) == frame


@quick
@given(st.lists(FRAMES, min_size=1, max_size=6), st.binary(max_size=15))
def test_frames_in_any_order(frames: list[bytes], padding: bytes) -> None:
    """Each frame stands alone, though the contexts are shared: order, repetition and loss change nothing."""
    sender, receiver = codec(), codec()
    encrypted = [sender.encrypt(memoryview(frame)) for frame in frames]
    for frame, wire in [*zip(frames, encrypted, strict=True)][::-1] * 2:
        assert len(wire) - len(frame) <= 31
        assert receiver.decrypt(memoryview(wire + padding)) == frame


def test_documented_layout() -> None:
    """The format as written in the module, checked with one-shot ciphers."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    frame = bytes(range(14)) + b"payload"
    wire = codec(now=0x01020304).encrypt(frame)
    header = Cipher(algorithms.AES(KEY), modes.ECB()).decryptor().update(wire[14:30])
    assert header == bytes((12, 13, 9, 0)) + b"agno" + bytes((1, 2, 3, 4)) + bytes(4)
    assert Cipher(algorithms.AES(KEY), modes.CBC(header)).decryptor().update(wire[30:]) == b"payload" + bytes(9)


@pytest.mark.parametrize(("age", "passes"), [(-2, False), (-1, True), (0, True), (2, True), (3, False), (2**31, False)])
@pytest.mark.parametrize("now", [1e9, 2**32 - 1.0, 2.0**32])
def test_time_window(age: int, passes: bool, now: float) -> None:
    frame = bytes(64)
    assert codec(now + age).decrypt(codec(now).encrypt(frame)) == (frame if passes else Rejected.TIME)


def test_time_window_of_stock(plug: stock.Plug) -> None:
    frame = bytes(64)
    for offset, passes in [(-30, False), (30, False), (0, True)]:
        assert (plug.recv(codec(time.time() + offset).encrypt(frame)) == frame) == passes


def test_other_keys_and_plain_frames() -> None:
    assert codec().decrypt(codec(key=bytes(16)).encrypt(bytes(64))) == Rejected.KEY
    assert codec().decrypt(bytes(64)) == Rejected.KEY
    for size in range(30):
        assert codec().decrypt(bytes(size)) == Rejected.SHORT


@given(st.binary(max_size=100))
def test_garbage(data: bytes) -> None:
    assert isinstance(codec().decrypt(data), Rejected)


@pytest.mark.parametrize(
    ("text", "outer"),
    [("", 0xA6DE), ("0", 0xA6DE), ("ipv4", 0x800), ("ipv6", 0x86DD), ("copy", 0x1234), ("0x88b5", 0x88B5)],
)
def test_outer_type(text: str, outer: int) -> None:
    frame = bytes(12) + b"\x12\x34" + bytes(50)
    wire = codec(ethertype=agno.parse_ethertype(text)).encrypt(frame)
    assert wire[12:14] == outer.to_bytes(2)
    assert codec().decrypt(wire) == frame


def test_random_outer_type() -> None:
    sender = codec(ethertype=agno.parse_ethertype("rand"))
    seen = {int.from_bytes(sender.encrypt(bytes(14))[12:14]) for _ in range(300)}
    assert len(seen) > 100
    assert min(seen) >= 0x600
    assert max(seen) <= 0xFFFE


@pytest.mark.parametrize("text", ["0x5ff", "0xffff", "65536", "ipv5", "-1", "1 0"])
def test_no_outer_type(text: str) -> None:
    with pytest.raises(ValueError, match="ethertype"):
        agno.parse_ethertype(text)


def test_keys() -> None:
    assert agno.parse_key(KEY_TEXT) == (KEY, True)
    assert agno.parse_key("ab") == (b"\xab" + bytes(15), False)
    for text in ("", "x", "f"):
        with pytest.raises(ValueError, match="there is no key in it"):
            agno.parse_key(text)
