"""The search for a precision plan, with made-up costs and speeds, so that the best plan is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simmim_export.errors import GateFailed
from simmim_export.export.plans import can_spare
from simmim_export.planning.judge import Candidate
from simmim_export.planning.planner import WORTH, Planner, SearchResult
from simmim_export.proof.budget import Budget
from simmim_export.spec import Precision, PrecisionPlan, Variant

FP32, BF16, INT8 = Precision.FP32, Precision.BF16, Precision.INT8
FAST = {"image": 1, "text": 4}
LIMIT = Budget.parse("answers=0.5pt,cosine=0.99")


@dataclass
class World:
    """A judge and its choices: graphs whose costs in points add up, ``costs`` by group at INT8 and ``bf16`` by graph."""

    costs: Mapping[str, Mapping[str, float]]
    seconds: Mapping[str, Mapping[Precision, float]]
    bf16: Mapping[str, float] = field(default_factory=dict)
    engine: str = "imagined"
    variant: Variant = Variant.INT8_DOT
    asked: int = 0

    def names(self) -> Sequence[str]:
        return list(self.costs)

    def candidates(self, graph: str) -> Mapping[Precision, Path]:
        return {precision: Path(f"{graph}|{precision}|") for precision in self.seconds[graph]}

    def groups(self, graph: str) -> Sequence[str]:
        return list(self.costs[graph])

    def quantize(self, graph: str, float_groups: frozenset[str]) -> Path:
        return Path(f"{graph}|int8|{'+'.join(sorted(float_groups))}")

    @staticmethod
    def floats(candidate: Candidate) -> set[str]:
        return set(str(candidate.path).split("|")[2].split("+")) - {""}

    def cost(self, candidate: Candidate) -> float:
        if candidate.precision is FP32:
            return 0.0
        if candidate.precision is BF16:
            return self.bf16.get(candidate.graph, 0.0)
        groups = self.costs[candidate.graph]
        return sum(cost for group, cost in groups.items() if group not in self.floats(candidate))

    def examine(self, candidates: Sequence[Candidate]) -> Mapping[str, Any]:
        self.asked += 1
        assert {candidate.graph for candidate in candidates} == set(self.costs)
        loss = sum(self.cost(candidate) for candidate in candidates)
        task = {"interval": [loss, loss], "top1": 1.0, "value": 1.0, "reference": 1.0, "images": 1024}
        embedding = {"cosine_mean": 1.0, "cosine_p1": 1.0, "cosine_min": 1.0, "top1": 1.0}
        return {"embeddings": {"text_embed": embedding}, "tasks": {"vqa": task}, "source": {}}

    def clock(self, candidates: Sequence[Candidate]) -> list[float]:
        seconds = []
        for one in candidates:
            full, lowered = self.seconds[one.graph][FP32], self.seconds[one.graph][one.precision]
            share = len(self.floats(one)) / max(len(self.costs[one.graph]), 1)
            seconds.append(lowered + share * (full - lowered) if one.precision is INT8 else lowered)
        return seconds

    def search(self, like: PrecisionPlan | None = None) -> SearchResult:
        return Planner(judge=self, choices=self, budget=LIMIT, watch=lambda *_: None).run(like=like)


def test_the_fastest_plan_is_chosen_if_it_costs_nothing() -> None:
    world = World({"image": {"a": 0.0}, "text": {"b": 0.1}}, {"image": {FP32: 3, INT8: 1}, "text": {FP32: 2, INT8: 1}})
    result = world.search()
    assert str(result.plan) == "image=int8,text=int8" and result.chosen.share == pytest.approx(0.4)
    assert not result.chosen.float_groups and result.chosen.fits and not result.notes


def test_the_group_that_costs_everything_is_left_float() -> None:
    costs = {"text": {"layer.0": 0.02, "layer.1": 3.0, "layer.2": 0.01, "pooler": 0.02}, "head": {"": 0.0}}
    result = World(costs, {"text": {FP32: 4, INT8: 1}, "head": {FP32: 1, INT8: 0.5}}).search()
    assert result.chosen.float_groups == {"text": ("layer.1",)} and result.chosen.fits
    assert str(result.plan) == "head=int8,text=int8" and result.chosen.share < 0.6


def test_nothing_is_measured_twice() -> None:
    costs = {"image": {f"layer.{n}": 2.0 for n in range(4)}, "text": {"a": 1.0, "b": 0.0, "c": 0.0}}
    world = World(costs, {graph: {FP32: 4, BF16: 3, INT8: 1} for graph in costs}, {"image": 0.1})
    trials = [(str(trial.plan), tuple(sorted(trial.float_groups.items()))) for trial in world.search().trials]
    assert len(trials) == len(set(trials)) == world.asked


def test_only_the_graph_that_int8_harms_gives_it_up() -> None:
    costs = {"image": {f"layer.{n}": 2.0 for n in range(4)}, "text": {"a": 0.1, "b": 0.1}}
    seconds = {"image": {FP32: 4, BF16: 3, INT8: 1}, "text": {FP32: 4, BF16: 3, INT8: 1}}
    result = World(costs, seconds, {"image": 0.1}).search()
    assert str(result.plan) == "image=bf16,text=int8" and result.chosen.fits


def test_int8_that_is_not_faster_is_noted_and_not_chosen() -> None:
    result = World({"image": {"a": 0.0}}, {"image": {FP32: 3.0, BF16: 2.0, INT8: 2.5}}).search()
    assert str(result.plan) == "image=bf16"
    (note,) = result.notes
    assert all(word in note for word in ("image", "imagined", "1.25x", "bf16"))


def test_bf16_is_always_tried_where_the_engine_has_it() -> None:
    """Even if INT8 is faster in every graph and fits, or BF16 is slow: the table of trials shows what it costs."""
    costs = {"image": {"a": 0.0}, "text": {"b": 0.0}}
    for bf16 in (0.6, 1.5):
        result = World(costs, {graph: {FP32: 1.0, BF16: bf16, INT8: 0.5} for graph in costs}, {"text": 0.2}).search()
        assert str(result.plan) == "image=int8,text=int8"
        (trial,) = [trial for trial in result.trials if str(trial.plan) == "image=bf16,text=bf16"]
        assert trial.share == pytest.approx(bf16) and trial.fits


def test_bf16_wins_in_a_graph_that_int8_does_not_change() -> None:
    seconds = {"image": {FP32: 1.0, BF16: 0.6, INT8: 0.5}, "head": {FP32: 1.0, BF16: 0.7}}
    result = World({"image": {"a": 0.0}, "head": {}}, seconds).search()
    assert str(result.plan) == "head=bf16,image=int8"


def test_the_plan_of_another_variant_is_taken_if_it_keeps_the_budget() -> None:
    costs = {"image": {"a": 0.1, "b": 0.1}, "text": {"c": 0.0}}
    seconds = {graph: {FP32: 3.0, BF16: 2.0, INT8: 1.0} for graph in costs}
    like = PrecisionPlan.parse("image=int8")
    world = World(costs, seconds)
    result = world.search(like)
    assert result.plan == like and result.chosen.share == pytest.approx(4 / 6)
    assert [str(trial.plan) for trial in result.trials] == ["fp32", "image=int8"] and world.asked == 2


def test_a_plan_that_costs_this_variant_too_much_is_searched_for_again() -> None:
    """With 7 bits, one group costs too much: it is left in float, or the plan changes."""
    costs = {"image": {"a": 2.0, "b": 0.1, "c": 0.1}, "text": {"d": 0.0}}
    seconds = {graph: {FP32: 3.0, INT8: 1.0} for graph in costs}
    result = World(costs, seconds).search(PrecisionPlan.parse("image=int8,text=int8"))
    assert str(result.plan) == "image=int8,text=int8" and result.chosen.float_groups == {"image": ("a",)}
    trials = [(str(trial.plan), tuple(sorted(trial.float_groups.items()))) for trial in result.trials]
    assert len(trials) == len(set(trials))


def test_a_plan_that_is_slower_than_fp32_with_this_variant_is_not_taken() -> None:
    seconds = {"image": {FP32: 3.0, INT8: 3.3}, "text": {FP32: 3.0, INT8: 2.0}}
    world = World({"image": {"a": 0.0}, "text": {"b": 0.0}}, seconds)
    assert str(world.search(PrecisionPlan.parse("image=int8")).plan) == "text=int8"


def test_a_plan_with_int8_where_this_variant_changes_nothing_is_searched_for_again() -> None:
    seconds = {"image": {FP32: 3.0, INT8: 1.0}, "head": {FP32: 1.0}}
    result = World({"image": {"a": 0.0}, "head": {}}, seconds).search(PrecisionPlan.parse("image=int8,head=int8"))
    assert str(result.plan) == "image=int8"


def test_a_failed_search_names_the_best_plan_and_its_costs() -> None:
    world = World({"image": {"a": 2.0}, "text": {"b": 5.0}}, {g: {FP32: 3, INT8: 1} for g in ("image", "text")})
    with pytest.raises(GateFailed) as caught:
        world.search()
    assert caught.value.exit_code == 4 and caught.value.fix
    named = ("int8-dot", "imagined", str(LIMIT), "image=int8", "answers vqa 2, at most 0.5 pt", "0.67x")
    assert all(word in caught.value.what for word in named)


def test_a_slow_graph_at_int8_does_not_make_up_for_a_fast_one() -> None:
    """The slow graph at INT8 is within the budget, but nobody wants it. The fast one was asked for and is not."""
    costs, fast = {"text": {"b": 0.0}, "image": {"a": 5.0}}, {FP32: 3.0, INT8: 1.0}
    with pytest.raises(GateFailed, match="int8-dot"):
        World(costs, {"text": {FP32: 1.0, INT8: 1.2}, "image": fast}).search()
    free = {"text": {"b": 0.0}, "image": {"a": 0.0}}
    assert str(World(free, {"text": {FP32: 1.0, INT8: 1.2}, "image": fast}).search().plan) == "image=int8"


def test_a_bundle_can_spare_the_int8_that_no_plan_chose() -> None:
    world = World({"image": {"a": 0.0}, "text": {"b": 0.0}}, {g: {FP32: 3, INT8: t} for g, t in FAST.items()})
    results = [world.search()]
    assert str(results[0].plan) == "image=int8"
    spared = {(graph, variant) for graph in FAST for variant in Variant if can_spare(results, graph, variant)}
    others = {variant for variant in Variant if variant.precision is INT8} - {Variant.INT8_DOT}
    assert spared == {("text", Variant.INT8_DOT), *((graph, variant) for graph in FAST for variant in others)}
    assert not any(can_spare([], graph, variant) for graph in FAST for variant in Variant)


def test_int8_with_most_groups_float_does_not_beat_a_faster_bf16() -> None:
    result = World({"text": {"a": 0.0, "b": 4.0}}, {"text": {FP32: 1.0, BF16: 0.4, INT8: 0.3}}, {"text": 0.2}).search()
    assert any(trial.fits and trial.float_groups == {"text": ("b",)} for trial in result.trials)
    assert str(result.plan) == "text=bf16" and not result.chosen.float_groups


def test_a_budget_that_fp32_exceeds_fits_no_plan() -> None:
    class Off(World):
        def examine(self, candidates: Sequence[Candidate]) -> Mapping[str, Any]:
            figures = super().examine(candidates)
            return figures | {"embeddings": {"text_embed": figures["embeddings"]["text_embed"] | {"cosine_mean": 0.9}}}

    with pytest.raises(GateFailed, match=r"imagined .* fp32, at 1\.00x") as caught:
        Off({"image": {"a": 0.0}}, {"image": {FP32: 1.0, INT8: 2.0}}).search()
    assert "int8" not in caught.value.what


def graphs_of(*costs: float) -> st.SearchStrategy[dict[str, Any]]:
    """Graphs by name: the costs of their groups, the seconds of INT8, and seconds and cost of BF16 if they have it."""
    groups = st.dictionaries(
        st.sampled_from([f"layer.{n}" for n in range(6)]), st.sampled_from([0, *costs]), min_size=1
    )
    bf16 = st.tuples(st.sampled_from([0.4, 0.8, 1.1]), st.sampled_from([0, 0.2, 0.7]))
    names = st.sampled_from(["image_encoder", "text_encoder", "fusion", "head.vqa"])
    return st.dictionaries(
        names, st.tuples(groups, st.sampled_from([0.3, 0.6, 0.9, 1.2]), st.none() | bf16), min_size=1
    )


@settings(deadline=None, max_examples=300)
@given(graphs=graphs_of(0.05, 0.3, 1, 4))
def test_a_plan_fits_or_the_search_fails_with_a_reason(graphs: dict[str, Any]) -> None:
    world = World(
        {name: groups for name, (groups, _, _) in graphs.items()},
        {name: {FP32: 1.0, INT8: fast} | ({BF16: half[0]} if half else {}) for name, (_, fast, half) in graphs.items()},
        {name: half[1] for name, (_, _, half) in graphs.items() if half},
    )
    most = sum(len(groups) for groups in world.costs.values())
    try:
        result = world.search()
    except GateFailed as error:
        # INT8 was faster somewhere, and every plan with it is over the budget.
        assert error.exit_code == 4 and str(LIMIT) in error.what
        assert any(fast < WORTH for _, fast, _ in graphs.values())
        return
    finally:
        assert world.asked <= (most + 4) * (len(graphs) + 1) ** 2
    chosen = result.chosen
    assert chosen.fits and chosen.share <= 1 + 1e-9 and chosen in result.trials
    assert not any(t.fits and t.share <= WORTH and t.seconds < chosen.seconds for t in result.trials)
    front = result.pareto()
    assert front and all(a.seconds <= b.seconds for a, b in pairwise(front))
    for trial in result.trials:
        if trial.fits:
            assert any(one.fits and one.seconds <= trial.seconds for one in front)


@settings(deadline=None, max_examples=100)
@given(graphs=graphs_of(0.02))
def test_a_plan_that_fits_at_once_is_not_relaxed(graphs: dict[str, Any]) -> None:
    """24 groups of 0.02 cost 0.48, within the limit of 0.5."""
    world = World(
        {name: groups for name, (groups, _, _) in graphs.items()},
        {name: {FP32: 1.0, INT8: fast} for name, (_, fast, _) in graphs.items()},
    )
    result = world.search()
    assert {name for name, _ in result.plan.graphs} == {n for n, (_, fast, _) in graphs.items() if fast <= WORTH}
    assert not result.chosen.float_groups
