# SPDX-License-Identifier: GPL-2.0-or-later
"""Throw-away networks of namespaces, for the demonstration, the benchmarks and the tests."""

from vdexdp.lab.lab import GUEST_MTU, UNDERLAY, Lab, sweep_dead
from vdexdp.lab.namespace import MARK, SLOWNESS, Namespace, Process, alive, inside, marked, wait_until

__all__ = [
    "GUEST_MTU",
    "MARK",
    "SLOWNESS",
    "UNDERLAY",
    "Lab",
    "Namespace",
    "Process",
    "alive",
    "inside",
    "marked",
    "sweep_dead",
    "wait_until",
]
