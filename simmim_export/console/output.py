"""What a command prints on stdout: JSON and tables. Every text is escaped on its way to a terminal."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from simmim_export.errors import UsageError
from simmim_export.system.outputs import destination, require_new, require_writable
from simmim_export.system.printing import READER_GONE, printable, say, writing

# Columns of an output that is not a terminal.
WIDEST = 1000
# The cells of a table's row.
Row = Sequence[str | Text]


def check_output(path: Path, option: str, *, overwrite: bool) -> None:
    """Raise :class:`UsageError` if the output file ``path``, given with ``option``, exists already or cannot be written.

    Commands call this first: a wrong path should not cost the user a computation.
    """
    require_writable(destination(path))
    if path.is_dir():
        raise UsageError("the output is a folder", where=path, fix=f"give the name of a file with {option}")
    require_new(path, overwrite, option)


def print_json(value: Any) -> None:
    """Print ``value`` as JSON on stdout. The text is ASCII, so that file names that are not valid UTF-8 survive."""
    # DEL is the one control character that the json module does not escape.
    text = json.dumps(value, indent=1, allow_nan=False).replace("\x7f", "\\u007f")
    with writing(sys.stdout):
        print(text)


class SafeConsole(Console):
    """A rich Console that escapes every text with :func:`printable`, so that only rich's own styling reaches the terminal.

    It shows a str on one line. Give text of several lines as :func:`stacked`.
    """

    def render_str(self, text: str, **options: Any) -> Text:
        """Escape ``text`` before rich measures it, so that the columns of a table stay aligned."""
        return super().render_str(printable(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Escape text that arrives as one of rich's objects instead of a str."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else printable(text, lines=True), style, control)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print as rich does; raise the error of :func:`writing` if the stream cannot be written."""
        with writing(self.file):
            super().print(*objects, **options)

    def on_broken_pipe(self) -> None:
        """End the command as :func:`run_app` does when the reader of a stream goes away."""
        raise SystemExit(READER_GONE)


def stacked(lines: Iterable[str]) -> Text:
    """``lines`` below one another, for a cell of a table. A line break inside one of them is escaped."""
    return Text("\n".join(printable(line) for line in lines))


def print_table(title: str, columns: Sequence[str], rows: Iterable[Row]) -> None:
    """Print ``title`` and a table below it, on stdout.

    In ``columns``, ">" in front aligns a column to the right and "|" breaks its header. A cell that is too wide for the terminal
    continues on its next line; nothing is cut. A row may be shorter than the table.
    """
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for column in columns:
        header = stacked(column.removeprefix(">").split("|"))
        table.add_column(header, justify="right" if column.startswith(">") else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console = stdout_console()
    console.print(title)
    console.print(table)


def print_section(heading: str, lines: Iterable[str]) -> None:
    """Print an empty line, ``heading``, and ``lines`` indented by two columns. On a terminal the rest of a long line is indented
    further."""
    console = stdout_console()
    say()
    say(heading)
    for line in lines:
        indent = "  " + line[: len(line) - len(line.lstrip())]
        wrapped = textwrap.wrap(
            printable(line),
            console.width,
            initial_indent="  ",
            subsequent_indent=indent + "    ",
            break_long_words=False,
            break_on_hyphens=False,
        )
        for part in wrapped:
            say(part)


def stdout_console() -> Console:
    """The console for tables on stdout. It is as wide as the terminal; without a terminal, as wide as the tables need.

    It shows texts literally: a label in square brackets is not a style.
    """
    return SafeConsole(width=None if sys.stdout.isatty() else WIDEST, highlight=False, markup=False, emoji=False)
