"""How far outputs are from a reference's, with intervals. Knows arrays of numbers; must not know graphs, engines or files."""

from __future__ import annotations

from typing import Any

import numpy as np

DRAWS = 4000
CHUNK = 250
# Among so many images a caption looks for its own.
GALLERY = 64


def cosines(exact: np.ndarray, found: np.ndarray) -> np.ndarray:
    """float64 [n] in [-1, 1]: the cosine of each row of ``found`` [n, d] with that of ``exact``; two rows of zeros agree, and
    one that is not finite is as far off as can be: -1."""
    finite = np.isfinite(found).all(axis=1)
    a, b = exact.astype(np.float64), np.where(finite[:, None], found, 0).astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    same = (a == b).all(axis=1)
    return np.where(finite, np.where(same, 1.0, (a * b).sum(axis=1) / np.maximum(norms, 1e-30)), -1.0)


def agreement(exact: np.ndarray, found: np.ndarray) -> dict[str, float]:
    """How unit vectors float32 [n, E] agree, row by row: cosine (mean, 1st percentile, least), and the share of rows whose
    nearest other row is the same (``top1``). A row that is not finite has the cosine -1, and no neighbour."""
    cosine = cosines(exact, found)
    finite = np.isfinite(found).all(axis=1)
    nearest = []
    for vectors in (exact, np.where(finite[:, None], found, 0)):
        similarity = vectors @ vectors.T
        np.fill_diagonal(similarity, -np.inf)
        nearest.append(similarity.argmax(axis=1))
    return {
        "cosine_mean": float(cosine.mean()),
        "cosine_p1": float(np.percentile(cosine, 1)),
        "cosine_min": float(cosine.min()),
        "top1": float(((nearest[0] == nearest[1]) & finite).mean()),
    }


def paired_loss(exact: np.ndarray, found: np.ndarray) -> dict[str, Any]:
    """What ``found`` loses against ``exact``, hits (or scores) in [0, 1], both float64 [images, k], in points of a hundred.

    ``loss`` is the difference of their means; ``interval`` holds the 5th and 95th percentile of a paired Bayesian bootstrap over
    images (Rubin, 1981; the k questions of an image are weighted together, since they are not independent): with 95 %
    confidence the loss is not above its second value. The same arrays always give the same.

    A bootstrap knows no loss but those it has seen, and says too little where they are few. So one more image is weighted along,
    which loses as much as the worst that was seen, and one answer at least; for the lower value one that gains. Where images
    lose all or nothing, the bound is then that of Clopper and Pearson (1934), and the rule of three where none did.
    """
    difference = (exact - found).mean(axis=1)
    low, high = _bounds(difference, 1 / exact.shape[1])
    return {
        "value": float(found.mean()),
        "reference": float(exact.mean()),
        "loss": 100 * float(difference.mean()),
        "interval": [100 * low, 100 * high],
        "n": int(found.size),
        "images": len(difference),
    }


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
    images [n, E] that it is shown with.

    Galleries are images in order, 64 each; the last may be smaller.
    """
    found = np.zeros(texts.shape[:2], np.int64)
    for start in range(0, len(images), GALLERY):
        part = slice(start, start + GALLERY)
        found[part] = start + (texts[part] @ images[part].T).argmax(axis=2)
    return found


def gallery(images: int) -> str:
    """How many ``images`` :func:`first_choices` shows together, in words."""
    last = images % GALLERY
    if images <= GALLERY or not last:
        return f"{min(images, GALLERY)} images"
    return f"{GALLERY} images, {last} at last"
