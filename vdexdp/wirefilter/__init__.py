# SPDX-License-Identifier: GPL-2.0-or-later
"""A wire with faults: what it does to frames (``engine``, ``markov``) and how it is told so (``values``, ``commands``);
these do no input or output.  ``filter`` is the wire around a stream, with its ``console`` and its ``timing``.
"""
