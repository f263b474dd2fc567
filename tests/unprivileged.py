# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands as user nobody, on a machine whose /dev/net/tun is open to everybody, as Debian's is, or to nobody."""

from __future__ import annotations

from pathlib import Path

_SCRIPT = """
mknod -m "$2" "$1/tun" c 10 200 && mount --bind "$1/tun" /dev/net/tun && rm "$1/tun" || exit 99
cd / && shift 2 && exec setpriv --reuid=65534 --regid=65534 --clear-groups --no-new-privs "$@"
"""


def as_nobody(directory: Path, *command: str, tun_mode: str = "666") -> tuple[str, ...]:
    """The command line that does it.  ``directory`` is for a device node, for a moment."""
    return ("unshare", "-m", "sh", "-c", _SCRIPT, "sh", str(directory), tun_mode, *command)
