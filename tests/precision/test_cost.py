"""Operations and bytes, against numbers worked out by hand and on real graphs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from simmim_export.bundle import Bundle
from simmim_export.errors import DataError, UsageError
from simmim_export.precision.cost import count
from simmim_export.spec import Variant


def write(
    path: Path,
    nodes: Sequence[NodeProto],
    *,
    inputs: dict[str, list[int | str]],
    weights: dict[str, np.ndarray],
    opset: int = 20,
) -> Path:
    """A graph with the output ``y``; an input called ``ids`` is int64."""
    values = [
        helper.make_tensor_value_info(name, TensorProto.INT64 if name == "ids" else TensorProto.FLOAT, shape)
        for name, shape in inputs.items()
    ]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    constants = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "g", values, [output], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10), path)
    return path


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


def test_a_matrix_product(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    path = write(tmp_path / "g.onnx", nodes, inputs={"x": ["batch", "sequence", 8]}, weights={"w": zeros(8, 5)})
    cost = count(path, {"batch": 2, "sequence": 3})
    assert cost.flops == 2 * (2 * 3 * 5) * 8
    assert cost.weights == 8 * 5 * 4
    assert cost.values == (2 * 3 * 8 + 2 * 3 * 5) * 4


def test_a_transposed_gemm_sums_over_its_first_axis(tmp_path: Path) -> None:
    nodes = [helper.make_node("Gemm", ["x", "w"], ["y"], transA=1)]
    path = write(tmp_path / "g.onnx", nodes, inputs={"x": [7, 3]}, weights={"w": zeros(7, 5)})
    assert count(path, {}).flops == 2 * (3 * 5) * 7


def test_a_grouped_convolution_sums_over_the_channels_of_its_group(tmp_path: Path) -> None:
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], group=2, pads=[1, 1, 1, 1])]
    path = write(tmp_path / "g.onnx", nodes, inputs={"x": [1, 4, 6, 6]}, weights={"w": zeros(8, 2, 3, 3)})
    assert count(path, {}).flops == 2 * (8 * 6 * 6) * (2 * 3 * 3)


@pytest.mark.parametrize("heads_apart", [True, False])
def test_attention_is_two_products(tmp_path: Path, heads_apart: bool) -> None:
    """Two rows, four heads of eight channels, five queries, seven keys."""
    heads = {} if heads_apart else {"q_num_heads": 4, "kv_num_heads": 4}
    shapes: dict[str, list[int | str]] = {
        name: [2, 4, tokens, 8] if heads_apart else [2, tokens, 32] for name, tokens in (("q", 5), ("k", 7), ("v", 7))
    }
    nodes = [helper.make_node("Attention", ["q", "k", "v"], ["y"], **heads)]
    path = write(tmp_path / "g.onnx", nodes, inputs=shapes, weights={}, opset=23)
    assert count(path, {}).flops == 2 * (2 * 2 * 4 * 5 * 7 * 8)


def test_of_a_table_only_the_rows_that_are_looked_up_count(tmp_path: Path) -> None:
    nodes = [helper.make_node("Gather", ["table", "ids"], ["y"])]
    path = write(tmp_path / "g.onnx", nodes, inputs={"ids": ["batch", "sequence"]}, weights={"table": zeros(1000, 8)})
    assert count(path, {"batch": 2, "sequence": 3}).weights == 2 * 3 * 8 * 4
    assert count(path, {"batch": 1000, "sequence": 3}).weights == 1000 * 8 * 4


def test_shapes_that_are_computed_in_the_graph_are_followed(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["size"], start=0, end=2),
        helper.make_node("Concat", ["size", "heads"], ["wanted"], axis=0),
        helper.make_node("Reshape", ["x", "wanted"], ["split"]),
        helper.make_node("MatMul", ["split", "w"], ["y"]),
    ]
    weights = {"heads": np.array([2, 4]), "w": zeros(4, 4)}
    path = write(tmp_path / "g.onnx", nodes, inputs={"x": ["batch", "sequence", 8]}, weights=weights)
    assert count(path, {"batch": 2, "sequence": 3}).flops == 2 * (2 * 3 * 2 * 4) * 4


def test_an_axis_without_a_size_is_an_error(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    path = write(tmp_path / "g.onnx", nodes, inputs={"x": ["batch", 8]}, weights={"w": zeros(8, 5)})
    with pytest.raises(UsageError) as caught:
        count(path, {"sequence": 3})
    assert caught.value.where == str(path)


@pytest.mark.parametrize(
    "node",
    [
        helper.make_node("Einsum", ["x", "w"], ["y"], name="product", equation="ij,jk->ik"),
        helper.make_node("FusedMatMul", ["x", "w"], ["y"], name="product", domain="com.microsoft"),
    ],
)
def test_a_product_that_is_not_counted_is_an_error(tmp_path: Path, node: NodeProto) -> None:
    path = write(tmp_path / "g.onnx", [node], inputs={"x": [2, 8]}, weights={"w": zeros(8, 5)})
    with pytest.raises(DataError, match="product"):
        count(path, {})


def test_int8_does_the_same_operations_on_smaller_weights(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    sizes = {"batch": 1, "sequence": 12}
    for graph in ("image_encoder", "text_encoder", "fusion"):
        full, *small = (
            count(bundle.file(bundle.artifact(graph, variant).path), sizes)
            for variant in (Variant.FP32, Variant.INT8_U8, Variant.INT8_DOT, Variant.INT8_S8)
        )
        for cost in small:
            assert cost.flops == full.flops > 0
            assert cost.weights < full.weights / 2 and cost.values == full.values


def test_operations_grow_with_the_batch(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    path = bundle.file(bundle.artifact("text_encoder", Variant.FP32).path)
    one, three = (count(path, {"batch": batch, "sequence": 12}) for batch in (1, 3))
    assert three.flops == 3 * one.flops and three.values == 3 * one.values
