"""Ctrl-C and SIGTERM during training: finish the step, save, and say how to continue."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from simmim_export.console import say

# What ends training from outside: Ctrl-C; kill or a scheduler; a terminal that closes.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
# Runs simmim-train as a module, in the command that the user is told to type. Nothing is started with it here.
_AS_MODULE = shlex.split("-m simmim_export.training.cli")


class Stopped(KeyboardInterrupt):
    """A signal ended a command. ``kept`` is the trainer's state to continue from; None if nothing was trained."""

    def __init__(self, number: int, kept: Path | None = None) -> None:
        super().__init__(number)
        self.number = number
        self.kept = kept

    @property
    def exit_code(self) -> int:
        """128 plus the signal's number, as in a shell: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + self.number


class Request:
    """The ``number`` of the signal that asked a block to stop; 0 if none did."""

    def __init__(self) -> None:
        self.number = 0


@contextmanager
def _handling(handle: Any) -> Iterator[None]:
    """A block in which ``handle(number, frame)`` receives :data:`SIGNALS`, except those that nohup told this process to ignore.

    Only the main thread receives signals; in other threads nothing changes.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in SIGNALS}
        for number, old in before.items():
            if old is not signal.SIG_IGN:
                signal.signal(number, handle)
    try:
        yield
    finally:
        for number, old in before.items():
            # None means a handler that Python did not install and cannot restore.
            if old is not None:
                signal.signal(number, old)


@contextmanager
def at_once() -> Iterator[None]:
    """A block that a signal ends at once, by raising :class:`Stopped`; half-written files are then removed."""

    def handle(number: int, frame: FrameType | None) -> None:
        raise Stopped(number)

    with _handling(handle):
        yield


@contextmanager
def deferred() -> Iterator[Request]:
    """A block in which a signal only sets the :class:`Request`, for the block to read. A second Ctrl-C raises :class:`Stopped`.

    Among several processes a second Ctrl-C is ignored: a launcher forwards the one that the terminal already sent to each.
    """
    request = Request()
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1

    def handle(number: int, frame: FrameType | None) -> None:
        if request.number and number == signal.SIGINT and alone:
            raise Stopped(number)
        request.number = request.number or number

    with _handling(handle):
        yield request


@contextmanager
def resumable(resume: bool) -> Iterator[None]:
    """A whole training command: if a signal ends it, say what to type to continue, and exit as a shell expects.

    ``resume``: whether the command itself continued from a state, which then still exists.
    """
    try:
        with at_once():
            yield
    except Stopped as last:
        # The rest takes a moment; a launcher that repeats its signal must not interrupt it.
        with _handling(signal.SIG_IGN):
            stops = [stop for stop in _chain(last) if isinstance(stop, Stopped)]
            if int(os.environ.get("RANK", "0")) == 0:
                name = signal.Signals(stops[-1].number).name
                if resume or any(stop.kept for stop in stops):
                    say(f"stopped by {name}; the trained state is kept. To continue, type:", error=True)
                    say(f"  {resuming()}", error=True)
                else:
                    say(f"stopped by {name} before anything was trained", error=True)
            raise SystemExit(stops[-1].exit_code) from None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """``error`` and the errors that were being handled when it was raised, the latest first."""
    while error is not None:
        yield error
        error = error.__context__


def resuming() -> str:
    """The command line of this process with --resume, for the user to type."""
    words = sys.argv[1:]
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    program = Path(sys.argv[0])
    if processes > 1:
        # Without the variable, torchrun puts the current folder on Python's path.
        start = ["PYTHONSAFEPATH=1", "torchrun", f"--nproc-per-node={processes}", *_AS_MODULE]
    elif program.stem == "simmim-train":
        start = [program.name if shutil.which(program.name) == str(program) else str(program)]
    else:
        start = [sys.orig_argv[0], *_AS_MODULE]
    return shlex.join([*start, *words, *(() if "--resume" in words else ("--resume",))])
