# SPDX-License-Identifier: GPL-2.0-or-later
"""Values of a wire, as stock wirefilter writes them: ``[LR|RL]VALUE[+VARIATION][K|M|G][U|N][[NODE]]``.

``VARIATION`` makes each use of the value random: within ±VARIATION, uniformly (``U``, the default), or normally
distributed with VARIATION = 3 sigma (``N``).  The multiplier (powers of 2^10) applies to both numbers.  Without a
direction a setting counts for both; ``[NODE]`` names a state of the Markov chain, 0 if absent.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from random import Random

from vdexdp.errors import RequestError

LR, RL = 0, 1
"""Directions: from the left end (the program, the first VNL) to the right one (the nested VNL), and back."""


class Parameter(Enum):
    """What can be set; the value is the row's label in ``showinfo``."""

    LOSS = "Loss"
    LOSTBURST = "Lburst"
    DELAY = "Delay"
    DUP = "Dup"
    BANDWIDTH = "Bandw"
    SPEED = "Speed"
    NOISE = "Noise"
    MTU = "MTU"
    BUFSIZE = "Cap."


@dataclass(frozen=True)
class WireValue:
    """A number with a random variation."""

    value: float = 0.0
    plus: float = 0.0
    algorithm: str = "U"

    @property
    def low(self) -> float:
        return self.value - self.plus

    @property
    def high(self) -> float:
        return self.value + self.plus

    def sample(self, rng: Random) -> float:
        if not self.plus:
            return self.value
        if self.algorithm == "N":
            return rng.gauss(self.value, self.plus / 3)
        return rng.uniform(self.low, self.high)

    def __str__(self) -> str:
        return f"{self.value:g}+{self.plus:g}{self.algorithm}"


@dataclass(frozen=True)
class Setting:
    """One parsed value and where it goes."""

    value: WireValue
    directions: tuple[int, ...] = (LR, RL)
    node: int = 0


_NUMBER = r"(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_SETTING = re.compile(
    rf"(?P<direction>LR|RL)?\s*(?P<value>{_NUMBER})(?:\+(?P<plus>{_NUMBER}))?"
    r"(?P<multiplier>[kKmMgG])?(?P<algorithm>[uUnN])?\s*(?:\[\s*(?P<node>\d+)\s*\])?"
)
_MULTIPLIER = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_DIRECTIONS = {None: (LR, RL), "LR": (LR,), "RL": (RL,)}


def parse_setting(text: str) -> Setting:
    """Parse one value.  Raises RequestError."""
    match = _SETTING.fullmatch(text.strip())
    if match is None:
        raise RequestError(
            f'wire value "{text}"', "not understood", 'write [LR|RL]VALUE[+VARIATION][K|M|G][U|N], e.g. "LR10+5N"'
        )
    factor = _MULTIPLIER[(match["multiplier"] or "").upper()]
    value = WireValue(
        float(match["value"]) * factor, float(match["plus"] or 0) * factor, (match["algorithm"] or "U").upper()
    )
    return Setting(value, _DIRECTIONS[match["direction"]], int(match["node"] or 0))
