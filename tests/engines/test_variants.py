"""Which INT8 variant an engine takes: int8-dot only where its products are exact, else int8-u8."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from simmim_export.bundle import Bundle
from simmim_export.engines import checks, get_engine
from simmim_export.errors import EngineUnavailable
from simmim_export.runtime import load
from simmim_export.runtime.loading import plan_of
from simmim_export.spec import Precision, Variant

DOT, U8 = Variant.INT8_DOT, Variant.INT8_U8


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool | None], None]:
    """Lets engines see a processor with integer dot products, one without, or with None a system that does not tell."""
    return lambda has: monkeypatch.setattr(checks, "has_integer_dot", lambda: has)


@pytest.fixture
def edited(tiny_bundle: Path, tmp_path: Path) -> Callable[..., Path]:
    """``edited(**changes)`` is a copy of the tiny bundle with ``changes`` in its manifest."""

    def edit(**changes: object) -> Path:
        root = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
        manifest = replace(Bundle.open(root).manifest, **changes)  # type: ignore[arg-type]
        (root / "manifest.json").write_text(manifest.dumps(), encoding="utf-8")
        return root

    return edit


@pytest.mark.parametrize("engine", ["ort", "openvino"])
@pytest.mark.parametrize(("has", "variants"), [(True, (DOT, U8)), (False, (U8,)), (None, (U8,))])
def test_int8_dot_is_taken_only_where_it_is_known_to_be_exact(
    processor: Callable[[bool | None], None], engine: str, has: bool | None, variants: tuple[Variant, ...]
) -> None:
    processor(has)
    assert get_engine(engine).variants(Precision.INT8) == variants


@pytest.mark.parametrize("engine", ["ort", "openvino"])
@pytest.mark.parametrize(("has", "variant"), [(True, DOT), (False, U8)])
def test_verify_says_which_variant_ran(
    processor: Callable[[bool | None], None], tiny_bundle: Path, engine: str, has: bool, variant: Variant
) -> None:
    processor(has)
    with load(tiny_bundle, engine, precision="image_encoder=fp32,*=int8") as model:
        ran = {report.graph: report.variant for report in model.verify() if report.passed}
    assert ran == {
        graph.name: "fp32" if graph.name == "image_encoder" else variant
        for graph in Bundle.open(tiny_bundle).manifest.graphs
    }


def test_a_graph_without_int8_dot_runs_its_int8_u8(
    processor: Callable[[bool | None], None], tiny_bundle: Path, edited: Callable[..., Path]
) -> None:
    every = Bundle.open(tiny_bundle).manifest.artifacts
    without = [one for one in every if (one.graph, one.variant) == ("fusion", DOT)]
    bundle = edited(artifacts=tuple(one for one in every if one not in without))
    processor(True)
    with load(bundle, "ort", precision="int8") as model:
        ran = {report.graph: report.variant for report in model.verify()}
    assert len(without) == 1 and ran["fusion"] == U8 and ran["text_encoder"] == DOT


@pytest.mark.parametrize("engine", ["ort", "openvino"])
@pytest.mark.parametrize("has", [False, None])
def test_int8_dot_alone_is_refused_where_it_is_not_exact(
    processor: Callable[[bool | None], None],
    tiny_bundle: Path,
    edited: Callable[..., Path],
    engine: str,
    has: bool | None,
) -> None:
    every = Bundle.open(tiny_bundle).manifest.artifacts
    bundle = edited(artifacts=tuple(one for one in every if one.variant is not U8))
    processor(has)
    with load(bundle, engine, precision="int8") as model, pytest.raises(EngineUnavailable) as caught:
        model.session("image_encoder")
    assert caught.value.exit_code == 3 and caught.value.fix and all(word in caught.value.what for word in (U8, DOT))
    processor(True)
    with load(bundle, engine, precision="int8") as model:
        model.session("image_encoder")


def test_a_processor_takes_the_plan_of_its_own_variant(
    processor: Callable[[bool | None], None], edited: Callable[..., Path]
) -> None:
    plans = {"ort": {DOT: "image_encoder=int8", U8: "text_encoder=int8"}, "openvino": {DOT: "fusion=int8"}}
    bundle = Bundle.open(edited(plans=plans))
    processor(True)
    assert str(plan_of(bundle, "ort", precision="planned")) == "image_encoder=int8"
    assert str(plan_of(bundle, "openvino", precision="planned")) == "fusion=int8"
    processor(None)
    assert str(plan_of(bundle, "ort", precision="planned")) == "text_encoder=int8"
    for engine in ("openvino", "trt"):
        with pytest.raises(EngineUnavailable) as caught:
            plan_of(bundle, engine, precision="planned")
        assert caught.value.exit_code == 3 and caught.value.fix and engine in caught.value.what
