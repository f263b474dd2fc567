# SPDX-License-Identifier: GPL-2.0-or-later
"""``pcap://NAME``: copies of what an interface receives, and frames sent out through it.

The host's stack is not disturbed: it goes on getting every frame, and neither what it sends nor what is sent here
comes back as input.  That is what libvdeplug's module does with libpcap; a packet socket does the same in batches,
and finishes the checksums and large segments that libpcap hands over as they are.

There is no kernel path, on purpose: a port of a kernel switch takes its frames, and the host would lose them.  Who
wants that writes ``netdev://``.
"""

from __future__ import annotations

from dataclasses import dataclass

from vdexdp.plugins.base import NoKernelEnd, OpenContext, Parsed, Plugin, Stream
from vdexdp.plugins.tap import interface_name


@dataclass(frozen=True)
class PcapSpec:
    name: str


class PcapPlugin(Plugin):
    scheme = "pcap"
    grammar = "raw"
    summary = "copies of what an interface receives; the host goes on using it"
    address = "interface"
    example = "pcap://eth0"

    def parse(self, parsed: Parsed) -> PcapSpec:
        return PcapSpec(interface_name(parsed.vnl, parsed.address, self.example))

    def open(self, spec: PcapSpec, context: OpenContext) -> Stream:
        from vdexdp.plugins.netstream import NetdevStream

        return NetdevStream(spec.name)

    def kernel_end(self, spec: PcapSpec) -> NoKernelEnd:
        return NoKernelEnd("pcap:// copies frames, which the host keeps; netdev:// takes them, in the kernel")
