"""Ctrl-C and SIGTERM while a model trains: finish the step, save, and say how to go on."""

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

# What ends a training run from outside: Ctrl-C, kill or a scheduler, a terminal that closes.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
# simmim-train as a module, in a command that a user is told to type. Nothing is started with it here.
_AS_MODULE = shlex.split("-m simmim_export.training.cli")


class Stopped(KeyboardInterrupt):
    """A signal ended a command. ``kept`` is the trainer's state that goes on from there, None where nothing was trained."""

    def __init__(self, number: int, kept: Path | None = None) -> None:
        super().__init__(number)
        self.number = number
        self.kept = kept

    @property
    def exit_code(self) -> int:
        """128 and the signal's number, as a shell has it: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + self.number


class Request:
    """Whether a signal has asked a block to stop, and which: ``number`` is 0 until then."""

    def __init__(self) -> None:
        self.number = 0


@contextmanager
def _handling(handle: Any) -> Iterator[None]:
    """Let ``handle(number, frame)`` take :data:`SIGNALS`, except those that this process was told to ignore (as nohup does).

    Only the main thread hears signals: elsewhere nothing changes.
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
            # None: a handler that Python did not install, and cannot put back.
            if old is not None:
                signal.signal(number, old)


@contextmanager
def at_once() -> Iterator[None]:
    """For a block that a signal ends at once, by :class:`Stopped`; what is half written is then removed."""

    def handle(number: int, frame: FrameType | None) -> None:
        raise Stopped(number)

    with _handling(handle):
        yield


@contextmanager
def deferred() -> Iterator[Request]:
    """For a block that asks the :class:`Request` whether to stop. A second Ctrl-C raises :class:`Stopped` at once.

    Among several processes it does not: a launcher passes on the Ctrl-C that the terminal has already sent to each of them.
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
    """For the whole of a training command: where a signal ends it, say what to type to go on, and exit as a shell expects.

    ``resume``: whether the command itself went on from a state, which is then still there.
    """
    try:
        with at_once():
            yield
    except Stopped as last:
        # What follows is done in a moment: a launcher that repeats its signal must not cut it short.
        with _handling(signal.SIG_IGN):
            stops = [stop for stop in _chain(last) if isinstance(stop, Stopped)]
            if int(os.environ.get("RANK", "0")) == 0:
                name = signal.Signals(stops[-1].number).name
                if resume or any(stop.kept for stop in stops):
                    say(f"stopped by {name}; what was trained is kept. To go on, type:", error=True)
                    say(f"  {resuming()}", error=True)
                else:
                    say(f"stopped by {name}, before anything was trained that could be kept", error=True)
            raise SystemExit(stops[-1].exit_code) from None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """``error``, and what was being handled when it was raised: the last one came first."""
    while error is not None:
        yield error
        error = error.__context__


def resuming() -> str:
    """The command line of this process with --resume: what to type to go on."""
    words = sys.argv[1:]
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    program = Path(sys.argv[0])
    if processes > 1:
        # Without the variable torchrun puts the current folder on the path of what it starts.
        start = ["PYTHONSAFEPATH=1", "torchrun", f"--nproc-per-node={processes}", *_AS_MODULE]
    elif program.stem == "simmim-train":
        start = [program.name if shutil.which(program.name) == str(program) else str(program)]
    else:
        start = [sys.orig_argv[0], *_AS_MODULE]
    return shlex.join([*start, *words, *(() if "--resume" in words else ("--resume",))])
