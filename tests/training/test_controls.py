"""What the controls show a model, and what they say of data that leave them little to show."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from test_evaluation import made, measured

from simmim_export.export.exporter import warn_of_shortcuts
from simmim_export.training.data.base import Source
from simmim_export.training.data.files import Files
from simmim_export.training.data.records import Question, Record, Statement
from simmim_export.training.evaluation.answers import evaluate_answers
from simmim_export.training.evaluation.classes import evaluate_statements
from simmim_export.training.evaluation.controls import different_text, other_image, other_order
from simmim_export.training.evaluation.retrieval import evaluate_match, evaluate_retrieval
from simmim_export.training.evidence import gather_evidence
from simmim_export.training.recipe import FinetuneSettings
from simmim_export.training.tasks import Answers

QUESTIONS_OF_ALL = ("what colour is the circle?", "what shape is the red thing?")
ANSWER_PAIRS = (("red", "circle"), ("blue", "square"))


def of_records(records: list[Record]) -> Files:
    return Files(
        "made", Path("root"), read=lambda *_: records, splits={"train": "train", "test": "test"}, stream="test"
    )


def templated(
    images: int, questions: Sequence[str] = QUESTIONS_OF_ALL, answers: Sequence[Sequence[str]] = ANSWER_PAIRS
) -> Files:
    """A data set that asks the same ``questions`` about every image. The images take the rows of ``answers`` in turn,
    and a picture's color tells which row it has."""
    records = []
    for number in range(images):
        row = number % len(answers)
        asked = tuple(Question(text, {answer: 1.0}) for text, answer in zip(questions, answers[row], strict=False))
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8), (200 * row, number, 0)).save(buffer, "PNG")
        records.append(Record(str(number), (buffer.getvalue(),), captions=("a thing",), questions=asked))
    return of_records(records)


def taught(data: Files, steps: int = 40) -> tuple:
    """A real tiny model that has learned to answer ``data``."""
    model, tokenizer = made("vqa", data.labels["vqa"])
    stage = Answers(
        "vqa",
        model,
        tokenizer=tokenizer,
        source=Source(data.on("train"), 8),
        settings=FinetuneSettings(rehearse=0, curriculum=False),
    ).train()
    optimizer = torch.optim.AdamW(stage.parameters(), lr=2e-3)
    for step in range(steps):
        optimizer.zero_grad()
        stage(stage.batch(step, 0.5)).backward()
        optimizer.step()
    return model, tokenizer


def warned(metrics: dict) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_shortcuts(metrics)
    return [str(warning.message) for warning in caught]


def test_controls_of_templated_questions_cause_no_warning_if_the_model_looks() -> None:
    data = templated(24)
    figures = measured(evaluate_answers, "vqa", taught(data), data=data, scenes=24)
    controls = figures["controls"]
    assert figures["accuracy"] == 1.0
    assert controls["image_only"]["accuracy"] == controls["shuffled_image"]["accuracy"] == 0.0
    assert controls["image_only"]["n"] == controls["shuffled_image"]["n"] == figures["n"] == 48
    assert warned({"vqa": figures}) == []


def test_one_question_for_all_images_leaves_image_only_not_measurable() -> None:
    data = templated(24, QUESTIONS_OF_ALL[:1], [["red"], ["blue"]])
    figures = measured(evaluate_answers, "vqa", taught(data), data=data, scenes=24)
    only = figures["controls"]["image_only"]
    assert figures["accuracy"] == 1.0
    assert "24 of 24" in only["not_measurable"] and "accuracy" not in only and only["is"]
    assert figures["controls"]["shuffled_image"]["accuracy"] == 0.0
    assert warned({"vqa": figures}) == []


def test_one_answer_for_all_images_leaves_shuffled_image_not_measurable() -> None:
    data = templated(8, QUESTIONS_OF_ALL, [ANSWER_PAIRS[0]])
    figures = measured(evaluate_answers, "vqa", made("vqa", data.labels["vqa"]), data=data, scenes=8)
    assert "16 of 16" in figures["controls"]["shuffled_image"]["not_measurable"]


