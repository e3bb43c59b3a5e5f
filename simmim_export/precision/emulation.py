"""FP16 on a processor without FP16 kernels: the FP32 graph that computes the same numbers."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir

from simmim_export.precision.surgery import append, array_of, operator, with_types

_FLOAT, _HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16


def rounded(model: onnx.ModelProto) -> onnx.ModelProto:
    """The FP32 graph that computes what the FP16 graph ``model`` does: each FP16 tensor is rounded where it is made.

    ONNX Runtime's CPU provider cannot judge FP16. It lacks the kernels, computes in FP32, and removes the casts that it
    put between two nodes itself, so nothing in between is rounded and nothing overflows. It keeps a pair of casts that is in
    the graph. As in the kernels of GPUs, sums within an operator are FP32.
    """
    work = with_types(model)
    for value in work.graph.initializers.values():
        if value.const_value is not None and value.const_value.dtype == _HALF:
            value.const_value = ir.tensor(array_of(value).astype(np.float32), name=value.name)
            value.dtype = _FLOAT
    for node in list(work.graph):
        for name, attribute in list(node.attributes.items()):
            if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype == _HALF:
                wide = attribute.as_tensor().numpy().astype(np.float32)
                node.attributes[name] = ir.AttrTensor(name, ir.tensor(wide))
        for value in node.outputs:
            if value.dtype == _HALF:
                _round(value)
    return ir.to_proto(work)


def _round(value: ir.Value) -> None:
    """Cast ``value`` to FP16, unless its node does, and back. The result takes its name."""
    node, name = value.producer(), value.name
    casts = []
    if node is None or node.op_type != "Cast" or node.attributes.get_int("to") != int(_HALF):
        value.dtype = _FLOAT
        casts.append(operator("Cast", [value], f"{name}.half", to=int(_HALF)))
    casts.append(operator("Cast", [casts[0].outputs[0] if casts else value], f"{name}.back", to=int(_FLOAT)))
    append(value, casts, f"{name}.wide" if len(casts) > 1 else f"{name}.half")
    casts[-1].outputs[0].dtype = _FLOAT
