"""Exported graphs are what their specs promise, and a graph that breaks a promise is an error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from simmim_export.bundle import Bundle
from simmim_export.engines import get_engine
from simmim_export.errors import GateFailed, UsageError
from simmim_export.export.golden import probes
from simmim_export.export.onnx import FORBIDDEN, check, fold_batch_norms, trace
from simmim_export.models.family import Graph
from simmim_export.models.simmim.checkpoint import build, load
from simmim_export.models.simmim.graphs import graphs, pipelines
from simmim_export.precision.passes import PASSES
from simmim_export.spec import Axis, GraphSpec, Precision, TensorSpec

SPEC = GraphSpec(
    "g",
    (TensorSpec("x", "float32", ("batch", 3)),),
    (TensorSpec("y", "float32", ("batch", 3)),),
    (Axis("batch", 1, 8),),
)


def model(nodes, output_shape=("batch", 3), output_type=TensorProto.FLOAT, opset=20, extra=()) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("y", output_type, list(output_shape))],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset), *extra], ir_version=10)


MICROSOFT = helper.make_opsetid("com.microsoft", 1)
RELU = [helper.make_node("Relu", ["x"], ["y"], "relu")]


def test_a_good_graph_passes() -> None:
    check(model(RELU), SPEC, opset=20)


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        (model([helper.make_node("Relu", ["x"], ["z"]), helper.make_node("IsNaN", ["z"], ["q"]), *RELU]), "IsNaN"),
        (model([helper.make_node("NonZero", ["x"], ["q"]), *RELU]), "NonZero"),
        (model(RELU, output_shape=(2, 3)), "output y is float32 [2, 3]"),
        (model(RELU, output_shape=("b", 3)), "output y"),
        (model(RELU, output_type=TensorProto.DOUBLE), "float64"),
        (model(RELU, opset=19), "opset is 19"),
        (
            model(
                [helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")],
                extra=[helper.make_opsetid("com.microsoft", 1)],
            ),
            "com.microsoft",
        ),
        (model([helper.make_node("Relu", ["x"], ["z"], "relu")], output_shape=("batch", 3)), ""),
    ],
)
def test_a_graph_that_breaks_a_promise_is_an_error(bad: onnx.ModelProto, named: str) -> None:
    with pytest.raises((GateFailed, onnx.checker.ValidationError)) as caught:
        check(bad, SPEC, opset=20)
    assert named in str(caught.value)


def test_wrong_names_are_an_error() -> None:
    renamed = GraphSpec("g", SPEC.inputs, (TensorSpec("other", "float32", ("batch", 3)),), SPEC.axes)
    with pytest.raises(GateFailed, match="'other'"):
        check(model(RELU), renamed, opset=20)


def test_an_axis_that_tracing_fixed_is_an_error(tmp_path: Path) -> None:
    """A module that bakes the example's batch into its result is not dynamic."""

    class Baked(nn.Module):
        def forward(self, x):
            return x.sum(dim=0, keepdim=True) * torch.ones(2, 3)

    with pytest.raises(GateFailed, match="output y"):
        trace(Graph(Baked().eval(), SPEC), tmp_path / "g.onnx")


def test_an_opset_that_is_not_offered_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="9"):
        trace(Graph(nn.ReLU(), SPEC), tmp_path / "g.onnx", opset=9)


def test_folding_keeps_the_function_and_removes_every_batch_norm(tiny_checkpoint: Path) -> None:
    encoder = build(load(tiny_checkpoint)).image_encoder
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
    folded = fold_batch_norms(encoder)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    assert any(isinstance(m, nn.BatchNorm2d) for m in encoder.modules())
    pixels = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    with torch.inference_mode():
        for a, b in zip(encoder(pixels), folded(pixels), strict=True):
            assert torch.allclose(a, b, atol=2e-5)


def test_every_graph_of_the_bundle_is_clean(tiny_bundle: Path) -> None:
    manifest = Bundle.open(tiny_bundle).manifest
    assert [g.name for g in manifest.graphs] == ["image_encoder", "text_encoder", "fusion", "head.match", "head.vqa"]
    for artifact in manifest.artifacts:
        exported = onnx.load(tiny_bundle / artifact.path)
        opset = next(opset.version for opset in exported.opset_import if opset.domain == "")
        highest = PASSES[artifact.variant].raises_opset_to if artifact.variant in PASSES else 0
        assert 20 <= opset <= max(20, highest)
        check(exported, manifest.graph(artifact.graph), opset=opset)
        operators = {node.op_type for node in exported.graph.node}
        assert not operators & set(FORBIDDEN)
        assert not operators & {"BatchNormalization", "Where", "And", "GatherElements"}
        scopes = [p.value for n in exported.graph.node for p in n.metadata_props if "name_scopes" in p.key]
        assert scopes, "the nodes no longer say which PyTorch module they come from"


def test_every_opset_we_offer_exports_the_text_encoder(tiny_checkpoint: Path, tmp_path: Path) -> None:
    graph = graphs(build(load(tiny_checkpoint)), max_batch=4)["text_encoder"]
    ids = np.ones((3, 5), np.int64)
    expected = graph.module(torch.from_numpy(ids), torch.from_numpy(ids))[1].detach().numpy()
    for opset in (18, 21):
        path = tmp_path / f"{opset}.onnx"
        trace(graph, path, opset=opset)
        outputs = (
            get_engine("ort")
            .open(path, graph.spec, precision=Precision.FP32)
            .run({"input_ids": ids, "attention_mask": ids})
        )
        np.testing.assert_allclose(outputs["text_embed"], expected, atol=1e-5)


def test_the_graph_reads_the_mask_although_the_tracer_saw_only_ones(tiny_bundle: Path) -> None:
    manifest = Bundle.open(tiny_bundle).manifest
    spec = manifest.graph("text_encoder")
    session = get_engine("ort").open(tiny_bundle / "graphs/text_encoder.fp32.onnx", spec, precision=Precision.FP32)
    ids = np.arange(4, 12, dtype=np.int64)[None]
    mask = np.ones_like(ids)
    mask[:, 5:] = 0
    masked = session.run({"input_ids": ids, "attention_mask": mask})["text_embed"]
    other = ids.copy()
    other[:, 5:] = 1
    assert np.array_equal(masked, session.run({"input_ids": other, "attention_mask": mask})["text_embed"])
    assert not np.allclose(masked, session.run({"input_ids": ids, "attention_mask": np.ones_like(ids)})["text_embed"])


def test_probes_cover_every_batch_and_length_that_is_promised() -> None:
    pairs = probes(8, shortest=3, longest=32)
    assert {batch for batch, _ in pairs} == {1, 2, 5, 8} and {length for _, length in pairs} == {3, 7, 32}
    assert {batch for batch, _ in probes(2, shortest=3, longest=3)} == {1, 2}


def test_a_text_axis_of_fixed_length_is_probed_at_that_length() -> None:
    assert {length for _, length in probes(8, shortest=64, longest=64)} == {64}


def test_pipelines_name_graphs_that_exist(tiny_checkpoint: Path) -> None:
    built = build(load(tiny_checkpoint))
    names = set(graphs(built, 8))
    for pipeline in pipelines(built):
        assert set(pipeline.graphs) <= names