def test_a_partial_control_is_compared_on_the_questions_it_covers() -> None:
    """Of one question all images have the same answer: only the other can be asked about another image."""
    data = templated(24, QUESTIONS_OF_ALL, [("red", "circle"), ("red", "square")])
    figures = measured(evaluate_answers, "vqa", taught(data), data=data, scenes=24)
    shuffled = figures["controls"]["shuffled_image"]
    assert shuffled["n"] == 24 and shuffled["accuracy"] == 0.0 and shuffled["model"] == 1.0
    shuffled |= {"accuracy": 0.9, "model": 0.92}
    others = {"question_only": {"accuracy": 0.1}, "shuffled_image": shuffled}
    (message,) = warned({"vqa": figures | {"controls": others}})
    assert "92.0%" in message and "90.0% by shuffled image" in message


def test_questions_that_differ_only_in_case_are_one_text() -> None:
    data = templated(4, ("What colour?", "what  COLOUR ?"), [("red", "red"), ("blue", "blue")])
    figures = measured(evaluate_answers, "vqa", made("vqa", data.labels["vqa"]), data=data, scenes=4)
    assert "not_measurable" in figures["controls"]["image_only"]


@given(st.lists(st.integers(0, 2), min_size=1, max_size=12), st.data())
def test_a_different_text_is_the_next_that_differs(texts: list[int], data: st.DataObject) -> None:
    count = len(texts)
    start = data.draw(st.lists(st.integers(0, count - 1), min_size=count, max_size=count))
    place, possible = different_text(np.array(texts), np.array(start))
    for own, first, chosen, there in zip(texts, start, place.tolist(), possible.tolist(), strict=True):
        following = [(first + step) % count for step in range(count)]
        assert (chosen if there else None) == next((p for p in following if texts[p] != own), None)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 1)), min_size=1, max_size=12))
def test_another_image_is_not_known_to_have_the_same_answer(rows: list[tuple[int, int, int]]) -> None:
    rows = sorted(rows)
    names = sorted({image for image, _, _ in rows})
    image = np.array([names.index(image) for image, _, _ in rows])
    text, answers = np.array([row[1] for row in rows]), np.array([row[2] for row in rows])
    chosen, possible = other_image(
        text,
        image,
        answers=answers,
        known=np.ones(len(rows), bool),
        would_be_right=lambda t, guess: answers[t, None] == guess,
    )
    for k in range(len(rows)):
        before = [(image[k] - step) % len(names) for step in range(1, len(names))]
        alike = {image[j] for j in range(len(rows)) if text[j] == text[k] and answers[j] == answers[k]}
        wanted = next((place for place in before if place not in alike), None)
        assert (int(chosen[k]) if possible[k] else None) == wanted


def test_still_clips_cannot_be_shuffled() -> None:
    still = torch.full((2, 2, 4, 4, 3), 7, dtype=torch.uint8)
    moving = still.clone()
    moving[:, 1] = 9
    mixed, moved = other_order(torch.cat([still, moving]), torch.Generator().manual_seed(0))
    assert moved.tolist() == [False, False, True, True]
    # Two frames have one other order, whatever was drawn.
    assert torch.equal(mixed[2:], moving.flip(1))


def test_shared_captions_are_not_matched() -> None:
    data = templated(8)
    parts = made("match", ["no", "yes"])
    assert "each of 8" in measured(evaluate_match, "match", parts, data=data, scenes=8)["not_measured"]
    retrieval = measured(evaluate_retrieval, "match", parts, data=data, scenes=8)["text_to_image"]
    assert retrieval["oracle"] == pytest.approx(1 / 8) == retrieval["chance"]


def test_statements_are_shuffled_to_images_with_another_label() -> None:
    records = []
    for number, record in enumerate(templated(8).read("made", Path(), "train")):
        said = (Statement("it is so", "entailment" if number % 4 else "contradiction"),)
        records.append(replace(record, statements=said))
    data = of_records(records)
    figures = measured(
        evaluate_statements, "text_class", made("text_class", data.labels["text_class"]), data=data, scenes=8
    )
    # Two of eight are false; every true one is paired with one of them, so a model that says the same of all is as right.
    assert figures["controls"]["shuffled_image"]["n"] == 8


def test_evidence_pairs_images_with_wrong_captions() -> None:
    records = templated(6).read("made", Path(), "train")
    records = [replace(record, captions=(f"thing {number // 3}",)) for number, record in enumerate(records)]
    data = Files("made", Path("root"), read=lambda *_: records, splits={"train": "train", "val": "val", "test": "test"})
    evidence = gather_evidence(data, ("match",), count=6)
    assert evidence is not None and all(own != other for own, other in evidence.tasks["match"].texts)
    evidence = gather_evidence(templated(6), ("match",), count=6)
    assert evidence is not None and set(evidence.tasks) == {"retrieval"}
