"""What the commands share that run a model on many items: progress, and what happens to an item that fails."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from simmim_export.console import progress_bar, say

if TYPE_CHECKING:
    from simmim_export.runtime.bulk import Failure, Item, Watch

# The number of items from which on a progress bar appears.
MANY = 50


@contextmanager
def progress_of_many(title: str, items: Sequence[Item]) -> Iterator[Watch]:
    """Show a progress bar on stderr if there are many items."""
    if len(items) < MANY:
        yield lambda *_: None
        return
    with progress_bar(title) as watch:
        yield watch


def report_failure(failure: Failure) -> None:
    """Say on stderr, as soon as it happens, that an item is left out."""
    say(f"left out: {failure.error}", error=True, lines=True)


def stops_at_failure(items: Sequence[Item], *, strict: bool, as_json: bool) -> bool:
    """Whether the first failure ends the command.

    A single item is an error as such, since nothing is left to do. With --json its failure is part of the result.
    """
    return strict or (len(items) == 1 and not as_json)
