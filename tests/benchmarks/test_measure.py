"""Statistics against values worked out by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simmim_export.benchmarks.measure import (
    BEYOND,
    ROUNDS,
    ROUNDS_APART,
    Ratio,
    paired_ratio,
    percentile,
    ratio_of_runs,
    spread,
    too_few,
    unpaired_ratio,
)
from simmim_export.benchmarks.results import BenchmarkResult
from simmim_export.errors import DataError


def test_a_percentile_needs_ten_samples_beyond_it() -> None:
    assert BEYOND == 10
    assert percentile(range(19), 0.5) is None and percentile(range(20), 0.5) == 9.5
    assert percentile(range(99), 0.9) is None and percentile(range(100), 0.9) == pytest.approx(89.1)
    assert percentile(range(999), 0.99) is None and percentile(range(1000), 0.99) == pytest.approx(989.01)


@given(st.lists(st.floats(1e-6, 10), min_size=100, max_size=300))
def test_percentiles_are_ordered_and_within(samples: list[float]) -> None:
    low, high = percentile(samples, 0.5), percentile(samples, 0.9)
    assert low is not None and high is not None
    assert min(samples) <= low <= high <= max(samples)


def test_a_ratio_is_paired_by_round() -> None:
    """The second round is slow for both: the pairs agree exactly, the pooled medians do not."""
    reference, other = [[2.0] * 5, [20.0] * 5, [2.0] * 5], [[1.0] * 5, [10.0] * 5, [1.0] * 5]
    paired = paired_ratio(2 * reference, 2 * other)
    assert (paired.value, paired.low, paired.high) == (2.0, 2.0, 2.0) and paired.shown and paired.span == "2.00 to 2.00"
    assert paired.inverse() == Ratio(value=0.5, low=0.5, high=0.5)
    loose = unpaired_ratio(2 * reference, 2 * other)
    assert loose.value == 2.0 and loose.low < 2.0 < loose.high and not loose.shown
    assert loose.inverse() == Ratio(value=0.5, low=1 / loose.high, high=1 / loose.low)


@pytest.mark.parametrize(("estimate", "least"), [(paired_ratio, ROUNDS), (unpaired_ratio, ROUNDS_APART)])
@pytest.mark.parametrize("rounds", range(1, 13))
def test_an_interval_holds_the_truth_as_often_as_it_says(
    estimate: Callable[..., Ratio | None], least: int, rounds: int
) -> None:
    """Rounds of two engines that are alike, with noise that no bell curve describes."""
    draws = np.random.default_rng(rounds).standard_t(2, (2, 1500, rounds, 1))
    ratios = [estimate(*pair) for pair in np.exp(draws / 10).swapaxes(0, 1).tolist()]
    if rounds < least:
        assert ratios == [None] * len(ratios) and too_few(rounds, least)
    else:
        assert too_few(rounds, least) is None
        # Three standard errors of a share of 1,500.
        assert np.mean([not ratio.shown for ratio in ratios]) >= 0.95 - 3 * (0.95 * 0.05 / 1500) ** 0.5


def test_intervals_grow_narrower_with_rounds() -> None:
    """Left out at each end, against the published tables of the sign test and of Mann and Whitney's U at 2.5 %."""
    numbered = [[float(number)] for number in range(1, 21)]
    for rounds, outside in ((6, 0), (8, 0), (9, 1), (12, 2), (20, 5)):
        ratio = paired_ratio(numbered[:rounds], [[1.0]] * rounds)
        assert (ratio.low, ratio.high) == (1 + outside, rounds - outside)
    for rounds, outside in ((4, 0), (5, 2), (6, 5), (8, 13), (10, 23)):
        ratio = unpaired_ratio(numbered[:rounds], [[1 + number / 1000] for number in range(rounds)])
        ordered = sorted(a / (1 + b / 1000) for a in range(1, rounds + 1) for b in range(rounds))
        assert (ratio.low, ratio.high) == (ordered[outside], ordered[-1 - outside])


@given(st.lists(st.lists(st.floats(0.1, 10), min_size=1, max_size=5), min_size=1, max_size=8))
def test_a_run_against_itself_shows_no_difference(rounds: list[list[float]]) -> None:
    ratio = paired_ratio(rounds, rounds)
    assert (ratio is None) == (len(rounds) < ROUNDS)
    assert ratio is None or (ratio == Ratio(value=1, low=1, high=1) and not ratio.shown)


def test_the_interval_of_many_rounds_is_close_to_the_exact_one(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    first, second = (random.lognormal(sigma=0.2, size=90).tolist() for _ in range(2))
    exact = ratio_of_runs(first, second)
    monkeypatch.setattr("simmim_export.benchmarks.measure.EXACT_PAIRS", 0)
    quick = ratio_of_runs(first, second)
    assert exact is not None and quick is not None
    assert (quick.value, quick.low, quick.high) == pytest.approx((exact.value, exact.low, exact.high), rel=2e-3)


def test_too_many_rounds_are_an_error() -> None:
    with pytest.raises(DataError):
        ratio_of_runs([1.0] * 10_000, [1.0] * 10_000)


def test_two_wild_rounds_give_no_ratio() -> None:
    """As measured on a busy machine: 300 and 400 times faster, which no third round would have confirmed."""
    reference, other = [[0.3] * 20, [0.05] * 20], [[0.001] * 20, [0.000125] * 20]
    assert paired_ratio(reference, other) is None and unpaired_ratio(reference, other) is None
    assert spread(reference) == pytest.approx(6) and spread(other) == pytest.approx(8)


def test_result_properties() -> None:
    result = BenchmarkResult(
        target="graph:g", engine="ort", precision="fp32", batch=1, inputs="d", rounds=((1.0,) * 10, (3.0,) * 10)
    )
    assert percentile(result.samples, 0.5) == 2.0 and percentile(result.samples, 0.9) is None
    assert result.gpu_samples == []
