"""The search for a plan, with costs and speeds that are made up, so that what is best is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from simmim_export.errors import GateFailed
from simmim_export.export.plans import can_spare
from simmim_export.planning.judge import Candidate
from simmim_export.planning.planner import WORTH, Planned, Planner
from simmim_export.proof.budget import Budget
from simmim_export.spec import Precision

FP32, BF16, INT8 = Precision.FP32, Precision.BF16, Precision.INT8
FAST = {"image": 1, "text": 4}
LIMIT = Budget.parse("answers=0.5pt,cosine=0.99")


@dataclass
class World:
    """Graphs whose costs in points add up: ``costs`` of each group at INT8, ``bf16`` of a graph, ``seconds`` by precision."""

    costs: Mapping[str, Mapping[str, float]]
    seconds: Mapping[str, Mapping[Precision, float]]
    bf16: Mapping[str, float] = field(default_factory=dict)
    engine: str = "imagined"
    asked: int = 0

    def names(self) -> Sequence[str]:
        return list(self.costs)

    def candidates(self, graph: str) -> Mapping[Precision, Path]:
        return {precision: Path(f"{graph}|{precision}|") for precision in self.seconds[graph]}

    def groups(self, graph: str) -> Sequence[str]:
        return list(self.costs[graph])

    def quantise(self, graph: str, kept: frozenset[str]) -> Path:
        return Path(f"{graph}|int8|{'+'.join(sorted(kept))}")

    @staticmethod
    def kept(candidate: Candidate) -> set[str]:
        return set(str(candidate.path).split("|")[2].split("+")) - {""}

    def cost(self, candidate: Candidate) -> float:
        if candidate.precision is FP32:
            return 0.0
        if candidate.precision is BF16:
            return self.bf16.get(candidate.graph, 0.0)
        groups = self.costs[candidate.graph]
        return sum(cost for group, cost in groups.items() if group not in self.kept(candidate))

    def examine(self, candidates: Sequence[Candidate]) -> Mapping[str, Any]:
        self.asked += 1
        assert {candidate.graph for candidate in candidates} == set(self.costs)
        loss = sum(self.cost(candidate) for candidate in candidates)
        task = {"interval": [loss, loss], "top1": 1.0, "value": 1.0, "reference": 1.0, "images": 1024}
        embedding = {"cosine_mean": 1.0, "cosine_p1": 1.0, "cosine_min": 1.0, "top1": 1.0}
        return {"embeddings": {"text_embed": embedding}, "tasks": {"vqa": task}, "source": {}}

    def clock(self, candidates: Sequence[Candidate]) -> list[float]:
        found = []
        for one in candidates:
            full, lowered = self.seconds[one.graph][FP32], self.seconds[one.graph][one.precision]
            share = len(self.kept(one)) / max(len(self.costs[one.graph]), 1)
            found.append(lowered + share * (full - lowered) if one.precision is INT8 else lowered)
        return found

    def plan(self) -> Planned:
        return Planner(self, self, LIMIT, lambda *_: None).run()


def test_the_fastest_is_taken_where_it_costs_nothing() -> None:
    world = World({"image": {"a": 0.0}, "text": {"b": 0.1}}, {"image": {FP32: 3, INT8: 1}, "text": {FP32: 2, INT8: 1}})
    found = world.plan()
    assert str(found.chosen.plan) == "image=int8,text=int8" and found.chosen.share == pytest.approx(0.4)
    assert not found.chosen.kept and found.chosen.fits and not found.notes


def test_the_group_that_costs_everything_is_left_float() -> None:
    costs = {"text": {"layer.0": 0.02, "layer.1": 3.0, "layer.2": 0.01, "pooler": 0.02}, "head": {"": 0.0}}
    found = World(costs, {"text": {FP32: 4, INT8: 1}, "head": {FP32: 1, INT8: 0.5}}).plan()
    assert found.chosen.kept == {"text": ("layer.1",)} and found.chosen.fits
    assert str(found.chosen.plan) == "head=int8,text=int8" and found.chosen.share < 0.6


def test_nothing_is_measured_twice() -> None:
    costs = {"image": {f"layer.{n}": 2.0 for n in range(4)}, "text": {"a": 1.0, "b": 0.0, "c": 0.0}}
    world = World(costs, {graph: {FP32: 4, BF16: 3, INT8: 1} for graph in costs}, {"image": 0.1})
    tried = [(str(one.plan), tuple(sorted(one.kept.items()))) for one in world.plan().tried]
    assert len(tried) == len(set(tried)) == world.asked


def test_a_graph_that_cannot_be_had_in_int8_goes_back_alone() -> None:
    costs = {"image": {f"layer.{n}": 2.0 for n in range(4)}, "text": {"a": 0.1, "b": 0.1}}
    seconds = {"image": {FP32: 4, BF16: 3, INT8: 1}, "text": {FP32: 4, BF16: 3, INT8: 1}}
    found = World(costs, seconds, {"image": 0.1}).plan()
    assert str(found.chosen.plan) == "image=bf16,text=int8" and found.chosen.fits


def test_int8_that_is_not_faster_is_said_and_not_taken() -> None:
    found = World({"image": {"a": 0.0}}, {"image": {FP32: 3.0, BF16: 2.0, INT8: 2.5}}).plan()
    assert str(found.chosen.plan) == "image=bf16"
    assert found.notes == ["image: INT8 is not faster here on imagined: 1.25x the time of bf16"]


def test_no_plan_that_fits_names_the_best_and_what_it_costs() -> None:
    world = World({"image": {"a": 2.0}, "text": {"b": 5.0}}, {g: {FP32: 3, INT8: 1} for g in ("image", "text")})
    with pytest.raises(GateFailed, match=r"no INT8 plan of imagined keeps the budget") as caught:
        world.plan()
    said = str(caught.value)
    assert caught.value.exit_code == 4 and "image=int8" in said and "answers vqa 2, at most 0.5 pt" in said
    assert "0.67x the time of FP32" in said


def test_a_slow_graph_that_int8_costs_nothing_is_no_plan_for_a_fast_one_that_it_does() -> None:
    """The first could be had in INT8 inside the budget, and nobody wants it; the second was asked for and is lost."""
    costs, fast = {"text": {"b": 0.0}, "image": {"a": 5.0}}, {FP32: 3.0, INT8: 1.0}
    with pytest.raises(GateFailed, match="no INT8 plan of imagined"):
        World(costs, {"text": {FP32: 1.0, INT8: 1.2}, "image": fast}).plan()
    found = World({"text": {"b": 0.0}, "image": {"a": 0.0}}, {"text": {FP32: 1.0, INT8: 1.2}, "image": fast}).plan()
    assert str(found.chosen.plan) == "image=int8"


def test_a_bundle_can_do_without_the_int8_that_no_plan_chose() -> None:
    planned = [
        World({"image": {"a": 0.0}, "text": {"b": 0.0}}, {g: {FP32: 3, INT8: t} for g, t in FAST.items()}).plan()
    ]
    assert str(planned[0].chosen.plan) == "image=int8"
    assert can_spare(planned, "text", "int8-u8") and not can_spare(planned, "image", "int8-u8")
    assert can_spare(planned, "image", "int8-s8") and not can_spare(planned, "text", "fp16")
    assert not any(can_spare([], graph, variant) for graph in FAST for variant in ("int8-u8", "int8-s8"))


def test_int8_with_most_of_it_float_does_not_stand_before_a_faster_bf16() -> None:
    found = World({"text": {"a": 0.0, "b": 4.0}}, {"text": {FP32: 1.0, BF16: 0.4, INT8: 0.3}}, {"text": 0.2}).plan()
    assert any(one.fits and one.kept == {"text": ("b",)} for one in found.tried)
    assert str(found.chosen.plan) == "text=bf16" and not found.chosen.kept


def test_a_budget_that_fp32_exceeds_is_kept_by_no_plan() -> None:
    class Off(World):
        def examine(self, candidates: Sequence[Candidate]) -> Mapping[str, Any]:
            found = super().examine(candidates)
            return found | {"embeddings": {"text_embed": found["embeddings"]["text_embed"] | {"cosine_mean": 0.9}}}

    with pytest.raises(GateFailed, match=r"no plan of imagined keeps the budget .* fp32, at 1\.00x the time of FP32"):
        Off({"image": {"a": 0.0}}, {"image": {FP32: 1.0, INT8: 2.0}}).plan()


GRAPHS = st.dictionaries(
    st.sampled_from(["image_encoder", "text_encoder", "fusion", "head.vqa"]),
    st.tuples(
        st.dictionaries(
            st.sampled_from([f"layer.{n}" for n in range(6)]), st.sampled_from([0, 0.05, 0.3, 1, 4]), min_size=1
        ),
        st.sampled_from([0.3, 0.6, 0.9, 1.2]),
        st.none() | st.tuples(st.sampled_from([0.4, 0.8, 1.1]), st.sampled_from([0, 0.2, 0.7])),
    ),
    min_size=1,
)


@settings(deadline=None, max_examples=300)
@given(graphs=GRAPHS)
def test_whatever_the_costs_the_plan_fits_or_the_reason_is_said(graphs: dict[str, Any]) -> None:
    world = World(
        {name: groups for name, (groups, _, _) in graphs.items()},
        {name: {FP32: 1.0, INT8: fast} | ({BF16: half[0]} if half else {}) for name, (_, fast, half) in graphs.items()},
        {name: half[1] for name, (_, _, half) in graphs.items() if half},
    )
    most = sum(len(groups) for groups in world.costs.values())
    try:
        found = world.plan()
    except GateFailed as error:
        # INT8 was faster somewhere, and one graph at it, all else exact, is over the budget whichever it is.
        assert error.exit_code == 4 and "keeps the budget" in error.what
        assert any(fast < WORTH for _, fast, _ in graphs.values())
        return
    finally:
        assert world.asked <= (most + 4) * (len(graphs) + 1) ** 2
    assert found.chosen.fits and found.chosen.share <= 1 + 1e-9 and found.chosen in found.tried
    assert not any(one.fits and one.share <= WORTH and one.seconds < found.chosen.seconds for one in found.tried)
    front = found.pareto()
    assert front and all(a.seconds <= b.seconds for a, b in pairwise(front))
    for tried in found.tried:
        if tried.fits:
            assert any(one.fits and one.seconds <= tried.seconds for one in front)


@settings(deadline=None, max_examples=100)
@given(graphs=GRAPHS)
def test_what_fits_at_once_is_not_relaxed(graphs: dict[str, Any]) -> None:
    assume(sum(sum(groups.values()) for groups, _, _ in graphs.values()) <= 0.5)
    world = World(
        {name: groups for name, (groups, _, _) in graphs.items()},
        {name: {FP32: 1.0, INT8: fast} for name, (_, fast, _) in graphs.items()},
    )
    found = world.plan()
    assert {name for name, _ in found.chosen.plan.graphs} == {n for n, (_, fast, _) in graphs.items() if fast <= WORTH}
    assert not found.chosen.kept
