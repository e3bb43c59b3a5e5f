"""The data set `shapes`: an independent checker confirms every caption and answer, and the text gives little away."""

from __future__ import annotations

import re
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simmim_export.errors import UsageError
from simmim_export.training.data.base import CAPTIONS, QUESTIONS, Want
from simmim_export.training.data.shapes import Shapes
from simmim_export.training.data.shapes.draw import RGB, contact_sheet, draw_scene
from simmim_export.training.data.shapes.questions import ANSWERS, FAMILIES
from simmim_export.training.data.shapes.scene import COLORS, SHAPES, SIZES, TEXTURES, Scene
from simmim_export.training.data.shapes.words import vocabulary

WORDS = {word: ("size", i) for i, word in enumerate(SIZES)} | {word: ("texture", i) for i, word in enumerate(TEXTURES)}
WORDS |= {word: ("colour", i) for i, word in enumerate(COLORS)} | {word: ("shape", i) for i, word in enumerate(SHAPES)}
WORDS |= {word + "s": ("shape", i) for i, word in enumerate(SHAPES)} | {"crosses": ("shape", 3)}
NAMES = {"size": SIZES, "texture": TEXTURES, "colour": COLORS, "shape": SHAPES}
ROWS = {"top": 0, "upper": 1, "lower": 2, "bottom": 3}
COLUMNS = {"far left": 0, "left": 1, "right": 2, "far right": 3}


def fitting(scene: Scene, phrase: str) -> list:
    """The things that a noun phrase fits."""
    wanted = [WORDS[w] for w in phrase.split() if w in WORDS]
    assert all(w in WORDS or w in ("thing", "things", "a", "an", "the") for w in phrase.split()), phrase
    return [t for t in scene.things if all(getattr(t, name) == value for name, value in wanted)]


def one(scene: Scene, phrase: str):
    things = fitting(scene, phrase)
    assert len(things) == 1, f"{phrase!r} fits {len(things)} things"
    return things[0]


def holds(a, relation: str, b) -> bool:
    return {
        "left of": a.column < b.column,
        "right of": a.column > b.column,
        "above": a.row < b.row,
        "below": a.row > b.row,
    }[relation]


def solve(scene: Scene, text: str) -> str:
    """The answer to a question, from its text and the scene alone."""
    relation = "(left of|right of|above|below)"
    if m := re.fullmatch(r"how many (.+) are there\?", text):
        return str(len(fitting(scene, m[1])))
    if m := re.fullmatch(r"is there an? (.+)\?", text):
        return "yes" if fitting(scene, m[1]) else "no"
    if m := re.fullmatch(r"are there more (.+) than (.+)\?", text):
        return "yes" if len(fitting(scene, m[1])) > len(fitting(scene, m[2])) else "no"
    if m := re.fullmatch(r"is the (.+) the same (\w+) as the (.+)\?", text):
        return "yes" if getattr(one(scene, m[1]), m[2]) == getattr(one(scene, m[3]), m[2]) else "no"
    if m := re.fullmatch(rf"is the (.+) {relation} the (.+)\?", text):
        return "yes" if holds(one(scene, m[1]), m[2], one(scene, m[3])) else "no"
    if m := re.fullmatch(r"what (\w+) is the thing at the (\w+) (.+)\?", text):
        (thing,) = (t for t in scene.things if (t.row, t.column) == (ROWS[m[2]], COLUMNS[m[3]]))
        return NAMES[m[1]][getattr(thing, m[1])]
    if m := re.fullmatch(r"what (\w+) is the (left|right|top|bottom)most thing\?", text):
        axis, last = {"left": ("column", 0), "right": ("column", 1), "top": ("row", 0), "bottom": ("row", 1)}[m[2]]
        side = (max if last else min)(getattr(t, axis) for t in scene.things)
        (thing,) = (t for t in scene.things if getattr(t, axis) == side)
        return NAMES[m[1]][getattr(thing, m[1])]
    m = re.fullmatch(r"what (\w+) is the (.+)\?", text)
    assert m, text
    return NAMES[m[1]][getattr(one(scene, m[2]), m[1])]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), index=st.integers(0, 10**6), split=st.sampled_from(["iid", "A", "B"]))
