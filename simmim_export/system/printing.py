"""Prints to the terminal with control characters escaped, and copes with standard streams that are closed or broken.

Labels, file names, manifests and metrics come from strangers. An escape sequence in one of them could move the cursor, hide lines
or change the title of a window. This module imports only the standard library.
"""

from __future__ import annotations

import os
import sys
import traceback
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from simmim_export.errors import UsageError

# The exit code of a command whose reader went away: what a shell reports for a program that SIGPIPE ended (128 + 13).
READER_GONE = 141
# Unicode categories that a terminal acts upon: control characters, format characters (such as a change of reading direction),
# surrogates and separators of lines.
_UNSAFE = ("Cc", "Cf", "Cs", "Zl", "Zp")
# Format characters that text needs: the joiners of emoji and of Arabic and Indic scripts.
_JOINERS = "\u200c\u200d"
_STREAMS = ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w"))


def printable(text: str, *, lines: bool = False) -> str:
    """``text`` with every character that a terminal would obey written as an escape, such as ``\\x1b``.

    Line breaks and tabs are escaped too, because a name with one could forge a line of output; with ``lines`` they stay.
    """
    kept = _JOINERS + "\n\t" if lines else _JOINERS
    unsafe = {c for c in set(text) if c not in kept and (unicodedata.category(c) in _UNSAFE or _is_no_character(c))}
    return text.translate({ord(c): c.encode("unicode_escape").decode("ascii") for c in unsafe})


def _is_no_character(letter: str) -> bool:
    """Whether Unicode says that ``letter`` will never be a character. XML, and so SVG, forbids such."""
    return ord(letter) & 0xFFFE == 0xFFFE or 0xFDD0 <= ord(letter) <= 0xFDEF


def say(*parts: object, error: bool = False, lines: bool = False) -> None:
    """Print ``parts``, escaped by :func:`printable` and separated by spaces, as one line to stdout, or with ``error`` to stderr.

    With ``lines``, line breaks and tabs are printed as they are: for text whose lines are ours, such as an error message.
    """
    stream = sys.stderr if error else sys.stdout
    with writing(stream):
        print(*(printable(str(part), lines=lines) for part in parts), file=stream, flush=error)


@contextmanager
def writing(stream: Any) -> Iterator[None]:
    """For a block that prints to the standard ``stream``.

    Raise :class:`UsageError` if it cannot be written, for example because the disk is full; whatever is printed to it
    afterwards is lost. If its reader went away, the BrokenPipeError stays.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        discard(stream)
        raise unwritable(stream, error) from error


def show_warnings_plainly() -> None:
    """Make this process show each warning on stderr, without the place in our code, and with all lines but the first indented."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        text = str(message).strip().replace("\n", "\n  ")
        say(f"warning: {text}", error=True, lines=True)

    warnings.showwarning = show


def show_tracebacks_plainly() -> None:
    """Make this process show the traceback of a bug with :func:`say`, because its message may quote a stranger's file."""

    def show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        say("".join(traceback.format_exception(kind, error, trace)).rstrip("\n"), error=True, lines=True)

    sys.excepthook = show


def open_closed_streams() -> tuple[str, ...]:
    """If this process was started without stdin, stdout or stderr, open those on /dev/null. Returns their names.

    Otherwise ``sys.stdout`` would be None, and the next file that is opened would get number 1, so that a library that prints
    would write into it.
    """
    closed = []
    for number, name, mode in _STREAMS:
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)
        if getattr(sys, name) is None:
            stream = open(os.devnull, mode, encoding="utf-8", errors="backslashreplace")  # noqa: SIM115, PTH123
            setattr(sys, name, stream)
            closed.append(name)
    return tuple(closed)


def flush_streams(code: int) -> int:
    """Flush stdout and stderr at the end of a command that ends with ``code``, and return the exit code to use.

    If a reader went away, success becomes :data:`READER_GONE`; if a stream cannot be written, it becomes 2, with a message.
    Python itself would report both as ignored exceptions.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            discard(stream)
            code = code or READER_GONE
        except OSError as error:
            discard(stream)
            say_last(f"error: {unwritable(stream, error)}")
            code = code or 2
    return code


def say_last(text: str) -> None:
    """Say on stderr why a command ends. If stderr cannot be written either, only the exit code tells."""
    try:
        say(text, error=True, lines=True)
    except (OSError, UsageError):
        discard(sys.stderr)


def unwritable(stream: Any, error: OSError) -> UsageError:
    """The error to raise if writing to the standard ``stream`` failed with ``error``."""
    where = "standard error" if stream is sys.stderr else "standard output"
    fix = "free some space, or send it elsewhere"
    return UsageError(f"the output cannot be written: {error.strerror or error}", where=where, fix=fix)


@contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Meanwhile, what libraries write to file descriptor 1 goes to stderr: stdout is for what a command was asked for."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def discard(stream: Any) -> None:
    """Send what ``stream`` still holds, and all that is written to it later, to /dev/null."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
