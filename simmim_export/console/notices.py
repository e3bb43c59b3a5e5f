"""Warnings on stderr: the first of each kind in full, the others as a count when the command ends."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from simmim_export.system.printing import say, say_last, show_warnings_plainly

# Two warnings of one kind may differ in quoted texts and in numbers. An apostrophe inside a word does not open a quotation.
_DETAIL = re.compile(r"""(?<!\w)(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")|\d[\d.,]*""")


@contextmanager
def repeated_warnings_counted() -> Iterator[None]:
    """Print each warning of the block on stderr, but only the first of each kind; say at the end how many more there were.

    Two warnings are of one kind if they have the same class and their messages differ only in numbers and quoted texts. The
    count also appears if the block raises.
    """
    show_warnings_plainly()
    show = warnings.showwarning
    firsts: dict[tuple[type[Warning], str], str] = {}
    repeats: Counter[tuple[type[Warning], str]] = Counter()

    def show_first(message: Warning | str, category: type[Warning], *place: Any, **options: Any) -> None:
        kind = (category, _DETAIL.sub("*", str(message)))
        if kind in firsts:
            repeats[kind] += 1
        else:
            firsts[kind] = str(message)
            show(message, category, *place, **options)

    def counts() -> list[str]:
        # With several kinds, "it" would be ambiguous.
        like = (lambda kind: "it") if len(firsts) == 1 else (lambda kind: f"this: {_beginning(firsts[kind])}")
        return [f"warning: ... and {count:,} more like {like(kind)}" for kind, count in repeats.items()]

    warnings.showwarning = show_first
    try:
        yield
    except BaseException:
        # The error that ends the command matters more than a count that cannot be printed.
        for line in counts():
            say_last(line)
        raise
    else:
        for line in counts():
            say(line, error=True)
    finally:
        warnings.showwarning = show


def _beginning(message: str) -> str:
    text = message.strip().partition("\n")[0]
    return text if len(text) <= 60 else f"{text[:57]}..."
