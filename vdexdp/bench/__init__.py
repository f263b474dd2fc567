# SPDX-License-Identifier: GPL-2.0-or-later
"""Benchmarks: every contestant in one run, round by round, on networks of namespaces that are alike."""
