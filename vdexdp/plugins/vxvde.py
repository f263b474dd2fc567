# SPDX-License-Identifier: GPL-2.0-or-later
"""``vxvde://``: the distributed switch of the VDE family, VXLAN's header over UDP with endpoints learnt by port."""

from __future__ import annotations

from typing import ClassVar

from vdexdp.plugins import vxnet
from vdexdp.plugins.base import HOOK, OpenContext, Option, Parsed, Stream

PORT = 14789


class VxvdePlugin(vxnet.VxPlugin):
    """All of libvdeplug's options, in its order; ``hook`` is ours."""

    scheme = "vxvde"
    grammar = "slash"
    summary = "a vxvde network: one switch, spread over all that join the multicast group"
    address = "[group]"
    example = "vxvde://234.0.0.1/vni=7/if=eth0"
    options: ClassVar[tuple[Option, ...]] = (
        Option("port", "the group's UDP port", str(PORT)),
        vxnet.VNI,
        Option("grp", "set the VNI and the last 3 bytes of the group to this group's gid"),
        *vxnet.REACH,
        Option("bind", "the local address of unicast traffic", "any"),
        HOOK,
    )

    def parse(self, parsed: Parsed) -> vxnet.VxSpec:
        return vxnet.parse_network(parsed, "vxvde", PORT)

    def open(self, spec: vxnet.VxSpec, context: OpenContext) -> Stream:
        from vdexdp.plugins.vxstream import VxvdeStream

        return VxvdeStream(spec)
