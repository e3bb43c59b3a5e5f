"""Questions about a scene, with answers balanced so that the text alone gives little away.

A question has a family and a form (which attributes it mentions). Within a batch, :class:`Balance` counts the answers
given to each form, and a new question must have one of the answers that its form has given least. The values of an
attribute are interchangeable (no color is special), so balance by form is balance by text. VQAv2 (Goyal et al., 2017)
instead pairs complementary scenes; this way needs no second scene, and the tests measure what can still be guessed.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import combinations
from random import Random
from typing import NamedTuple

from simmim_export.training.data.shapes.scene import ATTRIBUTES, COLORS, SHAPES, SIZES, TEXTURES, VALUES, Scene, Thing
from simmim_export.training.data.shapes.words import EXTREMES, RELATIONS, article, describe, place_words

FAMILIES = ("count", "exist", "colour", "shape", "size", "texture", "relation", "same", "compare", "spatial")
ANSWERS = ("yes", "no", "0", "1", "2", "3", "4", *COLORS, *SHAPES, *SIZES, *TEXTURES)


class Question(NamedTuple):
    """A text, its answer (one of ANSWERS), its family (one of FAMILIES), and the thing it is about (None if several)."""

    text: str
    answer: str
    family: str
    about: Thing | None = None


# A form proposes questions about a scene in random order: text, answer, and the thing it is about (None if several).
Proposals = Iterator[tuple[str, str, Thing | None]]
Form = Callable[[Scene, Random], Proposals]


def _shuffled(items: Iterable, random: Random) -> list:
    mixed = list(items)
    random.shuffle(mixed)
    return mixed


def _holds(thing: Thing, values: tuple[tuple[str, int], ...]) -> bool:
    return all(getattr(thing, name) == value for name, value in values)


def _value(thing: Thing, attribute: str) -> str:
    return VALUES[attribute][getattr(thing, attribute)]


def _count(scene: Scene, random: Random, *, attribute: str, counts: tuple[int, ...]) -> Proposals:
    """How many things have a value of ``attribute``? Only ``counts`` that are common for it, so that answers can be
    balanced."""
    counted = Counter(getattr(thing, attribute) for thing in scene.things)
    for value in _shuffled(range(len(VALUES[attribute])), random):
        if counted[value] in counts:
            yield f"how many {describe([(attribute, value)], plural=True)} are there?", str(counted[value]), None


def _exist(scene: Scene, random: Random, *, attributes: tuple[str, ...]) -> Proposals:
    """Is there such a thing? Asked about a thing in the scene, or about one that differs from it in a single attribute
    and is absent."""
    for thing in _shuffled(scene.things, random):
        values = [(name, getattr(thing, name)) for name in attributes]
        there = (f"is there {article(describe(values))}?", "yes", None)
        index = int(random.random() * len(values))
        name, value = values[index]
        options = len(VALUES[name])
        values[index] = (name, (value + 1 + int(random.random() * (options - 1))) % options)
        absent = not any(_holds(other, tuple(values)) for other in scene.things)
        yield from _shuffled(
            [there, (f"is there {article(describe(values))}?", "no", None)] if absent else [there], random
        )


# How people refer to a thing: by color and shape, adding size or texture only if needed.
_REFERENCES: dict[str | None, tuple[tuple[str, ...], ...]] = {
    None: (("colour", "shape"), ("size", "colour", "shape"), ("texture", "colour", "shape"), ATTRIBUTES),
    "size": (("colour", "shape"), ("texture", "colour", "shape")),
    "texture": (("colour", "shape"), ("size", "colour", "shape")),
    "colour": (("shape",), ("size", "shape"), ("texture", "shape"), ("size", "texture", "shape")),
    "shape": (("colour",), ("size", "colour"), ("texture", "colour"), ("size", "texture", "colour")),
}


def _unique(scene: Scene, thing: Thing, without: str | None) -> str | None:
    """The first description of ``thing`` that fits no other thing and does not use ``without``; None if there is none."""
    for chosen in _REFERENCES[without]:
        values = tuple((name, getattr(thing, name)) for name in chosen)
        if sum(_holds(other, values) for other in scene.things) == 1:
            return describe(values)
    return None


def _query(scene: Scene, random: Random, *, attribute: str) -> Proposals:
    """What is the ``attribute`` of the only thing that fits a description?"""
    for thing in _shuffled(scene.things, random):
        text = _unique(scene, thing, attribute)
        if text is not None:
            yield f"what {attribute} is the {text}?", _value(thing, attribute), thing


def _relation(scene: Scene, random: Random) -> Proposals:
    """Is this thing left of, right of, above or below that one?"""
    for a, b in _shuffled(combinations(scene.things, 2), random):
        if random.random() < 0.5:
            a, b = b, a
        sideways = random.random() < 0.5
        delta = b.column - a.column if sideways else b.row - a.row
        if delta == 0:
            continue
        first, second = _unique(scene, a, None), _unique(scene, b, None)
        if first is None or second is None:
            continue
        before = random.random() < 0.5
        relation = RELATIONS[(0 if sideways else 2) + (0 if before else 1)]
        yield f"is the {first} {relation} the {second}?", "yes" if (delta > 0) == before else "no", None


def _same(scene: Scene, random: Random, *, attribute: str) -> Proposals:
    """Do two things, described without ``attribute``, share it?"""
    for a, b in _shuffled(combinations(scene.things, 2), random):
        first, second = _unique(scene, a, attribute), _unique(scene, b, attribute)
        if first is not None and second is not None:
            same = getattr(a, attribute) == getattr(b, attribute)
            yield f"is the {first} the same {attribute} as the {second}?", "yes" if same else "no", None


def _compare(scene: Scene, random: Random, *, attribute: str) -> Proposals:
    """Are there more things with one value than with another?"""
    counted = Counter(getattr(thing, attribute) for thing in scene.things)
    for a, b in _shuffled(combinations(range(len(VALUES[attribute])), 2), random):
        if random.random() < 0.5:
            a, b = b, a
        if counted[a] or counted[b]:
            texts = (describe([(attribute, value)], plural=True) for value in (a, b))
            yield f"are there more {' than '.join(texts)}?", "yes" if counted[a] > counted[b] else "no", None


def _spatial(scene: Scene, random: Random, *, attribute: str) -> Proposals:
    """What is the ``attribute`` of the thing at a place?"""
    for thing in _shuffled(scene.things, random):
        yield f"what {attribute} is the thing at the {place_words(thing)}?", _value(thing, attribute), thing


def _extreme(scene: Scene, random: Random, *, attribute: str) -> Proposals:
    """What is the ``attribute`` of the thing furthest to one side?"""
    for side in _shuffled(range(4), random):
        axis, sign = ("column", "row")[side // 2], (1, -1)[side % 2]
        ordered = sorted(scene.things, key=lambda thing: sign * getattr(thing, axis))
        if getattr(ordered[0], axis) != getattr(ordered[1], axis):
            yield f"what {attribute} is the {EXTREMES[side]} thing?", _value(ordered[0], attribute), ordered[0]


def _of_each(form: Callable[..., Proposals], *attributes: str) -> tuple[Form, ...]:
    return tuple(partial(form, attribute=attribute) for attribute in attributes)


FORMS: dict[str, tuple[Form, ...]] = {
    "count": (
        partial(_count, attribute="colour", counts=(0, 1, 2)),
        partial(_count, attribute="shape", counts=(0, 1, 2, 3)),
        partial(_count, attribute="size", counts=(1, 2, 3, 4)),
        partial(_count, attribute="texture", counts=(1, 2, 3, 4)),
    ),
    "exist": tuple(
        partial(_exist, attributes=names)
        for names in (("colour",), ("colour", "shape"), ("size", "shape"), ("texture", "shape"), ("size", "colour"))
    ),
    "colour": _of_each(_query, "colour"),
    "shape": _of_each(_query, "shape"),
    "size": _of_each(_query, "size"),
    "texture": _of_each(_query, "texture"),
    "relation": (_relation,),
    "same": _of_each(_same, *ATTRIBUTES),
    "compare": _of_each(_compare, *ATTRIBUTES),
    "spatial": (*_of_each(_spatial, *ATTRIBUTES), *_of_each(_extreme, "colour", "shape")),
}


class Balance:
    """How often each form has given each answer in a batch."""

    def __init__(self) -> None:
        self.families: Counter[str] = Counter()
        self._answers: defaultdict[tuple[str, int], Counter[str]] = defaultdict(Counter)

    def accepts(self, key: tuple[str, int], answer: str) -> bool:
        """Whether ``answer`` is among the rarest answers of its form."""
        given = self._answers[key]
        rarest = min(given.values()) if len(given) >= self._size(key) else 0
        return given[answer] <= rarest

    def add(self, key: tuple[str, int], answer: str) -> None:
        """Count a question."""
        self.families[key[0]] += 1
        self._answers[key][answer] += 1

    @staticmethod
    def _size(key: tuple[str, int]) -> int:
        family, index = key
        if family == "count":
            return (3, 4, 4, 4)[index]
        if family in VALUES:
            return len(VALUES[family])
        if family == "spatial":
            return (*(len(VALUES[name]) for name in ATTRIBUTES), len(COLORS), len(SHAPES))[index]
        return 2


def questions(
    scene: Scene, random: Random, *, count: int, balance: Balance, families: Sequence[str] = FAMILIES
) -> list[Question]:
    """``count`` questions about ``scene``: rare families first, each with one of the rarest answers of its form. A
    question repeats only when no other is left.

    ``families`` must contain "spatial", the only family with questions for every scene.
    """
    chosen: list[Question] = []
    texts: set[str] = set()
    while len(chosen) < count:
        before = len(chosen)
        order = sorted(families, key=lambda family: balance.families[family] + random.random())
        for family in order:
            if len(chosen) == count:
                break
            question = _propose(family, scene, random=random, balance=balance, texts=texts, strict=True)
            if question is not None:
                chosen.append(question)
        if len(chosen) == before:
            # No balanced question is left for this scene: take any, so that every scene gets its full number.
            left = (
                _propose(family, scene, random=random, balance=balance, texts=texts, strict=False) for family in order
            )
            question = next((one for one in left if one is not None), None)
            if question is not None:
                chosen.append(question)
            elif texts:
                texts.clear()  # Everything has been asked, so questions repeat.
            else:
                raise ValueError(f"no family of {', '.join(families)} has a question about this scene")
    return chosen


def _propose(
    family: str, scene: Scene, *, random: Random, balance: Balance, texts: set[str], strict: bool
) -> Question | None:
    for index in _shuffled(range(len(FORMS[family])), random):
        key = (family, index)
        for text, answer, about in FORMS[family][index](scene, random):
            if text not in texts and (not strict or balance.accepts(key, answer)):
                texts.add(text)
                balance.add(key, answer)
                return Question(text, answer, family, about)
    return None
