"""Progress on stderr: a bar on a terminal, otherwise a line every few seconds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from simmim_export.console.output import SafeConsole
from simmim_export.system.printing import printable, say

# Seconds between two lines where there is no terminal.
INTERVAL = 5.0


@contextmanager
def progress_bar(title: str) -> Iterator[Any]:
    """Show progress on stderr while the block runs; yields ``update(step, done, total)``."""
    console = SafeConsole(stderr=True, highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        last = float("-inf")

        def line(step: str, done: int, total: int) -> None:
            nonlocal last
            if time.monotonic() - last >= INTERVAL:
                last = time.monotonic()
                say(f"{title}: {step} ({done}/{total})", error=True)

        yield line
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(printable(title), total=None)

        def update(step: str, done: int, total: int) -> None:
            bar.update(task, description=printable(f"{title}: {step}"), completed=done, total=total)

        yield update
