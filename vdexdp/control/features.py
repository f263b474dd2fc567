# SPDX-License-Identifier: GPL-2.0-or-later
"""What the kernel has, found by having it done: never by its version, since distributions carry features back.

A probe is a program of a few instructions that is loaded, and where loading does not tell, run once on a packet of its
own (BPF_PROG_TEST_RUN) or offered to an interface that can't take it.  Nothing on the host changes, no frame is sent,
and a probe takes some 20 to 100 µs.  Each is made when first asked for, and remembered for the life of a
:class:`Features`, which for the daemon is its own.

What is missing costs speed, never frames; :data:`TABLE` says what is done instead.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal

from vdexdp.control import bpf_link, bpf_map, bpf_prog
from vdexdp.errors import VdexdpError

REDIRECT, KTIME_NS, REDIRECT_MAP, ADJUST_ROOM = 23, 5, 51, 50
REDIRECT_PEER, KTIME_COARSE, XDP_BUFF_LEN = 155, 160, 188
"""Helpers by number (uapi/linux/bpf.h, ``__BPF_FUNC_MAPPER``)."""

BROADCAST: Final = 1 << 3 | 1 << 4
"""BPF_F_BROADCAST | BPF_F_EXCLUDE_INGRESS of bpf_redirect_map."""

ENCAP_UDP4: Final = 1 << 1 | 1 << 4 | 14 << 56
ENCAP_ETHERNET: Final = 1 << 6
DECAP_IPV4: Final = 1 << 7
"""Flags of bpf_skb_adjust_room: BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, …L4_UDP, …L2(14); …ENCAP_L2_ETH; …DECAP_L3_IPV4."""

XDP_HAS_FRAGS: Final = 1 << 5
"""BPF_F_XDP_HAS_FRAGS, of a program when it is loaded."""

_NOBODY: Final = 0x7FFFFFFF
"""An interface index that does not exist: attaching to it shows by its errno whether the kernel knows the type."""

_MOV, _CALL, _EXIT, _LD_IMM64, _MAP = 0xB7, 0x85, 0x95, 0x18, 1
_IPV4 = b"\2" * 12 + b"\x08\0" + b"\x45" + bytes(99)


def _insn(code: int, register: int = 0, immediate: int = 0, source: int = 0) -> bytes:
    return struct.pack("<BBhi", code, register | source << 4, 0, immediate)


def _imm64(register: int, value: int) -> bytes:
    return struct.pack("<BBhIBBhI", _LD_IMM64, register, 0, value & 0xFFFFFFFF, 0, 0, 0, value >> 32)


_RETURN_2: Final = _insn(_MOV, 0, 2) + _insn(_EXIT)
"""XDP_PASS, and from a tc program TC_ACT_SHOT."""


def loads(kind: Literal["tc", "xdp"], code: bytes, prog_flags: int = 0) -> bool:
    """Whether the kernel takes such a program.  Raises OSError with EPERM where it takes none from us."""
    try:
        os.close(bpf_prog.load(kind, "probe", code, prog_flags=prog_flags, log=False))
    except OSError as error:
        if error.errno == errno.EPERM:
            raise
        return False
    return True


def has_helper(kind: Literal["tc", "xdp"], number: int, arguments: int = 0) -> bool:
    """Whether programs of this kind may call a helper that takes so many numbers."""
    code = b"".join(_insn(_MOV, register + 1) for register in range(arguments))
    return loads(kind, code + _insn(_CALL, immediate=number) + _insn(_EXIT))


def takes_link(kind: Literal["tc", "xdp"], attach_type: int, ifindex: int, flags: int = 0) -> bool:
    """Whether the kernel knows this type of link: offered to ``ifindex``, it is refused for another reason."""
    program = bpf_prog.load(kind, "probe", _RETURN_2, log=False)
    try:
        os.close(bpf_link.create(program, ifindex, attach_type, flags))
    except OSError as error:
        if error.errno == errno.EPERM:
            raise
        return error.errno != errno.EINVAL
    finally:
        os.close(program)
    return True


def run(kind: Literal["tc", "xdp"], code: bytes) -> int | None:
    """What a program returns for an IPv4 packet, as the kernel's signed int; None where it does not load or run."""
    try:
        program = bpf_prog.load(kind, "probe", code, log=False)
    except OSError as error:
        if error.errno == errno.EPERM:
            raise
        return None
    try:
        return ctypes.c_int32(bpf_prog.run(program, _IPV4).verdict).value
    except OSError:
        return None
    finally:
        os.close(program)


def room_flags(delta: int, flags: int) -> bool:
    """Whether bpf_skb_adjust_room takes these flags, for ``delta`` more or fewer bytes behind the Ethernet header."""
    code = _insn(_MOV, 2, delta) + _insn(_MOV, 3, 1) + _imm64(4, flags) + _insn(_CALL, immediate=ADJUST_ROOM)
    return run("tc", code + _insn(_EXIT)) == 0


