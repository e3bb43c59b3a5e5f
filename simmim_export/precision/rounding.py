"""Weights of a matrix product to whole levels, so that what rounding does to one is made good by those that follow.

Knows matrices. Must not know graphs, or where inputs come from. Source: GPTQ (Frantar et al., 2022, algorithm 1), by blocks.

Rounding each weight to its nearest level is best for inputs whose channels have nothing to do with each other. Those of a
transformer do: the error of one row of the weight shows on real inputs as errors of other rows would, and they take it back.
"""

from __future__ import annotations

import numpy as np

BLOCK = 64
# Of the mean square of a channel, so much for each channel there is and token that was seen: as if that many tokens of noise had
# been seen as well. Few tokens then decide little. MiniLM in 7 bits, cosine and neighbours of 1,200 sentences: rounded to nearest
# 0.9983 and 94.5 %, by 128 sentences of the same kind 0.9993 and 96.2 %, by eight captions of another kind 0.9983 and 94.1 %.
NOISE = 0.3


def nearest(weight: np.ndarray, scales: np.ndarray, half: int) -> np.ndarray:
    """The nearest of the levels -half ... half times ``scales`` [N], for a weight [K, N]: int8 [K, N]."""
    return np.clip(np.rint(weight / scales), -half, half).astype(np.int8)


def compensated(weight: np.ndarray, scales: np.ndarray, half: int, moments: np.ndarray, tokens: int) -> np.ndarray:
    """As :func:`nearest`, for real inputs x [.., K]: ``moments`` float64 [K, K] is the sum of x^T x over ``tokens`` rows.

    Raise :class:`ValueError` if they are not finite. Inputs that are all zero say nothing, and the nearest levels are given.
    """
    channels = len(weight)
    power = np.trace(moments) / channels
    if not np.isfinite(moments).all():
        raise ValueError("moments that are not finite")
    if power <= 0:
        return nearest(weight, scales, half)
    noise = NOISE * power * channels / max(tokens, 1)
    # Those that speak most come first: what follows can still take their errors back.
    order = np.argsort(-np.diag(moments), kind="stable")
    moments = moments[np.ix_(order, order)] + noise * np.eye(channels)
    # Row k: how an error of input k is best spread over the inputs behind it.
    spread = np.linalg.cholesky(np.linalg.inv(moments)).T
    left, levels = weight[order].astype(np.float64), np.empty(weight.shape, np.int8)
    for start in range(0, channels, BLOCK):
        stop = min(start + BLOCK, channels)
        errors = np.empty((stop - start, weight.shape[1]))
        for row in range(start, stop):
            levels[row] = nearest(left[row], scales, half)
            errors[row - start] = (left[row] - levels[row] * scales) / spread[row, row]
            left[row:stop] -= np.outer(spread[row, row:stop], errors[row - start])
        left[stop:] -= spread[start:stop, stop:].T @ errors
    found = np.empty_like(levels)
    found[order] = levels
    return found
