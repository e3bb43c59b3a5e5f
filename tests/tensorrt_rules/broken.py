"""Small valid graphs that each break one rule of TensorRT's parser and no other. Those for INT8 are in broken_int8."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference

FLOAT, HALF, DOUBLE, UINT8 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.UINT8
INT64, BOOL = TensorProto.INT64, TensorProto.BOOL


class Net:
    """A graph that is built one operator at a time. Every method returns the name of the tensor it made."""

    def __init__(self, opset: int = 20) -> None:
        self.opset, self.count = opset, itertools.count()
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.constants: list[onnx.TensorProto] = []

    def input(self, *shape: int | str, dtype: int = FLOAT) -> str:
        name = f"in{len(self.inputs)}"
        self.inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def constant(self, value: object, dtype: type = np.float32) -> str:
        name = f"c{next(self.count)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def op(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        names = [f"{kind}.{next(self.count)}" for _ in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, name=f"node.{names[0]}", **attributes))
        return names[-1]

    def pair(self, x: str, scale: Any = 0.1, zero: int = 0, kind: type = np.int8, **attributes: Any) -> str:
        parameters = self.constant(scale), self.constant(np.full(np.shape(scale), zero), kind)
        q = self.op("QuantizeLinear", x, *parameters, **attributes)
        return self.op("DequantizeLinear", q, *parameters, **attributes)

    def weight(self, *shape: int, axis: int | None = None, block: int = 0) -> str:
        """INT8 weights behind a DQ: one scale, one for each channel of ``axis``, or one for each block of it."""
        sizes: tuple[int, ...] = () if axis is None else (shape[axis],)
        attributes = {} if axis is None else {"axis": axis}
        if block:
            sizes = tuple(size // block if i == axis else size for i, size in enumerate(shape))
            attributes["block_size"] = block
        levels = self.constant(np.ones(shape), np.int8)
        return self.op("DequantizeLinear", levels, self.constant(np.ones(sizes)), **attributes)

    def conv(self, x: str, inputs: int, outputs: int = 16) -> str:
        return self.op("Conv", self.pair(x), self.weight(outputs, inputs, 3, 3, axis=0), pads=[1, 1, 1, 1])

    def done(self, *outputs: str, dtype: int = FLOAT) -> onnx.ModelProto:
        """The model with these outputs, valid ONNX. It declares the types of its inputs and outputs only."""
        values = [helper.make_tensor_value_info(name, dtype, None) for name in outputs]
        graph = helper.make_graph(self.nodes, "net", self.inputs, values, self.constants)
        domains = [helper.make_opsetid("", self.opset), helper.make_opsetid("com.microsoft", 1)]
        model = shape_inference.infer_shapes(helper.make_model(graph, opset_imports=domains, ir_version=10))
        del model.graph.value_info[:]
        for value in model.graph.output:
            value.type.tensor_type.shape.SetInParent()
        onnx.checker.check_model(model, full_check=True)
        return model


BREAKING: dict[str, Callable[[], onnx.ModelProto]] = {}


def breaks(make: Callable[[], onnx.ModelProto]) -> Callable[[], onnx.ModelProto]:
    """Register a graph that breaks the rule it is named for: ``per_channel__axis`` breaks per-channel in one more way."""
    BREAKING[make.__name__.replace("_", "-")] = make
    return make


@breaks
def opset() -> onnx.ModelProto:
    net = Net(25)
    return net.done(net.op("Relu", net.input(2)))


@breaks
def operator() -> onnx.ModelProto:
    net = Net()
    return net.done(net.op("Cast", net.op("Det", net.input(2, 3, 3)), to=FLOAT))


@breaks
def operator__family() -> onnx.ModelProto:
    net = Net()
    x = net.input(2, dtype=INT64)
    return net.done(net.op("BitwiseAnd", x, x), dtype=INT64)


@breaks
def operator__domain() -> onnx.ModelProto:
    net = Net()
    return net.done(net.op("Cast", net.op("BiasGelu", net.input(2), domain="com.microsoft"), to=FLOAT))


@breaks
def operator__subgraph() -> onnx.ModelProto:
    net = Net()
    condition, x = net.input(1, dtype=BOOL), net.input(2, 3, 3)
    branches = {}
    for name, kind in (("then", "Det"), ("else", "ReduceMax")):
        node = helper.make_node(kind, [x], [f"{name}.y"], **({"keepdims": 0} if kind == "ReduceMax" else {}))
        values = [helper.make_tensor_value_info(f"{name}.y", FLOAT, None)]
        branches[f"{name}_branch"] = helper.make_graph([node], name, [], values)
    return net.done(net.op("If", condition, **branches))


@breaks
def nonzero() -> onnx.ModelProto:
    net = Net()
    return net.done(net.op("NonZero", net.input(4)), dtype=INT64)


@breaks
def attention() -> onnx.ModelProto:
    net = Net(24)
    return net.done(net.op("Attention", *(net.input("batch", 2, 8, 16) for _ in range(3))))


@breaks
def squeeze_axes() -> onnx.ModelProto:
    net = Net()
    return net.done(net.op("Unsqueeze", net.input(4), net.input(1, dtype=INT64)))


@breaks
def reduce_axes() -> onnx.ModelProto:
    net = Net()
    return net.done(net.op("ReduceMean", net.input(4, 4), net.input(1, dtype=INT64)))


@breaks
def scatter_reduction() -> onnx.ModelProto:
    net = Net()
    return net.done(net.op("ScatterND", net.input(4), net.constant([[1]], np.int64), net.input(1), reduction="add"))


@breaks
def layernorm_outputs() -> onnx.ModelProto:
    net = Net()
    return net.done(net.op("LayerNormalization", net.input(4, 8), net.constant(np.ones(8)), outputs=2))


@breaks
def topk() -> onnx.ModelProto:
    net = Net()
    return net.done(net.op("TopK", net.input(5000), net.constant([3841], np.int64), outputs=2), dtype=INT64)


@breaks
def topk__computed() -> onnx.ModelProto:
    net = Net()
    return net.done(net.op("TopK", net.input(5000), net.input(1, dtype=INT64), outputs=2), dtype=INT64)


@breaks
def softmax_rank() -> onnx.ModelProto:
    net = Net()
    return net.done(net.op("Softmax", net.input(4)))


@breaks
def element_type() -> onnx.ModelProto:
    net = Net()
    x = net.input(2, dtype=TensorProto.INT16)
    return net.done(net.op("Cast", net.op("Add", x, x), to=FLOAT))


@breaks
def double() -> onnx.ModelProto:
    net = Net()
    return net.done(net.op("Cast", net.op("Cast", net.input(2), to=DOUBLE), to=FLOAT))


@breaks
def uint8() -> onnx.ModelProto:
    net = Net()
    pixels = net.input("batch", 8, 8, 3, dtype=UINT8)
    return net.done(net.op("Cast", net.op("Transpose", pixels, perm=[0, 3, 1, 2]), to=FLOAT))


def masked(mask: str, net: Net) -> onnx.ModelProto:
    return net.done(net.op("Softmax", net.op("Cast", net.op("Add", net.input(2, 4), mask), to=HALF)), dtype=HALF)


@breaks
def fp16_range() -> onnx.ModelProto:
    net = Net()
    return masked(net.constant([-3.4e38, 0, 0, 0]), net)


@breaks
def fp16_range__constant_node() -> onnx.ModelProto:
    net = Net()
    return masked(net.op("Constant", value_floats=[0.0, 0.0, 0.0, -65505.0]), net)


@breaks
def fp16_range__constant_tensor() -> onnx.ModelProto:
    net = Net()
    return masked(net.op("Constant", value=numpy_helper.from_array(np.array([1e5], np.float32))), net)


@breaks
def fp16_range__fill() -> onnx.ModelProto:
    net = Net()
    fill = numpy_helper.from_array(np.array([-1e5], np.float32))
    return masked(net.op("ConstantOfShape", net.constant([4], np.int64), value=fill), net)


@breaks
def fp16_range__infinite() -> onnx.ModelProto:
    net = Net()
    return net.done(net.op("Add", net.input(2, dtype=HALF), net.constant(-np.inf, np.float16)), dtype=HALF)
