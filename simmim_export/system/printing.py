"""What reaches the terminal: text with its control characters escaped, and standard streams that may be closed or broken.

Labels, file names, manifests and metrics come from strangers. An escape sequence in one of them could move the cursor, hide lines
or change the title of a window. Nothing here imports a third-party package.
"""

from __future__ import annotations

import os
import sys
import traceback
import unicodedata
import warnings
from types import TracebackType
from typing import Any

# Exit code of a command whose reader went away, as a shell reports it for a program that SIGPIPE ended (128 + 13).
READER_GONE = 141
# Unicode categories that a terminal acts upon: control characters, format characters (such as a change of reading direction),
# surrogates and separators of lines.
_UNSAFE = ("Cc", "Cf", "Cs", "Zl", "Zp")
# What text needs of those: line breaks, tabs, and the joiners of emoji and of Arabic and Indic scripts.
_SAFE = "\n\t\u200c\u200d"
_STREAMS = ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w"))


def printable(text: str) -> str:
    """``text`` with every character that a terminal would obey written as an escape, such as ``\\x1b``.

    Line breaks and tabs stay.
    """
    return "".join(c if c in _SAFE or unicodedata.category(c) not in _UNSAFE else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def say(*parts: object, error: bool = False) -> None:
    """Print ``parts``, separated by spaces and :func:`printable`, to stdout, or with ``error`` to stderr."""
    print(*(printable(str(part)) for part in parts), file=sys.stderr if error else sys.stdout, flush=error)


def show_warnings_plainly() -> None:
    """Make this process show each warning as one line on stderr, without the place in our code."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        say(f"warning: {message}", error=True)

    warnings.showwarning = show


def show_tracebacks_plainly() -> None:
    """Make this process show the traceback of a bug with :func:`say`: its message may quote a stranger's file."""

    def show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        say("".join(traceback.format_exception(kind, error, trace)).rstrip("\n"), error=True)

    sys.excepthook = show


def open_closed_streams() -> tuple[str, ...]:
    """Open on /dev/null each of stdin, stdout and stderr that this process was started without; return the names of those.

    Otherwise ``sys.stdout`` is None, and the next file that is opened gets number 1: a library that prints would write into it.
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
    """Write out what stdout and stderr still hold, at the end of a command that ends with ``code``; the code to exit with.

    A reader that went away turns success into :data:`READER_GONE`, and a stream that cannot be written into 2, with a message.
    Python would report either as an ignored exception.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            _discard(stream)
            code = code or READER_GONE
        except OSError as error:
            _discard(stream)
            say(f"error: the output cannot be written: {error.strerror or error}", error=True)
            code = code or 2
    return code


def _discard(stream: Any) -> None:
    """Let what ``stream`` still holds, and whatever else is written to its file, go to /dev/null."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