def redirect_map_flags(flags: int) -> bool:
    """Whether bpf_redirect_map takes these flags: with unknown ones it returns XDP_ABORTED."""
    devices = bpf_map.Map.create("probe", "DEVMAP", ctypes.c_uint32, ctypes.c_uint32, 1)
    try:
        code = _insn(_LD_IMM64, 1, devices.fd, _MAP) + _insn(0) + _insn(_MOV, 2) + _insn(_MOV, 3, flags)
        return run("xdp", code + _insn(_CALL, immediate=REDIRECT_MAP) + _insn(_EXIT)) == 4  # XDP_REDIRECT
    finally:
        devices.close()


class Features:
    """One kernel's answers.  Every property may raise OSError with EPERM, from a caller that may not use bpf(2)."""

    @cached_property
    def tcx(self) -> bool:
        return takes_link("tc", bpf_link.ATTACH_TCX_INGRESS, _NOBODY)

    @cached_property
    def xdp_link(self) -> bool:
        # An interface that does not exist is EINVAL here; native XDP on the loopback, which no kernel has, is not.
        return takes_link("xdp", bpf_link.ATTACH_XDP, socket.if_nametoindex("lo"), bpf_link.XDP_FLAGS_DRV_MODE)

    @cached_property
    def redirect_peer(self) -> bool:
        return has_helper("tc", REDIRECT_PEER, 2)

    @cached_property
    def coarse_clock(self) -> bool:
        return has_helper("xdp", KTIME_COARSE)

    @cached_property
    def encap_ethernet(self) -> bool:
        return room_flags(50, ENCAP_UDP4 | ENCAP_ETHERNET)

    @cached_property
    def decap_typed(self) -> bool:
        return room_flags(-50, DECAP_IPV4)

    @cached_property
    def broadcast(self) -> bool:
        return redirect_map_flags(BROADCAST)

    @cached_property
    def frags(self) -> bool:
        length = _insn(_CALL, immediate=XDP_BUFF_LEN) + _insn(_EXIT)
        return loads("xdp", length, XDP_HAS_FRAGS)

    @property
    def substitutes(self) -> dict[int, int | None]:
        """Helpers that this kernel lacks, and what the loader puts in their places.

        A helper with the same arguments; None stands for the result 0.
        """
        found: dict[int, int | None] = {}
        if not self.redirect_peer:
            found[REDIRECT_PEER] = REDIRECT
        if not self.coarse_clock:
            found[KTIME_COARSE] = KTIME_NS
        if not self.frags:
            found[XDP_BUFF_LEN] = None
        return found

    def all(self) -> dict[str, bool]:
        """Every answer, in the order of the table."""
        return {name: bool(getattr(self, name)) for name in TABLE}


@dataclass(frozen=True)
class Row:
    """``title`` of a feature, what it is good for, and what is done where it is missing."""

    title: str
    use: str
    instead: str


TABLE: Final[dict[str, Row]] = {
    "tcx": Row(
        "links for tc programs (tcx)",
        "they vanish with their last descriptor",
        "clsact filters; the next start removes what a killed daemon leaves",
    ),
    "xdp_link": Row(
        "links for XDP programs",
        "they vanish with their last descriptor",
        "attached by netlink; the next start removes what a killed daemon leaves",
    ),
    "redirect_peer": Row(
        "redirect_peer",
        "frames enter a veth's far end without a second queue",
        "frames pass the queue between the ends of a veth",
    ),
    "coarse_clock": Row(
        "coarse clock", "the cheap time of the last tick, for ageing", "the exact time, at some ns more"
    ),
    "encap_ethernet": Row(
        "adjust_room: Ethernet inside",
        "NICs that know VXLAN segment super-packets",
        "super-packets are segmented by the kernel",
    ),
    "decap_typed": Row(
        "adjust_room: what appears",
        "IPv6 in IPv4, and the other way, come out in one step",
        "one more step for a frame whose IP version is not the outer one's",
    ),
    "broadcast": Row(
        "broadcast redirect of XDP", "not used: floods are tc's, by clones", "not needed: floods are tc's, by clones"
    ),
    "frags": Row(
        "XDP with fragments", "native XDP on interfaces with a large MTU", "tc, where the MTU is too large for XDP"
    ),
}
"""By the names of the properties of :class:`Features`."""


def known(ask: Callable[[], dict[str, Any]]) -> dict[str, bool]:
    """What this process may find out, else what ``ask`` says, a daemon's answer; empty where neither knows."""
    try:
        return Features().all()
    except (OSError, VdexdpError):
        pass
    try:
        return {name: bool(value) for name, value in ask().items() if name in TABLE}
    except VdexdpError:
        return {}
