"""Five true captions of a scene. Knows scenes and words; must not know questions.

Together they say enough to tell a scene from others; each alone may also fit another scene, as real captions do.
"""

from __future__ import annotations

from random import Random

from simmim_export.training.data.shapes.scene import SHAPES, Scene, Thing
from simmim_export.training.data.shapes.words import NUMBERS, PLURALS, article, describe_thing, place_words

COUNT = 5


def captions(scene: Scene, random: Random) -> list[str]:
    """``COUNT`` captions: two relations, a list, a place, and a census of shapes."""
    things = list(scene.things)
    random.shuffle(things)
    return [
        _relation(things[0], things[1], random),
        _listing(things[:3]),
        _place(things[2]),
        _census(scene),
        _relation(things[-1], things[0], random),
    ]


def _relation(a: Thing, b: Thing, random: Random) -> str:
    options = []
    if a.column != b.column:
        options.append("left of" if a.column < b.column else "right of")
    if a.row != b.row:
        options.append("above" if a.row < b.row else "below")
    return f"{article(describe_thing(a))} {random.choice(options)} {article(describe_thing(b))}"


def _listing(things: list[Thing]) -> str:
    parts = [article(describe_thing(thing, ("colour", "shape"))) for thing in things]
    return f"{', '.join(parts[:-1])} and {parts[-1]}"


def _place(thing: Thing) -> str:
    return f"{article(describe_thing(thing))} at the {place_words(thing)}"


def _census(scene: Scene) -> str:
    counts = [sum(thing.shape == index for thing in scene.things) for index in range(len(SHAPES))]
    parts = [f"{NUMBERS[n]} {name if n == 1 else PLURALS[name]}" for n, name in zip(counts, SHAPES, strict=True) if n]
    return ", ".join(parts)
