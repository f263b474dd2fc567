# SPDX-License-Identifier: GPL-2.0-or-later
"""A wire with faults: what it does to frames (``engine``, ``markov``), how it is told so (``values``, ``commands``),
and the sockets through which it is told (``console``).  Only the last does any input or output."""
