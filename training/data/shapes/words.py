"""The words for things, places and relations."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from simmim_export.training.data.shapes.scene import ATTRIBUTES, COLORS, SHAPES, SIZES, TEXTURES, VALUES, Thing

PLURALS = {"circle": "circles", "square": "squares", "triangle": "triangles", "cross": "crosses", "thing": "things"}
RELATIONS = ("left of", "right of", "above", "below")
EXTREMES = ("leftmost", "rightmost", "topmost", "bottommost")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")
ROWS = ("top", "upper", "lower", "bottom")
COLUMNS = ("far left", "left", "right", "far right")


def describe(values: Iterable[tuple[str, int]], plural: bool = False) -> str:
    """ "large striped red circle" from (attribute, value) pairs in the order of ATTRIBUTES; "thing" if there is no
    shape."""
    words, noun = [], "thing"
    for attribute, value in values:
        if attribute == "shape":
            noun = SHAPES[value]
        else:
            words.append(VALUES[attribute][value])
    return " ".join([*words, PLURALS[noun] if plural else noun])


def article(noun_phrase: str) -> str:
    """The phrase with its indefinite article."""
    return f"{'an' if noun_phrase[0] in 'aeiou' else 'a'} {noun_phrase}"


def describe_thing(thing: Thing, attributes: Iterable[str] = ATTRIBUTES) -> str:
    """A thing, described by the given attributes."""
    return describe([(name, getattr(thing, name)) for name in attributes])


def place_words(thing: Thing) -> str:
    """The cell of a thing, such as "upper far left"."""
    return f"{ROWS[int(thing.row)]} {COLUMNS[int(thing.column)]}"


def vocabulary() -> list[str]:
    """Every word and mark that a question or caption may use, in a fixed order."""
    grammar = "what colour shape size texture is the are there a an how many more than same as in and of on at ? , ."
    motion = "which way does move moves that before first last up down"
    places = " ".join((*ROWS, *COLUMNS, *RELATIONS, *EXTREMES))
    words = [
        *grammar.split(),
        *motion.split(),
        *COLORS,
        *SHAPES,
        *SIZES,
        *TEXTURES,
        *PLURALS,
        *PLURALS.values(),
        *NUMBERS,
    ]
    return list(dict.fromkeys([*words, *places.split()]))


def visual_words() -> list[str]:
    """The words that describe what is visible: attributes, plurals, numbers, places and relations."""
    places = " ".join((*ROWS, *COLUMNS, *RELATIONS)).split()
    words = [*COLORS, *SHAPES, *SIZES, *TEXTURES, *PLURALS.values(), *NUMBERS, *places]
    return [word for word in dict.fromkeys(words) if word not in ("of", "things")]


def phrases() -> list[str]:
    """Names of a thing in one word or two adjacent ones: "red", "circle", "striped red", "red circle"."""
    pairs = pairwise(ATTRIBUTES)
    double = [f"{first} {second}" for a, b in pairs for first in VALUES[a] for second in VALUES[b]]
    return [word for name in ATTRIBUTES for word in VALUES[name]] + double
