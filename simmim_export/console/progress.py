"""Progress on stderr: a bar on a terminal, otherwise a line every few seconds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from simmim_export.console.output import SafeConsole
from simmim_export.system.printing import printable, say

# Seconds between two lines where there is no terminal.
INTERVAL = 5.0


# Less of the work, or fewer seconds, do not tell how long the rest takes.
LEAST_SHARE, LEAST_SECONDS = 0.05, 5.0


def time_left(done: int, total: int, *, seconds: float) -> str:
    """About how long the rest takes, such as "1:40 left", if ``done`` of ``total`` took ``seconds``; empty if it is too early to
    tell."""
    if seconds < LEAST_SECONDS or done < LEAST_SHARE * total:
        return ""
    left = round(seconds * (total - done) / done)
    return (
        f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02} left"
        if left >= 3600
        else f"{left // 60}:{left % 60:02} left"
    )


@contextmanager
def progress_bar(title: str, *, estimates: bool = False) -> Iterator[Any]:
    """Show progress on stderr while the block runs; yields ``update(step, done, total)``.

    With ``estimates``, ``done`` and ``total`` are amounts of work, so that they tell the time left. They are shown as a share.
    """
    start = time.monotonic()

    def amount(done: int, total: int) -> str:
        if not estimates:
            return f"{done}/{total}"
        left = time_left(done, total, seconds=time.monotonic() - start)
        return f"{100 * done // max(total, 1)}%" + (f", about {left}" if left else "")

    console = SafeConsole(stderr=True, highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        last = float("-inf")

        def line(step: str, done: int, total: int) -> None:
            nonlocal last
            if time.monotonic() - last >= INTERVAL:
                last = time.monotonic()
                say(f"{title}: {step} ({amount(done, total)})", error=True)

        yield line
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[amount]}", markup=False),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(printable(title), total=None, amount="")

        def update(step: str, done: int, total: int) -> None:
            words = printable(f"{title}: {step}")
            bar.update(task, completed=done, total=total, description=words, amount=amount(done, total))

        yield update
