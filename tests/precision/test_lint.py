"""The lint for TensorRT: every rule has a small valid graph that breaks it and nothing else; our graphs break none."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, shape_inference

from simmim_export.errors import GateFailed
from simmim_export.export.lint_presets import VARIANTS, full, fusions, lint_graph, noise, pairs
from simmim_export.models.presets import preset
from simmim_export.precision.lint import RULES, UNSUPPORTED, UNSUPPORTED_FAMILIES, Finding, lint, require

FLOAT, HALF, DOUBLE, UINT8 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.UINT8
INT64, BOOL = TensorProto.INT64, TensorProto.BOOL


class Net:
    """A graph written down one operator at a time; every method gives the name of the tensor it made."""

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
        """The model of these outputs, valid ONNX; it says the types of its inputs and outputs and nothing of what is between."""
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
def squeeze_axes__none() -> onnx.ModelProto:
    net = Net()
    return net.done(net.op("Squeeze", net.input("batch", 4)))


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
    return net.done(net.op("TopK", net.input(5000), net.constant([3840], np.int64), outputs=2), dtype=INT64)


@breaks
def topk__computed() -> onnx.ModelProto:
    net = Net()
    return net.done(net.op("TopK", net.input(5000), net.input(1, dtype=INT64), outputs=2), dtype=INT64)


@breaks
def double() -> onnx.ModelProto:
    net = Net()
    return net.done(net.op("Cast", net.op("Cast", net.input(2), to=DOUBLE), to=FLOAT))


@breaks
def uint8() -> onnx.ModelProto:
    net = Net()
    pixels = net.input("batch", 8, 8, 3, dtype=UINT8)
    return net.done(net.op("Cast", net.op("Transpose", pixels, perm=[0, 3, 1, 2]), to=FLOAT))


@breaks
def uint8__shape() -> onnx.ModelProto:
    net = Net()
    return net.done(net.op("Shape", net.input("batch", dtype=UINT8)), dtype=INT64)


def masked(mask: str, net: Net) -> onnx.ModelProto:
    return net.done(net.op("Softmax", net.op("Cast", net.op("Add", net.input(4), mask), to=HALF)), dtype=HALF)


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


def at_opset(opset: int, scales: np.ndarray) -> onnx.ModelProto:
    """A quantised MatMul at an ``opset`` that knows no such ``scales``: the one graph here that ONNX refuses as well."""
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
    """A MatMul whose activation is quantised as ``pair`` says."""
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


NEVER_QUANTISED = {
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
BREAKING |= {f"placement--{kind}": make for kind, make in NEVER_QUANTISED.items()}


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
def quantised_output() -> onnx.ModelProto:
    net = Net()
    return net.done(net.pair(net.op("Relu", net.input(4))))


@breaks
def quantised_output__unread() -> onnx.ModelProto:
    net = Net()
    x = net.op("Relu", net.input(4))
    net.pair(x)
    return net.done(x)


@breaks
def bias() -> onnx.ModelProto:
    net = Net()
    x, levels = net.pair(net.input(1, 3, 8, 8)), net.constant(np.ones(16), np.int32)
    quantised = net.op("DequantizeLinear", levels, net.constant(np.ones(16)), axis=0)
    return net.done(net.op("Conv", x, net.weight(16, 3, 3, 3, axis=0), quantised))


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
    return net.done(net.op("TopK", x, net.constant([3839], np.int64), outputs=2), dtype=INT64)


@pytest.mark.parametrize("name", BREAKING)
def test_a_graph_that_breaks_one_rule_breaks_no_other(name: str) -> None:
    model = BREAKING[name]()
    before = model.SerializeToString()
    found = lint(model)
    assert {finding.rule for finding in found} == {name.split("--")[0]}, "\n".join(map(str, found))
    assert all(finding.node and finding.what for finding in found)
    assert model.SerializeToString() == before


def test_every_rule_can_be_broken_and_is_one_sentence() -> None:
    assert {name.split("--")[0] for name in BREAKING} == set(RULES)
    assert all(sentence.endswith(".") and ". " not in sentence for sentence in RULES.values())


def test_a_good_graph_breaks_none() -> None:
    assert lint(good()) == []


def test_formats_with_rules_of_their_own_are_let_through() -> None:
    """Weights in 4 bits by blocks, activations in float."""
    net = Net(21)
    levels = helper.make_tensor("levels", TensorProto.INT4, [32, 32], np.ones(1024, np.int8))
    net.constants.append(levels)
    weight = net.op("DequantizeLinear", "levels", net.constant(np.ones((2, 32))), axis=0, block_size=16)
    assert lint(net.done(net.op("MatMul", net.input("batch", 32), weight))) == []


def test_large_constants_matter_in_half_precision_alone() -> None:
    net = Net()
    assert lint(net.done(net.op("Add", net.input(2), net.constant(-3.4e38)))) == []
    net = Net()
    x = net.op("Slice", net.input(2, dtype=HALF), *(net.constant([i], np.int64) for i in (0, np.iinfo(np.int64).max)))
    assert lint(net.done(net.op("Add", x, net.constant(-65504, np.float16)), dtype=HALF)) == []


def test_the_list_of_unsupported_operators_names_real_ones() -> None:
    known = {schema.name for schema in onnx.defs.get_all_schemas_with_history() if schema.domain == ""}
    assert known >= UNSUPPORTED - {"ImageDecoder"} and "ImageDecoder" in known
    assert all(any(name.startswith(family) for name in known) for family in UNSUPPORTED_FAMILIES)


def test_an_operator_of_an_unknown_domain_does_not_stop_the_lint() -> None:
    net = Net()
    net.op("NonZero", net.op("Fancy", net.input(2), domain="nowhere"))
    graph = helper.make_graph(net.nodes, "net", net.inputs, [], net.constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    assert [finding.rule for finding in lint(model)] == ["operator", "nonzero"]


def scoped(node: onnx.NodeProto, text: str) -> None:
    entry = node.metadata_props.add()
    entry.key, entry.value = "pkg.torch.onnx.name_scopes", text


@pytest.mark.parametrize(
    ("scopes", "module"),
    [
        ("['', 'encoder', 'encoder.trunk.0', 'conv2d']", "encoder.trunk.0"),
        ("['', 'relu']", ""),
        ("['_empty_nn_module_stack_from_metadata_hook', 'sym_size_int_7']", ""),
        ("not a list", ""),
        ("7", ""),
    ],
)
def test_a_finding_names_the_pytorch_module(scopes: str, module: str) -> None:
    model = both_inputs()
    scoped(model.graph.node[-1], scopes)
    assert [finding.module for finding in lint(model)] == [module]


def test_a_pair_belongs_to_the_module_that_reads_it() -> None:
    model = zero_point()
    scoped(model.graph.node[-1], "['', 'head.linear', 'matmul']")
    found = lint(model)
    assert [(finding.rule, finding.module) for finding in found] == [("zero-point", "head.linear")] * 2
    assert [finding.node.split(".")[1] for finding in found] == ["QuantizeLinear", "DequantizeLinear"]


def test_a_gate_names_twenty_findings() -> None:
    require(good(), "good.onnx")
    with pytest.raises(GateFailed, match=r"zero-point: node\.QuantizeLinear") as caught:
        require(zero_point(), "small.onnx")
    assert caught.value.where == "small.onnx" and caught.value.fix and "more" not in caught.value.what
    net = Net()
    x = net.input(2, dtype=BOOL)
    model = net.done(*(net.op("NonZero", x) for _ in range(23)), dtype=INT64)
    with pytest.raises(GateFailed) as caught:
        require(model, "large.onnx")
    assert caught.value.what.count("nonzero:") == 20 and caught.value.what.endswith("and 3 more")


GRAPHS = [
    "fusion",
    "image_encoder",
    "text_encoder",
    "video_encoder",
    "head.match",
    "head.vqa",
    "head.image_class",
    "head.video_qa",
]
GRAPHS += ["head.text_class", "head.video_class"]


@pytest.mark.parametrize("name", GRAPHS)
def test_exported_graphs_break_none(tiny_bundle: Path, every_bundle: Path, name: str) -> None:
    files = [path for bundle in (tiny_bundle, every_bundle) if (path := bundle / f"graphs/{name}.fp32.onnx").exists()]
    assert files
    for path in files:
        assert lint(onnx.load(path)) == [], path


def test_no_exported_graph_is_left_out(tiny_bundle: Path, every_bundle: Path) -> None:
    files = {path.name for bundle in (tiny_bundle, every_bundle) for path in bundle.glob("graphs/*.fp32.onnx")}
    assert files == {f"{name}.fp32.onnx" for name in [*GRAPHS, "image_encoder"]}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_of_a_trained_model_breaks_none(asked_bundle: Path, variant: str) -> None:
    files = sorted(asked_bundle.glob(f"graphs/*.{variant}.onnx"))
    assert len(files) == 5
    for path in files:
        assert lint(onnx.load(path)) == [], path


def test_the_presets_that_are_linted_have_every_graph() -> None:
    """What ``make lint-graphs`` traces: every tower, head and pair."""
    found = full("tiny")
    assert set(found) == {*GRAPHS}
    labels = dict(fusions("tiny"))
    assert len(labels) == len(pairs()) + 1 and {graph.spec.name for graph in labels.values()} == {"fusion"}
    # A smaller text encoder stands in for the preset's: the fusion reads the same tensors all the same.
    assert all(graph.spec.inputs == found["fusion"].spec.inputs for graph in labels.values())


def test_a_graph_is_linted_in_every_variant(tmp_path: Path) -> None:
    found = full("tiny")
    feeds = noise(found, preset("tiny"))
    assert lint_graph(found["head.vqa"], feeds["head.vqa"], tmp_path) == dict.fromkeys(VARIANTS, ())


def test_the_variant_for_cpu_engines_is_not_for_tensorrt(tiny_bundle: Path) -> None:
    """U8 activations, tokens levelled outside the product and a quantised bias: each has its rule, every finding its place."""
    found: list[Finding] = []
    for name in ("image_encoder", "text_encoder"):
        found += lint(onnx.load(tiny_bundle / f"graphs/{name}.int8-u8.onnx"))
    assert {"zero-point", "placement", "bias"} <= {finding.rule for finding in found}
    assert all(finding.module for finding in found)
