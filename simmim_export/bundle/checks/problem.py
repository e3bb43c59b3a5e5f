"""A problem in a manifest, and the two ways to find one that several checks share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeAlias

import msgspec

# A place in the manifest, for example $.graphs[2].axes[0], and what is wrong there.
Problem: TypeAlias = tuple[str, str]


def repeated(place: str, names: Iterable[str]) -> Iterator[Problem]:
    """A problem for each of ``names``, the list at ``place``, that came before."""
    seen = set()
    for index, name in enumerate(names):
        if name in seen:
            yield f"{place}[{index}]", f"{name} is listed twice"
        seen.add(name)


def refusal(error: msgspec.ValidationError, root: str = "$") -> Problem:
    """What msgspec refused in the value at ``root``."""
    # "Expected `int`, got `str` - at `$.labels[...]`", or "... - at `key` in `$.labels`", or no place for the value itself.
    what, _, place = str(error).rpartition(" - at ")
    if not what:
        return root, place
    return place.replace("`key` in", "a key of").replace("`", "").replace("$", root, 1), what.replace("`", "")
