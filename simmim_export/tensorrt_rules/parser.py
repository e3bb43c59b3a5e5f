"""The rules of TensorRT's ONNX parser: what it refuses, restricts, or computes differently.

Covered are the opset, unsupported operators, restrictions of single operators, and the types DOUBLE, UINT8 and FP16. Each rule
names its source: a row of the table in docs/operators.md of github.com/onnx/onnx-tensorrt (for TensorRT 10.15), or another one.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, numpy_helper

from simmim_export.tensorrt_rules.graph import ONNX_DOMAINS, Graph, Problems, Rules, attribute
from simmim_export.tensorrt_rules.int8 import quantized_tensors

PARSER_RULES = Rules()

NEWEST_OPSET = 24
LARGEST_HALF = 65504
# TensorRT's limit is on K itself, whatever the length of the axis.
LARGEST_TOPK = 3840
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)  # DOUBLE has a rule of its own
# By name, because older versions of onnx do not have them all.
_MISSING = (
    "INT2 INT16 UINT2 UINT4 UINT16 UINT32 UINT64 STRING COMPLEX64 COMPLEX128 FLOAT8E4M3FNUZ FLOAT8E5M2 FLOAT8E5M2FNUZ "
    "FLOAT8E8M0"
)
MISSING_TYPES = frozenset(number for name, number in TensorProto.DataType.items() if name in _MISSING.split())

UNSUPPORTED_FAMILIES = ("Bitwise", "Optional", "QLinear", "Sequence", "String")
# fmt: off
UNSUPPORTED = frozenset((
    "AffineGrid", "Bernoulli", "BitCast", "BitShift", "CausalConvWithState", "CenterCropPad", "Col2Im", "Compress",
    "ConcatFromSequence", "ConvInteger", "CumProd", "DFT", "Det", "DynamicQuantizeLinear", "ImageDecoder",
    "LinearAttention", "MatMulInteger", "MaxRoiPool", "MaxUnpool", "MelWeightMatrix", "Multinomial",
    "NegativeLogLikelihoodLoss", "RegexFullMatch", "SoftmaxCrossEntropyLoss", "SplitToSequence", "SwiGLU",
    "TfIdfVectorizer", "Unique",
))
# fmt: on


@PARSER_RULES.advise
def opset(graph: Graph) -> Problems:
    """The parser promises to read opset 24 at most.

    Source: operators.md, first paragraph. The parser of TensorRT for RTX 1.7 reads later ones, too.
    """
    if graph.opset > NEWEST_OPSET:
        yield graph.name, f"is of opset {graph.opset}"


@PARSER_RULES.add
def operator(graph: Graph) -> Problems:
    """Every operator is ONNX's own and one that the parser supports.

    Source: operators.md, rows with N; for operators that are newer than it, the parser of TensorRT for RTX 1.7. Operators of
    other domains need a plugin.
    """
    for node in graph.nodes:
        if node.domain not in ONNX_DOMAINS:
            yield node, f"is {node.op_type} of {node.domain}"
        elif node.op_type in UNSUPPORTED or node.op_type.startswith(UNSUPPORTED_FAMILIES):
            yield node, f"is {node.op_type}, which TensorRT does not support"


@PARSER_RULES.add
def nonzero(graph: Graph) -> Problems:
    """The graph has no NonZero: the shape of its output depends on the data, so TensorRT cannot plan for it.

    Source: TensorRT documentation, "Dynamically Shaped Output": memory is allocated while the engine runs.
    """
    yield from ((node, "is a NonZero") for node in graph.nodes if node.op_type == "NonZero")


@PARSER_RULES.add
def attention(graph: Graph) -> Problems:
    """An Attention operator computes in FP16 or BF16: TensorRT has no kernel for it in FP32.

    Source: the builder of TensorRT for RTX 1.7. Parsers before TensorRT 10.14 do not know the operator at all (onnx-tensorrt,
    docs/Changelog.md).
    """
    for node in graph.nodes:
        is_attention = node.op_type == "Attention" and node.domain in ONNX_DOMAINS
        if is_attention and graph.dtype(node.input[0]) not in (TensorProto.FLOAT16, TensorProto.BFLOAT16):
            yield node, "is an Attention in FP32"


@PARSER_RULES.add
def squeeze_axes(graph: Graph) -> Problems:
    """The axes of Squeeze and Unsqueeze are constant, or not given.

    Source: operators.md, rows Squeeze and Unsqueeze.
    """
    for node in graph.nodes:
        axes = node.input[1] if node.op_type in ("Squeeze", "Unsqueeze") and len(node.input) > 1 else ""
        if axes and axes not in graph.constants:
            yield node, f"takes its axes from {axes}, which is computed"


@PARSER_RULES.add
def reduce_axes(graph: Graph) -> Problems:
    """The axes of every Reduce operator are constant.

    Source: operators.md, rows of the Reduce operators.
    """
    for node in graph.nodes:
        axes = node.input[1] if node.op_type.startswith("Reduce") and len(node.input) > 1 else ""
        if axes and axes not in graph.constants:
            yield node, f"takes its axes from {axes}, which is computed"


@PARSER_RULES.add
def scatter_reduction(graph: Graph) -> Problems:
    """ScatterND replaces: its reduction is none.

    Source: operators.md, row ScatterND.
    """
    for node in graph.nodes:
        reduction = attribute(node, "reduction", b"none").decode() if node.op_type == "ScatterND" else "none"
        if reduction != "none":
            yield node, f"reduces by {reduction}"


@PARSER_RULES.add
def layernorm_outputs(graph: Graph) -> Problems:
    """Only the first output of LayerNormalization is used.

    Source: operators.md, row LayerNormalization.
    """
    for node in graph.nodes:
        if node.op_type == "LayerNormalization":
            used = [name for name in node.output[1:] if name in graph.readers or name in graph.outputs]
            if used:
                yield node, f"gives its mean or deviation as {', '.join(used)}"


@PARSER_RULES.add
def topk(graph: Graph) -> Problems:
    """K of TopK is constant and at most 3840.

    Source: operators.md, row TopK, which says less than 3840; the builder of TensorRT for RTX 1.7 takes 3840 and not 3841.
    """
    for node in graph.nodes:
        if node.op_type == "TopK" and len(node.input) > 1:  # before opset 10 K was an attribute
            count = graph.value(node.input[1])
            if count is None:
                yield node, f"takes K from {node.input[1]}, which is computed"
            elif count.max() > LARGEST_TOPK:
                yield node, f"has K = {count.max()}"


@PARSER_RULES.add
def softmax_rank(graph: Graph) -> Problems:
    """The input of Softmax and LogSoftmax has two axes or more.

    Source: the parser of TensorRT for RTX 1.7.
    """
    for node in graph.nodes:
        if node.op_type in ("Softmax", "LogSoftmax"):
            shape = graph.shape(node.input[0])
            if shape is not None and len(shape) < 2:
                yield node, f"is a {node.op_type} of a tensor with {len(shape)} axes"


@PARSER_RULES.add
def element_type(graph: Graph) -> Problems:
    """No tensor has a type that TensorRT lacks: integers of 2 or 16 bits, unsigned ones but UINT8, strings and complex numbers.

    Source: the parser of TensorRT for RTX 1.7, which cannot convert them.
    """
    for name in graph.names:
        if graph.dtype(name) in MISSING_TYPES:
            kind = TensorProto.DataType.Name(graph.dtype(name))
            yield graph.producer.get(name, name), f"{name} is {kind}"


@PARSER_RULES.add
def double(graph: Graph) -> Problems:
    """No tensor is DOUBLE: TensorRT computes it as FLOAT.

    Source: operators.md, note on DOUBLE.
    """
    for name in graph.names:
        if graph.dtype(name) == TensorProto.DOUBLE:
            yield graph.producer.get(name, name), f"{name} is DOUBLE"


@PARSER_RULES.add
def uint8(graph: Graph) -> Problems:
    """UINT8 is the type of a network input that is cast at once, or whose shape is read, and of nothing else.

    Source: operators.md, note on UINT8. Not even a Transpose before the Cast works (NVIDIA/TensorRT issue 3985).
    """
    # The rule zero-point refuses UINT8 as a quantized type.
    quantized = quantized_tensors(graph)
    for node in graph.nodes:
        made, read = (
            [name for name in names if name not in quantized and graph.dtype(name) == TensorProto.UINT8]
            for names in (node.output, node.input)
        )
        if made:
            yield node, f"is a {node.op_type} that makes {made[0]} in UINT8"
        elif read and node.op_type not in ("Cast", "Shape"):
            yield node, f"is a {node.op_type} that reads {read[0]} in UINT8"


@PARSER_RULES.add
def fp16_range(graph: Graph) -> Problems:
    """In a graph with FP16 no floating-point constant, a mask included, is beyond ±65504.

    Source: the range of FP16. A larger one becomes infinite, and infinity minus infinity is NaN in a softmax.
    """
    # FP32 constants too: a mask of -3.4e38 may meet a Cast further on, and an FP32 island does not need such numbers.
    if not any(graph.dtype(name) == TensorProto.FLOAT16 for name in graph.names):
        return
    tensors = dict(graph.constants)
    for node in graph.nodes:
        if node.op_type == "ConstantOfShape" and (fill := attribute(node, "value")) is not None:
            tensors[node.output[0]] = fill
    for name, tensor in tensors.items():
        if tensor.data_type not in FLOATS:
            continue
        array = numpy_helper.to_array(tensor).astype(np.float32, copy=False)
        beyond = array[~(np.abs(array) <= LARGEST_HALF)]
        if beyond.size:
            yield graph.producer.get(name, name), f"{name} holds {beyond.flat[0]:.6g}"
