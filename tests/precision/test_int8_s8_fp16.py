"""INT8 for TensorRT with the rest in FP16: what is in which type, and scales that FP16 would distort."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from simmim_export.precision.int8_s8 import Int8ForTensorRT
from simmim_export.precision.int8_s8_fp16 import LEAST_SCALE, Int8WithFp16
from simmim_export.precision.passes import variants_of
from simmim_export.spec import Precision, Variant
from simmim_export.tensorrt_rules.graph import Graph

PRODUCTS = ("MatMul", "Gemm", "Conv")


def quantized(model: onnx.ModelProto) -> dict[str, int]:
    """The type that each quantized product computes in, by its name."""
    graph = Graph(model)
    makers = {node.name: graph.producer.get(node.input[1]) for node in graph.nodes if node.op_type in PRODUCTS}
    names = [name for name, maker in makers.items() if maker is not None and maker.op_type == "DequantizeLinear"]
    return {node.name: graph.dtype(node.output[0]) for node in graph.nodes if node.name in names}


def test_int8_and_fp16_together_write_the_mixed_variant() -> None:
    assert Variant.INT8_S8_FP16 in variants_of([Precision.INT8, Precision.FP16])
    for asked in ([], [Precision.INT8], [Precision.FP16]):
        assert Variant.INT8_S8_FP16 not in variants_of(asked)


def test_the_same_products_are_quantized_and_the_rest_is_fp16(tiny_bundle: Path) -> None:
    full, mixed = (
        onnx.load(tiny_bundle / f"graphs/text_encoder.{v}.onnx") for v in (Variant.INT8_S8, Variant.INT8_S8_FP16)
    )
    assert quantized(full).keys() == quantized(mixed).keys() != set()
    assert set(quantized(mixed).values()) == {TensorProto.FLOAT16}
    wide = [tensor.name for tensor in mixed.graph.initializer if tensor.data_type == TensorProto.FLOAT]
    narrow = [tensor.name for tensor in mixed.graph.initializer if tensor.data_type == TensorProto.FLOAT16]
    assert len(narrow) > 10 * len(wide)


def test_a_graph_with_nothing_to_quantize_is_fp16(tiny_bundle: Path) -> None:
    half, mixed = (
        (tiny_bundle / f"graphs/head.vqa.{v}.onnx").read_bytes() for v in (Variant.FP16, Variant.INT8_S8_FP16)
    )
    assert half == mixed


def test_a_product_whose_scale_fp16_would_distort_stays_in_fp32_with_its_pairs() -> None:
    random = np.random.default_rng(0)
    weights = {name: random.standard_normal((64, 64)).astype(np.float32) for name in ("first", "second")}
    # One output channel of the second product is tiny, and so is its scale.
    weights["second"][:, 0] *= LEAST_SCALE
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["y"], name="product.first"),
        helper.make_node("MatMul", ["y", "second"], ["z"], name="product.second"),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 8, 64]) for name in ("x", "z")]
    constants = [numpy_helper.from_array(weight, name) for name, weight in weights.items()]
    graph = helper.make_graph(nodes, "net", values[:1], values[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    feeds = [{"x": random.standard_normal((1, 8, 64)).astype(np.float32)} for _ in range(16)]
    assert set(quantized(Int8ForTensorRT(feeds)(model)).values()) == {TensorProto.FLOAT}
    mixed = Int8WithFp16(feeds)(model)
    assert quantized(mixed) == {"product.first": TensorProto.FLOAT16, "product.second": TensorProto.FLOAT}
    # No cast stands between the pairs and the product: it would keep the product from INT8.
    second = next(node for node in mixed.graph.node if node.name == "product.second")
    makers = Graph(mixed).producer
    assert [makers[name].op_type for name in second.input] == ["DequantizeLinear"] * 2
