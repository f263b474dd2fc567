# SPDX-License-Identifier: GPL-2.0-or-later
"""``vxvde://``: the distributed switch of the VDE family, VXLAN's header over UDP with endpoints learnt by port."""

from __future__ import annotations

from vdexdp.plugins import vxnet
from vdexdp.plugins.base import HOOK, OpenContext, Option, Parsed, Plugin, Stream, Tunnel

PORT = 14789


class VxvdePlugin(Plugin):
    """All of libvdeplug's options, in its order; ``hook`` is ours."""

    scheme = "vxvde"
    grammar = "slash"
    summary = "a vxvde network: one switch, spread over all that join the multicast group"
    address = "[group]"
    example = "vxvde://234.0.0.1/vni=7/if=eth0"
    options = (
        Option("port", "the group's UDP port", str(PORT)),
        vxnet.VNI,
        Option("grp", "set the VNI and the last 3 bytes of the group to this group's gid"),
        vxnet.TTL,
        vxnet.RCVBUF,
        vxnet.V6,
        vxnet.V4,
        vxnet.HASHSIZE,
        vxnet.EXPIRETIME,
        vxnet.INTERFACE,
        Option("bind", "the local address of unicast traffic", "any"),
        HOOK,
    )

    def parse(self, parsed: Parsed) -> vxnet.VxSpec:
        return vxnet.parse_network(parsed, "vxvde", PORT)

    def open(self, spec: vxnet.VxSpec, context: OpenContext) -> Stream:
        from vdexdp.plugins.vxstream import VxvdeStream

        return VxvdeStream(spec)

    def kernel_end(self, spec: vxnet.VxSpec) -> Tunnel:
        vxnet.interface_index(f"vxvde://{spec.tunnel.group}", spec.tunnel.device)
        return spec.tunnel
