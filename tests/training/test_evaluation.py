"""Accuracies, recalls, intervals and controls, compared with values computed in another way."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from simmim_export.errors import UsageError
from simmim_export.models.simmim.checkpoint import build
from simmim_export.training.assemble import SAMPLES, NewModel, new_checkpoint, samples, with_head
from simmim_export.training.data.base import EVERYTHING, ONCE, QUESTIONS, UNSEEN, Batch, Data, Stated, Want
from simmim_export.training.data.digits import Digits
from simmim_export.training.data.files import Files
from simmim_export.training.data.records import Question, Record, Statement
from simmim_export.training.data.shapes import Shapes
from simmim_export.training.data.shapes.clips import ANSWERS, DIRECTIONS, Clips
from simmim_export.training.data.shapes.dataset import ShapesBatch
from simmim_export.training.evaluation.answers import evaluate_answers, question_only, seen
from simmim_export.training.evaluation.classes import evaluate_classes, evaluate_statements
from simmim_export.training.evaluation.pointing import pointing_game
from simmim_export.training.evaluation.retrieval import evaluate_match, evaluate_retrieval, recall
from simmim_export.training.evaluation.statistics import Evaluator, accuracy, batches, wilson
from simmim_export.training.evidence import gather_evidence
from simmim_export.training.tokenizer import encode


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
    assert recall(scores, own, cut=cut)[0] == pytest.approx(np.mean(hits))


@given(st.integers(1, 10**6), st.data())
def test_an_interval_holds_its_figure(n: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, n))
    low, high = wilson(hits, n)
    assert 0 <= low <= hits / n <= high <= 1


def test_batches_end_with_the_data() -> None:
    assert list(batches(130, None, what="x", watch=lambda *_: None)) == [(0, 64), (1, 64), (2, 2)]
    assert list(batches(130, 70, what="x", watch=lambda *_: None)) == [(0, 64), (1, 6)]


def quiet(*_: object) -> None:
    """No progress."""


def measured(evaluate: Evaluator, head: str, parts: tuple, *, data: Data, scenes: int) -> dict:
    """What ``evaluate`` reports for the model and the tokenizer in ``parts``."""
    return evaluate(head, parts[0], tokenizer=parts[1], data=data, scenes=scenes, watch=quiet)


def made(head: str, labels) -> tuple:
    started = with_head(new_checkpoint(NewModel(), seed=0), head, labels=labels, frames=8, seed=0)
    return build(started), Tokenizer.from_str(started.tokenizer)


def test_each_held_out_image_counts_once() -> None:
    parts = made("image_class", Digits().labels["image_class"])
    figures = measured(evaluate_classes, "image_class", parts, data=Digits(0, "test"), scenes=5000)
    assert figures["n"] == 177 and figures["controls"]["majority"]["accuracy"] == pytest.approx(0.1, abs=0.06)


def test_calibration_and_evidence_use_different_digits() -> None:
    data = Digits(0)
    streams = {stream: data.on(stream) for stream in ("train", "val", "test")}
    parts = {
        stream: {p.tobytes() for p in digits.labeled(0, digits.limit("classes")).pixels}
        for stream, digits in streams.items()
    }
    assert {stream: len(part) for stream, part in parts.items()} == {"train": 1438, "val": 182, "test": 177}
    assert len(set.union(*parts.values())) == 1797
    calibration = {p.numpy().tobytes() for p in samples(data, ["a text"])["pixels"]}
    assert calibration <= parts["train"] and len(calibration) == SAMPLES
    evidence = gather_evidence(data, ("image_class",))
    assert evidence is not None and {p.tobytes() for p in evidence.images["classed"]} == parts["val"]
    with pytest.raises(UsageError, match="later"):
        data.on("later").labeled(0, 1)


@dataclass(frozen=True)
class Scored(Data):
    """Two questions per image: "easy" is answered by class 1, and the answer of "odd" is not a class."""

    name = "scored"
    stream = "train"
    families = ("all",)

    def batch(self, index: int, images: int, *, want: Want = EVERYTHING) -> Batch:
        scores = np.zeros((images, 2, 3), np.float32)
        scores[0, 0, 1] = 0.3
        texts, empty = [["easy", "odd"]] * images, np.zeros((images, 2), np.int64)
        return Batch(
            pixels=np.zeros((images, 8, 8, 3), np.uint8),
            captions=[],
            questions=texts,
            answers=scores.argmax(axis=2),
            families=empty,
            scores=scores,
        )


def test_questions_without_an_answer_do_not_count_for_the_first_class() -> None:
    predict = question_only(Scored(), 64)
    # One image of 64 has an answer to "easy"; without votes of its own, "odd" goes by its family.
    assert predict("easy", "all") == 1 and predict("odd", "all") == 1


def test_clips_are_also_shown_shuffled_and_frozen() -> None:
    model, _ = made("video_class", DIRECTIONS)
    pixels = torch.from_numpy(Clips(0).labeled(0, 4).pixels)
    views, moving = seen(model, pixels)
    assert moving.all() and set(views) == {"model", "shuffled_frames", "single_frame"}
    with torch.inference_mode():
        frozen = model.see(pixels[:, 4:5].repeat(1, 8, 1, 1, 1))
    assert torch.allclose(views["single_frame"], frozen, atol=1e-5)
    assert not torch.allclose(views["model"], views["shuffled_frames"], atol=1e-2)
    assert set(seen(model, pixels[:, 0])[0]) == {"model"}


def test_an_untrained_model_is_no_better_than_its_controls() -> None:
    parts = made("video_qa", ANSWERS)
    figures = measured(evaluate_answers, "video_qa", parts, data=Clips(0, "test"), scenes=64)
    assert set(figures["controls"]) == {
        "shuffled_frames", "single_frame", "shuffled_image", "image_only", "question_only",
    }  # fmt: skip
    assert figures["accuracy"] < figures["controls"]["question_only"]["accuracy"]
    assert all(row["is"] for row in figures["controls"].values())


@pytest.mark.parametrize(
    ("scenes", "galleries", "chance"), [(8, [8], 1 / 8), (100, [64, 36], 2 / 100), (65, [64], 1 / 64)]
)
def test_chance_follows_the_sizes_of_the_galleries(scenes: int, galleries: list[int], chance: float) -> None:
    parts = made("match", ["no", "yes"])
    figures = measured(evaluate_match, "match", parts, data=Shapes(0, "test"), scenes=scenes)
    retrieval = figures["text_to_image_recall_at_1"]
    assert retrieval["galleries"] == galleries and retrieval["among"] == galleries[0]
    assert retrieval["n"] == sum(galleries) and figures["n"] == 2 * sum(galleries)
    assert retrieval["chance"] == pytest.approx(chance)


@dataclass(frozen=True)
class Uneven(Shapes):
    """64 images with different numbers of questions and statements, padded as on disk."""

    def limit(self, kind: str) -> int:
        return 64

    def batch(self, index: int, images: int, *, want: Want = EVERYTHING) -> ShapesBatch:
        batch = super().batch(index, images, want=want)
        return replace(batch, questions=[row[: 1 + place % 5] for place, row in enumerate(batch.questions)])

    def stated(self, index: int, images: int, *, want: Want = EVERYTHING) -> Stated:
        batch = super().stated(index, images, want=want)
        return batch._replace(texts=[row[: 1 + place % 3] for place, row in enumerate(batch.texts)])


@torch.inference_mode()
def test_rows_of_different_lengths_are_asked_exactly() -> None:
    """The answers are those of the same questions asked one by one, and a control asks about another image."""
    model, tokenizer = made("vqa", Shapes(0).labels["vqa"])
    figures = measured(evaluate_answers, "vqa", (model, tokenizer), data=Uneven(0, "test"), scenes=12)
    batch = Uneven(0, "test").batch(0, 64, want=ONCE).first(12)
    lengths = [len(row) for row in batch.questions]
    assert figures["n"] == sum(lengths) == 33 == figures["controls"]["image_only"]["n"]
    hits, others, swapped = [], [], []
    for row, texts in enumerate(batch.questions):
        for column, answer in enumerate(batch.answers[row, : len(texts)]):
            before = batch.questions[row - 1]
            for right, image, text in (
                (hits, row, texts[column]),
                (others, row - 1, texts[column]),
                (swapped, row, before[column % len(before)]),
            ):
                images = model.see(torch.from_numpy(batch.pixels[image][None]))
                tokens = encode(tokenizer, [text], max_length=model.config.max_length)
                words, _ = model.encode_text(**tokens)
                fused = model.fuse(images, words, tokens["attention_mask"])
                right.append(int(model.classify("vqa", fused).argmax()) == answer)
    assert figures["accuracy"] == pytest.approx(np.mean(hits))
    assert figures["controls"]["shuffled_image"]["accuracy"] == pytest.approx(np.mean(others))
    assert figures["controls"]["image_only"]["accuracy"] == pytest.approx(np.mean(swapped))
    parts = made("text_class", Shapes(0).labels["text_class"])
    figures = measured(evaluate_statements, "text_class", parts, data=Uneven(0, "test"), scenes=12)
    assert figures["n"] == 4 * (1 + 2 + 3)


def test_evidence_asks_as_much_as_possible_without_repeats() -> None:
    evidence = gather_evidence(Uneven(0), ("vqa", "text_class"), count=60)
    assert evidence is not None
    # 60, 48, 36, 24 and 12 images have 1 to 5 questions or more: 3 of 36 are the most, 2 of 40 the most statements.
    assert evidence.tasks["vqa"].labels.shape == (36, 3) and evidence.tasks["text_class"].labels.shape == (40, 2)
    assert all(len(set(row)) == len(row) for task in evidence.tasks.values() for row in task.texts)
    evidence.check()


def test_an_unknown_question_gets_the_overall_majority_answer() -> None:
    assert question_only(Scored(), 64)("new", "of its own") == 1


def test_counting_labels_decodes_no_image() -> None:
    said = (Statement("it is so", "entailment"), Statement("it is not", "neutral"), Statement("it may be", "neutral"))
    asked = Question("how many?", {"2": 1.0})
    broken = [Record("a", (b"no picture",), questions=(asked,), statements=said, label="x")]
    data = Files("made", Path("root"), read=lambda *_: broken, splits={"train": "train", "test": "test"})
    assert question_only(data)("how many?", "all") == 0
    assert data.labeled(0, 2, want=UNSEEN).labels.shape == (2,) and data.stated(0, 2, want=UNSEEN).labels.shape == (
        2,
        3,
    )
    for part in (
        Shapes(0).batch(0, 4, want=UNSEEN),
        Clips(0).labeled(0, 2, want=UNSEEN),
        Digits(0).labeled(0, 4, want=UNSEEN),
    ):
        assert not part.pixels.size


def test_the_pointing_game_uses_the_given_number_of_scenes() -> None:
    model, tokenizer = made("vqa", Shapes(0).labels["vqa"])
    batch = Shapes(0, "test").batch(0, 64, want=QUESTIONS)
    counts = [sum(thing is not None for thing in row) for row in batch.about]
    for scenes in (1, 5):
        assert pointing_game(model, tokenizer, data=Shapes(0, "test"), scenes=scenes, watch=quiet)["n"] == sum(
            counts[:scenes]
        )


def test_retrieval_of_a_single_image_is_not_measured() -> None:
    parts = made("match", ["no", "yes"])
    alone = measured(evaluate_retrieval, "match", parts, data=Shapes(0, "test"), scenes=1)
    assert list(alone) == ["not_measured"]


def test_a_single_image_has_no_shuffled_control() -> None:
    parts = made("text_class", Shapes(0).labels["text_class"])
    alone = measured(evaluate_match, "match", parts, data=Shapes(0, "test"), scenes=1)
    assert list(alone) == ["not_measured"]
    for scenes, shuffled in ((1, None), (65, 64)):
        answers = measured(evaluate_answers, "vqa", parts, data=Shapes(0, "test"), scenes=scenes)
        stated = measured(evaluate_statements, "text_class", parts, data=Shapes(0, "test"), scenes=scenes)
        assert answers["n"] == 8 * scenes and stated["n"] == 4 * scenes
        counted = [row["controls"]["shuffled_image"] for row in (answers, stated)]
        wanted = [None] * 2 if shuffled is None else [8 * shuffled, 4 * shuffled]
        assert [row.get("n") for row in counted] == wanted
        assert all("n" in row or "not_measurable" in row for row in counted)
        # It is asked about other things than those that it is about: that takes no other image.
        assert answers["controls"]["image_only"]["n"] == 8 * scenes


class Skewed(Shapes):
    """Every statement of training is true, and every other one false."""

    def stated(self, index: int, images: int, *, want: Want = EVERYTHING) -> Stated:
        batch = super().stated(index, images, want=want)
        return batch._replace(labels=np.full_like(batch.labels, int(self.stream == "train")))


def test_the_majority_class_comes_from_training() -> None:
    parts = made("text_class", Shapes(0).labels["text_class"])
    figures = measured(evaluate_statements, "text_class", parts, data=Skewed(0, "test"), scenes=8)
    assert figures["controls"]["majority"]["accuracy"] == 0.0 and figures["n"] == 32


def test_accuracy_takes_scores_between_0_and_1() -> None:
    figures = accuracy(np.array([0.3, 1.0, 0.6, 0.9]))
    assert figures["accuracy"] == pytest.approx(0.7) and figures["n"] == 4
