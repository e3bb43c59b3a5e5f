"""How long-running work says where it stands and how long it will still take."""

from __future__ import annotations

import time


def clock(seconds: float) -> str:
    """``seconds`` as minutes and seconds: 187 becomes "3:07"."""
    whole = round(seconds)
    return f"{whole // 60}:{whole % 60:02d}"


class Countdown:
    """Estimates how long ``total`` equal pieces of work will still take; the clock starts when it is made."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._started = time.monotonic()

    def left(self, done: int) -> str:
        """The text ", 3:07 left" after ``done`` pieces; empty before the first one is done."""
        if done == 0:
            return ""
        seconds = (time.monotonic() - self._started) * (self._total - done) / done
        return f", {clock(seconds)} left"
