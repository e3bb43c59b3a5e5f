"""How far outputs are from a reference's, with intervals. Works on arrays of numbers alone.

A reference must be finite: ValueError. An output that is not finite is counted as such, and is as wrong as can be.
"""

from __future__ import annotations

from math import exp, fsum, lgamma, log
from typing import Any

import numpy as np

DRAWS = 4000
CHUNK = 250
# Among so many images a caption looks for its own.
GALLERY = 64
# How often a model that is no better than the reference is called suspicious at most, for each task.
FALSE_ALARMS = 0.001
ROWS = 1024


def cosines(exact: np.ndarray, found: np.ndarray) -> np.ndarray:
    """float64 [n] in [-1, 1]: the cosine of each row of ``found`` [n, d] with that of ``exact``; two rows of zeros agree, and
    one that is not finite is as far off as can be: -1."""
    finite = np.isfinite(found).all(axis=1)
    a, b = exact.astype(np.float64), np.where(finite[:, None], found, 0).astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    same = (a == b).all(axis=1)
    return np.where(finite, np.where(same, 1.0, (a * b).sum(axis=1) / np.maximum(norms, 1e-30)), -1.0)


def agreement(exact: np.ndarray, found: np.ndarray) -> dict[str, Any]:
    """How unit vectors float32 [n, E] agree, row by row: cosine (mean, 1st percentile, least), and the share of rows whose
    nearest other row is the same (``top1``). A row of ``found`` that is not finite has the cosine -1 and no neighbor;
    ``not_finite`` counts those. Raise ValueError for an ``exact`` that is empty or not finite."""
    _require_reference(exact, found)
    cosine = cosines(exact, found)
    finite = np.isfinite(found).all(axis=1)
    same = _nearest(exact) == _nearest(np.where(finite[:, None], found, np.float32(0)))
    return {
        "cosine_mean": float(cosine.mean()),
        "cosine_p1": float(np.percentile(cosine, 1)),
        "cosine_min": float(cosine.min()),
        "top1": float((same & finite).mean()),
        "n": len(exact),
        "not_finite": int((~finite).sum()),
    }


def _nearest(vectors: np.ndarray) -> np.ndarray:
    """int64 [n]: for each of the rows [n, E] the number of the most similar other one."""
    nearest = np.zeros(len(vectors), np.int64)
    for start in range(0, len(vectors), ROWS):  # all at once take gigabytes for tens of thousands of texts
        similarity = vectors[start : start + ROWS] @ vectors.T
        rows = np.arange(len(similarity))
        similarity[rows, start + rows] = -np.inf
        nearest[start : start + ROWS] = similarity.argmax(axis=1)
    return nearest


def choices(logits: np.ndarray) -> np.ndarray:
    """int64 [n, k]: the class with the highest of ``logits`` [n, k, classes]; -1, no answer, where one of them is not finite."""
    return np.where(np.isfinite(logits).all(axis=2), logits.argmax(axis=2), -1)


def _require_reference(exact: np.ndarray, found: np.ndarray) -> None:
    if exact.shape != found.shape or not exact.size or not np.isfinite(exact).all():
        raise ValueError(f"a reference of {exact.dtype} {list(exact.shape)} is empty, not finite or of another shape")


