"""The options of a build: shapes to be fast at, memory, effort. Needs neither TensorRT nor a GPU, like a dry run.

Shapes are given by axis. A log of real traffic is a text file with one JSON object per line, the sizes of one call::

    {"batch": 1, "sequence": 12}
    {"batch": 4, "sequence": 30}

The best size of each axis is then the most frequent one (of equally frequent sizes the largest), and its range is what was seen.
An axis that no line names keeps the range that its graph was proven for.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from simmim_export.errors import DataError, UsageError
from simmim_export.spec import BATCH, Axis, GraphSpec, TensorSpec
from simmim_export.system.files import parse_json

# TensorRT's own names, in lower case. With "none" a plan file runs only on the kind of GPU that it was built on.
COMPATIBILITY = ("none", "same_compute_capability", "ampere_plus")
LEVELS = range(6)
_UNITS = {"B": 1} | {f"{p}iB": 1 << 10 * n for n, p in enumerate("KMGT", 1)}
_UNITS |= {f"{p}B": 1000**n for n, p in enumerate("kMGT", 1)}
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]+)\s*")


def parse_size(text: str) -> int:
    """The bytes of ``2GiB``, ``1.5 GB`` or ``4096B``. Raise :class:`UsageError` without a unit, and for less than one byte."""
    match = _SIZE.fullmatch(text)
    units = {unit.lower(): factor for unit, factor in _UNITS.items()}
    if match is None or match[2].lower() not in units:
        raise UsageError(f"{text!r} is not a size", fix=f"write a number and one of {', '.join(_UNITS)}: 2GiB")
    size = int(Decimal(match[1]) * units[match[2].lower()])
    if size < 1:
        raise UsageError(f"{text!r} is less than one byte", fix="write a number and a unit: 2GiB")
    return size


def format_size(size: int) -> str:
    """``size`` bytes in the largest binary unit that fits, with two digits after the point: 1.50 GiB."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size >= _UNITS[unit]:
            return f"{size / _UNITS[unit]:.2f} {unit}"
    return f"{size} B"


@dataclass(frozen=True)
class Range:
    """The sizes of one axis that a plan file takes, both ends included, and the one it is fastest at."""

    minimum: int
    optimum: int
    maximum: int

    def __str__(self) -> str:
        return f"{self.minimum} to {self.maximum}, best at {self.optimum}"


