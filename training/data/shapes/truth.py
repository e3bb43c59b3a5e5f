"""Is a caption true of a scene?

Two things need this: foils (a caption with one word changed must be false), and the best possible recall of retrieval
(a caption that fits several images keeps even a perfect model from finding its own).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from random import Random

from simmim_export.training.data.shapes.scene import COLORS, SHAPES, SIZES, TEXTURES, Scene, Thing
from simmim_export.training.data.shapes.words import COLUMNS, NUMBERS, PLURALS, ROWS

Test = Callable[[Scene], bool]

_VALUE = {word: (name, index) for name, words in
          (("size", SIZES), ("texture", TEXTURES), ("colour", COLORS), ("shape", SHAPES))
          for index, word in enumerate(words)}  # fmt: skip
_SINGULAR = {plural: name for name, plural in PLURALS.items()}
_RELATIONS: dict[str, Callable[[Thing, Thing], bool]] = {
    "left of": lambda a, b: a.column < b.column,
    "right of": lambda a, b: a.column > b.column,
    "above": lambda a, b: a.row < b.row,
    "below": lambda a, b: a.row > b.row,
}
_COLUMN = "|".join(sorted(COLUMNS, key=len, reverse=True))
_RELATION = re.compile(rf"(.+) ({'|'.join(_RELATIONS)}) (.+)")
_PLACE = re.compile(rf"(.+?) at the ({'|'.join(ROWS)}) ({_COLUMN})(?: and (.+))?")
_CENSUS = re.compile(rf"(?:{'|'.join(NUMBERS)}) \w+(?:, (?:{'|'.join(NUMBERS)}) \w+)*")

# Groups of words that can replace each other.
_SWAPS = (SIZES, TEXTURES, COLORS, SHAPES, ROWS, ("left", "right"), ("above", "below"), NUMBERS[1:])


def parse(caption: str) -> Test:
    """A test of scenes, made from a caption of :mod:`simmim_export.training.data.shapes.captions`. Raise ValueError for
    another text."""
    if _CENSUS.fullmatch(caption):
        return _census(caption)
    if match := _RELATION.fullmatch(caption):
        first, second, holds = _things(match[1]), _things(match[3]), _RELATIONS[match[2]]
        return lambda scene: any(a is not b and holds(a, b) for a in first(scene) for b in second(scene))
    if match := _PLACE.fullmatch(caption):
        things, row, column = _things(match[1]), ROWS.index(match[2]), COLUMNS.index(match[3])
        other = _things(match[4]) if match[4] else None
        return lambda scene: (
            any((t.row, t.column) == (row, column) for t in things(scene)) and (other is None or bool(other(scene)))
        )
    listed = Counter(re.split(", | and ", caption))
    wanted = [(_things(phrase), count) for phrase, count in listed.items()]
    return lambda scene: all(len(things(scene)) >= count for things, count in wanted)


def _things(phrase: str) -> Callable[[Scene], list[Thing]]:
    """A function that finds the things of a scene that a phrase such as "a large red circle" fits."""
    words = [word for word in phrase.split() if word not in ("a", "an", "the", "thing")]
    if not all(word in _VALUE for word in words):
        raise ValueError(f"not a caption of shapes: {phrase!r}")
    values = [_VALUE[word] for word in words]
    return lambda scene: [t for t in scene.things if all(getattr(t, name) == value for name, value in values)]


def _census(caption: str) -> Test:
    parts = [part.split() for part in caption.split(", ")]
    counts = {SHAPES.index(_SINGULAR.get(name, name)): NUMBERS.index(number) for number, name in parts}
    return lambda scene: Counter(t.shape for t in scene.things) == Counter(counts)


def foil(caption: str, scene: Scene, random: Random) -> str | None:
    """``caption`` with one word changed so that it is false of ``scene``; None if no single word does that."""
    words = caption.split()
    options = [
        (index, other)
        for index, word in enumerate(words)
        for group in _SWAPS
        if word.strip(",") in group
        for other in group
        if other != word.strip(",")
    ]
    random.shuffle(options)
    for index, other in options:
        changed = [*words[:index], words[index].replace(words[index].strip(","), other), *words[index + 1 :]]
        text = _grammatical(" ".join(changed))
        if not parse(text)(scene):
            return text
    return None


def _grammatical(text: str) -> str:
    """Repair "an orange" and "a red", "one circle" and "two circles" after a word was changed."""
    text = re.sub(r"\b(a|an) (\w)", lambda m: f"{'an' if m[2] in 'aeiou' else 'a'} {m[2]}", text)

    def number(match: re.Match[str]) -> str:
        name = _SINGULAR.get(match[2], match[2])
        return f"{match[1]} {name if match[1] == 'one' else PLURALS[name]}"

    return re.sub(rf"\b({'|'.join(NUMBERS)}) (\w+)", number, text)