def paired_loss(exact: np.ndarray, found: np.ndarray) -> dict[str, Any]:
    """What ``found`` loses against ``exact``, hits (or scores) in [0, 1], both float64 [images, k], in points of a hundred.

    ``loss`` is the difference of their means; ``interval`` holds the 5th and 95th percentile of a paired Bayesian bootstrap over
    images (Rubin, 1981; the k questions of an image are weighted together, since they are not independent): with 95 %
    confidence the loss is not above its second value. The same arrays always give the same.

    ``gained`` and ``lost`` count the images on which ``found`` is better and worse. ``suspicious`` says that it is better than
    chance explains, by :func:`chance_of_gain` below :data:`FALSE_ALARMS`: a lower precision seldom is, wrong references make
    any model look so.

    A bootstrap knows only the losses that it has seen, and says too little where they are few. So one more image is weighted
    along, which loses as much as the worst that was seen, and one answer at least; for the lower value one that gains. Where
    images lose all or nothing, the bound is then that of Clopper and Pearson (1934), and the rule of three where none did.

    Raise ValueError for arrays that are empty, of different shapes, not finite or outside of [0, 1].
    """
    _require_reference(exact, found)
    if exact.ndim != 2 or not all(((part >= 0) & (part <= 1)).all() for part in (exact, found)):
        raise ValueError(f"hits {list(exact.shape)} are not [images, k] in [0, 1]")
    difference = (exact - found).mean(axis=1)
    low, high = _bounds(difference, 1 / exact.shape[1])
    gained, lost = int((difference < 0).sum()), int((difference > 0).sum())
    return {
        "value": float(found.mean()),
        "reference": float(exact.mean()),
        "loss": 100 * float(difference.mean()),
        "interval": [100 * low, 100 * high],
        "n": int(found.size),
        "images": len(difference),
        "gained": gained,
        "lost": lost,
        "suspicious": bool(difference.mean() < 0 and chance_of_gain(gained, lost) < FALSE_ALARMS),
    }


def chance_of_gain(gained: int, lost: int) -> float:
    """The chance that at least ``gained`` of the images that changed got better, if better and worse are equally likely.

    The exact one-sided sign test, which for single answers is McNemar's (1947): the sum of binomial(n, i) / 2^n for i from
    ``gained`` to n = ``gained`` + ``lost``.
    """
    changed = gained + lost
    terms = (
        exp(lgamma(changed + 1) - lgamma(i + 1) - lgamma(changed - i + 1) - changed * log(2))
        for i in range(gained, changed + 1)
    )
    return min(1.0, fsum(terms))


def _bounds(difference: np.ndarray, one: float) -> tuple[float, float]:
    """The interval of :func:`paired_loss` as shares, of each image's loss [images]; ``one`` answer less is the least loss."""
    changed, count = difference[difference != 0], len(difference)
    if not len(changed):
        # What the draws below tend to, without their noise: a limit may be just what this many images show.
        rare = float(one * (1 - 0.05 ** (1 / count)))
        return -rare, rare
    ends = np.array([min(difference.min(), -one), max(difference.max(), one)])
    source, means = np.random.default_rng(0), np.empty((DRAWS, 2))
    for start in range(0, DRAWS, CHUNK):  # all at once take gigabytes for tens of thousands of images
        size = len(means[start : start + CHUNK])
        # Of each image that changed, of the one more, and of all the others together.
        weights, others = source.standard_exponential((size, len(changed) + 1)), count - len(changed)
        total = weights.sum(axis=1) + source.standard_gamma(others, size)
        sums = (weights[:, :-1] @ changed)[:, None] + weights[:, -1:] * ends
        means[start : start + CHUNK] = sums / total[:, None]
    return float(np.percentile(means[:, 0], 5)), float(np.percentile(means[:, 1], 95))


def first_choices(images: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """int64 [n, k]: for each of k texts [n, k, E] of an image the number of the nearest image, among the :data:`GALLERY`
    images [n, E] that it is shown with; -1 where the text, or every image there, is not finite.

    Galleries are images in order, 64 each; the last may be smaller.
    """
    seen, read = np.isfinite(images).all(axis=1), np.isfinite(texts).all(axis=2)
    chosen = np.full(texts.shape[:2], -1, np.int64)
    for start in range(0, len(images), GALLERY):
        part = slice(start, start + GALLERY)
        there = np.where(seen[part, None], images[part], np.float32(0))
        similarity = np.where(read[part, :, None], texts[part], np.float32(0)) @ there.T
        similarity[..., ~seen[part]] = -np.inf
        chosen[part] = np.where(read[part] & seen[part].any(), start + similarity.argmax(axis=2), -1)
    return chosen


def gallery(images: int) -> str:
    """How many ``images`` :func:`first_choices` shows together, in words."""
    last = images % GALLERY
    if images <= GALLERY or not last:
        return f"{min(images, GALLERY)} images"
    return f"{GALLERY} images, {last} at last"
