"""Embedding tables to INT8, with a scale for each row."""

from __future__ import annotations

import onnx_ir as ir

from simmim_export.precision.rounding import nearest
from simmim_export.precision.surgery import array_of, constant, is_float_constant, operator, take_output
from simmim_export.precision.weights import scales_of

# In smaller tables the saving is not worth the three extra nodes.
LEAST_NUMBERS = 1 << 20


def quantize_tables(graph: ir.Graph) -> int:
    """Convert every large table that one Gather reads to INT8, in place, and return how many there were.

    A row is rounded on its own, to -127 ... 127 times its scale. Rows and scales are gathered apart, so that no engine
    dequantizes the whole table. A table that another node reads as well stays as it is.
    """
    chosen = [
        node
        for node in graph
        if node.op_type == "Gather" and not node.attributes.get_int("axis", 0) and _is_table(node.inputs[0])
    ]
    for node in chosen:
        _quantize(graph, node)
    return len(chosen)


def _is_table(value: ir.Value | None) -> bool:
    if value is None or not is_float_constant(value) or len(value.uses()) != 1:
        return False
    table = array_of(value)
    return table.ndim == 2 and table.size >= LEAST_NUMBERS


def _quantize(graph: ir.Graph, gather: ir.Node) -> None:
    table, ids, output = gather.inputs[0], gather.inputs[1], gather.outputs[0]
    assert table is not None
    numbers = array_of(table)
    scales = scales_of(numbers.T, 127)
    levels = constant(graph, f"{table.name}.int8", nearest(numbers.T, scales, half=127).T)
    name = str(gather.name)
    rows = operator("Gather", [levels, ids], f"{name}.rows", axis=0)
    wide = operator("Cast", [rows.outputs[0]], f"{name}.wide", to=int(ir.DataType.FLOAT))
    steps = operator("Gather", [constant(graph, f"{table.name}.scale", scales[:, None]), ids], f"{name}.scales", axis=0)
    scaled = operator("Mul", [wide.outputs[0], steps.outputs[0]], f"{name}.scaled")
    result = scaled.outputs[0]
    result.shape, result.dtype = output.shape, output.dtype
    graph.insert_after(gather, [rows, wide, steps, scaled])
    ir.convenience.replace_all_uses_with(output, result)
    take_output(graph, output, result)
    graph.remove(gather, safe=True)
