# SPDX-License-Identifier: GPL-2.0-or-later
"""What a benchmark found: samples by contestant and metric, medians, ratios, and whether targets are met."""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Metric:
    """Something measured.  ``unit`` as printed; a sample times ``scale`` is in that unit."""

    key: str
    title: str
    unit: str
    scale: float = 1.0
    digits: int = 1
    less_is_better: bool = False


@dataclass(frozen=True)
class Target:
    """``contestant`` shall reach ``factor`` times ``baseline`` in every one of ``metrics`` (not exceed it,
    where less is better).
    """

    title: str
    contestant: str
    baseline: str
    metrics: tuple[str, ...]
    factor: float


@dataclass
class Result:
    """One contestant: who it is, and its samples by metric key; ``absent`` says why there are none."""

    key: str
    title: str
    how: str
    absent: str = ""
    samples: dict[str, list[float]] = field(default_factory=dict)

    def add(self, measured: Mapping[str, float]) -> None:
        for metric, value in measured.items():
            self.samples.setdefault(metric, []).append(value)

    def median(self, metric: str) -> float | None:
        values = self.samples.get(metric)
        return statistics.median(values) if values else None


@dataclass
class Report:
    """The outcome of one run.  ``about`` says in sentences what was compared; ``beside`` are contestants and the
    baselines that they are compared with, although they have no targets.
    """

    name: str
    about: str
    runs: int
    metrics: Sequence[Metric]
    targets: Sequence[Target]
    results: Sequence[Result]
    beside: Sequence[tuple[str, str]] = ()

    def result(self, key: str) -> Result:
        return next(result for result in self.results if result.key == key)

    def metric(self, key: str) -> Metric:
        return next(metric for metric in self.metrics if metric.key == key)

    def ratio(self, metric: str, contestant: str, baseline: str) -> float | None:
        """Median over median; None where one of them has no samples."""
        ours, theirs = self.result(contestant).median(metric), self.result(baseline).median(metric)
        return ours / theirs if ours is not None and theirs else None

    def reached(self, target: Target) -> float | None:
        """The worst ratio over the target's metrics; None where something was not measured."""
        ratios = [self.ratio(metric, target.contestant, target.baseline) for metric in target.metrics]
        known = [ratio for ratio in ratios if ratio is not None]
        if len(known) < len(ratios):
            return None
        return (max if self.metric(target.metrics[0]).less_is_better else min)(known)

    def met(self, target: Target) -> bool | None:
        reached = self.reached(target)
        if reached is None:
            return None
        return reached <= target.factor if self.metric(target.metrics[0]).less_is_better else reached >= target.factor

    def as_json(self) -> dict[str, Any]:
        """Everything, in SI units (bit/s, frames/s, s) as measured, with all samples."""
        return {
            "benchmark": self.name,
            "about": self.about,
            "kernel": os.uname().release,
            "processors": os.cpu_count(),
            "runs": self.runs,
            "contestants": [
                {
                    "key": result.key,
                    "title": result.title,
                    "how": result.how,
                    "absent": result.absent or None,
                    "metrics": {
                        key: {"median": statistics.median(values), "samples": values}
                        for key, values in result.samples.items()
                    },
                }
                for result in self.results
            ],
            "targets": [
                {
                    "title": target.title,
                    "contestant": target.contestant,
                    "baseline": target.baseline,
                    "metrics": list(target.metrics),
                    "factor": target.factor,
                    "reached": self.reached(target),
                    "met": self.met(target),
                }
                for target in self.targets
            ],
        }
