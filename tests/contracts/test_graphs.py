"""Every fusion with every interaction, and every head, exports to a graph that agrees with PyTorch and that TensorRT accepts in
every variant. Pairs that make no sense are errors."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from lint_presets import VARIANTS, pairs
from support import LABELS, make_checkpoint

from simmim_export.bundle.golden import Golden
from simmim_export.engines import get_engine
from simmim_export.errors import CheckpointError, UsageError
from simmim_export.export.golden import make_golden
from simmim_export.export.onnx import trace
from simmim_export.models.family import LoadOptions, family_of
from simmim_export.models.simmim.checkpoint import build, load
from simmim_export.models.simmim.fusion import FUSIONS
from simmim_export.models.simmim.heads import HEADS
from simmim_export.models.simmim.interaction import INTERACTIONS
from simmim_export.precision.passes import write_variant
from simmim_export.proof.parity import compare
from simmim_export.spec import Precision
from simmim_export.tensorrt_rules.lint import lint

MAX_BATCH = 6
PAIRS = pairs()


def prove(path: Path, folder: Path, *, names: set[str], attention: bool = False) -> Golden:
    """Trace the graphs called ``names`` of the checkpoint at ``path`` into ``folder``, and compare each with PyTorch at every
    probed shape. TensorRT must accept each in every variant. Return the golden tensors."""
    model = family_of(path).load(path, LoadOptions(max_batch=MAX_BATCH, attention=attention))
    assert names <= set(model.graphs)
    with torch.no_grad():
        for graph in model.graphs.values():
            for parameter in graph.module.parameters():
                # Nothing stays at its initial zero or one, so that a dropped bias shows.
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    golden = make_golden(model, MAX_BATCH)
    for name in names:
        graph, source = model.graphs[name], folder / f"{name}.onnx"
        trace(graph, source)
        session = get_engine("ort").open(source, graph.spec, precision=Precision.FP32)
        report = compare(session, graph.spec, golden=golden, precision=Precision.FP32)
        report.require(name, "")
        assert {row.shape[0] for row in report.rows} == {1, 2, 5, 6}
        singles = [golden.feeds(case, graph.spec) for case in golden.cases if case.startswith("batch 1,")]
        for variant in VARIANTS:
            target = source
            if variant != "fp32":
                target = folder / f"{name}.{variant}.onnx"
                write_variant(source, target, variant=variant, feeds=singles)
            assert lint(onnx.load(target)) == [], (name, variant)
    for pipeline in model.pipelines:
        assert set(pipeline.graphs) <= set(model.graphs)
    return golden


@pytest.mark.parametrize(("fusion", "interaction"), PAIRS)
def test_every_pair_exports_with_any_batch_and_sequence(tmp_path: Path, fusion: str, interaction: str) -> None:
    path = make_checkpoint(tmp_path / "ckpt.pt", fusion=fusion, interaction=interaction)
    prove(path, tmp_path, names={"fusion"})


@pytest.mark.parametrize(("fusion", "interaction"), sorted(set(itertools.product(FUSIONS, INTERACTIONS)) - set(PAIRS)))
def test_a_pair_with_nothing_to_attend_to_is_an_error(tmp_path: Path, fusion: str, interaction: str) -> None:
    with pytest.raises(UsageError, match=interaction) as caught:
        make_checkpoint(tmp_path / "ckpt.pt", fusion=fusion, interaction=interaction)
    assert "--interaction linear" in caught.value.fix


def test_every_head_and_the_video_encoder_export(tmp_path: Path) -> None:
    assert set(LABELS) == set(HEADS)
    path = make_checkpoint(tmp_path / "ckpt.pt", heads=tuple(HEADS), frames=8)
    prove(path, tmp_path, names={"video_encoder", *(f"head.{name}" for name in HEADS)})


def test_attention_says_where_each_word_looks(tmp_path: Path) -> None:
    golden = prove(make_checkpoint(tmp_path / "ckpt.pt"), tmp_path, names={"fusion"}, attention=True)
    for case in golden.cases.values():
        attention = case["fusion:attention"]
        assert attention.shape == (*case["input_ids"].shape, 16)
        assert (attention >= 0).all() and (attention.sum(axis=-1) <= 1 + 1e-5).all()
        assert np.ptp(attention) > 1e-3


@pytest.mark.parametrize(
    ("fusion", "interaction"), [("concat_sequence", "graph"), ("film", "attention"), ("gated", "linear")]
)
def test_attention_of_a_model_without_it_is_an_error(tmp_path: Path, fusion: str, interaction: str) -> None:
    path = make_checkpoint(tmp_path / "ckpt.pt", fusion=fusion, interaction=interaction)
    with pytest.raises(UsageError, match=f"{fusion} with {interaction}"):
        family_of(path).load(path, LoadOptions(max_batch=MAX_BATCH, attention=True))


def test_time_matters_to_the_video_encoder(tmp_path: Path) -> None:
    """A clip and its reverse differ, and padding frames change nothing. A mean over frames would fail both."""
    model = build(load(make_checkpoint(tmp_path / "ckpt.pt", frames=8)))
    assert model.video_encoder is not None
    tokens, ones = torch.randn(2, 5, 16, 96), torch.ones(2, 5, dtype=torch.int64)
    with torch.inference_mode():
        forward, backward = model.video_encoder(tokens, ones), model.video_encoder(tokens.flip(1), ones)
        padded = torch.cat([tokens, torch.randn(2, 2, 16, 96)], dim=1)
        mask = torch.cat([ones, torch.zeros(2, 2, dtype=torch.int64)], dim=1)
        assert torch.allclose(model.video_encoder(padded, mask), forward, atol=1e-5)
    assert (forward - backward).abs().max() > 0.1


def test_a_clip_for_a_model_without_video_is_an_error(tmp_path: Path) -> None:
    model = build(load(make_checkpoint(tmp_path / "ckpt.pt")))
    with pytest.raises(UsageError):
        model.see(torch.zeros(1, 2, 64, 64, 3, dtype=torch.uint8))


def test_a_checkpoint_with_an_unknown_interaction_is_an_error(tmp_path: Path, tiny_checkpoint: Path) -> None:
    content = torch.load(tiny_checkpoint, weights_only=True)
    content["config"]["interaction"] = "telepathy"
    torch.save(content, tmp_path / "ckpt.pt")
    with pytest.raises(CheckpointError, match="'telepathy'"):
        build(load(tmp_path / "ckpt.pt"))
