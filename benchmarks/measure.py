"""Statistics of latencies: percentiles and ratios with exact intervals. Both need enough samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, median

import numpy as np

from simmim_export.errors import DataError

# A percentile is reported only if this many samples lie beyond it: the 99th of 100 samples would be one sample's luck.
BEYOND = 10
# The fewest rounds for which the median lies between the smallest and the largest value with 95 % confidence (96.9 %).
ROUNDS = 6
# The fewest rounds in each of two separate runs for a 95 % interval of their ratio.
ROUNDS_APART = 4
# Pairs of rounds of two runs: so many are compared by the exact distribution, and more than these not at all.
EXACT_PAIRS, MOST_PAIRS = 10_000, 10**7
# Rounds of a pair, and timed runs of a job in each. With 30 rounds, 88 % of 27 rows showed a slowdown of 10 %
# (tests/benchmarks/noise.json).
PAIR_ROUNDS, PAIR_ITERATIONS = 30, 10
# If the median of an engine's slowest round exceeds that of its fastest by this factor, another program used the machine.
WILD = 2.0


def percentile(samples: Sequence[float], share: float) -> float | None:
    """The ``share`` quantile (in (0, 1)) by linear interpolation; None if fewer than ``BEYOND`` samples lie beyond it."""
    if len(samples) * (1 - share) < BEYOND - 1e-9:
        return None
    return float(np.quantile(samples, share))


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """How many times faster one engine is than another, and the interval that holds the truth with 95 % confidence or more."""

    value: float
    low: float
    high: float

    @property
    def shown(self) -> bool:
        """Whether the interval excludes 1, so that the samples show a difference."""
        return not self.low <= 1 <= self.high

    @property
    def span(self) -> str:
        """The interval as text: ``1.86 to 1.97``."""
        return f"{self.low:.2f} to {self.high:.2f}"

    def inverse(self) -> Ratio:
        """The ratio of times, from a ratio of speeds."""
        return Ratio(value=1 / self.value, low=1 / self.high, high=1 / self.low)


def too_few(rounds: int, least: int = ROUNDS) -> str | None:
    """Why there is no ratio from so few ``rounds``, and what to type to get one; None if there are at least ``least``."""
    return None if rounds >= least else f"too few rounds for a ratio ({rounds}): measure with --rounds {ROUNDS} or more"


def no_percentile(samples: int) -> str | None:
    """Which of the 50th, 90th and 99th percentile need more than ``samples``, and how many they need; None if none does."""
    needed = {share: math.ceil(BEYOND * 100 / (100 - share)) for share in (50, 90, 99)}
    lacking = [f"p{share} needs {count} samples" for share, count in needed.items() if samples < count]
    return f"{samples} samples: {', '.join(lacking)}" if lacking else None


def spread(rounds: Sequence[Sequence[float]]) -> float:
    """The median of the slowest round divided by that of the fastest. It is close to 1 on an idle machine."""
    medians = [median(samples) for samples in rounds]
    return max(medians) / min(medians)


def paired_ratio(reference: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> Ratio | None:
    """reference / other, compared round by round within one run, so that a moment of load slows down both.

    Returns the median of the rounds' ratios and its interval from order statistics, which is exact for every distribution
    (Conover, *Practical Nonparametric Statistics*, 1999, section 3.2). None for fewer than ``ROUNDS`` rounds: on a busy machine
    one or two ratios can be anything. (A bootstrap of five rounds, which promises 95 %, holds the truth in 91 of 100 cases.)
    """
    return ratio_of_pairs([(median(a), median(b)) for a, b in zip(reference, other, strict=True)])


def ratio_of_pairs(pairs: Sequence[tuple[float, float]], *, confidence: float = 0.95) -> Ratio | None:
    """The same for ``pairs`` of figures, and for another ``confidence``. None for too few pairs."""
    ratios = sorted(a / b for a, b in pairs)
    counts = [math.comb(len(ratios), positive) for positive in range(len(ratios) + 1)]
    return _ratio(ratios, _outside(counts, confidence=confidence))


def unpaired_ratio(reference: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> Ratio | None:
    """reference / other for the rounds of two separate runs on the same machine.

    Returns the median of all ratios between a round of one run and a round of the other, with the interval of Mann and
    Whitney's statistic (Hodges and Lehmann, 1963; Conover, section 5.4). It is exact if both runs have the same distribution up
    to a factor. None if the runs have too few rounds for an interval; ``ROUNDS_APART`` each are enough.
    """
    return ratio_of_runs([median(r) for r in reference], [median(r) for r in other])


def ratio_of_runs(first: Sequence[float], second: Sequence[float], *, confidence: float = 0.95) -> Ratio | None:
    """The same for a figure of each round, and for another ``confidence``. For more than ``EXACT_PAIRS`` pairs of rounds, whose
    exact distribution takes minutes, the interval is that of the normal distribution (Conover, section 5.4).

    Raise :class:`DataError` for more than ``MOST_PAIRS``.
    """
    a, b = len(first), len(second)
    if a * b > MOST_PAIRS:
        raise DataError(f"{a} and {b} rounds are too many to compare", fix="measure again with fewer --rounds")
    ratios = sorted(x / y for x in first for y in second)
    if a * b <= EXACT_PAIRS:
        return _ratio(ratios, _outside(_rank_sums(a, b), confidence=confidence))
    beyond = NormalDist().inv_cdf((1 + confidence) / 2) * math.sqrt(a * b * (a + b + 1) / 12)
    return _ratio(ratios, math.floor(a * b / 2 - beyond))


def _ratio(ordered: Sequence[float], outside: int | None) -> Ratio | None:
    """The median of the ``ordered`` ratios and the interval that leaves so many of them ``outside`` at each end; None without."""
    return None if outside is None else Ratio(value=median(ordered), low=ordered[outside], high=ordered[-1 - outside])


def _outside(counts: Sequence[int], *, confidence: float) -> int | None:
    """How many values an interval may leave outside at each end: the largest w with P(statistic <= w) <= (1 - confidence) / 2.

    ``counts[k]``: the number of equally likely cases in which the statistic is k. None if even 0 is too frequent.
    """
    tail, total, below, outside = (1 - confidence) / 2, sum(counts), 0, None
    for value, count in enumerate(counts):
        below += count
        # A tail like (1 - 0.95) / 2 is a little below 2.5 %.
        if below > (tail + 1e-12) * total:
            break
        outside = value
    return outside


def _rank_sums(a: int, b: int) -> list[int]:
    """The distribution of Mann and Whitney's statistic for ``a`` and ``b`` values without a difference: element k counts the
    orders of all values in which k pairs are reversed. These are the coefficients of the Gaussian binomial."""
    counts = [1]
    for i in range(1, a + 1):
        # Multiply by (1 - q^(b + i)), then divide by (1 - q^i).
        counts = [
            value - (counts[k - b - i] if 0 <= k - b - i < len(counts) else 0)
            for k, value in enumerate(counts + [0] * (b + i))
        ]
        for k in range(i, len(counts)):
            counts[k] += counts[k - i]
        counts = counts[: i * b + 1]
    return counts
