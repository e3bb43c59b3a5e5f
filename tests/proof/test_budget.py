"""Budgets: what parses, which figure each limit is compared with, and what a message says about a limit that is exceeded."""

from __future__ import annotations

from math import isfinite, nan
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from simmim_export.bundle import Bundle
from simmim_export.errors import UsageError
from simmim_export.proof.budget import DEFAULT, Budget, Promised, promised

FIGURES: dict[str, Any] = {
    "embeddings": {"images": {"cosine_mean": 0.9995}, "texts": {"cosine_mean": 0.99796}},
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
def test_a_budget_that_does_not_parse_is_an_error(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        Budget.parse(text)
    assert caught.value.exit_code == 2 and caught.value.fix


def test_a_budget_is_written_as_it_was_read() -> None:
    for text in (DEFAULT, "agreement=99%", "answers=0pt,cosine=1"):
        assert str(Budget.parse(text)) == text
    assert Budget.parse(" cosine = .998 , answers=1 pt ") == Budget.parse("cosine=0.998,answers=1pt")


@given(points=st.floats(0, 100), cosine=st.floats(0, 1, exclude_min=True))
@example(points=0.1234567, cosine=0.9999996)
@example(points=1e-05, cosine=5e-324)
def test_any_budget_is_read_as_the_numbers_that_were_written(points: float, cosine: float) -> None:
    budget = Budget((("answers", points), ("cosine", cosine)))
    assert Budget.parse(str(budget)) == budget


def test_every_limit_is_compared_with_its_own_figures() -> None:
    lines = Budget.parse("answers=0.5pt,retrieval=0.5pt,cosine=0.998,agreement=99%").lines(FIGURES)
    assert [(line.name, line.kept) for line in lines] == [
        ("answers vqa", True),
        ("retrieval", False),
        ("cosine images", True),
        ("cosine texts", False),
        ("agreement vqa", False),
    ]


def test_an_exceeded_limit_shows_enough_digits() -> None:
    said = [str(line) for line in Budget.parse("cosine=0.998,retrieval=0.5pt").lines(FIGURES) if not line.kept]
    assert said == ["cosine texts 0.99796, at least 0.998", "retrieval 0.6, at most 0.5 pt"]
    assert Budget.parse("cosine=0.99999").lines(FIGURES)[0].allowed == "at least 0.99999"


def test_a_limit_that_needs_more_images_cannot_be_judged() -> None:
    """Of 64 images none changed: the loss may still be 3 / 64 = 4.7 points."""
    budget = Budget.parse("answers=0.5pt,retrieval=0.5pt,cosine=0.998")
    left_out = budget.not_judged(FIGURES)
    assert [one.name for one in left_out] == ["retrieval"]
    assert [line.name for line in budget.lines(FIGURES, without=[one.name for one in left_out])] == [
        "answers vqa",
        "cosine images",
        "cosine texts",
    ]
    with pytest.raises(UsageError, match=r"64 images of retrieval") as caught:
        budget.require_measurable(FIGURES)
    assert "--eval-scenes 600" in str(caught.value.fix)
    Budget.parse("retrieval=4.7pt").require_measurable(FIGURES)
    with pytest.raises(UsageError) as caught:
        Budget.parse("answers=0pt").require_measurable(FIGURES)
    assert "agreement=100%" in str(caught.value.fix)


def test_every_limit_has_a_line_for_everything_that_the_model_promises() -> None:
    """A task without figures and a key without a task give lines that are not kept; no line is missing."""
    of: Promised = {
        "answers": ("vqa", "match"),
        "agreement": ("vqa", "match"),
        "cosine": ("images", "texts"),
        "retrieval": (),
    }
    budget = Budget.parse("answers=1pt,retrieval=1pt,cosine=0.99,agreement=1%")
    lines = {line.name: line for line in budget.lines(FIGURES, of=of)}
    assert list(lines) == [
        *("answers vqa", "answers match", "retrieval", "cosine images", "cosine texts"),
        *("agreement vqa", "agreement match"),
    ]
    lacking = {name for name, line in lines.items() if not line.kept}
    assert lacking == {"answers match", "retrieval", "agreement match"}
    assert all(lines[name].measured is None and lines[name].reason for name in lacking)
    assert {one.name for one in budget.not_judged(FIGURES, of=of)} == lacking
    with pytest.raises(UsageError):
        budget.require_measurable(FIGURES, of=of)
    nothing = {"embeddings": {}, "tasks": {}}
    assert [line.kept for line in budget.lines(nothing)] == [False] * 4
    assert {one.name for one in budget.not_judged(nothing)} == {"answers", "agreement", "cosine", "retrieval"}


@pytest.mark.parametrize("changes", [{"interval": [nan, nan], "top1": nan}, {"not_finite": 1}])
def test_a_figure_that_is_not_a_number_keeps_no_limit(changes: dict[str, Any]) -> None:
    figures = {"embeddings": {"images": {"cosine_mean": nan}}, "tasks": {"vqa": FIGURES["tasks"]["vqa"] | changes}}
    lines = Budget.parse("answers=100pt,cosine=0.0001,agreement=0.0001%").lines(figures)
    assert len(lines) == 3 and not any(line.kept for line in lines) and all(line.reason for line in lines)
    assert all(line.measured is None or isfinite(line.measured) for line in lines)
    assert "not computed" in str(lines[1])


def test_a_proven_loss_fails_however_few_images_there_are() -> None:
    """48 images cannot prove that at most 0.5 points are lost, but they can prove that a hundred are."""
    of: Promised = {"answers": ("vqa", "match"), "agreement": (), "cosine": (), "retrieval": ()}

    def figures(vqa: list[float], match: list[float], broken: int = 0) -> dict[str, Any]:
        rows = {"vqa": vqa, "match": match}
        return {
            "embeddings": {},
            "tasks": {n: {"interval": v, "top1": 1.0, "images": 48, "not_finite": broken} for n, v in rows.items()},
        }

    budget = Budget.parse("answers=0.5pt")
    left_out = budget.not_judged(figures([-1, 6], [-1, 6]), of=of)
    assert len(left_out) == 2
    assert budget.judge(figures([-1, 6], [0.5, 9]), of=of, left_out=left_out) == ([], left_out)
    (line,), rest = budget.judge(figures([93, 100], [-1, 6]), of=of, left_out=left_out)
    assert (line.name, line.kept, line.measured) == ("answers vqa", False, 93) and line.reason
    assert [one.name for one in rest] == ["answers match"]
    lines, rest = budget.judge(figures([-1, 6], [-1, 6], broken=1), of=of, left_out=left_out)
    assert [line.kept for line in lines] == [False, False] and not rest


def test_a_manifest_promises_its_tasks_and_embeddings(every_bundle: Path) -> None:
    of = promised(Bundle.open(every_bundle).manifest)
    heads = {"match", "vqa", "text_class", "image_class", "video_class", "video_qa"}
    assert set(of["answers"]) == set(of["agreement"]) == heads
    assert of["cosine"] == ("images", "texts") and of["retrieval"] == ("retrieval",)
