# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands as users other than root, with a /dev/net/tun that is open to everybody, as Debian's is, or to nobody."""

from __future__ import annotations

from pathlib import Path

NOBODY_UID = 65534

_SCRIPT = """
mknod -m "$2" "$1/tun" c 10 200 && mount --bind "$1/tun" /dev/net/tun && rm "$1/tun" || exit 99
cd / && shift 2 && exec "$@"
"""


def with_tun(directory: Path, mode: str = "666") -> tuple[str, ...]:
    """What to put before a command for /dev/net/tun to have this mode; ``directory`` is for the node, for a moment."""
    return ("unshare", "-m", "sh", "-c", _SCRIPT, "sh", str(directory), mode)


def as_nobody(directory: Path, *command: str, tun_mode: str = "666") -> tuple[str, ...]:
    """The command line that does it.  ``directory`` is for a device node, for a moment."""
    drop = ("setpriv", f"--reuid={NOBODY_UID}", f"--regid={NOBODY_UID}", "--clear-groups", "--no-new-privs")
    return (*with_tun(directory, tun_mode), *drop, *command)


def as_user(uid: int, gid: int, *groups: int) -> tuple[str, ...]:
    """What to put before a command for it to run as this user, who need not exist."""
    others = f"--groups={','.join(map(str, groups))}" if groups else "--clear-groups"
    return ("setpriv", f"--reuid={uid}", f"--regid={gid}", others, "--inh-caps=-all", "--no-new-privs")
