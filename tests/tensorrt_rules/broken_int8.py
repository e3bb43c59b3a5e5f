"""Small valid graphs that each break one of TensorRT's rules for INT8 and no other, and one that breaks none."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from broken import BOOL, BREAKING, FLOAT, INT64, UINT8, Net, breaks
from onnx import TensorProto, helper


def at_opset(opset: int, scales: np.ndarray) -> onnx.ModelProto:
    """A quantized MatMul at an ``opset`` without such ``scales``: the only graph here that ONNX refuses as well."""
    net = Net(opset)
    weight = net.op(
        "DequantizeLinear", net.constant(np.ones((32, 32)), np.int8), net.constant(scales, scales.dtype.type)
    )
    output = net.op("MatMul", net.pair(net.input("batch", 32)), weight)
    values = [helper.make_tensor_value_info(output, FLOAT, None)]
    graph = helper.make_graph(net.nodes, "net", net.inputs, values, net.constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


@breaks
def scale_opset() -> onnx.ModelProto:
    return at_opset(12, np.ones(32, np.float32))


@breaks
def scale_opset__fp16() -> onnx.ModelProto:
    return at_opset(18, np.ones((), np.float16))


def product(**pair: Any) -> onnx.ModelProto:
    """A MatMul whose activation has a pair with these options."""
    net = Net()
    return net.done(net.op("MatMul", net.pair(net.input("batch", 32), **pair), net.weight(32, 32, axis=1)))


@breaks
def zero_point() -> onnx.ModelProto:
    return product(zero=3)


@breaks
def zero_point__unsigned() -> onnx.ModelProto:
    return product(kind=np.uint8)


@breaks
def zero_point__default() -> onnx.ModelProto:
    net = Net()
    scale = net.constant(0.1)
    q = net.op("QuantizeLinear", net.input("batch", 32), scale)
    return net.done(net.op("MatMul", net.op("DequantizeLinear", q, scale), net.weight(32, 32)))


@breaks
def zero_point__computed() -> onnx.ModelProto:
    net = Net()
    parameters = net.constant(0.1), net.input(dtype=TensorProto.INT8)
    q = net.op("QuantizeLinear", net.input("batch", 32), *parameters)
    return net.done(net.op("MatMul", net.op("DequantizeLinear", q, *parameters), net.weight(32, 32)))


@breaks
def scale() -> onnx.ModelProto:
    return product(scale=0.0)


@breaks
def scale__infinite() -> onnx.ModelProto:
    return product(scale=np.inf)


@breaks
def scale__computed() -> onnx.ModelProto:
    net = Net()
    parameters = net.op("ReduceMax", net.input(4), keepdims=0), net.constant(0, np.int8)
    q = net.op("QuantizeLinear", net.input("batch", 32), *parameters)
    return net.done(net.op("MatMul", net.op("DequantizeLinear", q, *parameters), net.weight(32, 32)))


@breaks
def int8_blocks() -> onnx.ModelProto:
    net = Net(21)
    return net.done(net.op("MatMul", net.pair(net.input("batch", 32)), net.weight(32, 32, axis=0, block=16)))


@breaks
def per_channel() -> onnx.ModelProto:
    return product(scale=np.ones(32), axis=1)


@breaks
def per_channel__conv() -> onnx.ModelProto:
    net = Net()
    return net.done(net.op("Conv", net.pair(net.input(1, 3, 8, 8)), net.weight(16, 3, 3, 3, axis=1)))


@breaks
def per_channel__matmul() -> onnx.ModelProto:
    net = Net()
    return net.done(net.op("MatMul", net.pair(net.input("batch", 32)), net.weight(32, 32, axis=0)))


@breaks
def per_channel__gemm() -> onnx.ModelProto:
    net = Net()
    x, weight = net.pair(net.input("batch", 32)), net.pair(net.constant(np.ones((32, 32))), np.ones(32), axis=-1)
    return net.done(net.op("Gemm", x, weight, transB=1))


@breaks
def pair() -> onnx.ModelProto:
    net = Net()
    dq = net.op("DequantizeLinear", net.input("batch", 32, dtype=TensorProto.INT8), net.constant(0.1))
    return net.done(net.op("MatMul", dq, net.weight(32, 32)))


@breaks
def pair__q_at_the_end() -> onnx.ModelProto:
    net = Net()
    q = net.op("QuantizeLinear", net.input(4), net.constant(0.1), net.constant(0, np.int8))
    return net.done(q, dtype=TensorProto.INT8)


@breaks
def pair__q_read_otherwise() -> onnx.ModelProto:
    net = Net()
    q = net.op("QuantizeLinear", net.input(4), net.constant(0.1), net.constant(0, np.int8))
    return net.done(net.op("Cast", q, to=FLOAT))


def after_a_pair(kind: str, *others: Any, **attributes: Any) -> onnx.ModelProto:
    net = Net()
    constants = [net.constant(value, np.asarray(value).dtype.type) for value in others]
    return net.done(net.op(kind, net.pair(net.input("batch", 4, 16)), *constants, **attributes))


NEVER_QUANTIZED = {
    "Softmax": lambda: after_a_pair("Softmax"),
    "LayerNormalization": lambda: after_a_pair("LayerNormalization", np.ones(16, np.float32)),
    "Gelu": lambda: after_a_pair("Gelu"),
    "Erf": lambda: after_a_pair("Erf"),
    "Gather": lambda: after_a_pair("Gather", np.int64(0), axis=1),
    "Reshape": lambda: after_a_pair("Reshape", np.array([0, -1])),
    "Transpose": lambda: after_a_pair("Transpose"),
    "Relu": lambda: after_a_pair("Relu"),
    "Mul": lambda: after_a_pair("Mul", np.float32(2)),
}
BREAKING |= {f"placement--{kind}": make for kind, make in NEVER_QUANTIZED.items()}


@breaks
def placement() -> onnx.ModelProto:
    net = Net()
    condition, x = net.input("batch", 4, dtype=BOOL), net.input("batch", 4)
    return net.done(net.op("Where", condition, net.pair(x), x))


@breaks
def placement__weight_behind_a_transpose() -> onnx.ModelProto:
    net = Net()
    return net.done(net.op("MatMul", net.input("batch", 32), net.op("Transpose", net.weight(32, 32))))


@breaks
def quantized_output() -> onnx.ModelProto:
    net = Net()
    return net.done(net.pair(net.op("Relu", net.input(4))))


@breaks
def quantized_output__unread() -> onnx.ModelProto:
    net = Net()
    x = net.op("Relu", net.input(4))
    net.pair(x)
    return net.done(x)


@breaks
def bias() -> onnx.ModelProto:
    net = Net()
    x, levels = net.pair(net.input(1, 3, 8, 8)), net.constant(np.ones(16), np.int32)
    quantized = net.op("DequantizeLinear", levels, net.constant(np.ones(16)), axis=0)
    return net.done(net.op("Conv", x, net.weight(16, 3, 3, 3, axis=0), quantized))


@breaks
def bias__of_a_linear() -> onnx.ModelProto:
    net = Net()
    y = net.op("MatMul", net.pair(net.input("batch", 32)), net.weight(32, 32, axis=1))
    return net.done(net.op("Add", y, net.weight(32)))


@breaks
def residual() -> onnx.ModelProto:
    net = Net()
    x = net.input("batch", 16, 8, 8)
    return net.done(net.op("Add", net.pair(net.conv(x, 16)), net.pair(x)))


@breaks
def residual__the_branch() -> onnx.ModelProto:
    net = Net()
    x = net.input("batch", 16, 8, 8)
    return net.done(net.op("Add", net.pair(net.conv(x, 16)), x))


@breaks
def residual__of_a_linear() -> onnx.ModelProto:
    net = Net()
    x = net.input("batch", 32)
    return net.done(net.op("Add", net.pair(x), net.op("MatMul", net.pair(x), net.weight(32, 32, axis=1))))


@breaks
def both_inputs() -> onnx.ModelProto:
    net = Net()
    return net.done(net.op("MatMul", net.input("batch", 32), net.weight(32, 32, axis=1)))


@breaks
def both_inputs__weight() -> onnx.ModelProto:
    net = Net()
    return net.done(net.op("Conv", net.pair(net.input(1, 3, 8, 8)), net.constant(np.ones((16, 3, 3, 3)))))


def sized(left: tuple[int | str, ...], right: tuple[int | str, ...], kind: str = "MatMul", **attributes: int):
    net = Net()
    return net.done(net.op(kind, *(net.pair(net.input(*shape)) for shape in (left, right)), **attributes))


SMALL = {
    "small-product": lambda: sized(("batch", 8, 8), ("batch", 8, 32)),
    "small-product--m": lambda: sized(("batch", 1, 32), (32, 32)),
    "small-product--n": lambda: sized(("batch", 8, 32), ("batch", 32, 1)),
    "small-product--n-of-a-vector": lambda: sized(("batch", 8, 32), (32,)),
    "small-product--k-known-from-one-side": lambda: sized(("batch", "n", "k"), (15, 32)),
    "small-product--gemm": lambda: sized(("batch", 32), (15, 32), "Gemm", transB=1),
    "small-product--gemm-both-turned": lambda: sized((15, "batch"), (32, "k"), "Gemm", transA=1, transB=1),
}
BREAKING |= SMALL


@breaks
def few_channels() -> onnx.ModelProto:
    net = Net()
    return net.done(net.conv(net.op("Relu", net.conv(net.input(1, 3, 8, 8), 3, 8)), 8))


def good() -> onnx.ModelProto:
    """Every kind of pair where it belongs, and every restricted operator as TensorRT takes it."""
    net = Net()
    pixels = net.op("Cast", net.input("batch", 3, 8, 8, dtype=UINT8), to=FLOAT)
    x = net.op("Relu", net.conv(pixels, 3))
    branch = net.op("BatchNormalization", net.conv(x, 16), *(net.constant(np.ones(16)) for _ in range(4)))
    x = net.op("Relu", net.op("Add", branch, net.pair(x)))
    other = net.op("Conv", net.pair(x), net.pair(net.constant(np.ones((16, 1, 3, 3))), np.ones(16), axis=0), group=16)
    other = net.op("ReduceMean", other, net.op("Constant", value_ints=[2, 3]), keepdims=0)
    x = net.op("Add", net.op("ReduceMean", x, net.constant([2, 3], np.int64), keepdims=0), other)
    x = net.op("MatMul", net.pair(x), net.weight(16, 32, axis=-1))
    x = net.op("Gelu", net.op("Add", x, net.constant(np.ones(32))))
    x = net.op("LayerNormalization", x, net.constant(np.ones(32)))
    x = net.op("Gemm", net.pair(x), net.weight(4000, 32, axis=0), net.constant(np.ones(4000)), transB=1)
    x = net.op("Unsqueeze", x, net.constant([1], np.int64))
    return net.done(net.op("TopK", x, net.constant([3840], np.int64), outputs=2), dtype=INT64)
