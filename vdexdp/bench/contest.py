# SPDX-License-Identifier: GPL-2.0-or-later
"""Contestants side by side.

All networks are built before the first measurement and stand until the last one; then each round visits every
contestant once, beginning with another one each time.  So what disturbs the machine for a while disturbs all of
them, and the medians can be compared.  A contestant that can't run is left out and says why.
"""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import ClassVar

from vdexdp.bench.report import Result
from vdexdp.errors import HostError, VdexdpError
from vdexdp.lab import Lab

Progress = Callable[[str], None]


class Contestant(ABC):
    """One way to join the guests.  ``how`` is the sentence that explains it to the reader of the table."""

    key: ClassVar[str]
    title: ClassVar[str]
    how: ClassVar[str]
    tools: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def build(self, lab: Lab) -> None:
        """Make its network in a lab of its own.  Raises VdexdpError or TimeoutError: it is left out."""

    @abstractmethod
    def measure(self) -> Mapping[str, float]:
        """One round: a sample by metric key."""


def require_tools(*names: str) -> None:
    """Raises HostError that names the missing programs."""
    missing = [name for name in names if not shutil.which(name)]
    if missing:
        raise HostError(", ".join(missing), "not installed", "run scripts/setup")


def compete(
    contestants: Sequence[Contestant], runs: int, say: Progress, describe: Callable[[Mapping[str, float]], str]
) -> list[Result]:
    """Measure each contestant ``runs`` times, interleaved; ``say`` hears of each sample, put into words by
    ``describe``.
    """
    results = {contestant.key: Result(contestant.key, contestant.title, contestant.how) for contestant in contestants}
    with ExitStack() as labs:
        present = []
        for contestant in contestants:
            try:
                require_tools(*contestant.tools)
                contestant.build(labs.enter_context(Lab()))
                present.append(contestant)
            except (VdexdpError, TimeoutError) as error:
                results[contestant.key].absent = str(error)
                say(f"{contestant.title}: left out: {error}")
        for run in range(runs):
            turn = run % max(1, len(present))
            for contestant in present[turn:] + present[:turn]:
                result = results[contestant.key]
                if result.absent:
                    continue
                try:
                    measured = contestant.measure()
                except (VdexdpError, TimeoutError) as error:
                    result.absent = f"failed in round {run + 1}: {error}"
                    result.samples.clear()
                    say(f"{contestant.title}: {result.absent}")
                    continue
                result.add(measured)
                say(f"round {run + 1}/{runs}  {contestant.title}: {describe(measured)}")
    return list(results.values())
