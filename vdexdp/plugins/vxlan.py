# SPDX-License-Identifier: GPL-2.0-or-later
"""``vxlan://``: standard VXLAN (RFC 7348) with a multicast group, as the kernel's own vxlan device speaks it."""

from __future__ import annotations

from vdexdp.plugins import vxnet
from vdexdp.plugins.base import HOOK, OpenContext, Option, Parsed, Stream

PORT = 4789


class VxlanPlugin(vxnet.VxPlugin):
    """All of libvdeplug's options, in its order; ``hook`` is ours."""

    scheme = "vxlan"
    grammar = "slash"
    summary = "a VXLAN network: a multicast group and a VNI, as the kernel's vxlan device has them"
    address = "[group]"
    example = "vxlan://239.1.2.3/vni=42/if=eth0"
    options = (
        Option("port", "UDP port of the group and of every endpoint", str(PORT)),
        vxnet.VNI,
        *vxnet.REACH,
        HOOK,
    )

    def parse(self, parsed: Parsed) -> vxnet.VxSpec:
        return vxnet.parse_network(parsed, "vxlan", PORT)

    def open(self, spec: vxnet.VxSpec, context: OpenContext) -> Stream:
        from vdexdp.plugins.vxstream import VxlanStream

        return VxlanStream(spec)
