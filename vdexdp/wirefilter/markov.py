# SPDX-License-Identifier: GPL-2.0-or-later
"""The states of a wire: a Markov chain whose nodes each hold a full set of values.

Every ``period`` seconds the chain takes one step.  Edge weights are percentages; the edge from a node to itself is
whatever the others leave of 100.
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

from vdexdp.wirefilter.values import Parameter, Setting, WireValue

DEFAULT_PERIOD = 0.1
"""Seconds between two steps, as stock's ``markov-time``."""

NODES_MAX = 1024
"""More nodes than anybody draws, few enough that a typing mistake does not take the memory of the host."""

_NOTHING = WireValue()


class Lane:
    """The values of one direction that have an effect, ready for use with each frame; None for the others."""

    __slots__ = ("bandwidth", "bufsize", "delay", "dup", "idle", "loss", "lostburst", "mtu", "noise", "speed")

    def __init__(self, values: Mapping[Parameter, WireValue]) -> None:
        def active(parameter: Parameter) -> WireValue | None:
            value = values.get(parameter)
            return value if value is not None and value.high > 0 else None

        self.loss = active(Parameter.LOSS)
        self.lostburst = active(Parameter.LOSTBURST)
        self.delay = active(Parameter.DELAY)
        self.dup = active(Parameter.DUP)
        self.bandwidth = active(Parameter.BANDWIDTH)
        self.speed = active(Parameter.SPEED)
        self.noise = active(Parameter.NOISE)
        self.mtu = active(Parameter.MTU)
        self.bufsize = active(Parameter.BUFSIZE)
        self.idle = not any(map(active, Parameter))


class Node:
    """One state: its name, its edges, and for each direction the values that are set."""

    def __init__(self) -> None:
        self.name = ""
        self.edges: dict[int, float] = {}
        self._values: tuple[dict[Parameter, WireValue], dict[Parameter, WireValue]] = ({}, {})
        self.lanes = [Lane(values) for values in self._values]

    def get(self, parameter: Parameter, direction: int) -> WireValue:
        return self._values[direction].get(parameter, _NOTHING)

    def set(self, parameter: Parameter, setting: Setting) -> None:
        for direction in setting.directions:
            self._values[direction][parameter] = setting.value
            self.lanes[direction] = Lane(self._values[direction])


class Chain:
    """The nodes, the edges, and where the wire is just now.  Times are in seconds of the caller's clock."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self.nodes = [Node()]
        self.current = 0
        self.period = DEFAULT_PERIOD
        self.next_step: float | None = None

    @property
    def node(self) -> Node:
        return self.nodes[self.current]

    def weight(self, source: int, target: int) -> float:
        edges = self.nodes[source].edges
        if source == target:
            return 100.0 - sum(edges.values())
        return edges.get(target, 0.0)

    def set_edge(self, source: int, target: int, weight: float) -> None:
        """Raises ValueError where the weights leaving a node would exceed 100."""
        if source == target:
            return
        others = sum(w for node, w in self.nodes[source].edges.items() if node != target)
        if weight < 0 or others + weight > 100.0:
            raise ValueError("the weights that leave a node are between 0 and 100 in sum")
        self.nodes[source].edges[target] = weight

    def resize(self, count: int, now: float) -> None:
        """Nodes that go take the edges towards them along; if the current one goes, the wire is in node 0."""
        del self.nodes[count:]
        self.nodes.extend(Node() for _ in range(count - len(self.nodes)))
        for node in self.nodes:
            node.edges = {target: weight for target, weight in node.edges.items() if target < count}
        if self.current >= count:
            self.current = 0
        self.start(now)

    def start(self, now: float) -> None:
        """(Re)start the clock of the steps."""
        self.next_step = now + self.period if len(self.nodes) > 1 else None

    def step(self, now: float) -> list[tuple[int, int]]:
        """Take the steps that are due; the moves made, as (from, to)."""
        moves = []
        while self.next_step is not None and self.next_step <= now:
            # After a long stop one step is enough: the chain has no memory.
            self.next_step = max(self.next_step + self.period, now)
            target = self._draw()
            if target != self.current:
                moves.append((self.current, target))
                self.current = target
            if self.next_step <= now:
                self.next_step = now + self.period
        return moves

    def _draw(self) -> int:
        point = self._rng.random() * 100.0
        for target, weight in self.node.edges.items():
            if point < weight:
                return target
            point -= weight
        return self.current
