"""Statistics of latencies: percentiles, and ratios with exact intervals, both only from enough samples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

# A percentile is only reported when this many samples lie beyond it: the 99th of 100 samples is one sample's luck.
BEYOND = 10
# The fewest rounds of which the least and the greatest hold the median between them with 95 % (96.9 %) confidence.
ROUNDS = 6
# The fewest rounds in each of two runs for the same interval of their ratios.
ROUNDS_APART = 4
# Median of an engine's slowest round over that of its fastest: above this, something else used the machine.
WILD = 2.0


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
    """How many times faster, and the interval that holds the truth with a confidence of 95 % or more."""

    value: float
    low: float
    high: float

    @property
    def shown(self) -> bool:
        """True when the interval leaves out 1: a difference is shown."""
        return not self.low <= 1 <= self.high

    @property
    def span(self) -> str:
        """The interval in words: ``1.86 to 1.97``."""
        return f"{self.low:.2f} to {self.high:.2f}"

    def inverse(self) -> Ratio:
        """The share of time it takes, of a ratio of speeds."""
        return Ratio(1 / self.value, 1 / self.high, 1 / self.low)


def too_few(rounds: int, least: int = ROUNDS) -> str | None:
    """Why ``rounds`` give no ratio, and what to type for one; None if there are at least ``least``."""
    return None if rounds >= least else f"no ratio from {rounds} rounds: measure with --rounds {ROUNDS} or more"


def spread(rounds: Sequence[Sequence[float]]) -> float:
    """The median of the slowest round over that of the fastest: 1 on a machine that does nothing else."""
    medians = [median(samples) for samples in rounds]
    return max(medians) / min(medians)


def _left_out(counts: Sequence[int]) -> int | None:
    """How many values may be left out at each end for a confidence of 95 %: the largest w with P(statistic <= w) <= 2.5 %.

    ``counts``: in how many equally likely cases the statistic is 0, 1, ...; None where not even its least is that rare.
    """
    total, below, left = sum(counts), 0, None
    for value, count in enumerate(counts):
        below += count
        if below > 0.025 * total:
            break
        left = value
    return left


def paired_ratio(reference: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> Ratio | None:
    """reference / other, round by round of one run: what slows the machine for a moment slows both. None for fewer than
    ``ROUNDS`` rounds: one or two ratios of a busy machine can be anything.

    The median of the rounds' ratios, with the interval of order statistics: exact whatever their distribution (Conover,
    *Practical Nonparametric Statistics*, 1999, section 3.2). A bootstrap of five rounds holds the truth in 91 of 100 cases
    where it promises 95; that of one round never.
    """
    ratios = sorted(median(a) / median(b) for a, b in zip(reference, other, strict=True))
    return _ratio(ratios, [math.comb(len(ratios), positive) for positive in range(len(ratios) + 1)])


def unpaired_ratio(reference: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> Ratio | None:
    """reference / other for rounds of two runs, which share nothing but the machine. None where the runs have too few rounds
    for an interval (``ROUNDS_APART`` each are enough).

    The median of all ratios of a round to one of the other run, with the interval of Mann and Whitney's statistic (Hodges and
    Lehmann, 1963; Conover, section 5.4), exact where both runs' rounds are distributed alike but for a factor.
    """
    a, b = [median(r) for r in reference], [median(r) for r in other]
    ratios = sorted(x / y for x in a for y in b)
    return _ratio(ratios, _rank_sums(len(a), len(b)))


def _ratio(ordered: Sequence[float], counts: Sequence[int]) -> Ratio | None:
    """The median of the ``ordered`` ratios with the interval that the statistic of ``counts`` allows; None if it allows none."""
    outside = _left_out(counts)
    return None if outside is None else Ratio(median(ordered), ordered[outside], ordered[-1 - outside])


def _rank_sums(a: int, b: int) -> list[int]:
    """Of all orders of ``a`` + ``b`` values, in how many are 0, 1, ... a * b pairs the other way round: the coefficients of
    the Gaussian binomial."""
    counts = [1]
    for i in range(1, a + 1):
        # Times (1 - q^(b + i)), then divided by (1 - q^i).
        counts = [
            value - (counts[k - b - i] if 0 <= k - b - i < len(counts) else 0)
            for k, value in enumerate(counts + [0] * (b + i))
        ]
        for k in range(i, len(counts)):
            counts[k] += counts[k - i]
        counts = counts[: i * b + 1]
    return counts


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
