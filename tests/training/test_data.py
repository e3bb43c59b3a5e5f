"""Clips, digits, statements and records as batches: true, addressed by number, and not easy to guess."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from simmim_export.errors import DataError, UsageError
from simmim_export.training.data import DataChoice
from simmim_export.training.data.base import CAPTIONS, ONCE, QUESTIONS, UNSEEN
from simmim_export.training.data.digits import Digits
from simmim_export.training.data.files import Files
from simmim_export.training.data.records import Question, Record, Statement
from simmim_export.training.data.shapes import Shapes
from simmim_export.training.data.shapes.clips import ANSWERS, DIRECTIONS, FRAMES, Clips, sample_clip
from simmim_export.training.data.shapes.scene import COLORS, SHAPES, place
from simmim_export.training.data.shapes.truth import foil, parse


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_captions_are_true_of_their_scene_and_foils_are_false(seed: int) -> None:
    batch, random = Shapes(seed).batch(0, 6, want=CAPTIONS), Random(seed)
    for scene, captions in zip(batch.scenes, batch.captions, strict=True):
        for caption in captions:
            assert parse(caption)(scene), caption
            false = foil(caption, scene, random)
            assert false is not None and false != caption and not parse(false)(scene)
            assert 1 <= sum(a != b for a, b in zip(false.split(), caption.split(), strict=True)) <= 3


def test_truth_agrees_with_an_independent_checker() -> None:
    """By the checker of test_shapes, which shares no code with it: places and relations over many scenes."""
    from test_shapes import COLUMNS, ROWS, fitting, holds

    batch = Shapes(5).batch(0, 64, want=CAPTIONS)
    table = Shapes(5).truth(batch)
    assert table.shape == (320, 64)
    for number, captions in enumerate(batch.captions):
        relation = next(r for r in ("left of", "right of", "above", "below") if f" {r} " in captions[0])
        first, second = captions[0].split(f" {relation} ")
        phrase, _, cell = captions[3].partition(" at the ")
        row, column = cell.split(" ", 1)
        for place_in, scene in enumerate(batch.scenes):
            pairs = ((a, b) for a in fitting(scene, first) for b in fitting(scene, second) if a is not b)
            assert table[number * 5, place_in] == any(holds(a, relation, b) for a, b in pairs)
            at = any((t.row, t.column) == (ROWS[row], COLUMNS[column]) for t in fitting(scene, phrase))
            assert table[number * 5 + 3, place_in] == at
    assert table.mean() < 0.2 and table[np.arange(320), np.arange(320) // 5].all()


def test_another_text_is_not_a_caption() -> None:
    with pytest.raises(ValueError, match="a purple elephant"):
        parse("a purple elephant")


def test_half_of_the_statements_are_true_and_the_text_does_not_tell() -> None:
    parts = [Shapes(0).stated(index, 64) for index in range(8)]
    labels = np.concatenate([part.labels for part in parts])
    assert labels.shape == (512, 4) and labels.mean() == 0.5
    words: dict[int, Counter[str]] = {0: Counter(), 1: Counter()}
    for part in parts:
        for row, classes in zip(part.texts, part.labels, strict=True):
            for text, label in zip(row, classes, strict=True):
                words[int(label)].update(w for w in text.split() if w in (*COLORS, *SHAPES))
    for word in words[1]:
        assert 0.6 < words[0][word] / words[1][word] < 1.6, word


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**9), st.integers(1, 2))
def test_clips_move_as_described_and_stay_inside(seed: int, movers: int) -> None:
    clip = sample_clip(Random(seed), movers)
    assert len({t.colour for t in clip.scene.things}) == len({t.shape for t in clip.scene.things}) == movers + 1
    paths = np.array([[place(thing)[:2] for thing in clip.at(frame).things] for frame in range(FRAMES)])
    for index, motion in enumerate(clip.motions):
        moved = paths[-1, index] - paths[0, index]
        if motion is None:
            assert (paths[:, index] == paths[0, index]).all()
            continue
        axis, sign = {"up": (0, -1), "down": (0, 1), "left": (1, -1), "right": (1, 1)}[motion.direction]
        assert moved[axis] * sign == pytest.approx(motion.cells / 4) and moved[1 - axis] == pytest.approx(0)
        assert (np.diff(paths[:, index, axis]) * sign >= -1e-9).all()
    for frame in range(FRAMES):
        for left, top, right, bottom in clip.at(frame).boxes(64):
            assert left >= -0.01 and top >= -0.01 and right <= 64.01 and bottom <= 64.01


def test_unordered_frames_do_not_tell_the_direction() -> None:
    """The places that a thing visits are spread alike for a direction and its opposite."""
    visited: dict[str, list[float]] = {name: [] for name in DIRECTIONS}
    for seed in range(3000):
        clip = sample_clip(Random(seed), 1)
        motion = clip.motions[0]
        assert motion is not None
        axis = 0 if motion.direction in ("up", "down") else 1
        visited[motion.direction].append(float(np.mean([place(clip.at(f).things[0])[axis] for f in range(FRAMES)])))
    for one, other in (("left", "right"), ("up", "down")):
        assert len(visited[one]) / len(visited[other]) == pytest.approx(1, abs=0.15)
        assert np.mean(visited[one]) == pytest.approx(np.mean(visited[other]), abs=0.01)


def test_clip_questions() -> None:
    batch = Clips(0).batch(3, 64)
    assert batch.pixels.shape == (64, FRAMES, 64, 64, 3) and batch.answers.shape == (64, 4)
    again = Clips(0).batch(3, 64)
    assert np.array_equal(batch.pixels, again.pixels) and batch.questions == again.questions
    assert not np.array_equal(Clips(0, "test").batch(3, 64).pixels, batch.pixels)
    once = Clips(0).batch(3, 64, want=ONCE)
    assert [list(dict.fromkeys(row)) for row in batch.questions] == once.questions != batch.questions
    for texts, answers, kinds in zip(batch.questions, batch.answers, batch.families, strict=True):
        for text, answer, kind in zip(texts, answers, kinds, strict=True):
            allowed = (DIRECTIONS, (*COLORS, *SHAPES), ("yes", "no"))[kind]
            assert ANSWERS[answer] in allowed, text


def test_digits_are_real_and_split() -> None:
    train, test = Digits(0), Digits(0, "test")
    assert train.limit("classes") == 1438 and test.limit("classes") == 177
    few = Digits(0, examples=20)
    assert Counter(few.labeled(0, 20).labels.tolist()) == dict.fromkeys(range(10), 2)
    assert {p.tobytes() for p in few.labeled(1, 20).pixels} == {p.tobytes() for p in few.labeled(0, 20).pixels}
    seen = {p.tobytes() for i in range(3) for p in train.labeled(i, 479).pixels}
    assert not seen & {p.tobytes() for p in test.labeled(0, 177).pixels}
    with pytest.raises(UsageError):
        train.batch(0, 2)


def records(folder: Path, count: int, **more: object) -> list[Record]:
    made = []
    for index in range(count):
        path = folder / f"{index}.png"
        Image.new("RGB", (20, 10), (index * 20, 0, 0)).save(path)
        made.append(Record(f"r{index}", (path,), **more))  # type: ignore[arg-type]
    return made


def opened(splits: dict[str, list[Record]], **more: object) -> Files:
    read = lambda name, root, split: splits[split]  # noqa: E731
    return Files("made", Path("root"), read=read, splits={"train": "train", "test": "val"}, size=16, **more)  # type: ignore[arg-type]


def test_each_record_comes_once_before_any_repeats(tmp_path: Path) -> None:
    questions = (
        Question("what colour?", {"red": 1.0, "dark red": 0.3}, family="colour"),
        Question("dark?", {"no": 1.0}),
    )
    data = opened({"train": records(tmp_path, 5, captions=("a red picture",), questions=questions)})
    assert data.labels == {"match": ("no", "yes"), "vqa": ("no", "red")} and data.families == ("all", "colour")
    # A batch that reaches into the next round may hold an image twice: its name says so.
    for index in range(5):
        part = data.batch(index, 4)
        values = [pixels[0, 0, 0] for pixels in part.pixels]
        assert [key == other for key in part.keys for other in part.keys] == [a == b for a in values for b in values]
    batches = [data.batch(index, 2) for index in range(5)]
    values = [int(pixels[0, 0, 0]) for part in batches for pixels in part.pixels]
    assert sorted(values[:5]) == sorted(values[5:]) == [0, 20, 40, 60, 80]
    captions = data.batch(0, 2, want=CAPTIONS)
    assert captions.captions == [["a red picture"]] * 2 and captions.answers.shape == (2, 0)
    asked = data.batch(0, 2, want=QUESTIONS)
    assert asked.scores is not None and asked.scores.shape == (2, 4, 2)
    assert (asked.scores.sum(axis=2) == 1).all() and {t for row in asked.questions for t in row} == {
        "what colour?",
        "dark?",
    }


def test_answers_unknown_to_training_are_counted_in_a_warning(tmp_path: Path) -> None:
    from simmim_export.training.data.files import UnknownAnswers

    train = records(tmp_path, 3, questions=(Question("what colour?", {"red": 1.0}),))
    new = Question("what colour?", {"mauve": 1.0})
    val = [Record("new", train[0].images, questions=(new,)), train[1]]
    with pytest.warns(UnknownAnswers, match="1 of the 2 questions of val"):
        batch = opened({"train": train, "val": val}, stream="test").batch(0, 2, want=QUESTIONS)
    assert batch.scores is not None and sorted(batch.scores.sum(axis=(1, 2)).tolist()) == [0, 4]


def test_statements_classes_and_clips_of_records(tmp_path: Path) -> None:
    stated = records(tmp_path, 3, statements=(Statement("it is red", "entailment"), Statement("it is blue", "neutral")))
    batch = opened({"train": stated}).stated(0, 3)
    assert all(sorted(row) in ([0, 0, 1], [0, 1, 1]) for row in batch.labels.tolist())
    classed = [Record(r.key, r.images, label="ab"[i % 2]) for i, r in enumerate(records(tmp_path, 4))]
    assert sorted(opened({"train": classed}).labeled(0, 4).labels.tolist()) == [0, 0, 1, 1]
    clips = [Record(r.key, r.images * 3, label="up") for r in records(tmp_path, 2)]
    data = opened({"train": clips})
    assert data.labeled(0, 2).pixels.shape == (2, 8, 16, 16, 3) and set(data.labels) == {"video_class"}
    short = opened({"train": clips, "val": [Record("short", clips[0].images[:1], label="up"), clips[0]]}, stream="test")
    with pytest.raises(DataError) as caught:
        short.labeled(0, 2)
    assert caught.value.where
    other = opened({"train": classed, "val": [Record("odd", classed[0].images, label="z")]}, stream="test")
    with pytest.raises(DataError, match="'z'"):
        other.labeled(0, 1)
    with pytest.raises(DataError, match="captions"):
        opened({"train": classed}).batch(0, 2, want=CAPTIONS)


def test_evaluation_uses_each_statement_once(tmp_path: Path) -> None:
    said = [
        tuple(Statement(f"{row} {n}", ("entailment", "neutral")[n % 2]) for n in range(7 - row)) for row in range(3)
    ]
    stated = [Record(f"{row}", r.images, statements=said[row]) for row, r in enumerate(records(tmp_path, 3))]
    data = opened({"train": stated})
    trained = {text for index in range(40) for row in data.stated(index, 3).texts for text in row}
    assert trained == {statement.text for row in said for statement in row}
    once = data.stated(0, 3, want=ONCE)
    assert sorted(text for row in once.texts for text in row) == sorted(trained)
    for texts, labels in zip(once.texts, once.labels, strict=True):
        assert [int(text[-1]) % 2 for text in texts] == labels[: len(texts)].tolist() and len(labels) == 7


def test_evaluation_asks_each_question_once_in_its_family(tmp_path: Path) -> None:
    def asking(count: int, family: str) -> tuple[Question, ...]:
        return tuple(Question(f"{family} {n}?", {str(n % 3): 1.0}, family=family) for n in range(count))

    one, two, three = records(tmp_path, 3)
    train = [Record("a", one.images, questions=asking(4, "b"))]
    val = [
        Record("b", two.images, questions=asking(1, "a")),
        Record("c", three.images, questions=asking(10, "b")),
    ]
    data = opened({"train": train, "val": val}, stream="test")
    batch = data.batch(0, 2, want=ONCE)
    assert batch.scores is not None and batch.scores.shape == (2, 10, 3) and batch.pixels.shape[0] == 2
    asked = [text for row in batch.questions for text in row]
    assert sorted(asked) == sorted(q.text for record in val for q in record.questions)
    for texts, answers, kinds in zip(batch.questions, batch.answers, batch.families, strict=True):
        for text, answer, kind in zip(texts, answers, kinds, strict=False):
            assert data.families[kind] == text[0] and answer == int(text[2]) % 3
    nothing = data.batch(0, 2, want=UNSEEN)
    assert nothing.questions == batch.questions and not nothing.pixels.size
    # In training as many as ever, some twice.
    assert data.batch(0, 2, want=QUESTIONS).answers.shape == (2, 4)


def test_samples_are_at_most_the_pictures(tmp_path: Path) -> None:
    few = opened({"train": records(tmp_path, 4, captions=("x",))}).on("samples")
    pixels, texts = few.samples(256)
    assert len({p.tobytes() for p in pixels}) == len(pixels) == 4 == len(texts)
    assert len(few.samples(3)[0]) == 3 and len(Digits(0, "samples").samples(2000)[0]) == 1438


@pytest.mark.parametrize("size", [8, 36, 44, 64, 65])
def test_digits_are_whole_at_every_size(size: int) -> None:
    from simmim_export.training.data.digits import _digits, _parts

    grey = np.sort([digit.tobytes() for digit in _digits()[0][_parts()["test"]]])
    pixels = Digits(0, "test", size=size).labeled(0, 177).pixels
    assert pixels.shape == (177, size, size, 3)
    middles = ((np.arange(8) + 0.5) * size / 8).astype(int)
    small = np.ascontiguousarray(pixels[:, middles[:, None], middles, 0])
    assert np.array_equal(np.sort([digit.tobytes() for digit in small]), grey)


def test_splits_are_read_once_and_shared_by_the_streams(tmp_path: Path) -> None:
    made, read = records(tmp_path, 3, captions=("x",)), []

    def reader(name: str, root: Path, split: str) -> list[Record]:
        read.append(split)
        return made

    data = Files("made", Path("root"), read=reader, splits={"train": "train", "test": "val"}, size=16)
    data.open()
    for stream in ("test", "train", "samples"):
        data.on(stream).open()
        assert data.on(stream).labels == {"match": ("no", "yes")}
    assert read == ["train", "val"]


def test_a_missing_stream_is_an_error(tmp_path: Path) -> None:
    data = opened({"train": records(tmp_path, 3, captions=("x",))})
    assert data.on("samples").limit("captions") == data.on("train-rehearsal").limit("captions") == 3
    with pytest.raises(UsageError, match="val") as caught:
        data.on("val").limit("captions")
    assert caught.value.fix == "choose one of train, test"


TRAINED = [
    ("vqa", "vqav2", "vqa"),
    ("retrieval", "coco", "retrieval"),
    ("text_class", "snli_ve", "text_class"),
    ("image_class", "image_folder", "image_class"),
    ("video_class", "frames", "video_class"),
]


@pytest.mark.parametrize(("task", "reader", "metric"), TRAINED)
def test_every_task_trains_on_files(run_cli, tmp_path: Path, task: str, reader: str, metric: str) -> None:
    """The real reader, decoder, tokenizer and loop; both splits are the reader's own fixture."""
    from test_readers import MAKERS

    for split in {"vqav2": ("train2014", "val2014"), "coco": ("train2014", "val2014")}.get(reader, ("train", "test")):
        MAKERS[reader](tmp_path / "data", split)
    arguments = (
        "--data",
        reader,
        "--data-root",
        tmp_path / "data",
        "--task",
        task,
        "--steps",
        "2",
        "--batch-size",
        "2",
    )
    done = run_cli("train", "finetune", *arguments, "-o", tmp_path / "ckpt.pt", "--json")
    assert done.returncode == 0, done.stderr
    assert metric in json.loads(done.stdout)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"name": "nothing"}, "nothing"),
        ({"name": "coco"}, "coco"),
        ({"name": "shapes", "root": Path()}, "shapes"),
        ({"name": "digits", "split": "A"}, "'A'"),
    ],
)
def test_a_senseless_choice_of_data_is_an_error(arguments: dict, expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        DataChoice(**arguments).open(0, "train", size=64)
