# SPDX-License-Identifier: GPL-2.0-or-later
"""The entry point of ``vdexdp`` and ``python -m vdexdp``.

Called by a stock command's name (a link ``vde_plug`` to ``vdexdp``, say), it is that command.  ``vde_plug`` itself goes
round click: hosts run it by the dozen, and it has to be there at once.
"""

from __future__ import annotations

import os
import sys

MULTICALL = ("vde_plug", "dpipe", "vdens", "wirefilter")
"""Stock commands that vdexdp can be called by."""


def main() -> None:
    """Run the command line; ends the process."""
    name = os.path.basename(sys.argv[0]).removeprefix("-")
    arguments = sys.argv[1:]
    if name in MULTICALL:
        arguments = [name, *arguments]
    if arguments[:1] == ["vde_plug"]:
        from vdexdp.cli.vde_plug import run

        login = sys.argv[0].startswith("-")
        sys.exit(run(arguments[1:], "vde_plug" if name == "vde_plug" else "vdexdp vde_plug", login=login))
    from vdexdp.cli.main import run as run_click

    sys.exit(run_click(arguments))


if __name__ == "__main__":
    main()
