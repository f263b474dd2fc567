# SPDX-License-Identifier: GPL-2.0-or-later
"""Going to the background, for the tools that have ``--daemon``."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

STANDARD = (0, 1, 2)


def go_background(redirected: Sequence[int] = STANDARD) -> Callable[[], None]:
    """Go on in a child; return what it has to call when all is well.

    The parent waits for that call, and leaves with status 0, or with the child's status if the child ends before.  From
    the call on the child has no terminal, its directory is /, and the ``redirected`` descriptors are /dev/null.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child:
        os.close(writer)
        well = os.read(reader, 1)
        os._exit(0 if well else os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 0xFF)
    os.close(reader)
    os.setsid()

    def ready() -> None:
        os.chdir("/")
        null = os.open(os.devnull, os.O_RDWR)
        for fd in redirected:
            os.dup2(null, fd)
        os.close(null)
        os.write(writer, b"\n")
        os.close(writer)

    return ready
