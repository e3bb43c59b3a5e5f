"""Plans of several engines share the files of a bundle: a group that one engine needs in float is float for all."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace

import pytest

from simmim_export.export import plans
from simmim_export.export.variants import VariantFiles
from simmim_export.planning.planner import SearchResult, Trial
from simmim_export.proof.budget import Budget
from simmim_export.spec import PrecisionPlan, Variant


def test_an_engine_is_planned_again_if_another_changes_its_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """ort leaves nothing in float, openvino one group: ort's plan was measured on a file that no longer exists."""
    written: list[tuple[str, frozenset[str]]] = []
    searches: list[tuple[str, frozenset[str]]] = []

    class Files(VariantFiles):
        def write(self, graph: str, variant: Variant) -> None:
            written.append((graph, self.floats(graph)))

    files = Files(root=tmp_path, graphs=["text_encoder"], passes=None)  # type: ignore[arg-type]

    class Planner:
        def __init__(self, *, judge: str, **_: object) -> None:
            self.engine = judge

        def run(self) -> SearchResult:
            searches.append((self.engine, files.floats("text_encoder")))
            trial = Trial(
                plan=PrecisionPlan.parse("text_encoder=int8"),
                float_groups={"text_encoder": ("layer.0",)} if self.engine == "openvino" else {},
                reason="",
                seconds=1.0,
                share=1.0,
                lines=(),
                excess=0.0,
            )
            return SearchResult(engine=self.engine, budget=budget, chosen=trial, trials=(trial,))

    budget = Budget.parse("cosine=0.9")
    monkeypatch.setattr(plans, "Judge", lambda name, *_: contextlib.nullcontext(name))
    monkeypatch.setattr(plans, "EngineChoices", lambda *_, **__: SimpleNamespace(refused={}))
    monkeypatch.setattr(plans, "Planner", Planner)
    (tmp_path / plans.TOKENIZER).write_text("")
    results = plans.search_plans(tmp_path, None, files=files, budget=budget, watch=lambda *_: None)  # type: ignore[arg-type]
    in_float = frozenset({"layer.0"})
    assert searches == [("ort", frozenset()), ("openvino", frozenset()), ("ort", in_float)]
    assert written == [("text_encoder", in_float)]
    assert [result.engine for result in results] == ["ort", "openvino"]
