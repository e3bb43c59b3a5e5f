"""Rounding to levels: within half a step, and better than that on correlated inputs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from simmim_export.precision.rounding import BLOCK, NOISE, compensated, nearest
from simmim_export.precision.weights import scales_of

FLOATS = st.floats(-1e6, 1e6, width=32)
WEIGHTS = hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=6), elements=FLOATS)


@settings(deadline=None)
@given(weight=WEIGHTS, half=st.sampled_from([63, 127]))
def test_a_level_is_within_half_a_step_of_its_weight(weight: np.ndarray, half: int) -> None:
    scales = scales_of(weight, half)
    levels = nearest(weight, scales, half=half)
    assert levels.dtype == np.int8 and np.abs(levels.astype(int)).max() <= half
    assert scales.shape == weight.shape[1:] and (scales > 0).all()
    steps = scales.astype(np.float64)
    assert (np.abs(levels * steps - weight) <= steps * 0.5001).all()


def test_an_outlier_spoils_its_own_column_alone() -> None:
    weight = np.random.default_rng(0).normal(size=(256, 32)).astype(np.float32)
    spoiled = weight.copy()
    spoiled[0, 3] = 1000
    scales = scales_of(spoiled, 127)
    lost = np.abs(nearest(spoiled, scales, half=127) * scales - weight)[1:].max(axis=0)
    assert lost[3] > 0.5 > 0.05 > np.delete(lost, 3).max()


def correlated(rows: int, seed: int) -> np.ndarray:
    """Inputs of 2 BLOCK + 10 channels that depend on 30 causes, as few causes drive many channels in a transformer."""
    causes = np.random.default_rng(0).normal(size=(30, 2 * BLOCK + 10))
    random = np.random.default_rng(seed)
    return random.normal(size=(rows, 30)) @ causes + 0.1 * random.normal(size=(rows, causes.shape[1]))


WEIGHT = np.random.default_rng(9).normal(size=(2 * BLOCK + 10, 40)).astype(np.float32)
SCALES = scales_of(WEIGHT, 63)


def lost(levels: np.ndarray, x: np.ndarray) -> float:
    return float(np.linalg.norm(x @ (levels * SCALES - WEIGHT)) / np.linalg.norm(x @ WEIGHT))


def gptq(seen: np.ndarray) -> np.ndarray:
    return compensated(WEIGHT, SCALES, half=63, moments=seen.T @ seen, tokens=len(seen))


def slowly(moments: np.ndarray) -> np.ndarray:
    """GPTQ as its paper has it, algorithm 1, one row at a time and in float64."""
    order = np.argsort(-np.diag(moments), kind="stable")
    spread = np.linalg.cholesky(np.linalg.inv(moments[np.ix_(order, order)])).T
    left = WEIGHT[order].astype(np.float64)
    levels = np.empty(WEIGHT.shape, np.int8)
    for row, index in enumerate(order):
        levels[index] = nearest(left[row : row + 1], SCALES, half=63)
        error = (left[row] - levels[index] * SCALES) / spread[row, row]
        left[row:] -= np.outer(spread[row, row:], error)
    return levels


def test_the_levels_are_those_of_the_paper() -> None:
    moments = correlated(2000, 1).T @ correlated(2000, 1)
    noise = NOISE * np.trace(moments) / 2000 * np.eye(len(WEIGHT))
    levels = compensated(WEIGHT, SCALES, half=63, moments=moments.astype(np.float32), tokens=2000)
    # A weight halfway between two levels may go either way in float32.
    assert np.mean(levels == slowly(moments + noise)) > 0.99


def test_weights_joined_along_their_columns_get_the_levels_of_each() -> None:
    seen = correlated(2000, 1)
    halves = [
        compensated(WEIGHT[:, part], SCALES[part], half=63, moments=seen.T @ seen, tokens=len(seen))
        for part in (slice(0, 15), slice(15, None))
    ]
    assert np.mean(np.concatenate(halves, axis=1) == gptq(seen)) > 0.99


def test_correlated_inputs_lose_less_than_half_on_others_like_them() -> None:
    seen, unseen = correlated(2000, 1), correlated(500, 2)
    rounded, levels = nearest(WEIGHT, SCALES, half=63), gptq(seen)
    assert levels.dtype == np.int8 and np.abs(levels.astype(int)).max() <= 63
    assert lost(levels, unseen) < 0.5 * lost(rounded, unseen)


def test_few_tokens_decide_little() -> None:
    """Inputs unlike the samples lose hardly more than by rounding to nearest."""
    seen, unlike = correlated(4, 1), np.random.default_rng(3).normal(size=(500, len(WEIGHT)))
    assert lost(gptq(seen), unlike) < 1.1 * lost(nearest(WEIGHT, SCALES, half=63), unlike)


def test_uncorrelated_inputs_are_rounded_to_nearest() -> None:
    moments = np.diag(np.random.default_rng(0).uniform(0.1, 100, len(WEIGHT)))
    for known in (moments, np.zeros_like(moments)):
        assert np.array_equal(
            compensated(WEIGHT, SCALES, half=63, moments=known, tokens=100), nearest(WEIGHT, SCALES, half=63)
        )


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_moments_that_are_not_finite_are_refused(value: float) -> None:
    moments = np.eye(len(WEIGHT))
    moments[3, 3] = value
    with pytest.raises(ValueError):
        compensated(WEIGHT, SCALES, half=63, moments=moments, tokens=100)
