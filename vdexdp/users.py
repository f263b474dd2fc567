# SPDX-License-Identifier: GPL-2.0-or-later
"""Names of users."""

from __future__ import annotations


def user_name(uid: int) -> str:
    """The login name, or the number where it has none."""
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
