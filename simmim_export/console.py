"""What every command shares: errors to exit codes, warnings to one line each, checks of an output, JSON, progress bars on stderr.

Knows terminals. Must not know what any command does.
"""

from __future__ import annotations

import errno
import json
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from simmim_export.errors import SimmimError, UsageError, show_warnings_plainly

SECONDS_A_LINE = 5.0
# Columns of what is no terminal.
WIDEST = 1000
# Unicode categories that a terminal acts upon: control characters, format characters (such as a change of reading direction),
# surrogates and separators of lines.
_UNSAFE = ("Cc", "Cf", "Cs", "Zl", "Zp")
# What text needs of those: line breaks, tabs, and the joiners of emoji and of Arabic and Indic scripts.
_SAFE = "\n\t\u200c\u200d"
# What a system refuses, in whatever line of ours, and a user can mend.
REFUSED = {
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ENOSPC: "free some space, or choose another output",
    errno.EDQUOT: "free some space, or choose another output",
    errno.EROFS: "choose an output where there can be written",
    errno.EACCES: "allow it, or choose another place",
    errno.EPERM: "allow it, or choose another place",
}


def new_app(help_text: str) -> typer.Typer:
    """A Typer app in the house's manner: help when called bare, a plain traceback for a bug."""
    return typer.Typer(
        help=help_text,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )


def run_app(app: Callable[[], object]) -> None:
    """Run ``app``, a Typer app or a main function, on the process's arguments and exit.

    A :class:`SimmimError` becomes its message on stderr and its exit code, as does what the system refuses
    (:data:`REFUSED`); a bug keeps its traceback and exits with 1; Ctrl-C exits with 130.
    """
    show_warnings_plainly()
    # A name of a file need not be text, and must not be what ends a command.
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        app()
    except SimmimError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        # Permission for what is no file, as a thread's priority, is not for a user to mend.
        if error.errno not in REFUSED or (isinstance(error, PermissionError) and error.filename is None):
            raise
        refused = UsageError(error.strerror or str(error), where=error.filename, fix=REFUSED[error.errno])
        print(f"error: {refused}", file=sys.stderr)
        sys.exit(refused.exit_code)
    except KeyboardInterrupt:  # of a main function: Typer does the same by itself
        sys.exit(130)


def check_output(path: Path, overwrite: bool, option: str) -> None:
    """Raise :class:`UsageError`, before anything is computed, for an output file that is there already, or cannot be."""
    from simmim_export.files import require_new, require_writable

    require_writable(path)
    if path.is_dir():
        raise UsageError("the output is a folder", where=path, fix=f"give the name of a file with {option}")
    require_new(path, overwrite, option)


def printable(text: str) -> str:
    """``text`` with every character that a terminal would obey written as an escape, such as ``\\x1b``.

    Line breaks and tabs stay. Labels, file names and metrics come from strangers, and could move the cursor or hide lines.
    """
    return "".join(c if c in _SAFE or unicodedata.category(c) not in _UNSAFE else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def say(*parts: object, error: bool = False) -> None:
    """Print ``parts``, separated by spaces and :func:`printable`, to stdout, or with ``error`` to stderr."""
    print(*(printable(str(part)) for part in parts), file=sys.stderr if error else sys.stdout, flush=error)


def print_json(value: Any) -> None:
    """``value`` as JSON on stdout, for machines: in ASCII, so that a name of a file which is not UTF-8 comes back as it was."""
    print(json.dumps(value, indent=1, allow_nan=False))


def stdout_console() -> Console:
    """Where tables go: stdout, as wide as they need when it is no terminal, so that no name in them is cut. Texts are shown as
    they are: a label in square brackets is no style."""
    return Console(width=None if sys.stdout.isatty() else WIDEST, highlight=False, markup=False, emoji=False)


@contextmanager
def progress_bar(title: str) -> Iterator[Any]:
    """A progress bar on stderr; yields ``update(step, done, total)``. Without a terminal: a line every few seconds."""
    console = Console(stderr=True, highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        last = float("-inf")

        def line(step: str, done: int, total: int) -> None:
            nonlocal last
            if time.monotonic() - last >= SECONDS_A_LINE:
                last = time.monotonic()
                print(f"{title}: {step} ({done}/{total})", file=sys.stderr, flush=True)

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
        task = bar.add_task(title, total=None)

        def update(step: str, done: int, total: int) -> None:
            bar.update(task, description=f"{title}: {step}", completed=done, total=total)

        yield update
