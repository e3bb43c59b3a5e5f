"""The search for the fastest precision plan within a budget.

A precision plan gives every graph a precision; in addition, groups of nodes of a graph may stay float at INT8. The search is
greedy. Each step measures a trial on the model's own task, with a paired interval:

1. Start with every graph at its fastest precision, with INT8 only where it is faster here. Try BF16 and FP16 for all graphs too,
   where the engine has them, and the fastest plan without INT8.
2. While the budget is exceeded, relax the graph that costs most: leave more and more of its groups in float, the most sensitive
   first, and if that is not enough, give up INT8 for this graph.
3. Choose the fastest of all trials within the budget.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from simmim_export.errors import GateFailed
from simmim_export.planning.judge import Candidate
from simmim_export.proof.budget import Budget
from simmim_export.proof.records import Line
from simmim_export.spec import Precision, PrecisionPlan, Variant
from simmim_export.system.watch import Watch

# A precision must take at most this share of FP32's time to be worth anything. Medians of a noisy machine differ by the rest.
WORTH = 0.97
# A precision for every graph.
_Precisions = Mapping[str, Precision]
# A graph, its precision, and its groups that stay float.
_Key = tuple[str, Precision, frozenset[str]]
_NO_GROUPS = frozenset[str]()


class TrialJudge(Protocol):
    """Measures candidates for the planner; :class:`simmim_export.planning.judge.Judge` does so in a process of its own."""

    engine: str

    def examine(self, candidates: Sequence[Candidate]) -> Mapping[str, Any]:
        """The figures of one candidate for every graph."""
        ...

    def clock(self, candidates: Sequence[Candidate]) -> list[float]:
        """The seconds that each takes."""
        ...


class Choices(Protocol):
    """The files that a precision plan may choose from. ``variant`` is the one that it takes at INT8."""

    variant: Variant

    def names(self) -> Sequence[str]:
        """Every graph."""
        ...

    def candidates(self, graph: str) -> Mapping[Precision, Path]:
        """The files of ``graph`` that the engine can run; FP32 is always among them."""
        ...

    def groups(self, graph: str) -> Sequence[str]:
        """The groups of nodes that INT8 quantizes, named after PyTorch modules."""
        ...

    def quantize(self, graph: str, float_groups: frozenset[str]) -> Path:
        """The INT8 file of ``graph`` with ``float_groups`` in float."""
        ...


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A precision plan that the search measured. ``float_groups`` stay float at INT8, by graph. ``reason`` says what the search
    wanted to know. ``seconds`` is the sum over graphs, and ``share`` that sum as a share of FP32's on the same engine.
    ``excess`` is how far ``lines`` exceed the budget."""

    plan: PrecisionPlan
    float_groups: Mapping[str, tuple[str, ...]]
    reason: str
    seconds: float
    share: float
    lines: tuple[Line, ...]
    excess: float

    @property
    def fits(self) -> bool:
        """Whether it is within the budget."""
        return all(line.kept for line in self.lines)

    def costs(self) -> str:
        """The lines in one sentence."""
        return "; ".join(str(line) for line in self.lines)


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """The result of a search for one engine with the INT8 files of ``variant``: the ``chosen`` trial, all ``trials`` in order,
    and ``notes`` for the user."""

    engine: str
    variant: Variant
    budget: Budget
    chosen: Trial
    trials: tuple[Trial, ...]
    notes: tuple[str, ...] = ()

    @property
    def plan(self) -> PrecisionPlan:
        """The precision plan that was chosen."""
        return self.chosen.plan

    def pareto(self) -> list[Trial]:
        """The trials that no other one beats in speed without a larger excess, the fastest first."""
        front: list[Trial] = []
        least = float("inf")
        for trial in sorted(self.trials, key=lambda trial: (trial.seconds, trial.excess)):
            if trial.excess < least:
                least = trial.excess
                front.append(trial)
        return front


