"""Plans of several engines share the files of a bundle: what one engine needs in float is float for all of that variant."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from simmim_export.engines import checks
from simmim_export.errors import GateFailed
from simmim_export.export import plans
from simmim_export.export.variants import VariantFiles
from simmim_export.planning.planner import SearchResult, Trial
from simmim_export.proof.budget import Budget
from simmim_export.spec import PrecisionPlan, Variant

DOT, U8 = Variant.INT8_DOT, Variant.INT8_U8
BUDGET = Budget.parse("cosine=0.9")
IN_FLOAT = frozenset({"layer.0"})
# An engine, the variant that it is searched with, and the plan of another variant that it should try first.
Search = tuple[str, Variant, str | None]


class Files(VariantFiles):
    """Notes what would be written."""

    def __init__(self, root: Path) -> None:
        super().__init__(root=root, graphs=["text_encoder"], passes=None)  # type: ignore[arg-type]
        self.written: list[tuple[Variant, frozenset[str]]] = []

    def write(self, graph: str, variant: Variant) -> None:
        self.written.append((variant, self.floats(graph, variant)))


@pytest.fixture
def search(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., tuple[list[SearchResult], list[Search], Files]]:
    """``search(has_integer_dot, in_float, failing)`` plans with made-up engines: every plan puts the text encoder at INT8, and
    leaves layer.0 in float for the engines and variants ``in_float``. No plan fits for those that are ``failing``."""

    def run(
        has: bool | None,
        in_float: set[tuple[str, Variant]],
        failing: set[tuple[str, Variant]] = frozenset(),  # type: ignore[assignment]
    ) -> tuple[list[SearchResult], list[Search], Files]:
        searches: list[Search] = []

        class Planner:
            def __init__(self, *, judge: str, choices: SimpleNamespace, **_: object) -> None:
                self.engine, self.variant = judge, choices.variant

            def run(self, like: PrecisionPlan | None) -> SearchResult:
                key = (self.engine, self.variant)
                searches.append((*key, None if like is None else str(like)))
                if key in failing:
                    raise GateFailed("no plan", fix="x")
                trial = Trial(
                    plan=PrecisionPlan.parse("text_encoder=int8"),
                    float_groups={"text_encoder": ("layer.0",)} if key in in_float else {},
                    reason="",
                    seconds=1.0,
                    share=1.0,
                    lines=(),
                    excess=0.0,
                )
                return SearchResult(engine=key[0], variant=key[1], budget=BUDGET, chosen=trial, trials=(trial,))

        monkeypatch.setattr(checks, "has_integer_dot", lambda: has)
        monkeypatch.setattr(plans, "Judge", lambda name, *_: contextlib.nullcontext(name))
        monkeypatch.setattr(plans, "EngineChoices", lambda *_, int8, **__: SimpleNamespace(variant=int8))
        monkeypatch.setattr(plans, "Planner", Planner)
        (tmp_path / plans.TOKENIZER).write_text("")
        files = Files(tmp_path)
        results = plans.search_plans(tmp_path, None, files=files, budget=BUDGET, watch=lambda *_: None)  # type: ignore[arg-type]
        return results, searches, files

    return run


def test_an_engine_is_planned_again_if_another_changes_its_file(search) -> None:
    """ort leaves nothing in float, openvino one group: ort's plan was measured on a file that no longer exists."""
    results, searches, files = search(False, {("openvino", U8)})
    assert searches == [("ort", U8, None), ("openvino", U8, None), ("ort", U8, None)]
    # int8-dot cannot be measured here, and leaves in float what int8-u8 does.
    assert files.written == [(U8, IN_FLOAT), (DOT, IN_FLOAT)]
    assert [(result.engine, result.variant) for result in results] == [("ort", U8), ("openvino", U8)]
    both = {DOT: "text_encoder=int8", U8: "text_encoder=int8"}
    assert plans.plans_of(results) == {"ort": both, "openvino": both}


def test_every_variant_that_is_exact_here_is_planned_with_its_own_files(search) -> None:
    like = "text_encoder=int8"
    results, searches, files = search(True, {("openvino", U8)})
    four = [("ort", DOT, None), ("ort", U8, like), ("openvino", DOT, None), ("openvino", U8, like)]
    assert searches == [*four, ("ort", U8, like)] and files.written == [(U8, IN_FLOAT)]
    assert files.floats("text_encoder", DOT) == frozenset() and len(results) == 4


def test_7_bits_leave_in_float_what_8_bits_need_in_float(search) -> None:
    _, searches, files = search(True, {("ort", DOT)})
    assert files.written == [(DOT, IN_FLOAT), (U8, IN_FLOAT)] and len(searches) == 4


def test_a_variant_of_other_processors_without_a_plan_is_a_note(search) -> None:
    results, _, _ = search(True, set(), {("ort", U8)})
    assert plans.plans_of(results)["ort"].keys() == {DOT} and plans.plans_of(results)["openvino"].keys() == {DOT, U8}
    assert [bool(result.notes) for result in results] == [True, False, False]
    assert U8 in results[0].notes[0]
    # openvino's plan needs the file.
    assert not plans.can_spare(results, "text_encoder", U8) and not plans.can_spare(results, "text_encoder", DOT)
    assert plans.can_spare(results, "text_encoder", Variant.INT8_S8)


def test_no_plan_for_the_variant_of_this_processor_ends_the_export(search) -> None:
    for has, variant in ((True, DOT), (False, U8)):
        with pytest.raises(GateFailed):
            search(has, set(), {("openvino", variant)})
