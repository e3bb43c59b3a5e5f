"""What this host can do at best: operations per second of matrix products, and bytes per second from memory.

Measured in a process of its own, with libraries and not with our engines: the fastest of several libraries and sizes counts.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from simmim_export.benchmarks.limit.products import LIBRARIES
from simmim_export.errors import EngineUnavailable, UsageError
from simmim_export.spec import Precision
from simmim_export.system.host import available_threads
from simmim_export.system.watch import Watch, unwatched
from simmim_export.system.workers import Worker

# Square products of so many rows. Three FP32 matrices of 512 rows take 3 MB, of 1024 rows 12 MB: L2 or L3.
ROWS = (256, 512, 768, 1024)
# Each product runs for so many seconds, and at least so many times. The fastest run counts: another program can only slow it.
SECONDS, TIMES = 0.15, 4
# The array that is copied and read: TIMES_CACHE times the last-level cache, within LEAST_COPY and MOST_COPY bytes.
LEAST_COPY, TIMES_CACHE, MOST_COPY = 128 << 20, 4, 1 << 30
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


@dataclass(frozen=True, kw_only=True)
class Peak:
    """The most operations per second (a multiplication and an addition are two) and where they were reached."""

    flops_per_second: float
    library: str
    rows: int


@dataclass(frozen=True, kw_only=True)
class Peaks:
    """The peaks of this host on ``threads`` threads.

    ``products`` maps a precision to its peak. ``copy`` and ``read`` are bytes per second between memory and the processor: a copy
    counts each byte twice, read and written. ``cache`` is the size of the last-level cache in bytes, or None if the system does
    not tell. ``missing`` maps a precision to the reason why no library multiplies in it here.
    """

    threads: int
    products: dict[str, Peak]
    copy: float
    read: float
    cache: int | None
    missing: dict[str, str]

    @property
    def bandwidth(self) -> float:
        """The larger of ``copy`` and ``read``."""
        return max(self.copy, self.read)

    def of(self, precision: Precision) -> float | None:
        """The operations per second that an engine may reach at ``precision``; None if they were not measured.

        A session in a lower precision may compute some nodes in FP32, so its peak is never below that of FP32.
        """
        if str(precision) not in self.products:
            return None
        names = {str(Precision.FP32), str(precision)} & set(self.products)
        return max(self.products[name].flops_per_second for name in names)


class PeaksWorker:
    """Measures peaks in a :class:`~simmim_export.system.workers.Worker`, where no other library's threads spin."""

    def product(self, precision: str, library: str, rows: int) -> float | None:
        """Operations per second of ``library`` multiplying two square matrices; None if it has no product of this precision."""
        multiply = LIBRARIES[library](Precision(precision), rows, threads=available_threads())
        return None if multiply is None else 2 * rows**3 / _fastest(multiply)

    def bandwidth(self, size: int) -> tuple[float, float]:
        """Bytes per second of copying and of reading ``size`` bytes, on all threads at once."""
        threads = available_threads()
        parts = [np.ones(size // threads // 8) for _ in range(threads)]
        copies = [np.zeros_like(part) for part in parts]
        total = sum(part.nbytes for part in parts)

        def copy(index: int) -> None:
            np.copyto(copies[index], parts[index])

        def read(index: int) -> None:
            parts[index].max()

        # NumPy lets go of the interpreter's lock in both.
        with ThreadPoolExecutor(threads) as pool:
            copying = _fastest(lambda: list(pool.map(copy, range(threads))))
            reading = _fastest(lambda: list(pool.map(read, range(threads))))
        return 2 * total / copying, total / reading


def _fastest(run: Callable[[], Any]) -> float:
    """The seconds of the fastest of several runs, after one that does not count."""
    run()
    best, times, start = float("inf"), 0, time.perf_counter()
    while times < TIMES or time.perf_counter() - start < SECONDS:
        before = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - before)
        times += 1
    return best


def last_level_cache() -> int | None:
    """The size in bytes of the largest cache of the first processor; None if the system does not tell (Linux only)."""
    sizes = [0]
    with contextlib.suppress(OSError, ValueError):
        for path in _CACHES.glob("index*/size"):
            text = path.read_text(encoding="ascii").strip()
            unit = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1:], 0)
            sizes.append(int(text[:-1]) * unit if unit else int(text))
    return max(sizes) or None


def measure_peaks(watch: Watch = unwatched) -> Peaks:
    """Measure the peaks of this host; takes a few seconds.

    Raise :class:`EngineUnavailable` if no library can multiply FP32 matrices.
    """
    precisions = (Precision.FP32, Precision.BF16, Precision.INT8)
    best: dict[str, Peak] = {}
    reasons: dict[str, list[str]] = {str(precision): [] for precision in precisions}
    cache = last_level_cache()
    steps = [(precision, library) for library in LIBRARIES for precision in precisions]
    with Worker(PeaksWorker, name="the peaks") as worker:
        for done, (precision, library) in enumerate(steps):
            watch(f"peak of {precision}, {library}", done, len(steps) + 1)
            for peak in _products(worker, str(precision), library=library, reasons=reasons[str(precision)]):
                if peak.flops_per_second > getattr(best.get(str(precision)), "flops_per_second", 0.0):
                    best[str(precision)] = peak
        watch("bandwidth", len(steps), len(steps) + 1)
        size = min(MOST_COPY, max(LEAST_COPY, TIMES_CACHE * (cache or 0)))
        copy, read = worker.ask(PeaksWorker.bandwidth, size)
    missing = {name: "; ".join(why) for name, why in reasons.items() if name not in best}
    if str(Precision.FP32) in missing:
        fix = "pip install 'simmim-export[bench]'"
        raise EngineUnavailable(f"no library multiplies FP32 matrices here: {missing[str(Precision.FP32)]}", fix=fix)
    return Peaks(threads=available_threads(), products=best, copy=copy, read=read, cache=cache, missing=missing)


def _products(worker: Worker, precision: str, *, library: str, reasons: list[str]) -> Iterator[Peak]:
    """The speed of ``library`` for each of :data:`ROWS`, or the reason why there is none, added to ``reasons``."""
    for rows in ROWS:
        try:
            speed = worker.ask(PeaksWorker.product, precision, library, rows)
        except (EngineUnavailable, UsageError) as error:
            reasons.append(f"{library}: {error.what}")
            return
        if speed is None:
            reasons.append(f"{library} has no such product")
            return
        yield Peak(flops_per_second=speed, library=library, rows=rows)
