"""Losses compared with values computed by hand, and cases that crashed other implementations."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from simmim_export.errors import UsageError
from simmim_export.training.objectives import (
    MAX_LOGIT_SCALE,
    answer_loss,
    contrastive_loss,
    hard_negatives,
    mask_words,
    match_loss,
    similarities,
    tag_loss,
)


def own(ids: list[int]) -> torch.Tensor:
    """Which images of a batch are the same."""
    return torch.tensor(ids)[:, None] == torch.tensor(ids)


def test_similarities_are_scaled_cosines_and_the_scale_is_clamped() -> None:
    eye = torch.eye(2)
    assert torch.allclose(similarities(eye, eye, torch.tensor(math.log(5.0))), 5 * eye)
    assert similarities(eye, eye, torch.tensor(50.0)).max() == pytest.approx(math.exp(MAX_LOGIT_SCALE), rel=1e-5)
    assert math.exp(MAX_LOGIT_SCALE) == pytest.approx(100, rel=1e-3)


def test_mixed_precision_does_not_round_the_scores() -> None:
    image, text = torch.nn.functional.normalize(torch.randn(2, 8, 96, generator=torch.manual_seed(0)), dim=-1)
    exact = similarities(image, text, torch.tensor(4.0))
    with torch.autocast("cpu", torch.bfloat16):
        low = similarities(image.bfloat16(), text.bfloat16(), torch.tensor(4.0))
        mixed = similarities(image, text, torch.tensor(4.0))
    assert low.dtype == torch.float32 and torch.equal(mixed, exact)


def test_contrastive_by_hand() -> None:
    scores = torch.tensor([[2.0, 0.0], [1.0, 1.0]])
    rows = (math.log(1 + math.exp(-2)) + math.log(2)) / 2
    columns = (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(-1))) / 2
    assert contrastive_loss(scores, own([0, 1])).item() == pytest.approx((rows + columns) / 2, rel=1e-6)


def test_two_texts_of_one_image_are_both_positives() -> None:
    scores = torch.zeros(3, 3)
    assert contrastive_loss(scores, own([0, 0, 1])).item() == pytest.approx(math.log(3))
    same = torch.tensor([[0.0, 5.0, 0.0], [5.0, 0.0, 0.0], [0.0, 0.0, 5.0]])
    assert contrastive_loss(same, own([0, 0, 1])) < contrastive_loss(same, own([0, 1, 2]))


def test_a_batch_of_one_is_refused() -> None:
    with pytest.raises(UsageError) as caught:
        contrastive_loss(torch.zeros(1, 1), own([0]))
    assert caught.value.exit_code == 2


def test_hard_negatives_follow_the_softmax_and_never_hit_the_same() -> None:
    torch.manual_seed(0)
    scores = torch.tensor([[9.0, 5.0, 5.0 - math.log(3)]]).repeat(3, 1)
    same = torch.zeros(3, 3, dtype=torch.bool)
    same[:, 0] = True
    drawn = torch.cat([hard_negatives(scores, same) for _ in range(2000)])
    assert not (drawn == 0).any()
    assert (drawn == 1).float().mean().item() == pytest.approx(0.75, abs=0.03)


def test_hard_negatives_exist_even_if_everything_is_the_same() -> None:
    scores = torch.randn(4, 4)
    same = torch.ones(4, 4, dtype=torch.bool)
    for _ in range(50):
        assert (hard_negatives(scores, same) != torch.arange(4)).all()
    assert hard_negatives(torch.full((2, 2), -1e9), torch.eye(2, dtype=torch.bool)).tolist() == [1, 0]


def test_match_loss_weighs_both_classes_alike() -> None:
    always_no = torch.tensor([[4.0, 0.0]]).repeat(9, 1)
    always_yes = torch.tensor([[0.0, 4.0]]).repeat(9, 1)
    assert match_loss(always_no).item() == pytest.approx(match_loss(always_yes).item())
    undecided = match_loss(torch.zeros(9, 2)).item()
    assert undecided == pytest.approx(math.log(2)) and undecided < match_loss(always_no).item()
    right = torch.cat([always_yes[:3], always_no[:6]])
    assert match_loss(right).item() == pytest.approx(math.log(1 + math.exp(-4)), rel=1e-5)


def test_answer_loss_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(3)], [0.0, 0.0]])
    expected = (math.log(4 / 3) + math.log(2)) / 2
    assert answer_loss(logits, torch.tensor([1, 0])).item() == pytest.approx(expected, rel=1e-6)


def test_tag_loss_by_hand() -> None:
    """Two tokens with p = 1/2 and 1/4 for one tag: the image shows it with 1 - 1/2 * 3/4 = 5/8."""
    logits = torch.tensor([[[0.0], [math.log(1 / 3)]]])
    assert tag_loss(logits, torch.ones(1, 1)).item() == pytest.approx(-math.log(5 / 8), rel=1e-5)
    assert tag_loss(logits, torch.zeros(1, 1)).item() == pytest.approx(-math.log(3 / 8), rel=1e-5)
    both = tag_loss(logits.repeat(2, 1, 3), torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])).item()
    assert both == pytest.approx(-math.log(5 / 8) - 2 * math.log(3 / 8), rel=1e-5)


@pytest.mark.parametrize("value", [-60.0, -9.0, 9.0, 60.0])
@pytest.mark.parametrize("present", [0.0, 1.0])
def test_tag_loss_has_a_finite_gradient_however_sure_the_tokens_are(value: float, present: float) -> None:
    logits = torch.full((2, 16, 3), value, requires_grad=True)
    loss = tag_loss(logits, torch.full((2, 3), present))
    loss.backward()
    assert loss.isfinite() and logits.grad is not None and logits.grad.isfinite().all()
    assert (value > 0) == (present > 0) or loss > 1


@given(st.integers(0, 1000), st.floats(0, 1), st.integers(1, 6), st.integers(1, 9))
def test_hidden_words_are_maskable_and_nothing_else_changes(seed: int, rate: float, texts: int, length: int) -> None:
    random = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 10, (texts, length), generator=random)
    maskable = torch.arange(10) >= 5
    hidden_ids, hidden = mask_words(ids, maskable, rate=rate, mask_id=4, generator=random)
    assert not (hidden & ~maskable[ids]).any()
    assert (hidden_ids[hidden] == 4).all() and torch.equal(hidden_ids[~hidden], ids[~hidden])
    assert torch.equal(hidden.any(dim=1), maskable[ids].any(dim=1))
    if rate == 1:
        assert torch.equal(hidden, maskable[ids])


def test_words_are_hidden_at_the_rate() -> None:
    ids = torch.full((400, 50), 7)
    _, hidden = mask_words(ids, torch.arange(10) >= 5, rate=0.3, mask_id=4, generator=torch.Generator().manual_seed(0))
    assert hidden.float().mean().item() == pytest.approx(0.3, abs=0.01)
