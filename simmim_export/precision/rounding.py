"""Weights of a matrix product to whole levels, so that later weights make up for the rounding errors of earlier ones.

Source: GPTQ (Frantar et al., 2022, algorithm 1), by blocks.

Rounding each weight to its nearest level is best if the channels of the input are independent. Those of a transformer are not:
on real inputs, an error in one row of the weight has the same effect as errors in other rows, so these can cancel it.
"""

from __future__ import annotations

import numpy as np

BLOCK = 64
# This share of the mean square of a channel is added as noise, for each channel over each token that was seen: as if that many
# tokens of noise had been seen as well. With few tokens the samples then decide little. MiniLM in 7 bits, cosine and neighbors of
# 1,200 sentences: rounded to nearest 0.9983 and 94.5 %, by 128 sentences of the same kind 0.9993 and 96.2 %, by eight captions of
# another kind 0.9983 and 94.1 %.
NOISE = 0.3


def nearest(weight: np.ndarray, scales: np.ndarray, *, half: int) -> np.ndarray:
    """The nearest of the levels -half ... half times ``scales`` [N], for a weight [K, N]: int8 [K, N]."""
    return np.clip(np.rint(weight / scales), -half, half).astype(np.int8)


def compensated(weight: np.ndarray, scales: np.ndarray, *, half: int, moments: np.ndarray, tokens: int) -> np.ndarray:
    """As :func:`nearest`, for real inputs x [.., K]: ``moments`` float64 [K, K] is the sum of x^T x over ``tokens`` rows.

    Inputs that are all zero give the nearest levels. Raise :class:`ValueError` for moments that are not finite.
    """
    channels = len(weight)
    power = np.trace(moments) / channels
    if not np.isfinite(moments).all():
        raise ValueError("moments that are not finite")
    if power <= 0:
        return nearest(weight, scales, half=half)
    noise = NOISE * power * channels / max(tokens, 1)
    # The channels with the largest values come first: those that follow can still cancel their errors.
    order = np.argsort(-np.diag(moments), kind="stable")
    moments = moments[np.ix_(order, order)] + noise * np.eye(channels)
    # Row k: how an error of input k is best spread over the inputs after it.
    spread = np.linalg.cholesky(np.linalg.inv(moments)).T
    left, levels = weight[order].astype(np.float64), np.empty(weight.shape, np.int8)
    for start in range(0, channels, BLOCK):
        stop = min(start + BLOCK, channels)
        errors = np.empty((stop - start, weight.shape[1]))
        for row in range(start, stop):
            levels[row] = nearest(left[row], scales, half=half)
            errors[row - start] = (left[row] - levels[row] * scales) / spread[row, row]
            left[row:stop] -= np.outer(spread[row, row:stop], errors[row - start])
        left[stop:] -= spread[start:stop, stop:].T @ errors
    ordered = np.empty_like(levels)
    ordered[order] = levels
    return ordered