def test_every_answer_is_true(seed: int, index: int, split: str) -> None:
    batch = Shapes(seed, split=split).batch(index, 6)
    assert batch.answers.shape == batch.families.shape == (6, 8)
    for scene, texts, answers in zip(batch.scenes, batch.questions, batch.answers, strict=True):
        assert len(set(texts)) == 8
        for text, answer in zip(texts, answers, strict=True):
            assert solve(scene, text) == ANSWERS[answer], text


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_every_caption_is_true(seed: int) -> None:
    batch = Shapes(seed).batch(0, 6, want=CAPTIONS)
    numbers = ["zero", "one", "two", "three", "four", "five", "six"]
    for scene, captions in zip(batch.scenes, batch.captions, strict=True):
        assert len(captions) == 5
        first, relation, second = re.split(" (left of|right of|above|below) ", captions[0])
        pairs = [(a, b) for a in fitting(scene, first) for b in fitting(scene, second)]
        assert any(a is not b and holds(a, relation, b) for a, b in pairs)
        shown = [first, second]
        for index in (1, 2, 3):
            phrase, row, column, other = re.fullmatch(
                r"(.+) at the (\w+) ((?:far )?\w+)(?: and (.+))?", captions[index]
            ).groups()
            assert any((t.row, t.column) == (ROWS[row], COLUMNS[column]) for t in fitting(scene, phrase))
            assert (other is None) == (index == 3) and (other is None or fitting(scene, other))
            shown += [phrase] if other is None else [phrase, other]
        assert {t for phrase in shown for t in fitting(scene, phrase)} == set(scene.things)
        if " a " in f" {captions[4]}" or " an " in f" {captions[4]}":
            listed = Counter(re.split(", | and ", captions[4]))
            assert all(len(fitting(scene, phrase)) >= count for phrase, count in listed.items())
        else:
            census = dict(reversed(part.split()) for part in captions[4].split(", "))
            assert sum(numbers.index(n) for n in census.values()) == len(scene.things)
            assert all(len(fitting(scene, name)) == numbers.index(n) for name, n in census.items())


def test_the_same_number_is_the_same_batch_and_streams_share_nothing() -> None:
    a, b = Shapes(1).batch(7, 16), Shapes(1).batch(7, 16)
    assert a.questions == b.questions and a.scenes == b.scenes and np.array_equal(a.pixels, b.pixels)
    seen = set()
    for stream in ("train", "val", "test", "samples", "demo"):
        for index in range(20):
            scenes = set(Shapes(1, stream).batch(index, 32, want=CAPTIONS).scenes)
            assert not scenes & seen
            seen |= scenes


