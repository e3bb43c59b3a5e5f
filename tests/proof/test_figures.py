"""Figures of a proof, beside values that were found in another way."""

from __future__ import annotations

import numpy as np
import pytest

from simmim_export.proof.figures import agreement, cosines, first_choices, paired_loss


def unit(count: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(count, 16)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_cosines_by_hand() -> None:
    exact = np.array([[1, 0], [1, 0], [0, 0], [0, 0], [3, 4]], np.float32)
    found = np.array([[2, 0], [0, 5], [0, 0], [1, 0], [-3, -4]], np.float32)
    assert cosines(exact, found) == pytest.approx([1, 0, 1, 0, -1])


def test_a_vector_that_is_not_finite_is_as_far_off_as_can_be() -> None:
    exact = unit(50)
    broken = exact.copy()
    broken[3, 5], broken[4] = np.nan, np.inf
    found = agreement(exact, broken)
    assert found["cosine_mean"] == pytest.approx(46 / 50) and found["cosine_min"] == -1.0
    nearest = (exact @ exact.T - 9 * np.eye(50, dtype=np.float32)).argmax(axis=1)
    lost = np.isin(nearest, (3, 4)) | np.isin(np.arange(50), (3, 4))
    assert found["top1"] == pytest.approx(1 - lost.mean())
    nothing = agreement(exact, np.full_like(exact, np.nan))
    assert nothing == {"cosine_mean": -1.0, "cosine_p1": -1.0, "cosine_min": -1.0, "top1": 0.0}


@pytest.mark.parametrize("flips", [1, 7, 60])
def test_the_interval_is_that_of_the_binomial(flips: int) -> None:
    """Of 400 images ``flips`` lost their answer: the bootstrap of a share is the binomial distribution of its estimate."""
    stats = pytest.importorskip("scipy.stats")
    found = np.random.default_rng(flips).permuted(np.arange(400) >= flips).astype(float)[:, None]
    row = paired_loss(np.ones((400, 1)), found)
    assert row["loss"] == pytest.approx(flips / 4) and row["n"] == row["images"] == 400
    wanted = stats.binom(400, flips / 400).ppf([0.05, 0.95]) / 4
    assert row["interval"] == pytest.approx(wanted, abs=0.3)


def test_questions_of_one_image_are_drawn_together() -> None:
    together, apart = np.zeros((100, 8)), np.zeros((100, 8))
    together[:10], apart.reshape(-1)[::10] = 1, 1
    wide, narrow = (paired_loss(lost, np.zeros((100, 8))) for lost in (together, apart))
    assert wide["loss"] == narrow["loss"] == 10.0
    assert np.ptp(wide["interval"]) > 2 * np.ptp(narrow["interval"])


def test_what_both_get_wrong_is_no_loss() -> None:
    right = np.random.default_rng(0).integers(0, 2, (64, 3)).astype(float)
    row = paired_loss(right, right)
    assert row["loss"] == 0 and row["interval"] == [0, 0] and row["value"] == row["reference"] == right.mean()


def test_a_caption_looks_for_its_image_among_64() -> None:
    images, own = unit(100), np.arange(100)[:, None]
    assert np.array_equal(first_choices(images, images[:, None]), own)
    found = first_choices(images, np.roll(images, 1, axis=0)[:, None])
    # In each gallery but the caption of the image before the first one, which is elsewhere.
    assert np.array_equal(np.delete(found, (0, 64), axis=0), np.delete(own - 1, (0, 64), axis=0))
    # What is nearest in another gallery is no rival.
    twins = np.concatenate([images[:64], images[:36]])
    assert np.array_equal(first_choices(twins, twins[:, None]), own)
