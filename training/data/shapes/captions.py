"""Five true captions of a scene.

Together they distinguish a scene from others. Each alone may also fit another scene, as real captions do.
"""

from __future__ import annotations

from random import Random

from simmim_export.training.data.shapes.scene import SHAPES, Scene, Thing
from simmim_export.training.data.shapes.words import NUMBERS, PLURALS, article, describe_thing, place_words

COUNT = 5


def captions(scene: Scene, random: Random) -> list[str]:
    """``COUNT`` captions: a relation; two that place one thing and name another; a place; and a list or a count of
    shapes.

    The first three mention every thing of the scene with all its attributes. So an attribute word that none of them
    contains is not true of the image.
    """
    things = list(scene.things)
    random.shuffle(things)

    def thing(index: int) -> Thing:
        return things[index % len(things)]

    return [
        _relation(thing(0), thing(1), random),
        f"{_place(thing(2))} and {article(describe_thing(thing(3)))}",
        f"{_place(thing(4))} and {article(describe_thing(thing(5)))}",
        _place(random.choice(things)),
        _census(scene) if random.random() < 0.5 else _listing(things[:3]),
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
