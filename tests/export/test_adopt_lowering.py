"""Each rewriting rule gives a graph of our operators that computes the same."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from simmim_export.export.adopt.lowering import lower, unknown_operators

RANDOM = np.random.default_rng(0)
FLOATS = RANDOM.normal(size=(3, 4)).astype(np.float32)
PICTURES = RANDOM.normal(size=(2, 4, 5, 5)).astype(np.float32)
WHOLE = RANDOM.integers(-3, 4, (3, 4))
PAIRS = np.stack([RANDOM.integers(0, 3, (5,)), RANDOM.integers(0, 4, (5,))], axis=-1)
CHANNELS = [RANDOM.uniform(0.5, 1.5, 4).astype(np.float32) for _ in range(4)]


def node(kind: str, *inputs: str, output: str = "y", **attributes: object) -> onnx.NodeProto:
    return helper.make_node(kind, list(inputs), [output], **attributes)


# A case: nodes that end in y, the inputs, and constants.
CASES = {
    "Flatten": ([node("Flatten", "x")], {"x": PICTURES}, {}),
    "GlobalAveragePool": ([node("GlobalAveragePool", "x")], {"x": PICTURES}, {}),
    "Sqrt": ([node("Sqrt", "x")], {"x": np.abs(FLOATS)}, {}),
    "Neg": ([node("Neg", "x")], {"x": FLOATS}, {}),
    "Reciprocal": ([node("Reciprocal", "x")], {"x": FLOATS}, {}),
    "Identity": ([node("Identity", "x", output="z"), node("Relu", "z")], {"x": FLOATS}, {}),
    "Identity at the end": ([node("Relu", "x", output="z"), node("Identity", "z")], {"x": FLOATS}, {}),
    "Dropout": ([node("Dropout", "x", output="z"), node("Relu", "z")], {"x": FLOATS}, {}),
    "Constant": ([node("Constant", output="c", value_float=2.0), node("Mul", "x", "c")], {"x": FLOATS}, {}),
    "ConstantOfShape": (
        [
            node("Shape", "x", output="s"),
            node("ConstantOfShape", "s", output="z", value=numpy_helper.from_array(np.array([7], np.float32))),
            node("Add", "x", "z"),
        ],
        {"x": FLOATS},
        {},
    ),
    "Range": (
        [
            node("Shape", "x", output="s", start=1, end=2),
            node("Squeeze", "s", output="n"),
            node("Range", "zero", "n", "one"),
        ],
        {"x": FLOATS},
        {"zero": np.int64(0), "one": np.int64(1)},
    ),
    "BatchNormalization": (
        [node("BatchNormalization", "x", "a", "b", "c", "d")],
        {"x": PICTURES},
        dict(zip("abcd", CHANNELS, strict=True)),
    ),
    "BatchNormalization after Conv": (
        [
            node("Conv", "x", "w", "v", output="z", pads=[1, 1, 1, 1]),
            node("BatchNormalization", "z", "a", "b", "c", "d"),
        ],
        {"x": PICTURES},
        dict(zip("abcd", CHANNELS, strict=True))
        | {"w": RANDOM.normal(size=(4, 4, 3, 3)).astype(np.float32), "v": CHANNELS[0]},
    ),
    **{
        kind: ([node(kind, "x", "k")], {"x": WHOLE}, {"k": np.int64(1)})
        for kind in ("Less", "Greater", "LessOrEqual", "GreaterOrEqual")
    },
    "And": (
        [node("Equal", "x", "k", output="p"), node("Less", "x", "m", output="q"), node("And", "p", "q")],
        {"x": WHOLE},
        {"k": np.int64(1), "m": np.int64(2)},
    ),
    "IsNaN": ([node("IsNaN", "x")], {"x": np.where(FLOATS > 0, FLOATS, np.nan).astype(np.float32)}, {}),
    "GatherND": ([node("GatherND", "x", "i")], {"x": FLOATS, "i": PAIRS}, {}),
    "GatherND of rows": ([node("GatherND", "x", "i")], {"x": RANDOM.normal(size=(3, 4, 6)), "i": PAIRS}, {}),
    "ArgMax": ([node("ArgMax", "x", axis=-1, keepdims=0)], {"x": WHOLE}, {}),
    "ArgMax of columns": ([node("ArgMax", "x", axis=0, keepdims=1)], {"x": FLOATS}, {}),
}


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]


@pytest.mark.parametrize("case", CASES)
def test_a_rule_keeps_what_a_graph_computes(case: str) -> None:
    nodes, feeds, constants = CASES[case]
    feeds = {name: array.astype(np.float32) if array.dtype == np.float64 else array for name, array in feeds.items()}
    types = {name: helper.np_dtype_to_tensor_dtype(array.dtype) for name, array in feeds.items()}
    inputs = [
        helper.make_tensor_value_info(
            name, types[name], [f"{name}{axis}" if axis < 1 else size for axis, size in enumerate(array.shape)]
        )
        for name, array in feeds.items()
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.UNDEFINED, None)]
    graph = helper.make_graph(
        nodes, "g", inputs, outputs, [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()]
    )
    before = onnx.shape_inference.infer_shapes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    )
    model = ir.from_proto(before)
    for index, one in enumerate(model.graph):
        one.name = f"n{index}"
    assert case.split()[0] in [one.op_type for one in model.graph]
    lower(model)
    assert unknown_operators(model.graph) == []
    after = ir.to_proto(model)
    expected, got = run(before, feeds), run(after, feeds)
    assert expected.dtype == got.dtype and expected.shape == got.shape
    if expected.dtype == np.float32:
        np.testing.assert_allclose(got, expected, atol=1e-5)
    else:
        assert np.array_equal(got, expected)


def test_an_operator_that_no_rule_knows_stays_and_is_named() -> None:
    graph = helper.make_graph(
        [node("Softsign", "x")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
    )
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))
    lower(model)
    assert len(unknown_operators(model.graph)) == 1
