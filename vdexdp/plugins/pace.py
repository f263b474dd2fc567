# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether frames come singly or in company.

System calls for many frames cost less for each, but the first one more: frames that come singly are better moved by
plain calls.  So a source is read singly until frames of it are closer together than BURST_GAP, which is tried now and
then, and by the batch for as long as batches hold more than one.
"""

from __future__ import annotations

from typing import Final

BURST_GAP: Final = 1e-4
"""Seconds; frames of one source that are closer together may have company."""

SINGLES: Final = 8
"""Frames that are read singly after company was expected in vain."""


class Pace:
    """How the frames of one source have come lately."""

    __slots__ = ("_looked", "_singles", "company")

    def __init__(self) -> None:
        self.company = False
        """The last batch had several frames."""
        self._singles = SINGLES  # frames that were read singly since the last batch
        self._looked = 0.0

    def single(self, now: float) -> bool:
        """The source has input at ``now``, by time.monotonic(): whether to read one frame.  If not, read a batch and
        call ``found``.  The same time again is company, too.
        """
        gap = now - self._looked
        self._looked = now
        if self.company or not gap or (gap < BURST_GAP and self._singles >= SINGLES):
            return False
        self._singles += 1
        return True

    def found(self, count: int) -> None:
        """A batch had so many frames."""
        self.company = count > 1
        self._singles = 0
