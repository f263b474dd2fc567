# SPDX-License-Identifier: GPL-2.0-or-later
"""``vxvdex://``: the vxvde network of the caller's own group, and of no other.

The caller's effective gid is the VNI, and the last three bytes of the multicast group: 239.a.b.c or
ff05:56de::xABC.  So who has the same gid meets, on any host of the LAN, and an administrator joins with
``vxvde://grp=NAME``.

Libvdeplug's module has this enforced by a kernel module of its own; here the daemon does it, which asks the kernel
who the caller is.  It is the daemon that decides: a plug in userspace (``--accel off``) opens the same sockets as
``vxvde://`` and is a convention between friends.
"""

from __future__ import annotations

import os
from dataclasses import replace

from vdexdp.errors import VnlError
from vdexdp.plugins import vxnet
from vdexdp.plugins.base import HOOK, OpenContext, Option, Parsed, Plugin, Stream, Tunnel
from vdexdp.plugins.vxvde import PORT
from vdexdp.vnl import group, vni
from vdexdp.wire.vxlan import VNI_MAX


class VxvdexPlugin(Plugin):
    scheme = "vxvdex"
    grammar = "slash"
    summary = "the vxvde network of the caller's effective group"
    address = "[group]"
    example = "vxvdex://"
    options = (
        Option("port", "the group's UDP port", str(PORT)),
        Option("vni", "network identifier; can only be the caller's effective gid", "the gid"),
        Option("grp", "the network's group; can only be the caller's effective group", "the gid"),
        vxnet.TTL,
        vxnet.RCVBUF,
        vxnet.V6,
        vxnet.V4,
        vxnet.HASHSIZE,
        vxnet.EXPIRETIME,
        vxnet.INTERFACE,
        HOOK,
    )

    def parse(self, parsed: Parsed) -> vxnet.VxSpec:
        gid = os.getegid()
        if gid > VNI_MAX:
            raise VnlError(parsed.vnl, f"the effective gid {gid} does not fit into a VNI's 24 bits", "change the group")
        for key, wanted in (("vni", vni(parsed, "vni", gid)), ("grp", group(parsed, "grp"))):
            if wanted not in (gid, None):
                raise parsed.error(key, f"is not the caller's effective gid, {gid}", "vxvde:// takes any network")
        own = {**parsed.options, "grp": str(gid), "vni": str(gid)}
        return vxnet.parse_network(replace(parsed, options=own), "vxvde", PORT)

    def open(self, spec: vxnet.VxSpec, context: OpenContext) -> Stream:
        from vdexdp.plugins.vxstream import VxvdeStream

        return VxvdeStream(spec)

    def kernel_end(self, spec: vxnet.VxSpec) -> Tunnel:
        vxnet.interface_index(f"vxvdex://{spec.tunnel.group}", spec.tunnel.device)
        return spec.tunnel