@pytest.mark.parametrize(("examples", "images"), [(10, 4), (10, 32), (40, 8)])
def test_few_examples_are_all_used_with_all_their_captions(examples: int, images: int) -> None:
    """40 of 8 are 5 batches: as many as a scene has captions, and every 8th batch is one of rehearsal."""
    data = Shapes(0, size=16, examples=examples)
    assert data.limit("captions") == examples and data.on("test").limit("captions") is None
    shown: dict[str, set[str]] = defaultdict(set)
    scenes, asked = {}, set()
    for index in range(-(-40 * examples // images)):
        batch = data.batch(index, images, want=CAPTIONS)
        for row, (key, scene, captions) in enumerate(zip(batch.keys, batch.scenes, batch.captions, strict=True)):
            assert scenes.setdefault(key, scene) == scene
            shown[key].add(captions[(index + row) % 5])  # as pretraining takes them
            if (index + 1) % 8:
                asked.add(key)
    assert len(set(scenes.values())) == len(scenes) == len(asked) == examples
    assert {len(captions) for captions in shown.values()} == {5}
    first, again = data.batch(0, 64, want=QUESTIONS), data.batch(1, 64, want=QUESTIONS)
    said = [dict(zip(batch.keys, batch.questions, strict=True)) for batch in (first, again)]
    assert all(said[0][key] == said[1][key] for key in said[0].keys() & said[1].keys())
    stated = [data.stated(index, examples) for index in range(2)]
    assert sorted(stated[0].texts) == sorted(stated[1].texts) and stated[0].labels.tolist() == [[1, 1, 0, 0]] * examples


def test_questions_repeat_only_when_all_were_asked() -> None:
    """Of three things there are at most 24 questions about places."""
    want = Want(captions=False, families=("spatial",))
    batch = Shapes(0, size=16, questions_per_scene=60).batch(0, 16, want=want)
    assert batch.answers.shape == (16, 60)
    for scene, texts, answers in zip(batch.scenes, batch.questions, batch.answers, strict=True):
        counts = Counter(texts)
        assert max(counts.values()) - min(counts.values()) <= 1
        assert all(solve(scene, text) == ANSWERS[answer] for text, answer in zip(texts, answers, strict=True))
    once = Shapes(0, size=16, questions_per_scene=60).batch(0, 16, want=want._replace(every=True))
    assert [list(dict.fromkeys(row)) for row in batch.questions] == once.questions


def test_the_text_alone_gives_little_away() -> None:
    """Majority by exact text, learned on 4,096 scenes: 40 % of the answers. Two answers of equal frequency give 50 %."""
    from simmim_export.training.evaluation.answers import question_only

    predict = question_only(Shapes(3), scenes=4096)
    hits, families = defaultdict(list), Counter()
    for index in range(32):
        batch = Shapes(3, "test").batch(index, 64, want=QUESTIONS)
        for texts, answers, kinds in zip(batch.questions, batch.answers, batch.families, strict=True):
            for text, answer, kind in zip(texts, answers, kinds, strict=True):
                hits[FAMILIES[kind]].append(predict(text, FAMILIES[kind]) == answer)
                families[FAMILIES[kind]] += 1
    total = sum(families.values())
    assert sum(map(sum, hits.values())) / total <= 0.42
    bounds = {"count": 0.34, "colour": 0.17, "shape": 0.31, "spatial": 0.40}
    for family in FAMILIES:
        assert np.mean(hits[family]) <= bounds.get(family, 0.56), family
        assert 0.07 <= families[family] / total <= 0.13, family


@pytest.mark.parametrize("split", ["A", "B"])
def test_cogent_splits_have_their_colors(split: str) -> None:
    warm = {COLORS.index(name) for name in ("grey", "blue", "orange", "yellow")}
    for scene in Shapes(0, split=split).batch(0, 300, want=CAPTIONS).scenes:
        for thing in scene.things:
            if SHAPES[thing.shape] in ("square", "triangle"):
                assert (thing.colour in warm) == ((SHAPES[thing.shape] == "square") == (split == "A"))


def test_an_unknown_split_is_an_error() -> None:
    with pytest.raises(UsageError, match="'C'"):
        Shapes(split="C")


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_every_text_is_in_the_vocabulary_and_short_enough(seed: int) -> None:
    from simmim_export.training.tokenizer import encode, word_tokenizer

    tokenizer = word_tokenizer(vocabulary())
    batch = Shapes(seed).batch(0, 8)
    texts = [text for rows in (batch.captions, batch.questions) for row in rows for text in row]
    tokens = encode(tokenizer, texts, max_length=20)
    assert tokens["input_ids"].shape[1] <= 20
    assert not (tokens["input_ids"] == tokenizer.token_to_id("[UNK]")).any()


@pytest.mark.parametrize("size", [16, 64, 100, 224, 500])
def test_a_scene_looks_the_same_at_every_size(size: int) -> None:
    scene = Shapes(0).batch(0, 1, want=CAPTIONS).scenes[0]
    image = draw_scene(scene, size)
    assert image.shape == (size, size, 3) and image.dtype == np.uint8
    for thing, (left, top, right, bottom) in zip(scene.things, scene.boxes(size), strict=True):
        assert 0 <= left < right <= size and 0 <= top < bottom <= size
        patch = image[int(top) : int(np.ceil(bottom)), int(left) : int(np.ceil(right))].reshape(-1, 3).astype(float)
        brightest = patch[np.argsort(patch.sum(axis=1))[-max(1, len(patch) // 8) :]].mean(axis=0)
        distances = np.linalg.norm(RGB / RGB.max(axis=1, keepdims=True) - brightest / brightest.max(), axis=1)
        assert thing.colour in np.argsort(distances)[: 1 if size >= 64 else 3]


def test_the_contact_sheet_holds_every_scene() -> None:
    batch = Shapes(0).batch(0, 4)
    sheet = contact_sheet(batch.scenes, batch.questions)
    assert sheet.size[0] > 2 * 64 and sheet.size[1] > 2 * 64
