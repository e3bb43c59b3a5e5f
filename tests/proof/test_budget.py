"""Budgets: what parses, what each limit is held against, and what is said of one that is exceeded."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from simmim_export.errors import UsageError
from simmim_export.proof.budget import DEFAULT, Budget

FIGURES: dict[str, Any] = {
    "embeddings": {"image_embed": {"cosine_mean": 0.9995}, "text_embed": {"cosine_mean": 0.99796}},
    "tasks": {
        "vqa": {"interval": [-0.1, 0.5], "top1": 0.985, "images": 1024},
        "retrieval": {"interval": [0.2, 0.6], "top1": 0.5, "images": 64},
    },
}


@pytest.mark.parametrize(
    "text",
    [
        *("", "answers", "answers=", "answers=high", "answers=-1pt", "answers=101pt", "answers=0.5%", "answers=1e-3pt"),
        *("x=1", "cosine=0", "cosine=1.01", "cosine=0.9pt", "cosine=nan", "cosine=0.9,cosine=0.9", "cosine=0.9,"),
        "agreement=0%",
    ],
)
def test_a_budget_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        Budget.parse(text)
    assert caught.value.exit_code == 2 and caught.value.fix


def test_a_budget_is_read_back_as_it_is_written() -> None:
    for text in (DEFAULT, "agreement=99%", "answers=0pt,cosine=1"):
        assert str(Budget.parse(text)) == text
    assert Budget.parse(" cosine = .998 , answers=1 pt ") == Budget.parse("cosine=0.998,answers=1pt")


@given(points=st.floats(0, 100), cosine=st.floats(0, 1, exclude_min=True))
@example(points=0.1234567, cosine=0.9999996)
@example(points=1e-05, cosine=5e-324)
def test_any_budget_is_read_back_as_the_same_numbers(points: float, cosine: float) -> None:
    budget = Budget((("answers", points), ("cosine", cosine)))
    assert Budget.parse(str(budget)) == budget


def test_every_limit_is_held_against_its_own_figures() -> None:
    lines = Budget.parse("answers=0.5pt,retrieval=0.5pt,cosine=0.998,agreement=99%").lines(FIGURES)
    assert [(line.name, line.kept) for line in lines] == [
        ("answers vqa", True),
        ("retrieval", False),
        ("cosine image_embed", True),
        ("cosine text_embed", False),
        ("agreement vqa", False),
    ]


def test_what_is_exceeded_does_not_read_as_kept() -> None:
    said = [str(line) for line in Budget.parse("cosine=0.998,retrieval=0.5pt").lines(FIGURES) if not line.kept]
    assert said == ["cosine text_embed 0.99796, at least 0.998", "retrieval 0.6, at most 0.5 pt"]
    assert Budget.parse("cosine=0.99999").lines(FIGURES)[0].allowed == "at least 0.99999"


def test_a_loss_that_so_few_images_cannot_show_is_not_measurable() -> None:
    """Of 64 images none changed: the loss may still be 3 / 64 = 4.7 points."""
    budget = Budget.parse("answers=0.5pt,retrieval=0.5pt,cosine=0.998")
    assert str(budget.measurable(FIGURES)) == "answers=0.5pt,cosine=0.998"
    with pytest.raises(UsageError, match=r"64 images of retrieval are too few .* it takes 600") as caught:
        budget.require_measurable(FIGURES)
    assert "--eval-scenes 600" in str(caught.value.fix)
    Budget.parse("retrieval=4.7pt").require_measurable(FIGURES)
    with pytest.raises(UsageError, match="cannot be proven on any number") as caught:
        Budget.parse("answers=0pt").require_measurable(FIGURES)
    assert "agreement=100%" in str(caught.value.fix)
