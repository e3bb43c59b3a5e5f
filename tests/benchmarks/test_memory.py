"""The verdict on memory, against values worked out by hand."""

from __future__ import annotations

import pytest

from simmim_export.benchmarks.memory import FEWEST, LIMIT_BYTES, LIMIT_SHARE, growth

MB = 1_000_000


def test_a_steady_leak_is_its_slope() -> None:
    grew = growth([(second, 100 * MB + second * MB) for second in range(40)])
    assert grew is not None and grew.bytes_per_minute == pytest.approx(60 * MB)
    # The first ten slices do not count.
    assert grew.grown == pytest.approx(29 * MB) and grew.allowed == LIMIT_BYTES and not grew.flat


def test_caches_that_fill_at_the_beginning_are_no_growth() -> None:
    memory = [(second, min(100 + 50 * second, 500) * MB) for second in range(40)]
    grew = growth(memory)
    assert grew is not None and grew.grown == 0 and grew.flat


def test_one_slice_of_much_memory_is_no_growth() -> None:
    memory = [(second, (900 if second in (20, 39) else 300) * MB) for second in range(40)]
    grew = growth(memory)
    assert grew is not None and grew.grown == 0 and grew.flat


def test_a_large_process_may_grow_by_a_share() -> None:
    grew = growth([(second, 4000 * MB + second * MB) for second in range(40)])
    assert grew is not None and grew.allowed == pytest.approx(LIMIT_SHARE * 4010 * MB) and grew.flat


def test_too_few_slices_have_no_slope() -> None:
    assert growth([]) is None and growth([(second, MB) for second in range(FEWEST)]) is None