@dataclass(frozen=True)
class Profile:
    """A :class:`Range` for every dynamic axis of a graph."""

    axes: Mapping[str, Range]

    def fits(self, sizes: Mapping[str, int]) -> bool:
        """Whether every axis in ``sizes`` is within its range."""
        return all(self.axes[name].minimum <= size <= self.axes[name].maximum for name, size in sizes.items())

    def require(self, sizes: Mapping[str, int]) -> None:
        """Raise :class:`UsageError` showing the profile unless ``sizes`` fit."""
        if not self.fits(sizes):
            asked = ", ".join(f"{name} {size}" for name, size in sizes.items())
            flags = " ".join(f"--max {name}={size}" for name, size in sizes.items() if size > self.axes[name].maximum)
            flags = flags or " ".join(f"--min {name}={size}" for name, size in sizes.items())
            what = f"the plan file was not built for {asked}; its profile: {self}"
            raise UsageError(what, fix=f"build it again with {flags}")

    def shapes(self, tensor: TensorSpec) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """The least, best and largest shape of ``tensor``. A shared tensor may always have a single row."""
        least = {name: axis.minimum for name, axis in self.axes.items()}
        return (
            tensor.resolve(least | {BATCH: 1} if tensor.shared else least),
            tensor.resolve({name: axis.optimum for name, axis in self.axes.items()}),
            tensor.resolve({name: axis.maximum for name, axis in self.axes.items()}),
        )

    def as_json(self) -> dict[str, list[int]]:
        """``{"batch": [1, 1, 8]}``."""
        return {name: [axis.minimum, axis.optimum, axis.maximum] for name, axis in self.axes.items()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Profile:
        """The inverse of :meth:`as_json`. Raise TypeError or ValueError for anything else, and for sizes out of order."""
        axes = {}
        for name, sizes in content.items():
            minimum, optimum, maximum = sizes
            if not all(type(size) is int for size in sizes):  # True is an int to isinstance
                raise TypeError(f"the sizes of axis {name!r} are {sizes!r}, not three whole numbers")
            if not 1 <= minimum <= optimum <= maximum:
                raise ValueError(f"the sizes of axis {name!r} are {sizes!r}, which are not in order")
            axes[str(name)] = Range(minimum, optimum, maximum)
        return cls(axes)

    def __str__(self) -> str:
        return "; ".join(f"{name} {axis}" for name, axis in self.axes.items()) or "fixed shapes"


@dataclass(frozen=True, kw_only=True)
class Request:
    """The options. ``workspace`` is in bytes, None for all that is free. ``least``, ``best`` and ``largest`` are sizes by axis;
    they win over ``traffic``, which wins over the ranges that the graphs were proven for. ``targets`` are the compute
    capabilities to build for ahead of time (``8.6``); without them a plan file is for the GPU of this machine."""

    workspace: int | None = None
    level: int = 3
    compatibility: str = COMPATIBILITY[0]
    least: Mapping[str, int] = field(default_factory=dict)
    best: Mapping[str, int] = field(default_factory=dict)
    largest: Mapping[str, int] = field(default_factory=dict)
    traffic: Mapping[str, Range] = field(default_factory=dict)
    targets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise UsageError(f"unknown level {self.level}", fix=f"choose {LEVELS[0]} to {LEVELS[-1]}")
        if self.compatibility not in COMPATIBILITY:
            what = f"unknown hardware compatibility {self.compatibility!r}"
            raise UsageError(what, fix=f"choose one of {', '.join(COMPATIBILITY)}")

    def check(self, graphs: Iterable[GraphSpec]) -> None:
        """Raise :class:`UsageError` for an axis that none of ``graphs`` has."""
        known = sorted({axis.name for graph in graphs for axis in graph.axes})
        for name in (*self.least, *self.best, *self.largest, *self.traffic):
            if name not in known:
                raise UsageError(f"no graph has an axis {name!r}", fix=f"choose among {', '.join(known)}")

    def profile(self, spec: GraphSpec) -> Profile:
        """The ranges for ``spec``. Raise :class:`UsageError` for a range that is empty or goes beyond what the graph was proven
        for."""
        return Profile({axis.name: self._range(axis, spec) for axis in spec.axes})

    def _range(self, axis: Axis, spec: GraphSpec) -> Range:
        # Without options: a device gets one call at a time, and a text may be as long as the model reads.
        usual = axis.minimum if axis.name == "batch" else axis.maximum
        seen = self.traffic.get(axis.name, Range(axis.minimum, usual, axis.maximum))
        least, largest = self.least.get(axis.name, seen.minimum), self.largest.get(axis.name, seen.maximum)
        best = self.best.get(axis.name, min(max(seen.optimum, least), largest))
        if not axis.minimum <= least <= best <= largest <= axis.maximum:
            what = f"{spec.name} cannot be built for {axis.name} {least} to {largest}, best at {best}"
            fix = f"stay within {axis.minimum} to {axis.maximum}, which the export has proven, with the best in between"
            raise UsageError(what, fix=fix)
        return Range(least, best, largest)

    def recipe(self, spec: GraphSpec) -> dict[str, Any]:
        """Everything that decides the plan file of ``spec``, as JSON. A plan file with the same recipe is kept."""
        return {
            "workspace": self.workspace,
            "level": self.level,
            "compatibility": self.compatibility,
            "targets": list(self.targets),
            "profile": self.profile(spec).as_json(),
        }


def parse_sizes(words: Iterable[str]) -> dict[str, int]:
    """The sizes by axis in ``batch=4`` or ``batch=1,sequence=12``. Raise :class:`UsageError` naming a word that does not
    parse."""
    sizes: dict[str, int] = {}
    for part in (part.strip() for word in words for part in word.split(",")):
        name, _, size = part.partition("=")
        if not name or not re.fullmatch("[0-9]{1,9}", size) or int(size) < 1:
            raise UsageError(f"{part!r} is not AXIS=SIZE", fix="write batch=4, or batch=4,sequence=32")
        if sizes.setdefault(name, int(size)) != int(size):
            raise UsageError(f"{name} is given twice: {sizes[name]} and {size}", fix="give every axis once")
    return sizes


def parse_targets(text: str) -> tuple[str, ...]:
    """The compute capabilities in ``sm86,sm120``, as ``8.6`` and ``12.0``, each once and in order.

    Raise :class:`UsageError` naming a word that does not parse.
    """
    targets = set()
    for word in (word.strip() for word in text.split(",")):
        match = re.fullmatch("sm([0-9]{1,2})([0-9])", word)
        if match is None:
            raise UsageError(f"{word!r} is not a GPU generation", fix="write sm86, or sm86,sm89,sm120")
        targets.add((int(match[1]), int(match[2])))
    return tuple(f"{major}.{minor}" for major, minor in sorted(targets))


def read_traffic(path: Path) -> dict[str, Range]:
    """The range of every axis in a log, whose format is in this module's docstring. Raise :class:`DataError` naming the line."""
    fix = 'write one object per line: {"batch": 1, "sequence": 12}'
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the log of shapes cannot be read: {error}", where=path, fix=fix) from error
    seen: dict[str, Counter[int]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            sizes = parse_json(line)
        except ValueError as error:
            raise DataError(f"not JSON: {error}", where=where, fix=fix) from error
        if not isinstance(sizes, dict) or not sizes:
            raise DataError("not an object of sizes by axis", where=where, fix=fix)
        for name, size in sizes.items():
            if type(size) is not int or size < 1:  # True is an int to isinstance
                raise DataError(f"{name} is {json.dumps(size)}, not a whole number above 0", where=where, fix=fix)
            seen.setdefault(name, Counter())[size] += 1
    if not seen:
        raise DataError("the log of shapes is empty", where=path, fix=fix)
    return {
        name: Range(min(sizes), max(sizes, key=lambda size: (sizes[size], size)), max(sizes))
        for name, sizes in seen.items()
    }
