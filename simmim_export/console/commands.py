"""What every command shares: errors to exit codes, warnings as one line each, checks of an output, JSON, tables, progress."""

from __future__ import annotations

import errno
import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.segment import Segment
from rich.text import Text

from simmim_export.errors import SimmimError, UsageError
from simmim_export.system.children import protect_children
from simmim_export.system.libraries import guard_imports
from simmim_export.system.messages import leave_for_parent
from simmim_export.system.printing import (
    READER_GONE,
    flush_streams,
    open_closed_streams,
    say,
    say_last,
    show_tracebacks_plainly,
    show_warnings_plainly,
    writing,
)
from simmim_export.system.printing import printable as printable
from simmim_export.system.signals import ending_cleanly
from simmim_export.version import __version__

SECONDS_A_LINE = 5.0
# Columns of an output that is not a terminal.
WIDEST = 1000
# Errors of the operating system that a user can fix, wherever they are raised, and how.
REFUSED = {
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ENOSPC: "free some space, or choose another output",
    errno.EDQUOT: "free some space, or choose another output",
    errno.EROFS: "choose an output that can be written to",
    errno.EACCES: "allow it, or choose another place",
    errno.EPERM: "allow it, or choose another place",
}


def _show_version(wanted: bool) -> None:
    if wanted:
        say(f"simmim-export {__version__}")
        raise typer.Exit()


Version = Annotated[
    bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
]


def new_app(help_text: str) -> typer.Typer:
    """A Typer app with the options that all programs share: help when called without words, --version, a plain traceback for a
    bug."""
    app = typer.Typer(
        help=help_text,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )

    @app.callback()
    def options(version: Version = False) -> None:
        pass

    return app


def run_app(app: Callable[..., object]) -> None:
    """Run ``app``, a Typer app or a main function, on the process's arguments and exit.

    A :class:`SimmimError` becomes its message on stderr and its exit code, as does an error of the operating system that the user
    can fix (:data:`REFUSED`). A bug keeps its traceback and exits with 1. Ctrl-C exits with 130, SIGTERM with 143, and a reader
    of stdout or stderr that goes away ends the command quietly with 141. With stdout closed the command does its work and says
    that nobody can read what it prints.
    """
    closed = open_closed_streams()
    guard_imports()
    show_warnings_plainly()
    show_tracebacks_plainly()
    protect_children(os.environ)
    # The name of a file need not be valid text, and printing it must not end a command.
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    if "stdout" in closed:
        say("warning: stdout is closed, so what this command prints is lost", error=True)
    try:
        with ending_cleanly():
            code = _exit_code(app)
    except BaseException:
        flush_streams(1)
        raise
    sys.exit(flush_streams(code))


def _exit_code(app: Callable[..., object]) -> int:
    try:
        if not isinstance(app, typer.Typer):
            app()
            return 0
        # Typer's own handling prints what was typed as it is; a file name may be among it.
        code = app(standalone_mode=False)
        return code if isinstance(code, int) else 0
    except SimmimError as error:
        leave_for_parent(error)
        say_last(f"error: {error}")
        return error.exit_code
    except BrokenPipeError:
        return READER_GONE
    except OSError as error:
        # A PermissionError without a file, such as that of a thread's priority, is not the user's to fix.
        if error.errno not in REFUSED or (isinstance(error, PermissionError) and error.filename is None):
            raise
        refused = UsageError(error.strerror or str(error), where=error.filename, fix=REFUSED[error.errno])
        say_last(f"error: {refused}")
        return refused.exit_code
    except KeyboardInterrupt:  # of a main function: Typer returns 130 itself
        return 130
    except SystemExit as ended:
        if isinstance(ended.__context__, BrokenPipeError):
            return READER_GONE
        if isinstance(ended.code, str):
            say_last(ended.code)
            return 1
        return ended.code or 0
    except Exception as error:
        # Typer and Click share no class for a wrong word on the command line, but these two attributes.
        if not hasattr(error, "show") or not hasattr(error, "exit_code"):
            raise
        if isinstance(getattr(error, "message", None), str):
            error.message = printable(error.message)  # type: ignore[attr-defined]
        shown = io.StringIO()
        error.show(file=shown)
        say_last(shown.getvalue().rstrip("\n"))
        return int(error.exit_code)


def check_output(path: Path, overwrite: bool, option: str) -> None:
    """Raise :class:`UsageError`, before anything is computed, for an output file that is there already, or cannot be."""
    from simmim_export.system.outputs import destination, require_new, require_writable

    require_writable(destination(path))
    if path.is_dir():
        raise UsageError("the output is a folder", where=path, fix=f"give the name of a file with {option}")
    require_new(path, overwrite, option)


def print_json(value: Any) -> None:
    """Print ``value`` as JSON on stdout, for machines: in ASCII, so that a file name that is not UTF-8 survives."""
    # The one control character that JSON leaves as it is.
    text = json.dumps(value, indent=1, allow_nan=False).replace("\x7f", "\\u007f")
    with writing(sys.stdout):
        print(text)


class SafeConsole(Console):
    """A rich Console that shows every text as :func:`printable`, so that only rich's own styling reaches the terminal.

    A str is shown on one line. Give text of several lines as :func:`stacked`.
    """

    def render_str(self, text: str, **options: Any) -> Text:
        """As rich does it, of the escaped text: escaped before it is measured, so that columns of a table stay aligned."""
        return super().render_str(printable(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """As rich does it; a text that came as an object of rich's and not as a string is escaped here."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else printable(text, lines=True), style, control)

    def print(self, *objects: Any, **options: Any) -> None:
        """As rich does it; a stream that cannot be written is the error of :func:`writing`."""
        with writing(self.file):
            super().print(*objects, **options)

    def on_broken_pipe(self) -> None:
        """End the command as :func:`run_app` does where a reader goes away."""
        raise SystemExit(READER_GONE)


def stacked(lines: Iterable[str]) -> Text:
    """``lines`` below one another, for a cell of a table; a line break in one of them is escaped."""
    return Text("\n".join(printable(line) for line in lines))


def stdout_console() -> Console:
    """The console for tables: stdout, and as wide as they need if it is not a terminal, so that no name is cut. Texts are shown
    as they are, but :func:`printable`: a label in square brackets is not a style."""
    return SafeConsole(width=None if sys.stdout.isatty() else WIDEST, highlight=False, markup=False, emoji=False)


@contextmanager
def progress_bar(title: str) -> Iterator[Any]:
    """A progress bar on stderr; yields ``update(step, done, total)``. Without a terminal: a line every few seconds."""
    console = SafeConsole(stderr=True, highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        last = float("-inf")

        def line(step: str, done: int, total: int) -> None:
            nonlocal last
            if time.monotonic() - last >= SECONDS_A_LINE:
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
