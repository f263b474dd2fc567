# SPDX-License-Identifier: GPL-2.0-or-later
"""A small virtual machine as a guest: QEMU in software emulation, Debian's cloud kernel, busybox and nothing else.

The kernel is fetched by ``python -m tests.vm.kernels`` as part of scripts/setup: the tests live in a network namespace
that reaches no mirror.
"""

from __future__ import annotations

import os
import tempfile

from tests.labkit import lacking, require_tool
from tests.vm import kernels
from tests.vm.initrd import initrd
from tests.vm.machine import SOFTWARE
from vdexdp.lab import Namespace, Process

ECHO_PORT = 7
_INIT = """\
b ip link set lo up
b ip link set eth0 up
b ip address add {address}/24 dev eth0
b echo guest is up
b nc -ll -p {port} -e /bin/busybox cat
"""


def boot(host: Namespace, address: str, *network: str) -> Process:
    """Start a guest that has ``address`` (IPv4, /24) on its eth0 and echoes on TCP port ECHO_PORT.

    ``network`` are QEMU's options for the network back-end, whose id has to be "net".  Only in a virtual machine
    (scripts/vm) may there be no kernel for another one: the test is skipped.
    """
    kernel = kernels.unpacked(kernels.OWN)
    if not kernel:
        lacking("the guest's kernel", "run: sudo scripts/setup --test", known="VDEXDP_VM" not in os.environ)
    qemu = require_tool("qemu-system-x86_64")
    modules = kernel.load_order("virtio_pci", "virtio_net")
    with tempfile.NamedTemporaryFile(prefix="vdexdp-initrd-") as ram:
        ram.write(initrd(_INIT.format(address=address, port=ECHO_PORT), modules))
        ram.flush()
        guest = host.spawn(
            *(qemu, *SOFTWARE, "-m", "96", "-nodefaults", "-nographic", "-no-reboot"),
            *("-serial", "stdio", "-kernel", str(kernel.image), "-initrd", ram.name),
            *("-append", "console=ttyS0 quiet panic=-1"),
            *network,
            *("-device", "virtio-net-pci,netdev=net,romfile="),
        )
        guest.wait_output("guest is up", timeout=60)
    return guest
