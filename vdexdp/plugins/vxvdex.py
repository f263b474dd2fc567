# SPDX-License-Identifier: GPL-2.0-or-later
"""``vxvdex://``: the vxvde network of the caller's own group, and of no other.

The caller's effective gid is the VNI, and the last three bytes of the multicast group: 239.a.b.c or
ff05:56de::xABC.  So who has the same gid meets, on any host of the LAN, and an administrator joins with
``vxvde://grp=NAME``.

Libvdeplug's module has this enforced by a kernel module of its own.  Here the daemon enforces it for what runs in the
kernel path (its policy): it takes the gid from the kernel, not from the request, and lets nobody but root into another
group's network.  A plug in userspace opens the same sockets as ``vxvde://``, as anybody may: there it is a convention
between friends, unless a firewall sees to it (docs/policy.md).
"""

from __future__ import annotations

import os
from dataclasses import replace

from vdexdp.errors import VnlError
from vdexdp.plugins import vxnet
from vdexdp.plugins.base import HOOK, Option, Parsed
from vdexdp.plugins.vxvde import PORT, VxvdePlugin
from vdexdp.vnl import group, vni
from vdexdp.wire.vxlan import VNI_MAX


class VxvdexPlugin(VxvdePlugin):
    scheme = "vxvdex"
    grammar = "slash"
    summary = "the vxvde network of the caller's effective group"
    address = "[group]"
    example = "vxvdex://"
    options = (
        Option("port", "the group's UDP port", str(PORT)),
        Option("vni", "network identifier; can only be the caller's effective gid", "the gid"),
        Option("grp", "the network's group; can only be the caller's effective group", "the gid"),
        *vxnet.REACH,
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
