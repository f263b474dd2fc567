# SPDX-License-Identifier: GPL-2.0-or-later
"""Shows that Ethernet headers are read as they were written, with any number of tags, and cut anywhere."""

from __future__ import annotations

import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vdexdp.wire import ethernet
from vdexdp.wire.ethernet import Header, Tag

MACS = st.binary(min_size=6, max_size=6)
TAGS = st.lists(st.builds(Tag, st.sampled_from(sorted(ethernet.TPIDS)), st.integers(0, 0xFFFF)), max_size=4)
TYPES = st.integers(0, 0xFFFF).filter(lambda ethertype: ethertype not in ethernet.TPIDS)


@given(MACS, MACS, TAGS, TYPES, st.binary(max_size=20))
def test_walk(dst: bytes, src: bytes, tags: list[Tag], ethertype: int, payload: bytes) -> None:
    raw = dst + src + b"".join(struct.pack("!HH", *tag) for tag in tags) + struct.pack("!H", ethertype)
    header = Header(dst, src, tuple(tags), ethertype, len(raw))
    assert ethernet.parse_header(raw + payload) == header
    assert ethernet.parse_header(memoryview(raw)) == header
    for end in range(len(raw)):
        assert ethernet.parse_header(raw[:end]) is None


@given(MACS)
@example(b"\xff" * 6)
def test_mac_text(mac: bytes) -> None:
    text = ethernet.format_mac(memoryview(mac))
    assert text == ":".join(f"{byte:02x}" for byte in mac)
    assert ethernet.parse_mac(text) == ethernet.parse_mac(text.upper().replace(":", "-")) == mac


@pytest.mark.parametrize("text", ["", "02:00:00:00:00", "02:00:00:00:00:0g", "02:00:00-00:00:01", "2:0:0:0:0:1"])
def test_no_mac(text: str) -> None:
    with pytest.raises(ValueError, match="is not a MAC address"):
        ethernet.parse_mac(text)
