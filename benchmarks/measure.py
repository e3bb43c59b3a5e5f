"""Numbers and what may be said of them. Knows samples and statistics; must not know engines or processes."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

# A percentile is only reported when this many samples lie beyond it: the 99th of 100 samples is one sample's luck.
BEYOND = 10
_RESAMPLES = 2000


def percentile(samples: Sequence[float], share: float) -> float | None:
    """The ``share`` quantile (in (0, 1)) by linear interpolation, or None where fewer than ``BEYOND`` samples exceed it."""
    if len(samples) * (1 - share) < BEYOND - 1e-9:
        return None
    ordered = sorted(samples)
    position = share * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (position - low) * (ordered[high] - ordered[low])


@dataclass(frozen=True)
class Ratio:
    """How many times faster: a ratio of medians and its 95 % interval from a bootstrap over rounds (Efron, 1979)."""

    value: float
    low: float
    high: float

    @property
    def shown(self) -> bool:
        """True when the interval leaves out 1: a difference is shown."""
        return not self.low <= 1 <= self.high


def _interval(draws: list[float]) -> tuple[float, float]:
    ordered = sorted(draws)
    return ordered[int(0.025 * len(ordered))], ordered[min(len(ordered) - 1, int(0.975 * len(ordered)))]


def paired_ratio(reference: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> Ratio:
    """reference / other, round by round of one run: what slows the machine for a moment slows both."""
    ratios = [median(a) / median(b) for a, b in zip(reference, other, strict=True)]
    source = random.Random(0)
    draws = [median(source.choices(ratios, k=len(ratios))) for _ in range(_RESAMPLES)]
    return Ratio(median(ratios), *_interval(draws))


def unpaired_ratio(reference: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> Ratio:
    """reference / other for rounds of two runs, which share nothing but the machine."""
    a, b = [median(r) for r in reference], [median(r) for r in other]
    source = random.Random(0)
    draws = [median(source.choices(a, k=len(a))) / median(source.choices(b, k=len(b))) for _ in range(_RESAMPLES)]
    return Ratio(median(a) / median(b), *_interval(draws))


@dataclass(frozen=True)
class BenchmarkResult:
    """One engine on one target (a graph or a pipeline). ``rounds`` holds every latency in seconds, round by round, from host
    arrays to host arrays; ``gpu_rounds`` the same by the GPU's own events, empty where it has none."""

    target: str
    engine: str
    precision: str
    batch: int
    inputs: str
    rounds: tuple[tuple[float, ...], ...]
    parity: Mapping[str, Any] = field(default_factory=dict)
    gpu_rounds: tuple[tuple[float, ...], ...] = ()

    @property
    def samples(self) -> list[float]:
        """All latencies in seconds."""
        return [sample for row in self.rounds for sample in row]

    @property
    def p50(self) -> float | None:
        """Median latency in seconds; None where there are too few samples."""
        return percentile(self.samples, 0.5)

    @property
    def gpu_p50(self) -> float | None:
        """Median by the GPU's own events in seconds; None without them, or where there are too few."""
        return percentile([sample for row in self.gpu_rounds for sample in row], 0.5)

    @property
    def p90(self) -> float | None:
        """90th percentile in seconds; None where there are too few samples."""
        return percentile(self.samples, 0.9)

    @property
    def p99(self) -> float | None:
        """99th percentile in seconds; None where there are too few samples."""
        return percentile(self.samples, 0.99)

    @property
    def spread(self) -> float:
        """(slowest - fastest) / median of the rounds' medians: how steady the machine was."""
        medians = [median(row) for row in self.rounds]
        return (max(medians) - min(medians)) / median(medians)
