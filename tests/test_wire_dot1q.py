# SPDX-License-Identifier: GPL-2.0-or-later
"""Shows that ``vlan://`` does to frames what stock libvdeplug_vlan does: it runs beside ours, over a ``seqpacket://``.

Exempt: a mapped tag keeps its priority bits here and loses them in stock, stock returns stale bytes behind a received
frame with a tag, and reads behind the end of a tagged frame of less than 18 bytes (which is dropped here).
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests import stock
from vdexdp.wire import dot1q
from vdexdp.wire.dot1q import Mapper
from vdexdp.wire.ethernet import DOT1AD, DOT1Q, Tag

HEAD = b"\x02\0\0\0\0\x01\x02\0\0\0\0\x02"

POLICIES = {
    "0": Mapper(),
    "3": Mapper(3),
    "4095/u=5": Mapper(4095, 5),
    "0/untag=5": Mapper(0, 5),
    "3/u=4/trunk/tag=10:11-12:12-11.3010": Mapper(3, 4, ((10, 10), (11, 12), (12, 11), (3010, 3010)), trunk=True),
    "3/t=11-12:13-12:11-14": Mapper(3, 0, ((11, 12), (13, 12), (11, 14))),
    "0/x": Mapper(trunk=True),
    "12/x/q/t=10": Mapper(12, 0, ((10, 10),), True, DOT1AD),
    "7/ad/u=8": Mapper(7, 8, tpid=DOT1AD),
}

VIDS = st.sampled_from([0, 1, 2, 3, 4, 5, 7, 8, 10, 11, 12, 13, 14, 3010, 3011, 4094, 4095])
TAGS = st.builds(
    Tag, st.sampled_from([DOT1Q, DOT1AD]), st.builds(lambda high, vid: high << 12 | vid, st.integers(0, 15), VIDS)
)
FRAMES = st.builds(
    lambda tags, rest: HEAD + b"".join(tag.tpid.to_bytes(2) + tag.tci.to_bytes(2) for tag in tags) + b"\x88\xb5" + rest,
    st.lists(TAGS, max_size=3),
    st.binary(max_size=50),
)
quick = settings(deadline=None)


@pytest.fixture(scope="module")
def plugs() -> Iterator[dict[str, stock.Plug]]:
    opened = {body: stock.Plug(f"vlan://{body}{{}}") for body in POLICIES}
    yield opened
    for plug in opened.values():
        plug.close()


def without_priority(before: bytes, after: bytes | None, mapper: Mapper) -> bytes | None:
    """``after`` with the priority cleared where a tag of ours stays a tag of ours: what stock makes of it."""
    ours = mapper.tpid.to_bytes(2)
    if after is None or before[12:14] != ours or len(after) != len(before):
        return after
    return after[:14] + bytes((after[14] & 0x0F,)) + after[15:]


def plain(frame: bytes | bytearray | memoryview | None) -> bytes | None:
    return None if frame is None else bytes(frame)


@quick
@given(st.sampled_from(list(POLICIES)), FRAMES)
@example("3", HEAD + b"\x81\x00\xe0\x03\x08\x00" + bytes(46))
def test_outward_is_stock(plugs: dict[str, stock.Plug], body: str, frame: bytes) -> None:
    mapper = POLICIES[body]
    if len(frame) >= 18 or frame[12:14] != mapper.tpid.to_bytes(2):
        mine = plain(mapper.outward(memoryview(frame)))
        assert without_priority(frame, mine, mapper) == plugs[body].send(frame)


@quick
@given(st.sampled_from(list(POLICIES)), FRAMES)
@example("3", HEAD + b"\x81\x00\xe0\x03\x08\x00" + bytes(46))
def test_inward_is_stock(plugs: dict[str, stock.Plug], body: str, frame: bytes) -> None:
    mapper = POLICIES[body]
    tagged = frame[12:14] == mapper.tpid.to_bytes(2)
    if len(frame) < 18 and tagged:
        return
    mine = without_priority(frame, plain(mapper.inward(memoryview(frame))), mapper)
    got = plugs[body].recv(frame)
    if mine is not None and got is not None and tagged and len(mine) == len(frame):
        got = got[: len(frame)]
    assert mine == got


@pytest.mark.parametrize("priority", [0, 3, 7])
def test_priority_survives_mapping(priority: int) -> None:
    mapper = Mapper(tags=((11, 12),))
    inside = HEAD + b"\x81\x00" + bytes((priority << 5 | 0x10, 11)) + b"\x08\x00data"
    outside = HEAD + b"\x81\x00" + bytes((priority << 5 | 0x10, 12)) + b"\x08\x00data"
    assert mapper.outward(inside) == outside
    assert mapper.inward(outside) == inside


@pytest.mark.parametrize("size", range(18))
def test_stumps(size: int) -> None:
    """A frame that ends inside its header or its tag never passes, nor crashes."""
    stump = (HEAD + b"\x81\x00\x00\x03\x08\x00")[:size]
    for mapper in (Mapper(3, 3, trunk=True), Mapper(4, 4, trunk=True)):
        for out in (mapper.outward(stump), mapper.inward(stump)):
            assert out is None or size in (14, 15)


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("", ()),
        ("10", ((10, 10),)),
        ("10:11-12", ((10, 10), (11, 12))),
        ("10.11-0xc.", ((10, 10), (11, 12))),
        ("2:4094", ((2, 2), (4094, 4094))),
    ],
)
def test_tags(text: str, pairs: tuple[tuple[int, int], ...]) -> None:
    assert dot1q.parse_tags(text) == pairs


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0", "VLAN 0 is not between 2 and 4094"),
        ("10:1", "VLAN 1 is not between"),
        ("10-4095", "VLAN 4095 is not between"),
        ("10-", '"" is not a VLAN id'),
        ("a", '"a" is not a VLAN id'),
        ("10-11-12", '"11-12" is not a VLAN id'),
    ],
)
def test_no_tags(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dot1q.parse_tags(text)
