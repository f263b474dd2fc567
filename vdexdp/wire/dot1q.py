# SPDX-License-Identifier: GPL-2.0-or-later
"""What ``vlan://U/untag=…/tag=…/trunk/qinq{…}`` does to a frame.

There is an inside (the machine that plugs in) and an outside (the nested VNL):

===================== ============================================= =======================================
outside               inside                                        set by
===================== ============================================= =======================================
tag U                 untagged                                      the address; 0 is none
untagged              tag ``untag``                                 untag=; 0 is none
tag B                 tag A                                         tag=A-B, or A for A-A
any other legal tag   the same tag                                  trunk
===================== ============================================= =======================================

Everything else is dropped.  Untagged frames pass untouched where neither U nor ``untag`` is set.  "Tagged" means tagged
with the TPID of the policy, 802.1Q or (qinq) 802.1ad: another TPID counts as payload, so that policies nest.  A
priority tag (VLAN 0) is taken off where U, respectively ``untag``, is 0.  The ids 0, 1 and 4095 never pass as tags.

These are the rules of libvdeplug_vlan.  It differs where it is wrong: it clears the priority bits when it maps an id,
returns stale bytes behind a mapped frame, and reads behind the end of a tagged frame of less than 18 bytes, which is
dropped here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vdexdp.wire.ethernet import DOT1Q, HEADER_SIZE, TAG_SIZE, VID_MASK, Buffer

UNTAGGED_BLOCKED = 0xFFF
"""As U: what the inside sends untagged is dropped."""


def is_legal(vid: int) -> bool:
    """Whether a VLAN id may be carried as a tag."""
    return 2 <= vid <= 0xFFE


@dataclass(frozen=True)
class Mapper:
    """One policy.  ``tags`` are (inside, outside) pairs; of two with the same id on one side the first counts."""

    untagged: int = 0
    untag: int = 0
    tags: tuple[tuple[int, int], ...] = ()
    trunk: bool = False
    tpid: int = DOT1Q
    _out: Mapping[int, int] = field(init=False, repr=False, compare=False)
    _in: Mapping[int, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        pairs = tuple(reversed(self.tags))
        object.__setattr__(self, "_out", dict(pairs))
        object.__setattr__(self, "_in", {outside: inside for inside, outside in pairs})

    def outward(self, frame: Buffer) -> Buffer | None:
        """What goes out for a frame from the inside; None where it is dropped."""
        vid = self._vid(frame)
        if vid is None:
            if self.untagged == UNTAGGED_BLOCKED or not _is_frame(frame):
                return None
            if self.untagged:
                return self._add(frame, self.untagged)
            return None if self.untag else frame
        return self._remove(frame) if vid == self.untag else self._remap(frame, vid, self._out)

    def inward(self, frame: Buffer) -> Buffer | None:
        """What comes in for a frame from the outside; None where it is dropped."""
        vid = self._vid(frame)
        if vid is None:
            if not _is_frame(frame):
                return None
            if self.untag:
                return self._add(frame, self.untag)
            return None if self.untagged else frame
        return self._remove(frame) if vid == self.untagged else self._remap(frame, vid, self._in)

    def _vid(self, frame: Buffer) -> int | None:
        """The VLAN id of a frame tagged with our TPID; None for any other frame."""
        if len(frame) < HEADER_SIZE + 2 or (frame[12] << 8 | frame[13]) != self.tpid:
            return None
        return (frame[14] << 8 | frame[15]) & VID_MASK

    def _add(self, frame: Buffer, vid: int) -> bytes:
        return b"".join((frame[:12], self.tpid.to_bytes(2, "big"), vid.to_bytes(2, "big"), frame[12:]))

    def _remove(self, frame: Buffer) -> bytes | None:
        if len(frame) < HEADER_SIZE + TAG_SIZE:
            return None
        return b"".join((frame[:12], frame[12 + TAG_SIZE :]))

    def _remap(self, frame: Buffer, vid: int, table: Mapping[int, int]) -> Buffer | None:
        mapped = table.get(vid, 0) or (vid if self.trunk else 0)
        if not is_legal(mapped) or len(frame) < HEADER_SIZE + TAG_SIZE:
            return None
        if mapped == vid:
            return frame
        priority = frame[14] & 0xF0
        return b"".join((frame[:14], bytes((priority | mapped >> 8, mapped & 0xFF)), frame[16:]))


def _is_frame(frame: Buffer) -> bool:
    return len(frame) >= HEADER_SIZE


def parse_tags(text: str) -> tuple[tuple[int, int], ...]:
    """The pairs in ``10:11-12``: ids between ``:`` or ``.``, each with another one behind ``-`` where it is mapped.

    Numbers are decimal, or hexadecimal behind ``0x``.  Raises ValueError for what is no such list and for ids that are
    not legal.
    """
    pairs: list[tuple[int, int]] = []
    for word in text.replace(".", ":").split(":"):
        if not word:
            continue
        inside, dash, outside = word.partition("-")
        pairs.append((_vid(inside), _vid(outside if dash else inside)))
    return tuple(pairs)


def _vid(text: str) -> int:
    try:
        vid = int(text, 16 if text[:2] in ("0x", "0X") else 10)
    except ValueError:
        raise ValueError(f'"{text}" is not a VLAN id') from None
    if not is_legal(vid):
        raise ValueError(f"VLAN {vid} is not between 2 and 4094")
    return vid
