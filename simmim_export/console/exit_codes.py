"""Runs a command and ends the process with the right exit code and one message."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable

import typer

from simmim_export.console.notices import repeated_warnings_counted
from simmim_export.errors import SimmimError, UsageError
from simmim_export.system.children import leave_for_parent, protect_children
from simmim_export.system.libraries import guard_imports
from simmim_export.system.printing import (
    READER_GONE,
    flush_streams,
    open_closed_streams,
    printable,
    say,
    say_last,
    show_tracebacks_plainly,
)
from simmim_export.system.signals import ending_cleanly

# Errors of the operating system that the user can fix wherever they are raised, and how.
FIXES = {
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ENOSPC: "free some space, or choose another output",
    errno.EDQUOT: "free some space, or choose another output",
    errno.EROFS: "choose an output on a file system that can be written",
    errno.EACCES: "change its permissions, or choose another place",
    errno.EPERM: "change its permissions, or choose another place",
}
INTERRUPTED = 130


def run_app(app: Callable[..., object]) -> None:
    """Run ``app``, a Typer app or a main function, with the arguments of this process, and exit.

    - A :class:`SimmimError` prints its message on stderr and ends with its exit code. So does an error of the operating system
      that the user can fix (:data:`FIXES`); it counts as a usage error.
    - A bug prints its traceback and ends with 1.
    - Ctrl-C ends with 130, SIGTERM with 143.
    - If the reader of stdout or stderr goes away, the command ends quietly with 141.
    - If stdout is closed, the command does its work and warns that its output is lost.
    """
    closed = open_closed_streams()
    guard_imports()
    show_tracebacks_plainly()
    protect_children(os.environ)
    # A file name may not be valid text; printing it must not end a command.
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    if "stdout" in closed:
        say("warning: stdout is closed, so the output of this command is lost", error=True)
    try:
        with ending_cleanly():
            code = _exit_code(app)
    except BaseException:
        flush_streams(1)
        raise
    sys.exit(flush_streams(code))


def _exit_code(app: Callable[..., object]) -> int:
    try:
        with repeated_warnings_counted():
            return _run(app)
    except SimmimError as error:
        leave_for_parent(error)
        say_last(f"error: {error}")
        return error.exit_code
    except BrokenPipeError:
        return READER_GONE
    except OSError as error:
        # The user cannot fix a PermissionError without a file, such as one about a thread's priority: it is a bug.
        if error.errno not in FIXES or (isinstance(error, PermissionError) and error.filename is None):
            raise
        refused = UsageError(error.strerror or str(error), where=error.filename, fix=FIXES[error.errno])
        say_last(f"error: {refused}")
        return refused.exit_code
    except KeyboardInterrupt:  # raised by a main function; Typer returns 130 itself
        return INTERRUPTED
    except SystemExit as ended:
        if isinstance(ended.__context__, BrokenPipeError):
            return READER_GONE
        if isinstance(ended.code, str):
            say_last(ended.code)
            return 1
        return ended.code or 0
    except Exception as error:
        # Typer and Click raise different classes for wrong words on the command line. Both classes have these attributes.
        if not hasattr(error, "show") or not hasattr(error, "exit_code"):
            raise
        if isinstance(getattr(error, "message", None), str):
            error.message = printable(error.message)  # type: ignore[attr-defined]
        shown = io.StringIO()
        error.show(file=shown)
        say_last(shown.getvalue().rstrip("\n"))
        return int(error.exit_code)


def _run(app: Callable[..., object]) -> int:
    """Run a Typer app, or a main function, which always ends with 0."""
    if not isinstance(app, typer.Typer):
        app()
        return 0
    # In standalone mode Typer would print the user's words, such as a file name, without escaping them.
    code = app(standalone_mode=False, prog_name=getattr(app, "program", None))
    return code if isinstance(code, int) else 0
