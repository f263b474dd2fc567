# SPDX-License-Identifier: GPL-2.0-or-later
"""``vlan://U/untag=V/tag=LIST/trunk/qinq{VNL}``: 802.1Q tags put on, taken off and mapped in front of any other end.

What happens to a frame is written in :mod:`vdexdp.wire.dot1q`.  Both ways of writing options are taken, with slashes
(as stock's code does) and in brackets (as its manual page says).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from vdexdp.errors import VnlError
from vdexdp.plugins import registry
from vdexdp.plugins.base import Buffer, KernelEnd, NoKernelEnd, OpenContext, Option, Parsed, Plugin, Stream
from vdexdp.plugins.wrapper import RewriterStream
from vdexdp.vnl import c_integer
from vdexdp.wire.dot1q import Mapper, parse_tags
from vdexdp.wire.ethernet import DOT1AD, DOT1Q, VID_MASK


@dataclass(frozen=True)
class VlanSpec:
    mapper: Mapper
    inner: registry.End


class VlanStream(RewriterStream):
    """The inner end behind a policy."""

    def __init__(self, inner: Stream, mapper: Mapper) -> None:
        super().__init__(inner)
        self._mapper = mapper

    def outward(self, frame: Buffer) -> Buffer | None:
        return self._counted(self._mapper.outward(frame))

    def inward(self, frame: Buffer) -> Buffer | None:
        return self._counted(self._mapper.inward(frame))

    def _counted(self, frame: Buffer | None) -> Buffer | None:
        if frame is None:
            self.drops["vlan"] += 1
        return frame


def wrapped(stream: Stream, mappers: Sequence[Mapper]) -> Stream:
    """A stream behind policies, outermost first."""
    for mapper in reversed(mappers):
        stream = VlanStream(stream, mapper)
    return stream


class VlanPlugin(Plugin):
    scheme = "vlan"
    grammar = "nested-slash"
    summary = "802.1Q and 802.1ad tags in front of another end"
    address = "[VLAN]"
    path = "that of the VNL in it"
    example = "vlan://3/untag=4/trunk/tag=10:11-12:12-11{vde:///tmp/sw}"
    options = (
        Option("u", "as untag", alias="untag"),
        Option("untag", "untagged frames of the inner end appear with this tag", default="0 (none)"),
        Option("t", "as tag", alias="tag"),
        Option("tag", "VLANs that pass tagged, as A or A-B (A here is B in the inner end), between : or .", default=""),
        Option("x", "as trunk", flag=True, alias="trunk"),
        Option("trunk", "all other VLANs pass tagged, too", flag=True),
        Option("q", "as qinq", flag=True, alias="qinq"),
        Option("qinq", "802.1ad (ethertype 0x88a8) instead of 802.1Q", flag=True),
        Option("ad", "as qinq", flag=True, alias="qinq"),
    )

    def parse(self, parsed: Parsed) -> VlanSpec:
        if not parsed.nested:
            raise VnlError(parsed.vnl, "no VNL in braces", f"write for instance {self.example}")
        try:
            tags = parse_tags(parsed.options.get("tag", ""))
        except ValueError as error:
            raise parsed.error("tag", f": {error}", "write VLANs between :, like tag=10:11-12") from error
        mapper = Mapper(
            untagged=self._vlan(parsed, "the VLAN in front", parsed.address),
            untag=self._vlan(parsed, "untag", parsed.options.get("untag", "")),
            tags=tags,
            trunk="trunk" in parsed.options,
            tpid=DOT1AD if "qinq" in parsed.options else DOT1Q,
        )
        return VlanSpec(mapper, registry.parse(parsed.nested))

    def open(self, spec: VlanSpec, context: OpenContext) -> VlanStream:
        return VlanStream(spec.inner.open(context), spec.mapper)

    def kernel_end(self, spec: VlanSpec) -> KernelEnd | NoKernelEnd:
        inner = spec.inner.kernel_end()
        if isinstance(inner, NoKernelEnd):
            return NoKernelEnd(inner.reason)
        return replace(inner, vlan=(spec.mapper, *inner.vlan))

    @staticmethod
    def _vlan(parsed: Parsed, what: str, text: str) -> int:
        """A VLAN id; 0 where there is none."""
        if not text:
            return 0
        vid = c_integer(text, 0)
        if vid is None or vid > VID_MASK:
            raise VnlError(parsed.vnl, f'{what}, "{text}", is not a VLAN', "give a number up to 4095")
        return vid
