"""Signals that ask a process to end, as exceptions that let it clean up first."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# The signals of kill and of a closed terminal, which end a process at once unless it handles them. Windows has no SIGHUP.
ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))

# Seconds that a block has to clean up before another signal interrupts it.
GRACE = 5.0


@contextmanager
def ending_cleanly() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the block as Ctrl-C does, by an exception: SystemExit with 128 plus the signal's number.

    Further signals are ignored for :data:`GRACE` seconds while the block cleans up, and then raise again, because a library may
    have swallowed the first exception. A signal that the program handles itself or ignores (as under nohup) is left alone.
    Python handles signals in the main thread only, so this does nothing in any other thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours = [number for number in ENDING if signal.getsignal(number) is signal.SIG_DFL]

    first = float("-inf")

    def end(number: int, _: FrameType | None) -> None:
        nonlocal first
        if time.monotonic() - first < GRACE:
            return
        first = time.monotonic()
        raise SystemExit(128 + number)

    try:
        for number in ours:
            signal.signal(number, end)
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)
