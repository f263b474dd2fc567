# SPDX-License-Identifier: GPL-2.0-or-later
"""A Virtual Distributed Ethernet whose data path is the Linux kernel."""

__version__ = "0.1.0"
