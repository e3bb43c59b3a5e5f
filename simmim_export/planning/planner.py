"""The fastest plan of precisions inside a budget. Knows a judge's figures and latencies; must not know how a graph is quantised.

A plan says for every graph at which precision it runs, and which groups of its nodes stay float at INT8. The search is greedy,
and every step of it is measured on the model's own task with a paired interval:

1. every graph at its fastest precision, INT8 only where it is faster here;
2. while the budget is exceeded, the graph that costs most is relaxed: more and more of its groups, the most sensitive first,
   stay float, and when that helps no longer it gives INT8 up;
3. of all that was tried and keeps the budget the fastest is chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from simmim_export.errors import GateFailed
from simmim_export.planning.judge import Candidate
from simmim_export.proof.budget import Budget, Line
from simmim_export.spec import Precision, PrecisionPlan

# A precision must be so much faster than FP32 to be worth anything: less is within what medians of a noisy machine differ.
WORTH = 0.97
Watch = Callable[[str, int, int], None]


class Judges(Protocol):
    """What the planner asks; :class:`simmim_export.planning.judge.Judge` in a process of its own."""

    engine: str

    def examine(self, candidates: Sequence[Candidate]) -> Mapping[str, Any]:
        """Figures of one candidate for every graph."""
        ...

    def clock(self, candidates: Sequence[Candidate]) -> list[float]:
        """Seconds of each."""
        ...


class Graphs(Protocol):
    """The files that a plan may choose from."""

    def names(self) -> Sequence[str]:
        """Every graph."""
        ...

    def candidates(self, graph: str) -> Mapping[Precision, Path]:
        """The files that the engine can run for it, FP32 always among them."""
        ...

    def groups(self, graph: str) -> Sequence[str]:
        """The PyTorch modules whose nodes INT8 touches."""
        ...

    def quantise(self, graph: str, kept: frozenset[str]) -> Path:
        """Its INT8 file with the nodes of the groups ``kept`` left float."""
        ...


@dataclass(frozen=True)
class Tried:
    """A plan and what it costs: ``seconds`` is the sum over graphs, ``share`` that of FP32 on the same engine."""

    plan: PrecisionPlan
    kept: Mapping[str, tuple[str, ...]]
    why: str
    seconds: float
    share: float
    lines: tuple[Line, ...]

    @property
    def fits(self) -> bool:
        """Whether every line of the budget is kept."""
        return all(line.kept for line in self.lines)

    def costs(self) -> str:
        """The lines in one sentence."""
        return "; ".join(str(line) for line in self.lines)


@dataclass
class Planned:
    """``chosen`` of all ``tried``, the sensitivity of each graph alone, and what there is to say aloud."""

    engine: str
    budget: Budget
    chosen: Tried
    tried: list[Tried]
    notes: list[str] = field(default_factory=list)

    def pareto(self) -> list[Tried]:
        """Those that no other beats in speed at no more excess over the budget, the fastest first."""
        ordered = sorted(self.tried, key=lambda one: (one.seconds, _excess(one.lines)))
        best, found = float("inf"), []
        for one in ordered:
            if _excess(one.lines) < best:
                best = _excess(one.lines)
                found.append(one)
        return found


def _excess(lines: Sequence[Line]) -> float:
    """How far the worst line is over its limit, in limits: 0 for all kept."""
    worst = 0.0
    for line in lines:
        if not line.kept and line.reason:  # not computed, or not finite: as far over as can be
            return float("inf")
        if line.key in ("cosine", "agreement"):
            top = 1.0 if line.key == "cosine" else 100.0
            over = (line.limit - line.measured) / max(top - line.limit, 1e-6)
        else:
            over = (line.measured - line.limit) / max(line.limit, 1e-6)
        worst = max(worst, over)
    return worst


class Planner:
    """One search with one judge. ``figures`` of FP32 must be able to measure the budget: :class:`UsageError` if not."""

    def __init__(self, judge: Judges, graphs: Graphs, budget: Budget, watch: Watch) -> None:
        self.judge, self.graphs, self.budget, self._watch = judge, graphs, budget, watch
        self.notes: list[str] = []
        self._seconds: dict[tuple[str, Precision, frozenset[str]], float] = {}
        self._kept: dict[str, frozenset[str]] = {name: frozenset() for name in graphs.names()}
        self._tried: dict[tuple[tuple[str, Precision, frozenset[str]], ...], Tried] = {}

    @property
    def tried(self) -> list[Tried]:
        """Every plan that was measured, in order."""
        return list(self._tried.values())

    def run(self) -> Planned:
        """Search. Raise :class:`GateFailed` if no plan fits the budget, or INT8 is faster and no plan with any of it fits."""
        names = self.graphs.names()
        exact = dict.fromkeys(names, Precision.FP32)
        self._clock_all()
        figures = self.judge.examine(self._candidates(exact))
        self.budget.require_measurable(figures)
        self._note(exact, "FP32", figures)
        faster = {name: self._fastest(name) for name in names}
        for name in names:
            if Precision.INT8 in self.graphs.candidates(name):
                self._try(exact | {name: Precision.INT8}, f"{name} alone")
        chosen = self.tried[0]
        if faster != exact:
            chosen = self._try(faster, "every graph at its fastest")
        wanted = [name for name in names if faster[name] is Precision.INT8]
        current = dict(faster)
        while not chosen.fits and any(current[name] is not Precision.FP32 for name in names):
            chosen = self._relax(current)
        lowered = [t for t in self.tried if not wanted or any(t.plan.of(n) is Precision.INT8 for n in wanted)]
        if not any(tried.fits for tried in lowered):
            best = min(lowered, key=lambda tried: _excess(tried.lines))
            raise GateFailed(
                f"no {'INT8 ' if wanted else ''}plan of {self.judge.engine} keeps the budget {self.budget}; the best, "
                f"{best.plan}, at {best.share:.2f}x the time of FP32: {best.costs()}",
                fix="widen --budget, calibrate on more samples with --calibration, or leave --precision int8 out",
            )
        fitting = [tried for tried in self.tried if tried.fits]
        # One graph alone at what is hardly faster was tried to learn what it costs, and is no gain.
        gains = [tried for tried in fitting if tried.share <= WORTH or tried is chosen or tried is self.tried[0]]
        chosen = min(gains or fitting, key=lambda tried: tried.seconds)
        return Planned(self.judge.engine, self.budget, chosen, self.tried, self.notes)

    def _clock_all(self) -> None:
        keys = [(n, p, frozenset[str]()) for n in self.graphs.names() for p in self.graphs.candidates(n)]
        self._watch(f"{self.judge.engine}: how fast is each graph", 0, 1)
        found = self.judge.clock([self._candidate(*key) for key in keys])
        self._seconds |= dict(zip(keys, found, strict=True))
        for name in self.graphs.names():
            times = {p: self._seconds[name, p, frozenset[str]()] for p in self.graphs.candidates(name)}
            if Precision.INT8 in times:
                rival = min((p for p in times if p is not Precision.INT8), key=lambda p: times[p])
                if times[Precision.INT8] > WORTH * times[rival]:
                    what = f"{times[Precision.INT8] / times[rival]:.2f}x the time of {rival}"
                    self.notes.append(f"{name}: INT8 is not faster here on {self.judge.engine}: {what}")

    def _fastest(self, name: str) -> Precision:
        times = {p: self._seconds[name, p, frozenset[str]()] for p in self.graphs.candidates(name)}
        best = min(times, key=lambda p: times[p])
        return best if times[best] <= WORTH * times[Precision.FP32] else Precision.FP32

    def _candidate(self, name: str, precision: Precision, kept: frozenset[str]) -> Candidate:
        if precision is Precision.INT8 and kept:
            return Candidate(name, self.graphs.quantise(name, kept), precision)
        return Candidate(name, self.graphs.candidates(name)[precision], precision)

    def _candidates(self, plan: Mapping[str, Precision]) -> list[Candidate]:
        return [self._candidate(name, precision, self._kept_of(name, precision)) for name, precision in plan.items()]

    def _kept_of(self, name: str, precision: Precision) -> frozenset[str]:
        return self._kept[name] if precision is Precision.INT8 else frozenset()

    def _try(self, plan: Mapping[str, Precision], why: str) -> Tried:
        if (known := self._tried.get(self._keys(plan))) is not None:
            return known
        self._watch(f"{self.judge.engine}: {why}", len(self.tried), len(self.tried) + 1)
        return self._note(plan, why, self.judge.examine(self._candidates(plan)))

    def _keys(self, plan: Mapping[str, Precision]) -> tuple[tuple[str, Precision, frozenset[str]], ...]:
        return tuple((name, precision, self._kept_of(name, precision)) for name, precision in plan.items())

    def _note(self, plan: Mapping[str, Precision], why: str, figures: Mapping[str, Any]) -> Tried:
        keys = self._keys(plan)
        new = [key for key in keys if key not in self._seconds]
        if new:
            self._seconds |= dict(zip(new, self.judge.clock([self._candidate(*key) for key in new]), strict=True))
        seconds = sum(self._seconds[key] for key in keys)
        exact = sum(self._seconds[name, Precision.FP32, frozenset[str]()] for name in plan)
        written = PrecisionPlan(
            Precision.FP32, tuple(sorted((n, p) for n, p in plan.items() if p is not Precision.FP32))
        )
        kept = {name: tuple(sorted(groups)) for name, _, groups in keys if groups}
        found = Tried(written, kept, why, seconds, seconds / exact, tuple(self.budget.lines(figures)))
        self._tried[keys] = found
        return found

    def _relax(self, current: dict[str, Precision]) -> Tried:
        """Make ``current`` more exact where it costs most, in place, and measure it."""
        lowered = [name for name, precision in current.items() if precision is not Precision.FP32]
        back = {}
        for name in lowered:
            precision = self._next(name, current[name])
            back[name] = self._try(current | {name: precision}, f"{name} back to {precision}")
        worst = min(lowered, key=lambda name: _excess(back[name].lines))
        groups = [group for group in self.graphs.groups(worst) if group not in self._kept[worst]]
        if current[worst] is Precision.INT8 and len(groups) > 1:
            before, gains = self._kept[worst], {}
            for group in groups:
                self._kept[worst] = before | {group}
                gains[group] = _excess(self._try(current, f"{worst} with {group} float").lines)
            ordered, count = sorted(groups, key=lambda group: gains[group]), 1
            while count < len(groups):
                self._kept[worst] = before | set(ordered[:count])
                found = self._try(current, f"{worst} with {count} of {len(groups)} groups float")
                if found.fits:
                    return found
                count *= 2
            self._kept[worst] = before
        current[worst] = self._next(worst, current[worst])
        return back[worst]

    def _next(self, name: str, precision: Precision) -> Precision:
        """The fastest that is more exact than ``precision``."""
        if precision is not Precision.INT8:
            return Precision.FP32
        rest = [p for p in self.graphs.candidates(name) if p is not Precision.INT8]
        return min(rest, key=lambda p: self._seconds[name, p, frozenset[str]()])
