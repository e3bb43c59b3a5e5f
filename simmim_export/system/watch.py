"""How long-running work tells its caller where it stands."""

from __future__ import annotations

from collections.abc import Callable

# Called with a step in words, and how much is done of how much.
Watch = Callable[[str, int, int], None]


def unwatched(step: str, done: int, total: int) -> None:
    """The :data:`Watch` of a caller that does not watch."""