@dataclass(kw_only=True)
class Planner:
    """One search with one judge. ``watch(step, done, total)`` is called before each trial."""

    judge: TrialJudge
    choices: Choices
    budget: Budget
    watch: Watch
    notes: list[str] = field(default_factory=list, init=False)
    _seconds: dict[_Key, float] = field(default_factory=dict, init=False)
    _float_groups: dict[str, frozenset[str]] = field(default_factory=dict, init=False)
    _trials: dict[tuple[_Key, ...], Trial] = field(default_factory=dict, init=False)

    def run(self, *, like: PrecisionPlan | None = None) -> SearchResult:
        """Search. ``like`` is the plan of another INT8 variant on the same engine: if it keeps the budget with this variant too,
        and is not slower than FP32, it is chosen without a search.

        Raise :class:`UsageError` for a budget that the figures of FP32 cannot measure, and :class:`GateFailed` if no trial is
        within the budget, or if INT8 is faster and no trial with any of it is within the budget.
        """
        names = self.choices.names()
        exact = dict.fromkeys(names, Precision.FP32)
        known = None if like is None else {name: like.of(name) for name in names}
        if known is not None and not all(p in self.choices.candidates(name) for name, p in known.items()):
            known = None  # INT8 changes nothing in a graph in which it did with the other variant
        self._clock_all([exact, known] if known else [dict.fromkeys(names, precision) for precision in Precision])
        figures = self.judge.examine(self._candidates(exact))
        self.budget.require_measurable(figures)
        baseline = self._record(exact, "FP32", figures)
        if known is not None:
            trial = self._try(known, "the plan of another INT8 variant")
            if trial.fits and trial.share <= 1:
                return self._result(trial)
            self._clock_all([dict.fromkeys(names, precision) for precision in Precision])
        self._note_slow_int8()
        fastest = {name: self._fastest(name, list(Precision)) for name in names}
        for name in names:
            if Precision.INT8 in self.choices.candidates(name):
                self._try(exact | {name: Precision.INT8}, f"{name} alone")
        floats = [precision for precision in Precision if precision is not Precision.INT8]
        for precision in floats:
            if all(precision in self.choices.candidates(name) for name in names):
                self._try(dict.fromkeys(names, precision), f"every graph at {precision}")
        self._try({name: self._fastest(name, floats) for name in names}, "every graph at its fastest without INT8")
        last = baseline if fastest == exact else self._try(fastest, "every graph at its fastest")
        current = dict(fastest)
        while not last.fits and any(current[name] is not Precision.FP32 for name in names):
            last = self._relax(current)
        trials = tuple(self._trials.values())
        self._require_one_that_fits(trials, [name for name in names if fastest[name] is Precision.INT8])
        fitting = [trial for trial in trials if trial.fits]
        # INT8 for one graph alone was tried to learn what it costs. It does not count as a gain if it is hardly faster.
        gains = [trial for trial in fitting if trial.share <= WORTH or trial is last or trial is baseline]
        return self._result(min(gains or fitting, key=lambda trial: trial.seconds))

    def _result(self, chosen: Trial) -> SearchResult:
        return SearchResult(
            engine=self.judge.engine,
            variant=self.choices.variant,
            budget=self.budget,
            chosen=chosen,
            trials=tuple(self._trials.values()),
            notes=tuple(self.notes),
        )

    def _require_one_that_fits(self, trials: Sequence[Trial], wanted: Sequence[str]) -> None:
        """Raise :class:`GateFailed` unless a trial fits; one with INT8 in one of the graphs ``wanted``, if there are any."""
        lowered = [t for t in trials if not wanted or any(t.plan.of(name) is Precision.INT8 for name in wanted)]
        if any(trial.fits for trial in lowered):
            return
        best = min(lowered, key=lambda trial: trial.excess)
        raise GateFailed(
            f"no {f'{self.choices.variant} ' if wanted else ''}plan of {self.judge.engine} keeps the budget {self.budget}; "
            f"the best, {best.plan}, at {best.share:.2f}x the time of FP32: {best.costs()}",
            fix="widen --budget, calibrate on more samples with --calibration, or leave --precision int8 out",
        )

    def _clock_all(self, plans: Sequence[_Precisions]) -> None:
        """Clock the graphs as each of ``plans`` has them, unless they were clocked before or cannot run."""
        keys = [key for plan in plans for key in self._keys(plan) if key[1] in self.choices.candidates(key[0])]
        self.watch(f"{self.judge.engine}: how fast is each graph", 0, 1)
        if unclocked := [key for key in dict.fromkeys(keys) if key not in self._seconds]:
            self._clock(unclocked)

    def _note_slow_int8(self) -> None:
        for name in self.choices.names():
            times = self._times(name)
            if Precision.INT8 not in times:
                continue
            rival = min((p for p in times if p is not Precision.INT8), key=times.__getitem__)
            if times[Precision.INT8] > WORTH * times[rival]:
                ratio = f"{times[Precision.INT8] / times[rival]:.2f}x the time of {rival}"
                self.notes.append(f"{name}: INT8 is not faster here on {self.judge.engine}: {ratio}")

    def _clock(self, keys: Sequence[_Key]) -> None:
        seconds = self.judge.clock([self._candidate(*key) for key in keys])
        self._seconds |= dict(zip(keys, seconds, strict=True))

    def _times(self, name: str) -> dict[Precision, float]:
        return {p: self._seconds[name, p, _NO_GROUPS] for p in self.choices.candidates(name)}

    def _fastest(self, name: str, precisions: Sequence[Precision]) -> Precision:
        """The fastest of ``precisions``, or FP32 if that is hardly slower."""
        times = {precision: seconds for precision, seconds in self._times(name).items() if precision in precisions}
        best = min(times, key=times.__getitem__)
        return best if times[best] <= WORTH * times[Precision.FP32] else Precision.FP32

    def _candidate(self, name: str, precision: Precision, float_groups: frozenset[str]) -> Candidate:
        if float_groups:
            return Candidate(name, self.choices.quantize(name, float_groups), precision)
        return Candidate(name, self.choices.candidates(name)[precision], precision)

    def _candidates(self, precisions: _Precisions) -> list[Candidate]:
        return [self._candidate(*key) for key in self._keys(precisions)]

    def _keys(self, precisions: _Precisions) -> tuple[_Key, ...]:
        return tuple(
            (name, precision, self._floats(name) if precision is Precision.INT8 else _NO_GROUPS)
            for name, precision in precisions.items()
        )

    def _floats(self, name: str) -> frozenset[str]:
        return self._float_groups.get(name, _NO_GROUPS)

    def _try(self, precisions: _Precisions, reason: str) -> Trial:
        """The trial of ``precisions``, measured unless it was before."""
        if (known := self._trials.get(self._keys(precisions))) is not None:
            return known
        done = len(self._trials)
        self.watch(f"{self.judge.engine}: {reason}", done, done + 1)
        return self._record(precisions, reason, self.judge.examine(self._candidates(precisions)))

    def _record(self, precisions: _Precisions, reason: str, figures: Mapping[str, Any]) -> Trial:
        keys = self._keys(precisions)
        if unclocked := [key for key in keys if key not in self._seconds]:
            self._clock(unclocked)
        seconds = sum(self._seconds[key] for key in keys)
        exact = sum(self._seconds[name, Precision.FP32, _NO_GROUPS] for name in precisions)
        lowered = sorted((name, p) for name, p in precisions.items() if p is not Precision.FP32)
        lines = self.budget.lines(figures)
        trial = Trial(
            plan=PrecisionPlan(Precision.FP32, tuple(lowered)),
            float_groups={name: tuple(sorted(groups)) for name, _, groups in keys if groups},
            reason=reason,
            seconds=seconds,
            share=seconds / exact,
            lines=tuple(lines),
            excess=self.budget.excess(lines),
        )
        self._trials[keys] = trial
        return trial

    def _relax(self, current: dict[str, Precision]) -> Trial:
        """Make ``current`` more exact where it costs most, in place, and measure it."""
        lowered = [name for name, precision in current.items() if precision is not Precision.FP32]
        back = {}
        for name in lowered:
            precision = self._next(name, current[name])
            back[name] = self._try(current | {name: precision}, f"{name} back to {precision}")
        worst = min(lowered, key=lambda name: back[name].excess)
        if current[worst] is Precision.INT8 and (fitting := self._try_float_groups(worst, current)):
            return fitting
        current[worst] = self._next(worst, current[worst])
        return back[worst]

    def _try_float_groups(self, name: str, current: _Precisions) -> Trial | None:
        """Leave one, two, four ... groups of the graph ``name`` in float until a trial fits, the most sensitive first. None if
        that is not enough; the groups are then as before."""
        before = self._floats(name)
        groups = [group for group in self.choices.groups(name) if group not in before]
        if len(groups) <= 1:
            return None
        excess = {}
        for group in groups:
            self._float_groups[name] = before | {group}
            excess[group] = self._try(current, f"{name} with {group} float").excess
        ordered, count = sorted(groups, key=excess.__getitem__), 1
        while count < len(groups):
            self._float_groups[name] = before | set(ordered[:count])
            trial = self._try(current, f"{name} with {count} of {len(groups)} groups float")
            if trial.fits:
                return trial
            count *= 2
        self._float_groups[name] = before
        return None

    def _next(self, name: str, precision: Precision) -> Precision:
        """The fastest precision that is more exact than ``precision``."""
        if precision is not Precision.INT8:
            return Precision.FP32
        times = self._times(name)
        return min((p for p in times if p is not Precision.INT8), key=times.__getitem__)
