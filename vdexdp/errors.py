# SPDX-License-Identifier: GPL-2.0-or-later
"""The exception tree.

Every error that reaches a user names an *object*, a *cause* and, where there is one, the *next step*; it is printed
as ``object: cause; next step``.  The class decides the exit status: 2 where the user has to change the request, 1
where the system refused it.
"""

from __future__ import annotations

import os


class VdexdpError(Exception):
    """Base of all errors this package raises on purpose.

    ``subject`` is the object (an interface, a VNL, a file), ``cause`` what went wrong, ``hint`` the next step or "".
    """

    exit_code = 1

    def __init__(self, subject: str, cause: str, hint: str = "") -> None:
        self.subject = subject
        self.cause = cause
        self.hint = hint
        super().__init__(f"{subject}: {cause}" + (f"; {hint}" if hint else ""))


class RequestError(VdexdpError):
    """The user's mistake: exit status 2, nothing was touched."""

    exit_code = 2


class VnlError(RequestError):
    """A VNL that does not parse, or whose options are out of range."""


class HostError(VdexdpError):
    """The system refused: exit status 1."""

    @classmethod
    def from_oserror(cls, subject: str, error: OSError, hint: str = "") -> HostError:
        return cls(subject, os.strerror(error.errno) if error.errno else str(error), hint)


class PrivilegeError(HostError):
    """The caller may not do this."""


class KernelFeatureError(HostError):
    """The kernel lacks a feature, or its verifier refused a program.

    ``log`` is all that the verifier, or the compiler, said; it stays in the process in which that was.
    """

    log = ""


class KernelPathError(HostError):
    """``--accel require``: this cable can't run in the kernel; the cause says why."""


class DaemonError(HostError):
    """The daemon can't be reached, or broke off."""


class ProtocolError(HostError):
    """A peer sent something that the protocol does not allow."""


class HangUp(Exception):
    """A plug end is finished: its peer has closed it.  Not an error; the cable ends."""
