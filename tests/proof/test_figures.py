"""The figures of a proof, compared with values that were computed in another way."""

from __future__ import annotations

import re

import numpy as np
import pytest

from simmim_export.proof.figures import (
    FALSE_ALARMS,
    agreement,
    chance_of_gain,
    choices,
    cosines,
    first_choices,
    gallery,
    paired_loss,
)
from simmim_export.proof.parity import difference


def unit(count: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(count, 16)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_cosines_by_hand() -> None:
    exact = np.array([[1, 0], [1, 0], [0, 0], [0, 0], [3, 4]], np.float32)
    other = np.array([[2, 0], [0, 5], [0, 0], [1, 0], [-3, -4]], np.float32)
    assert cosines(exact, other) == pytest.approx([1, 0, 1, 0, -1])


def test_a_vector_that_is_not_finite_has_cosine_minus_one() -> None:
    exact = unit(50)
    broken = exact.copy()
    broken[3, 5], broken[4] = np.nan, np.inf
    row = agreement(exact, broken)
    assert row["cosine_mean"] == pytest.approx(46 / 50) and row["cosine_min"] == -1.0
    nearest = (exact @ exact.T - 9 * np.eye(50, dtype=np.float32)).argmax(axis=1)
    lost = np.isin(nearest, (3, 4)) | np.isin(np.arange(50), (3, 4))
    assert row["top1"] == pytest.approx(1 - lost.mean())
    nothing = agreement(exact, np.full_like(exact, np.nan))
    worst = {"cosine_mean": -1.0, "cosine_p1": -1.0, "cosine_min": -1.0, "top1": 0.0}
    assert nothing == worst | {"n": 50, "not_finite": 50} and row["not_finite"] == 2


@pytest.mark.parametrize("flips", [0, 1, 2, 7, 60])
def test_the_bound_is_that_of_clopper_and_pearson(flips: int) -> None:
    """Of 400 images, ``flips`` lost their answer. Where few did, a plain bootstrap would give a bound that is too low."""
    stats = pytest.importorskip("scipy.stats")
    right = np.random.default_rng(flips).permuted(np.arange(400) >= flips).astype(float)[:, None]
    row = paired_loss(np.ones((400, 1)), right)
    assert row["loss"] == pytest.approx(flips / 4) and row["n"] == row["images"] == 400
    assert row["interval"][1] == pytest.approx(100 * stats.beta(flips + 1, 400 - flips).ppf(0.95), rel=0.03)
    gained = paired_loss(right, np.ones((400, 1)))
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


def test_equal_answers_lose_nothing() -> None:
    right = np.random.default_rng(0).integers(0, 2, (64, 3)).astype(float)
    row = paired_loss(right, right)
    assert row["loss"] == 0 and row["value"] == row["reference"] == right.mean()
    # The rule of three, of 192 questions.
    assert row["interval"] == pytest.approx([-300 / 192, 300 / 192], rel=0.03) and row["interval"][1] < 300 / 192


def test_a_caption_looks_for_its_image_among_64() -> None:
    images, own = unit(100), np.arange(100)[:, None]
    assert np.array_equal(first_choices(images, images[:, None]), own)
    chosen = first_choices(images, np.roll(images, 1, axis=0)[:, None])
    # Each caption is that of the image before; that of a gallery's first image is in another gallery.
    assert np.array_equal(np.delete(chosen, (0, 64), axis=0), np.delete(own - 1, (0, 64), axis=0))
    # The same image in another gallery does not compete.
    twins = np.concatenate([images[:64], images[:36]])
    assert np.array_equal(first_choices(twins, twins[:, None]), own)


def test_the_size_of_a_gallery_for_people() -> None:
    assert [gallery(count) for count in (48, 64, 128)] == ["48 images", "64 images", "64 images"]
    assert gallery(150) == "64 images, 22 at last"


@pytest.mark.parametrize("value", [np.nan, np.inf, -0.1, 1.1])
def test_hits_outside_of_0_to_1_are_refused(value: float) -> None:
    right, broken = np.ones((10, 2)), np.ones((10, 2))
    broken[3, 1] = value
    for pair in ((right, broken), (broken, right)):
        with pytest.raises(ValueError, match=r"\[10, 2\]"):
            paired_loss(*pair)
    for shape in ((0, 2), (10, 0)):
        with pytest.raises(ValueError, match=re.escape(str(list(shape)))):
            paired_loss(np.ones(shape), np.ones(shape))


def test_a_reference_that_is_not_finite_is_refused() -> None:
    broken = unit(5)
    broken[2, 2] = np.nan
    with pytest.raises(ValueError, match=r"\[5, 16\]"):
        agreement(broken, unit(5))


def test_logits_that_are_not_finite_choose_nothing() -> None:
    logits = np.zeros((2, 2, 3), np.float32)
    logits[0, 0, 1], logits[0, 1, 2], logits[1, 0, 0] = 5, np.nan, np.inf
    assert choices(logits).tolist() == [[1, -1], [-1, 0]]


def test_an_image_that_is_not_finite_is_never_chosen() -> None:
    images, texts = unit(70), unit(70)[:, None].copy()
    images[3], texts[5] = np.nan, np.inf
    chosen = first_choices(images, texts)[:, 0]
    assert (
        chosen[5] == -1
        and 3 not in chosen
        and np.array_equal(np.delete(chosen, (3, 5)), np.delete(np.arange(70), (3, 5)))
    )
    images[64:] = np.nan
    assert (first_choices(images, texts)[64:] == -1).all()


@pytest.mark.parametrize("gained", [0, 1, 7, 40])
def test_the_chance_of_a_gain_is_that_of_a_fair_coin(gained: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    for lost in (0, 1, 7, 2000):
        assert chance_of_gain(gained, lost) == pytest.approx(stats.binom(gained + lost, 0.5).sf(gained - 1), abs=1e-9)


def test_a_precision_that_is_not_better_is_seldom_suspicious() -> None:
    """20,000 models that change as many answers for the better as for the worse: one of a thousand may be called suspicious."""
    source = np.random.default_rng(0)
    changed = source.integers(0, 200, 20_000)
    gained = source.binomial(changed, 0.5)
    limits = {n: next(g for g in range(n + 2) if chance_of_gain(g, n - g) < FALSE_ALARMS or g > n) for n in range(200)}
    alarms = sum(g >= limits[n] for n, g in zip(changed.tolist(), gained.tolist(), strict=True))
    # Binomial(20,000, 1/1000) exceeds 40 in less than one of 10,000 runs; a rule that never speaks would pass that alone.
    assert 1 <= alarms <= 40


def test_several_questions_about_an_image_cause_no_more_false_alarms() -> None:
    """Whole models, through the very function: 8 questions an image that change together, no better and no worse."""
    source, alarms = np.random.default_rng(1), 0
    for _ in range(300):
        exact = (source.random((60, 8)) < 0.6).astype(float)
        flipped = (source.random((60, 1)) < 0.3) & (source.random((60, 8)) < 0.5)
        # What is flipped is drawn anew with even odds on both sides, so that neither is better.
        first, second = (np.where(flipped, source.random((60, 8)) < 0.5, exact).astype(float) for _ in range(2))
        alarms += paired_loss(first, second)["suspicious"]
    assert alarms <= 3


def test_a_reference_with_wrong_answers_is_suspicious() -> None:
    right = np.ones((48, 8))
    wrong = np.random.default_rng(0).permuted(np.arange(48 * 8) >= 170).reshape(48, 8).astype(float)
    assert paired_loss(wrong, right)["suspicious"] and not paired_loss(right, wrong)["suspicious"]
    assert not paired_loss(right, right)["suspicious"]
    # Nine images are too few to tell: 1 / 2^9 is above 1 / 1000, 1 / 2^10 is not.
    few = [paired_loss((np.arange(400) >= n).astype(float)[:, None], np.ones((400, 1))) for n in (9, 10)]
    assert [row["suspicious"] for row in few] == [False, True] and few[1]["interval"][1] < 0


@pytest.mark.parametrize("wrong", [np.complex64, np.nan, np.inf])
def test_a_tensor_that_is_not_finite_and_real_agrees_with_nothing(wrong: type | float) -> None:
    good = unit(3)
    bad = good.astype(wrong) if isinstance(wrong, type) else np.full_like(good, wrong)
    assert difference(good, bad) == difference(bad, good) == (float("inf"), -1.0)
