"""Figures by hand: recall with ties, controls that see nothing, intervals inside [0, 1]."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from simmim_export.models.checkpoint import build
from simmim_export.training.assemble import NewModel, new_checkpoint, with_head
from simmim_export.training.data.digits import Digits
from simmim_export.training.data.shapes.clips import ANSWERS, DIRECTIONS, Clips
from simmim_export.training.evaluation.answers import evaluate_answers, seen
from simmim_export.training.evaluation.classes import evaluate_classes
from simmim_export.training.evaluation.retrieval import recall
from simmim_export.training.evaluation.statistics import accuracy, batches, wilson


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=1, max_size=6).filter(
        lambda v: any(o for _, o in v)
    ),
    st.integers(1, 7),
)
def test_recall_is_the_mean_over_all_orders_of_ties(candidates: list[tuple[int, bool]], cut: int) -> None:
    scores, own = torch.tensor([[float(s) for s, _ in candidates]]), torch.tensor([[o for _, o in candidates]])
    orders = itertools.permutations(range(len(candidates)))
    hits = [any(candidates[i][1] for i in sorted(order, key=lambda i: -candidates[i][0])[:cut]) for order in orders]
    assert recall(scores, own, cut)[0] == pytest.approx(np.mean(hits))


@given(st.integers(1, 10**6), st.data())
def test_an_interval_holds_its_figure(n: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, n))
    low, high = wilson(hits, n)
    assert 0 <= low <= hits / n <= high <= 1


def test_batches_end_with_the_data() -> None:
    assert list(batches(130, None, "x", lambda *_: None)) == [(0, 64), (1, 64), (2, 2)]
    assert list(batches(130, 70, "x", lambda *_: None)) == [(0, 64), (1, 6)]


def made(head: str, labels) -> tuple:
    started = with_head(new_checkpoint(NewModel(), seed=0), head, labels, 8, seed=0)
    return build(started), Tokenizer.from_str(started.tokenizer)


def test_a_held_out_set_is_counted_once() -> None:
    model, tokenizer = made("image_class", Digits().labels["image_class"])
    figures = evaluate_classes("image_class", model, tokenizer, Digits(0, "test"), 5000, lambda *_: None)
    assert figures["n"] == 359 and figures["controls"]["majority"]["accuracy"] == pytest.approx(0.1, abs=0.06)


def test_a_clip_is_also_seen_in_another_order_and_frozen() -> None:
    model, _ = made("video_class", DIRECTIONS)
    pixels = torch.from_numpy(Clips(0).labelled(0, 4).pixels)
    views = seen(model, pixels)
    assert set(views) == {"model", "shuffled_frames", "single_frame"}
    with torch.inference_mode():
        frozen = model.see(pixels[:, 4:5].repeat(1, 8, 1, 1, 1))
    assert torch.allclose(views["single_frame"], frozen, atol=1e-5)
    assert not torch.allclose(views["model"], views["shuffled_frames"], atol=1e-2)
    assert set(seen(model, pixels[:, 0])) == {"model"}


def test_an_untrained_model_is_no_better_than_its_controls() -> None:
    model, tokenizer = made("video_qa", ANSWERS)
    figures = evaluate_answers("video_qa", model, tokenizer, Clips(0, "test"), 64, lambda *_: None)
    assert set(figures["controls"]) == {
        "shuffled_frames", "single_frame", "shuffled_image", "image_only", "question_only",
    }  # fmt: skip
    assert figures["accuracy"] < figures["controls"]["question_only"]["accuracy"]
    assert all(row["is"] for row in figures["controls"].values())


def test_accuracy_takes_scores_between_0_and_1() -> None:
    figures = accuracy(np.array([0.3, 1.0, 0.6, 0.9]))
    assert figures["accuracy"] == pytest.approx(0.7) and figures["n"] == 4
