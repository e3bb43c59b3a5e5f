"""Figures of a proof, beside values that were found in another way."""

from __future__ import annotations

import numpy as np
import pytest

from simmim_export.proof.figures import agreement, cosines, first_choices, gallery, paired_loss


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


@pytest.mark.parametrize("flips", [0, 1, 2, 7, 60])
def test_the_bound_is_that_of_clopper_and_pearson(flips: int) -> None:
    """Of 400 images ``flips`` lost their answer. Also where it counts: few did, and a plain bootstrap says too little."""
    stats = pytest.importorskip("scipy.stats")
    found = np.random.default_rng(flips).permuted(np.arange(400) >= flips).astype(float)[:, None]
    row = paired_loss(np.ones((400, 1)), found)
    assert row["loss"] == pytest.approx(flips / 4) and row["n"] == row["images"] == 400
    assert row["interval"][1] == pytest.approx(100 * stats.beta(flips + 1, 400 - flips).ppf(0.95), rel=0.03)
    gained = paired_loss(found, np.ones((400, 1)))
    assert gained["interval"] == pytest.approx([-value for value in row["interval"][::-1]], abs=0.05)


@pytest.mark.parametrize("images", [640, 1024])
def test_a_loss_at_the_limit_passes_in_one_case_of_twenty(images: int) -> None:
    """Half a point is lost and nothing gained: the chance that the bound falls below it, over all numbers of losses."""
    stats = pytest.importorskip("scipy.stats")
    rows = [(k, paired_loss(np.ones((images, 1)), np.arange(images)[:, None] >= k)) for k in range(5)]
    missed = [k for k, row in rows if row["interval"][1] < 0.5]
    assert missed == list(range(len(missed))) and len(missed) < len(rows)
    assert sum(stats.binom(images, 0.005).pmf(k) for k in missed) <= 0.05


def test_memory_does_not_grow_with_draws_times_images() -> None:
    import tracemalloc

    tracemalloc.start()
    paired_loss(np.ones((10_000, 1)), np.zeros((10_000, 1)))
    assert tracemalloc.get_traced_memory()[1] < 100e6
    tracemalloc.stop()


def test_questions_of_one_image_are_drawn_together() -> None:
    together, apart = np.zeros((100, 8)), np.zeros((100, 8))
    together[:10], apart.reshape(-1)[::10] = 1, 1
    wide, narrow = (paired_loss(lost, np.zeros((100, 8))) for lost in (together, apart))
    assert wide["loss"] == narrow["loss"] == 10.0
    assert np.ptp(wide["interval"]) > 2 * np.ptp(narrow["interval"])


def test_what_both_get_wrong_is_no_loss() -> None:
    right = np.random.default_rng(0).integers(0, 2, (64, 3)).astype(float)
    row = paired_loss(right, right)
    assert row["loss"] == 0 and row["value"] == row["reference"] == right.mean()
    # The rule of three, of 192 questions.
    assert row["interval"] == pytest.approx([-300 / 192, 300 / 192], rel=0.03) and row["interval"][1] < 300 / 192


def test_a_caption_looks_for_its_image_among_64() -> None:
    images, own = unit(100), np.arange(100)[:, None]
    assert np.array_equal(first_choices(images, images[:, None]), own)
    found = first_choices(images, np.roll(images, 1, axis=0)[:, None])
    # In each gallery but the caption of the image before the first one, which is elsewhere.
    assert np.array_equal(np.delete(found, (0, 64), axis=0), np.delete(own - 1, (0, 64), axis=0))
    # What is nearest in another gallery is no rival.
    twins = np.concatenate([images[:64], images[:36]])
    assert np.array_equal(first_choices(twins, twins[:, None]), own)


def test_a_gallery_is_said_as_it_is() -> None:
    assert [gallery(count) for count in (48, 64, 128)] == ["48 images", "64 images", "64 images"]
    assert gallery(150) == "64 images, 22 at last"
