"""Turn valid bytes and JSON into damaged or hostile ones, decided by a seeded random generator."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Sequence
from typing import Any

Files = dict[str, bytes]

MAGIC = (
    b"PK\x03\x04",
    b"PK\x01\x02",
    b"\x89PNG\r\n\x1a\n",
    b"GIF89a",
    b"RIFF",
    b"\xff\xd8\xff",
    b"II*\0",
    b"\x93NUMPY",
)
MAGIC += (b"\0", b"\xff" * 4, b"\x7f\xff\xff\xff", b"\x80\0\0\0", b"\0\0\0\0", b"\xfe\xff", b"\xef\xbb\xbf", b"{", b"[")
MAGIC += (b"\xff" * 8, b"\x80\x02}", b"-1", b"99999999999999999999", b"\r\n", b"\xed\xa0\x80")


def damage(rng: random.Random, data: bytes, others: Sequence[bytes] = ()) -> bytes:
    """``data`` after one to eight random edits: flips, cuts, insertions, repeats, magic numbers, splices with ``others``."""
    made = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        # Headers are where readers decide, and they lie at either end of most files.
        place = _place(rng, len(made))
        length = rng.choice((1, 1, 2, 4, 8, 64, 1024))
        kind = rng.randrange(9)
        if kind == 0 and made:
            made[place] ^= 1 << rng.randrange(8)
        elif kind == 1 and made:
            made[place] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif kind == 2:
            made[place:place] = rng.randbytes(length)
        elif kind == 3:
            del made[place : place + length]
        elif kind == 4:
            made[place:place] = made[place : place + length] * rng.choice((1, 2, 50))
        elif kind == 5:
            magic = rng.choice(MAGIC)
            made[place : place + len(magic) * rng.randrange(2)] = magic
        elif kind == 6:
            number = rng.choice((0, 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, rng.getrandbits(32)))
            made[place : place + 4] = number.to_bytes(4, rng.choice(("little", "big")))
        elif kind == 7:
            del made[place:]
        elif others:
            other = rng.choice(others)
            made[place:] = other[_place(rng, len(other)) :]
    return bytes(made)


def _place(rng: random.Random, length: int) -> int:
    if not length:
        return 0
    near = min(length, 128)
    return rng.choice((rng.randrange(length), rng.randrange(near), length - 1 - rng.randrange(near)))


class Raw:
    """A piece of JSON text that Python's own values cannot express."""

    def __init__(self, text: str) -> None:
        self.text = text


# Numbers, words and shapes of JSON that readers tend to forget.
_NUMBERS = (
    0,
    1,
    -1,
    2,
    3,
    64.0,
    0.5,
    -0.0,
    2**31,
    2**32,
    2**53 + 1,
    2**63,
    2**64,
    -(2**63),
    10**30,
    1e30,
    1e-300,
    1e308,
)
_RAW = ("NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1" * 5000, "0." + "1" * 400, "1E400", "-0", "1.0e2")
_TEXTS = (
    "",
    " ",
    "a",
    "\0",
    "\x1b]0;title\x07",
    "\x1b[31m",
    "\ud800",
    "\udfff\ud800",
    "\u202e",
    "\ufeff",
    "é" * 3,
    "\n",
)
_TEXTS += (
    "../../etc/passwd",
    "/etc/passwd",
    "a/b",
    "\\",
    "nul\0nul",
    "NaN",
    "null",
    "true",
    "-1",
    "1",
    "ﬃ",
    "𝔘𝔫𝔦",
    "²",
)
_TEXTS += ("%s%n", "{0}", "{}", "__class__", "fp32", "int8", "*", "*=int8", "a=b=c", ",", "=", "." * 300, "x" * 100_000)
_CONTAINERS: tuple[Callable[[], Any], ...] = (
    list,
    dict,
    lambda: [[]],
    lambda: {"": {}},
    lambda: [None],
    lambda: [0] * 5000,
)
_CONTAINERS += (lambda: {str(n): n for n in range(5000)}, lambda: ["x"] * 3, lambda: [[0, 1], [1, 0]])
_DEEP = (50, 500, 990, 5000, 100_000)


def nasty(rng: random.Random) -> Any:
    """A value of JSON that is seldom expected: a wrong type, an extreme number, odd text, deep nesting."""
    kind = rng.randrange(8)
    if kind < 2:
        return rng.choice(_NUMBERS)
    if kind < 4:
        return rng.choice(_TEXTS)
    if kind == 4:
        return Raw(rng.choice(_RAW))
    if kind == 5:
        return rng.choice((None, True, False))
    if kind == 6:
        return rng.choice(_CONTAINERS)()
    depth = rng.choice(_DEEP)
    opening, closing = rng.choice((("[", "]"), ('{"a":', "}")))
    return Raw(opening * depth + ("1" if opening != "[" else "") + closing * depth)


