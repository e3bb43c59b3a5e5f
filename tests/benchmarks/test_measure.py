"""Statistics against values worked out by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simmim_export.benchmarks.measure import BEYOND, BenchmarkResult, paired_ratio, percentile, unpaired_ratio


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
    paired = paired_ratio(reference, other)
    assert (paired.value, paired.low, paired.high) == (2.0, 2.0, 2.0) and paired.shown
    loose = unpaired_ratio(reference, other)
    assert loose.value == 2.0 and loose.low < 2.0 < loose.high and not loose.shown


@given(st.lists(st.lists(st.floats(0.1, 10), min_size=1, max_size=5), min_size=1, max_size=6))
def test_a_run_against_itself_shows_no_difference(rounds: list[list[float]]) -> None:
    ratio = paired_ratio(rounds, rounds)
    assert ratio.value == ratio.low == ratio.high == 1 and not ratio.shown


def test_result_properties() -> None:
    result = BenchmarkResult("graph:g", "ort", "fp32", 1, "d", ((1.0,) * 10, (3.0,) * 10))
    assert result.p50 == 2.0 and result.p90 is None and result.p99 is None
    assert result.spread == 1.0
