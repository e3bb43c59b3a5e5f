"""Whether the memory of a process stays flat while it works: the verdict of the suite soak."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median

# Memory may grow by so many bytes, or by this share of what the process had, over the time that counts. An allocator that keeps a
# few more pages stays below that; a leak of 1 kB in each of a thousand runs a second exceeds it within half a minute.
LIMIT_BYTES, LIMIT_SHARE = 16e6, 0.02
# This share of the slices does not count: until then caches fill and the allocator takes its arenas.
WARMUP = 0.25
# Slices of a soak on one engine. The memory is read at the end of each.
SLICES = 24
# How long a soak takes.
MINUTES = 2.0
# The fewest slices from which a slope is taken.
FEWEST = 4


@dataclass(frozen=True, kw_only=True)
class Growth:
    """How resident memory grew: bytes a minute, and in all over the time that counts, beside what is allowed."""

    bytes_per_minute: float
    grown: float
    allowed: float

    @property
    def flat(self) -> bool:
        """Whether it grew no more than allowed."""
        return self.grown <= self.allowed


def growth(memory: Sequence[tuple[float, int]]) -> Growth | None:
    """The growth of ``memory``, pairs of seconds and resident bytes in order. None for too few of them.

    The slope is the median of the slopes between all pairs (Theil, 1950; Sen, 1968), so that one slice in which memory was
    taken and given back does not count as growth.
    """
    counted = memory[int(len(memory) * WARMUP) :]
    # A file may hold the same moment twice.
    slopes = [(b - a) / (t - s) for (s, a), (t, b) in combinations(counted, 2) if t > s]
    if len(counted) < FEWEST or not slopes:
        return None
    slope = median(slopes)
    grown = slope * (counted[-1][0] - counted[0][0])
    return Growth(bytes_per_minute=60 * slope, grown=grown, allowed=max(LIMIT_BYTES, LIMIT_SHARE * counted[0][1]))
