"""INT8 graphs with float weights: what proves them on a processor on which their products would saturate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from support import golden_of

from simmim_export.bundle import Bundle
from simmim_export.engines import require_engine
from simmim_export.precision import passes
from simmim_export.precision.emulation import with_float_weights
from simmim_export.precision.passes import provable
from simmim_export.spec import Precision, Variant


def weights_in_levels(model: onnx.ModelProto) -> list[str]:
    constants = {tensor.name for tensor in model.graph.initializer}
    nodes = model.graph.node
    return [node.name for node in nodes if node.op_type == "DequantizeLinear" and node.input[0] in constants]


@pytest.mark.parametrize("graph", ["image_encoder", "text_encoder"])
def test_a_graph_with_float_weights_costs_what_int8_costs(tiny_bundle: Path, tmp_path: Path, graph: str) -> None:
    """Not the same numbers: a sum in another order may be rounded to the next level, and what an engine itself quantizes at run
    time stays float."""
    golden, spec = golden_of(tiny_bundle), Bundle.open(tiny_bundle).manifest.graph(graph)
    source = tiny_bundle / f"graphs/{graph}.int8-dot.onnx"
    emulated = with_float_weights(onnx.load(source))
    assert weights_in_levels(onnx.load(source)) and not weights_in_levels(emulated)
    onnx.checker.check_model(emulated, full_check=True)
    onnx.save(emulated, tmp_path / "x.onnx")
    feeds = golden.feeds(golden.largest(), spec)
    paths = (tiny_bundle / f"graphs/{graph}.fp32.onnx", source, tmp_path / "x.onnx")
    sessions = (require_engine("ort").open(path, spec, precision=Precision.FP32) for path in paths)
    exact, int8, same = (session.run(feeds) for session in sessions)
    for name, values in int8.items():
        cost = np.linalg.norm(values - exact[name])
        # Two roundings of the same few numbers: here float weights cost 1.5 times as much. A saturated sum would cost far more.
        assert 0 < np.linalg.norm(same[name] - exact[name]) < 2 * cost


def test_weights_in_blocks_become_float() -> None:
    random = np.random.default_rng(0)
    constants = {
        "w": random.integers(-127, 128, (64, 32)).astype(np.int8),
        "scales": random.uniform(0.001, 0.01, (2, 32)).astype(np.float32),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "scales"], ["w.rounded"], name="w", axis=0, block_size=32),
        helper.make_node("MatMul", ["x", "w.rounded"], ["y"], name="product"),
    ]
    x, y = (helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["b", s]) for n, s in (("x", 64), ("y", 32)))
    held = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    opset = [helper.make_opsetid("", 21)]
    model = helper.make_model(helper.make_graph(nodes, "g", [x], [y], held), opset_imports=opset, ir_version=10)
    emulated, feeds = with_float_weights(model), {"x": random.normal(size=(3, 64)).astype(np.float32)}
    assert [node.op_type for node in emulated.graph.node] == ["MatMul"] and len(emulated.graph.initializer) == 1
    expected, same = (ReferenceEvaluator(each).run(None, feeds)[0] for each in (model, emulated))
    np.testing.assert_allclose(same, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("has", [True, False, None])
@pytest.mark.parametrize("variant", ["fp32", "int8-dot", "int8-u8", "int8-s8"])
def test_full_range_weights_are_proven_in_float_where_products_would_saturate(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variant: str, has: bool | None
) -> None:
    monkeypatch.setattr(passes, "has_integer_dot", lambda: has)
    path = tiny_bundle / f"graphs/text_encoder.{variant}.onnx"
    proven = provable(Variant(variant), path, tmp_path)
    assert (proven != path) == (variant in ("int8-dot", "int8-s8") and not has)
    assert variant == "fp32" or bool(weights_in_levels(onnx.load(proven))) == (proven == path)
