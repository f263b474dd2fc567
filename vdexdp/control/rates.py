# SPDX-License-Identifier: GPL-2.0-or-later
"""From two answers to ``show`` to what went by in between, per second.

The counters are those that ``show`` prints and :mod:`vdexdp.control.metrics` exports; the kernel is asked for nothing
else.  A counter that is smaller than before began again in between (a port's index has a new owner): what it says now
is what was counted.  A port that was not there before began with zeros.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

FLOWS: Final = ("rx_frames", "rx_bytes", "tx_frames", "tx_bytes")
Counters = Mapping[str, Mapping[str, int]]


def totals(counters: Counters) -> dict[str, int]:
    """``FLOWS`` over all paths, ``slow``: frames on the exception path both ways, ``drops`` for all reasons."""
    found = {flow: sum(counters[flow].values()) for flow in FLOWS}
    slow = counters["rx_frames"].get("exception", 0) + counters["tx_frames"].get("exception", 0)
    return found | {"slow": slow, "drops": sum(counters["drops"].values())}


def path_of(port: Mapping[str, Any]) -> str:
    """Which way a port's frames come in: xdp, tc, or user, which is by a bridge tap from a plug's process."""
    return "user" if port.get("bridge") else str(port["hooks"][0])


@dataclass(frozen=True)
class Row:
    """A port, a LAC's tunnel or an uplink, and what it did in one interval: all numbers are per second."""

    name: str
    kind: str
    switch: int | None
    network: str
    """The switch's name; "" for an uplink, which serves any number."""
    path: str
    index: int | None
    """None for an uplink."""
    plug: int | None
    rx_frames: float
    rx_bytes: float
    tx_frames: float
    tx_bytes: float
    slow: float
    """Frames on the exception path."""
    drops: float
    reasons: Mapping[str, float]
    """``drops`` by reason."""
    dropped: int
    """Drops in all, since the counting began; no rate."""


@dataclass(frozen=True)
class Interval:
    """``rows``: ports and tunnels first, then uplinks, in the order of ``show``."""

    seconds: float
    rows: list[Row] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Rates are rounded to a tenth."""
        rows = [{key: _rounded(value) for key, value in asdict(row).items()} for row in self.rows]
        return {"seconds": round(self.seconds, 3), "ports": rows}


def between(before: Mapping[str, Any] | None, after: Mapping[str, Any], seconds: float) -> Interval:
    """Two answers to ``show``, ``seconds`` apart; without the first all rates are 0."""
    networks = {switch["id"]: switch["name"] for switch in after["switches"]}
    known = dict(_things(before)) if before is not None else {}
    rows = []
    for key, thing in _things(after):
        now: Counters = thing["counters"]
        old: Counters = known[key]["counters"] if key in known else {}
        counted = now if before is None else {name: _grown(old.get(name, {}), now[name]) for name in now}
        rate = {name: 0.0 if before is None else count / seconds for name, count in totals(counted).items()}
        reasons = {} if before is None else {reason: n / seconds for reason, n in counted["drops"].items() if n}
        rows.append(
            Row(
                name=thing["name"],
                kind=thing.get("kind", "uplink"),
                switch=thing.get("switch"),
                network=networks.get(thing.get("switch"), ""),
                path=path_of(thing),
                index=thing.get("index"),
                plug=thing.get("plug"),
                reasons=reasons,
                dropped=sum(now["drops"].values()),
                **rate,
            )
        )
    return Interval(seconds, rows)


def summary(rows: Iterable[Row]) -> dict[str, float]:
    """What ports and tunnels did together: frames and bytes that came in, exceptions, drops.  Uplinks carry the same
    frames once more, and are left out.
    """
    ports = [row for row in rows if row.kind != "uplink"]
    return {name: sum(getattr(row, name) for row in ports) for name in ("rx_frames", "rx_bytes", "slow", "drops")}


def _things(shown: Mapping[str, Any]) -> list[tuple[tuple[Any, ...], Mapping[str, Any]]]:
    """Ports and uplinks, each with what tells it from a later one in its place."""
    found = [((port["index"], port["name"], port["switch"], port["plug"]), port) for port in shown["ports"]]
    return [*found, *((("uplink", uplink["ifindex"]), uplink) for uplink in shown["uplinks"])]


def _grown(before: Mapping[str, int], now: Mapping[str, int]) -> dict[str, int]:
    return {name: value - before.get(name, 0) if value >= before.get(name, 0) else value for name, value in now.items()}


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: round(number, 1) for name, number in value.items()}
    return round(value, 1) if isinstance(value, float) else value
