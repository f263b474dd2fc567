# SPDX-License-Identifier: GPL-2.0-or-later
"""From an exception to a line on stderr and an exit status, for every command."""

from __future__ import annotations

import os
import sys

from vdexdp.errors import KernelFeatureError, VdexdpError


def report(error: Exception, *, verbose: bool) -> int:
    """Say on stderr what went wrong; return the exit status for it."""
    if isinstance(error, BrokenPipeError):
        # The reader of our output has what it wanted; a second complaint at exit would be noise.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    if verbose:
        import traceback

        traceback.print_exception(error)
        if isinstance(error, KernelFeatureError) and error.log:
            print(error.log.strip(), file=sys.stderr)
    if isinstance(error, VdexdpError):
        print(f"vdexdp: {error}", file=sys.stderr)
        return error.exit_code
    print(f"vdexdp: {type(error).__name__}: {error}; this is a bug, -v shows where", file=sys.stderr)
    return 1