def _near(rng: random.Random, value: Any) -> Any:
    """A value of the same type that is slightly off."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + rng.choice((-1, 1, -value, value, 10, 1000, -2 * value))
    if isinstance(value, float):
        return rng.choice((-value, value * 1e10, value + 1, 0))
    if isinstance(value, str):
        return rng.choice(
            (value + "x", value[:-1], value.upper(), value * 100, value[::-1], value + "\0", value + "\ud800")
        )
    if isinstance(value, list):
        made = rng.choice(
            (value * 2, value[:-1], value[::-1], value[:1], value * 300, dict(enumerate(map(str, value[:50]))))
        )
        return [copy.deepcopy(item) for item in made] if isinstance(made, list) else made
    if isinstance(value, dict):
        return rng.choice((list(value), list(value.values()), {}, {str(k).upper(): v for k, v in value.items()}))
    return nasty(rng)


def _same_type(rng: random.Random, value: Any) -> Any:
    if isinstance(value, str):
        return rng.choice(_TEXTS)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return rng.choice([number for number in _NUMBERS if isinstance(number, type(value))])
    if isinstance(value, dict):
        return dict(rng.sample(list(value.items()), rng.randrange(len(value) + 1)))
    if isinstance(value, list):
        return rng.sample(value, rng.randrange(len(value) + 1))
    return value


def _nodes(value: Any, path: tuple = ()) -> list[tuple]:
    """The path of every value in a tree, the root's included."""
    paths = [path]
    if isinstance(value, dict):
        for key in value:
            paths += _nodes(value[key], (*path, key))
    elif isinstance(value, list):
        # Of long lists of the same kind a few members stand for all.
        for index in range(min(len(value), 40)):
            paths += _nodes(value[index], (*path, index))
    return paths


def _at(value: Any, path: Sequence) -> Any:
    for key in path:
        value = value[key]
    return value


def mutate_tree(rng: random.Random, value: Any, fresh: Callable[[random.Random], Any] = nasty) -> Any:
    """``value``, which is changed in place, after one to four edits of its structure; ``fresh`` gives new values."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        paths = _nodes(value)
        # Choose a depth first: otherwise what is at the top, which decides most, is hardly ever changed.
        depth = rng.choice(sorted({len(path) for path in paths}))
        path = rng.choice([path for path in paths if len(path) == depth])
        if not path:
            if rng.random() < 0.05:
                return fresh(rng)
            continue
        parent, key = _at(value, path[:-1]), path[-1]
        kind = rng.randrange(10)
        if kind < 3:
            # Readers that check types see only the first layer of what is wrong unless some types stay.
            parent[key] = fresh(rng) if rng.random() < 0.5 else _same_type(rng, parent[key])
        elif kind < 5:
            # A copy: the same list in two places could come to hold itself.
            parent[key] = _near(rng, copy.deepcopy(parent[key]))
        elif kind == 5:
            del parent[key]
        elif kind == 6 and isinstance(parent, dict):
            parent[rng.choice(("extra", "", "__proto__", "digest", "name", f"{key} ", "\0", "\ud800"))] = fresh(rng)
        elif kind == 6:
            parent.insert(rng.randrange(len(parent) + 1), fresh(rng))
        elif kind == 7 and isinstance(parent, dict):
            # A second value for the same key; JSON text may hold both.
            parent[Twice(key)] = rng.choice((copy.deepcopy(parent[key]), fresh(rng)))
        elif kind == 7:
            parent.insert(key, copy.deepcopy(parent[key]))
        else:
            others = [p for p in paths if p and p != path] or [path]
            alike = [p for p in others if type(_at(value, p)) is type(_at(value, path))] or others
            other = rng.choice(alike if rng.random() < 0.7 else others)
            first, second = _at(value, path), _at(value, other)
            if path[: len(other)] != other and other[: len(path)] != path:
                parent[key] = second
                _at(value, other[:-1])[other[-1]] = first
    return value


class Twice(str):
    """A key that a dict does not take for an equal one, so that JSON text has it twice."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)


def dumps(value: Any) -> str:
    """JSON text of a tree that may hold :class:`Raw` pieces and keys that occur twice."""
    if isinstance(value, Raw):
        return value.text
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(str(key))}: {dumps(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(dumps, value)) + "]"
    return json.dumps(value)


def mutate_json(rng: random.Random, text: bytes) -> bytes:
    """A JSON text after edits of its structure or, now and then, of its bytes."""
    if rng.random() < 0.1:
        return damage(rng, text)
    return dumps(mutate_tree(rng, json.loads(text))).encode("utf-8", "surrogatepass")
