"""Every fusion with every interaction, and every head: each exports to a clean graph that agrees with PyTorch and that TensorRT
takes in every variant, or is refused."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from lint_presets import VARIANTS, pairs
from support import LABELS, make_checkpoint

from simmim_export.engines import get_engine
from simmim_export.errors import CheckpointError, UsageError
from simmim_export.export.golden import make_golden
from simmim_export.export.onnx import trace
from simmim_export.models.simmim.checkpoint import build, load
from simmim_export.models.simmim.fusion import FUSIONS
from simmim_export.models.simmim.graphs import graphs, pipelines
from simmim_export.models.simmim.heads import HEADS
from simmim_export.models.simmim.interaction import INTERACTIONS
from simmim_export.precision.passes import Options, apply
from simmim_export.proof.parity import compare
from simmim_export.spec import Precision
from simmim_export.tensorrt_rules.lint import lint

MAX_BATCH = 6
PAIRS = pairs()


def proven(path: Path, tmp_path: Path, names: set[str], maps: bool = False) -> None:
    """Trace the graphs called ``names`` of a checkpoint and compare each with PyTorch, batch and padding invariance too."""
    checkpoint = load(path)
    model = build(checkpoint)
    with torch.no_grad():
        for parameter in model.parameters():
            # Nothing at its initial zero or one: a bias that is dropped must show.
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    found = graphs(model, MAX_BATCH, maps)
    golden = make_golden(checkpoint, found, MAX_BATCH)
    assert names <= set(found)
    for name in names:
        trace(found[name], tmp_path / f"{name}.onnx")
        session = get_engine("ort").open(tmp_path / f"{name}.onnx", found[name].spec, precision=Precision.FP32)
        report = compare(session, found[name].spec, golden, Precision.FP32)
        report.require(name, "")
        assert {row.shape[0] for row in report.rows} == {1, 2, 5, 6}
        # What TensorRT is given: the same graph in every variant breaks none of its rules.
        singles = [golden.feeds(case, found[name].spec) for case in golden.cases if case.startswith("batch 1,")]
        for variant in VARIANTS:
            target = tmp_path / f"{name}.{variant}.onnx"
            if variant != "fp32":
                apply(variant, tmp_path / f"{name}.onnx", target, singles, Options())
            assert lint(onnx.load(target if variant != "fp32" else tmp_path / f"{name}.onnx")) == [], (name, variant)
    for pipeline in pipelines(model):
        assert set(pipeline.graphs) <= set(found)


@pytest.mark.parametrize(("fusion", "interaction"), PAIRS)
def test_every_pair_exports_with_any_batch_and_sequence(tmp_path: Path, fusion: str, interaction: str) -> None:
    path = make_checkpoint(tmp_path / "ckpt.pt", fusion=fusion, interaction=interaction)
    proven(path, tmp_path, {"fusion"})


@pytest.mark.parametrize(("fusion", "interaction"), sorted(set(itertools.product(FUSIONS, INTERACTIONS)) - set(PAIRS)))
def test_a_pair_that_makes_no_sense_is_refused_with_its_reason(tmp_path: Path, fusion: str, interaction: str) -> None:
    with pytest.raises(UsageError, match="nothing to attend to: the fusion gives a single vector") as caught:
        make_checkpoint(tmp_path / "ckpt.pt", fusion=fusion, interaction=interaction)
    assert "--interaction linear" in caught.value.fix


def test_every_head_and_the_video_encoder_export(tmp_path: Path) -> None:
    assert set(LABELS) == set(HEADS)
    path = make_checkpoint(tmp_path / "ckpt.pt", heads=tuple(HEADS), frames=8)
    proven(path, tmp_path, {"video_encoder", *(f"head.{name}" for name in HEADS)})


def test_attention_maps_export_and_say_where_each_word_looks(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path / "ckpt.pt")
    proven(path, tmp_path, {"fusion"}, maps=True)
    checkpoint = load(path)
    found = graphs(build(checkpoint), MAX_BATCH, maps=True)
    golden = make_golden(checkpoint, found, MAX_BATCH)
    for case in golden.cases.values():
        maps = case["fusion:attention"]
        assert (
            maps.shape == (*case["input_ids"].shape, 16) and (maps >= 0).all() and (maps.sum(axis=-1) <= 1 + 1e-5).all()
        )
        assert np.ptp(maps) > 1e-3


@pytest.mark.parametrize(
    ("fusion", "interaction"), [("concat_sequence", "graph"), ("film", "attention"), ("gated", "linear")]
)
def test_maps_of_what_has_none_are_refused(tmp_path: Path, fusion: str, interaction: str) -> None:
    path = make_checkpoint(tmp_path / "ckpt.pt", fusion=fusion, interaction=interaction)
    with pytest.raises(UsageError, match="no attention of words over the image"):
        graphs(build(load(path)), MAX_BATCH, maps=True)


def test_time_matters_to_the_video_encoder(tmp_path: Path) -> None:
    """A clip and its reverse differ; padding frames do not; the mean over frames would see neither."""
    model = build(load(make_checkpoint(tmp_path / "ckpt.pt", frames=8)))
    assert model.video_encoder is not None
    tokens, ones = torch.randn(2, 5, 16, 96), torch.ones(2, 5, dtype=torch.int64)
    with torch.inference_mode():
        forward, backward = model.video_encoder(tokens, ones), model.video_encoder(tokens.flip(1), ones)
        padded = torch.cat([tokens, torch.randn(2, 2, 16, 96)], dim=1)
        mask = torch.cat([ones, torch.zeros(2, 2, dtype=torch.int64)], dim=1)
        assert torch.allclose(model.video_encoder(padded, mask), forward, atol=1e-5)
    assert (forward - backward).abs().max() > 0.1


def test_a_model_without_video_refuses_clips(tmp_path: Path) -> None:
    model = build(load(make_checkpoint(tmp_path / "ckpt.pt")))
    with pytest.raises(UsageError, match="made for images"):
        model.see(torch.zeros(1, 2, 64, 64, 3, dtype=torch.uint8))


def test_a_checkpoint_that_names_no_pair_is_refused(tmp_path: Path, tiny_checkpoint: Path) -> None:
    content = torch.load(tiny_checkpoint, weights_only=True)
    content["config"]["interaction"] = "telepathy"
    torch.save(content, tmp_path / "ckpt.pt")
    with pytest.raises(CheckpointError, match="unknown interaction 'telepathy'"):
        build(load(tmp_path / "ckpt.pt"))
