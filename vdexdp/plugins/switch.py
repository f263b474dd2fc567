# SPDX-License-Identifier: GPL-2.0-or-later
"""``switch://[directory]``: a learning switch of its clients and the host, VLAN-aware in its table."""

from __future__ import annotations

from vdexdp.plugins.forwarding import Learning
from vdexdp.plugins.netnode import NetnodePlugin, NodeSpec


class SwitchPlugin(NetnodePlugin):
    scheme = "switch"
    summary = "a learning switch that legacy clients connect to"
    kernel_mode = "switch"
    example = "switch:///tmp/myswitch[mode=0660/grp=users]"

    def policy(self, spec: NodeSpec) -> Learning:
        return Learning(spec.hashsize, spec.expiry)
