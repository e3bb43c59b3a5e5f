"""Weights of a matrix product to whole levels, so that later weights make up for the rounding errors of earlier ones.

Source: GPTQ (Frantar et al., 2022), in the form of Babai's nearest plane (Chen et al., "The geometry of LLM quantization", 2025).
Both give the same levels. GPTQ inverts the moments and factors the inverse; this form factors the moments alone, which is a
quarter of the work.

Rounding each weight to its nearest level is best if the channels of the input are independent. Those of a transformer are not:
on real inputs, an error in one row of the weight has the same effect as errors in other rows, so these can cancel it.
"""

from __future__ import annotations

import numpy as np

# Rows that are rounded one by one before their errors are carried to all the rows that follow, in one product.
BLOCK = 64
# This share of the mean square of a channel is added as noise, for each channel over each token that was seen: as if that many
# tokens of noise had been seen as well. With few tokens the samples then decide little. MiniLM in 7 bits, cosine and neighbors of
# 1,200 sentences: rounded to nearest 0.9983 and 94.5 %, by 128 sentences of the same kind 0.9993 and 96.2 %, by eight captions of
# another kind 0.9983 and 94.1 %.
NOISE = 0.3


def nearest(weight: np.ndarray, scales: np.ndarray, *, half: int) -> np.ndarray:
    """The nearest of the levels -half ... half times ``scales`` [N], for a weight [K, N]: int8 [K, N]."""
    levels: np.ndarray = np.clip(np.rint(weight / scales), -half, half).astype(np.int8)
    return levels


def compensated(weight: np.ndarray, scales: np.ndarray, *, half: int, moments: np.ndarray, tokens: int) -> np.ndarray:
    """As :func:`nearest`, for real inputs x [.., K]: ``moments`` [K, K] is the sum of x^T x over ``tokens`` rows.

    Weights that read the same inputs can be joined along N: they then share the work on ``moments``. Inputs that are all zero
    give the nearest levels. Raise :class:`ValueError` for moments that are not finite.
    """
    channels = len(weight)
    power = np.trace(moments) / channels
    if not np.isfinite(moments).all():
        raise ValueError("moments that are not finite")
    if power <= 0:
        return nearest(weight, scales, half=half)
    # From last to first: the channels with the largest values are rounded first, and the others can still cancel their errors.
    order = np.argsort(-np.diag(moments), kind="stable")[::-1]
    scales = scales.astype(np.float32, copy=False)
    spread = _spread(moments[np.ix_(order, order)], noise=NOISE * power * channels / max(tokens, 1))
    exact = weight[order].astype(np.float32, copy=False)
    errors, levels = np.zeros(weight.shape, np.float32), np.empty(weight.shape, np.int8)
    for stop in range(channels, 0, -BLOCK):
        start = max(0, stop - BLOCK)
        wanted = exact[start:stop] + spread[stop:, start:stop].T @ errors[stop:]
        within = np.ascontiguousarray(spread[start:stop, start:stop].T)
        for row in range(stop - start - 1, -1, -1):
            at = start + row
            wanted[row] += within[row, row + 1 :] @ errors[at + 1 : stop]
            levels[at] = nearest(wanted[row], scales, half=half)
            errors[at] = exact[at] - levels[at] * scales
    ordered = np.empty_like(levels)
    ordered[order] = levels
    return ordered


def _spread(moments: np.ndarray, *, noise: float) -> np.ndarray:
    """float32 [K, K]: entry (j, k), j > k, is the share of an error of input j that input k makes up for.

    With the Cholesky factor L of the moments and the errors e, weights minus their rounded values, the products lose |L^T e|^2.
    Row k of L^T e is zero if weight k becomes w_k + sum_j>k (L_jk / L_kk) e_j.
    """
    moments = moments.astype(np.float64)
    moments[np.diag_indices_from(moments)] += noise
    factor = np.linalg.cholesky(moments)
    return (factor / np.diag(factor)).astype(np.float32)
