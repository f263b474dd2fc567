# SPDX-License-Identifier: GPL-2.0-or-later
"""The VNL grammar: what stands in a Virtual Network Locator, before any scheme gives it a meaning."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Option:
    """One ``key=value`` or flag of a scheme, for parsing, ``--help`` and docs/vnl.md.

    ``default`` is what is shown, not what is used.  Order matters: keys match by prefix, the first entry wins.
    """

    key: str
    help: str
    default: str = ""
    flag: bool = False


@dataclass(frozen=True)
class Parsed:
    """A VNL body after the grammar of its scheme, unquoted: the address, and options by full key, the last repetition winning."""

    address: str
    options: dict[str, str] = field(default_factory=dict)
    nested: str | None = None  # the inner VNL of a nested grammar, still quoted
