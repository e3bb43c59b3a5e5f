"""How far outputs are from a reference, with intervals. Works on arrays of numbers alone.

A reference must be finite: ValueError. An output that is not finite is counted, and is as wrong as can be.
"""

from __future__ import annotations

from math import exp, fsum, lgamma, log
from typing import Any

import numpy as np

# Draws of a bootstrap, and how many are computed together.
DRAWS, CHUNK = 4000, 250
# A caption looks for its own image among so many.
GALLERY = 64
# For each task, the share of models that are called suspicious although they are no better than the reference.
FALSE_ALARMS = 0.001
# Rows whose similarities are computed together.
ROWS = 1024


def cosines(reference: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """float64 [n] in [-1, 1]: the cosine of each row of ``outputs`` [n, d] with that of ``reference``. Two rows of zeros agree; a
    row that is not finite has -1."""
    finite = np.isfinite(outputs).all(axis=1)
    a, b = reference.astype(np.float64), np.where(finite[:, None], outputs, 0).astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    same = (a == b).all(axis=1)
    return np.where(finite, np.where(same, 1.0, (a * b).sum(axis=1) / np.maximum(norms, 1e-30)), -1.0)


def agreement(reference: np.ndarray, outputs: np.ndarray) -> dict[str, Any]:
    """How unit vectors float32 [n, E] agree, row by row: cosine (mean, 1st percentile, least), and the share of rows whose
    nearest other row is the same (``top1``).

    A row of ``outputs`` that is not finite has the cosine -1 and no neighbor; ``not_finite`` counts those. Raise ValueError for a
    ``reference`` that is empty or not finite.
    """
    _require_reference(reference, outputs)
    cosine = cosines(reference, outputs)
    finite = np.isfinite(outputs).all(axis=1)
    same = _nearest(reference) == _nearest(np.where(finite[:, None], outputs, np.float32(0)))
    return {
        "cosine_mean": float(cosine.mean()),
        "cosine_p1": float(np.percentile(cosine, 1)),
        "cosine_min": float(cosine.min()),
        "top1": float((same & finite).mean()),
        "n": len(reference),
        "not_finite": int((~finite).sum()),
    }


def _nearest(vectors: np.ndarray) -> np.ndarray:
    """int64 [n]: for each of the rows [n, E] the number of the most similar other one."""
    nearest = np.zeros(len(vectors), np.int64)
    for start in range(0, len(vectors), ROWS):  # all at once would take gigabytes for tens of thousands of texts
        similarity = vectors[start : start + ROWS] @ vectors.T
        rows = np.arange(len(similarity))
        similarity[rows, start + rows] = -np.inf
        nearest[start : start + ROWS] = similarity.argmax(axis=1)
    return nearest


def choices(logits: np.ndarray) -> np.ndarray:
    """int64 [n, k]: the class with the highest of ``logits`` [n, k, classes]; -1, no answer, where one of them is not finite."""
    return np.where(np.isfinite(logits).all(axis=2), logits.argmax(axis=2), -1)


def nearest_texts(images: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """int64 [n]: for each of the ``images`` [n, E] the number of the most similar of the ``texts`` [k, E]; -1, no choice, if the
    image or one of the texts is not finite."""
    chosen = np.empty(len(images), np.int64)
    for start in range(0, len(images), ROWS):
        with np.errstate(invalid="ignore"):  # infinity times zero
            chosen[start : start + ROWS] = choices((images[start : start + ROWS] @ texts.T)[None])[0]
    return chosen


def _require_reference(reference: np.ndarray, outputs: np.ndarray) -> None:
    if reference.shape != outputs.shape or not reference.size or not np.isfinite(reference).all():
        what = f"a reference of {reference.dtype} {list(reference.shape)}"
        raise ValueError(f"{what} is empty, not finite or of another shape than the outputs")


def paired_loss(reference: np.ndarray, outputs: np.ndarray) -> dict[str, Any]:
    """How much ``outputs`` lose against ``reference``, in points of a hundred. Both are hits (or scores) in [0, 1], float64
    [images, k].

    ``loss`` is the difference of their means. ``interval`` has the 5th and 95th percentile of a paired Bayesian bootstrap over
    images (Rubin, 1981): with 95 % confidence the loss is not above the second value. The k questions of an image are weighted
    together, since they are not independent. The same arrays always give the same interval.

    ``gained`` and ``lost`` count the images on which ``outputs`` are better and worse. ``suspicious`` says that they are better
    than chance explains: :func:`chance_of_gain` is below :data:`FALSE_ALARMS`. A lower precision seldom is better, but wrong
    references make any model look better.

    A bootstrap knows only the losses that it has seen, and gives a bound that is too low where they are few. So one more image is
    added. It loses as much as the worst image that was seen, and at least one answer (for the lower value, it gains). If images
    lose all or nothing, this gives the bound of Clopper and Pearson (1934), and the rule of three if none of them lost.

    Raise ValueError for arrays that are empty, of different shapes, not finite or outside of [0, 1].
    """
    _require_reference(reference, outputs)
    if reference.ndim != 2 or not all(((hits >= 0) & (hits <= 1)).all() for hits in (reference, outputs)):
        raise ValueError(f"hits {list(reference.shape)} are not [images, k] in [0, 1]")
    difference = (reference - outputs).mean(axis=1)
    low, high = _bounds(difference, 1 / reference.shape[1])
    gained, lost = int((difference < 0).sum()), int((difference > 0).sum())
    return {
        "value": float(outputs.mean()),
        "reference": float(reference.mean()),
        "loss": 100 * float(difference.mean()),
        "interval": [100 * low, 100 * high],
        "n": int(outputs.size),
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
    """The interval of :func:`paired_loss` as shares. ``difference`` float64 [images] is the loss of each image, and ``one`` the
    smallest that an image can have: one answer."""
    changed, count = difference[difference != 0], len(difference)
    if not len(changed):
        # The limit of the draws below, without their noise: a budget may be just what this many images can show.
        rare = float(one * (1 - 0.05 ** (1 / count)))
        return -rare, rare
    ends = np.array([min(difference.min(), -one), max(difference.max(), one)])
    source, means = np.random.default_rng(0), np.empty((DRAWS, 2))
    for start in range(0, DRAWS, CHUNK):  # all at once would take gigabytes for tens of thousands of images
        size = len(means[start : start + CHUNK])
        # The weights of each image that changed and of the additional one; below, those of all other images together.
        weights, others = source.standard_exponential((size, len(changed) + 1)), count - len(changed)
        total = weights.sum(axis=1) + source.standard_gamma(others, size)
        sums = (weights[:, :-1] @ changed)[:, None] + weights[:, -1:] * ends
        means[start : start + CHUNK] = sums / total[:, None]
    return float(np.percentile(means[:, 0], 5)), float(np.percentile(means[:, 1], 95))


def first_choices(images: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """int64 [n, k]: for each of the k texts [n, k, E] of an image, the number of the nearest image in its gallery; -1 if the
    text, or every image of the gallery, is not finite.

    A gallery has :data:`GALLERY` of the images [n, E], in order; the last gallery may have fewer.
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
    """The size of the galleries that :func:`first_choices` makes of so many ``images``, for people."""
    last = images % GALLERY
    if images <= GALLERY or not last:
        return f"{min(images, GALLERY)} images"
    return f"{GALLERY} images, {last} at last"
