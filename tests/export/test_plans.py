"""Plans of several engines share the files of a bundle: what one keeps float is float for all, and measured for all."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from simmim_export.export import exporter
from simmim_export.proof.budget import Budget
from simmim_export.spec import PrecisionPlan


def test_a_plan_is_made_again_when_another_engine_changes_its_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """ort keeps nothing float, openvino one group: ort's plan was then measured on a file that is no more."""
    kept: dict[str, frozenset[str]] = {}
    asked: list[tuple[str, frozenset[str]]] = []

    class Made:
        def keep(self, graph: str, groups: set[str]) -> bool:
            before = kept.get(graph, frozenset())
            kept[graph] = before | set(groups)
            return kept[graph] != before

    class Planner:
        def __init__(self, judge: str, *_: Any) -> None:
            self.engine = judge

        def run(self) -> Any:
            asked.append((self.engine, kept.get("text_encoder", frozenset())))
            groups = {"text_encoder": ("layer.0",)} if self.engine == "openvino" else {}
            plan = PrecisionPlan.parse("text_encoder=int8")
            return SimpleNamespace(engine=self.engine, chosen=SimpleNamespace(plan=plan, kept=groups), notes=[])

    monkeypatch.setattr(exporter, "Judge", lambda name, *_: contextlib.nullcontext(name))
    monkeypatch.setattr(exporter, "Choice", lambda *_: SimpleNamespace(refused={}))
    monkeypatch.setattr(exporter, "Planner", Planner)
    staging: Any = SimpleNamespace(root=tmp_path)
    checkpoint: Any = SimpleNamespace(tokenizer="")
    found = exporter._plan(staging, None, checkpoint, Made(), Budget.parse("cosine=0.9"), lambda *_: None)  # type: ignore[arg-type]
    float_now = frozenset({"layer.0"})
    assert asked == [("ort", frozenset()), ("openvino", frozenset()), ("ort", float_now)]
    assert [plan.engine for plan in found] == ["ort", "openvino"]
