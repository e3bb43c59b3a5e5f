"""The pass for the variant int8-dot, for CPUs with integer dot products: weights of 8 bits, and less arithmetic around products.

Such a processor adds U8 x S8 products in 32 bits, so full-range weights are exact. What is left to save is small operators:
int8-u8 spends as long on the ranges of its activations as on half of its products. So a product reads its activation in one of
two ways:

- **static**: one range for all inputs, measured on samples, after SmoothQuant. Costs one QuantizeLinear. This is accurate behind
  a LayerNormalization, whose results are much alike.
- **by token**, as in int8-u8 (:mod:`simmim_export.precision.tokens`). All other products take it: the results of GELU and of
  attention have long tails.

In addition, products that read the same tensor are joined, attention becomes one node, and large embedding tables are INT8.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from simmim_export.precision.convolutions import quantizable, quantize_convolutions
from simmim_export.precision.fusing import ATTENTION_OPSET, fuse_attention, join_products
from simmim_export.precision.int8_u8 import QuantizedPass
from simmim_export.precision.measure import Record
from simmim_export.precision.smooth import equalize, require_equal
from simmim_export.precision.surgery import constant, operator, remove_unused_constants, with_types
from simmim_export.precision.tables import quantize_tables
from simmim_export.precision.tokens import read_by_token, read_weight, rounded_weights
from simmim_export.precision.weights import products
from simmim_export.spec import Variant

HALF = 127
# Static ranges need more of the spread in the weights than ranges by token: with 0.5, 0.6, 0.7, 0.8 and 0.9 MiniLM kept a cosine
# of 0.99924, 0.99941, 0.99950, 0.99953 and 0.99949.
ALPHA = 0.8
# How much further a static range reaches than the samples: it costs accuracy on inputs like them, and saves it on others (see
# docs/decisions.md).
MARGIN = 1.05


class Int8ForDotProducts(QuantizedPass):
    """Requires an FP32 graph, and real feeds if the graph has convolutions, or products behind a LayerNormalization."""

    variant = Variant.INT8_DOT
    raises_opset_to = ATTENTION_OPSET

    @classmethod
    def touched(cls, model: onnx.ModelProto) -> list[str]:
        return quantizable(model) + [str(node.name) for node in products(ir.from_proto(model).graph)]

    def call(self, model: onnx.ModelProto) -> onnx.ModelProto:
        keep_float, result = self.options.keep_float, model
        if convolutions := [name for name in quantizable(model) if name not in keep_float]:
            result = quantize_convolutions(model, self.feeds, names=convolutions)
        edited = with_types(result)
        chosen = [node for node in products(edited.graph) if node.name not in keep_float]
        if chosen:
            self._quantize_products(edited, chosen, record=self.record(model), source=result)
        if quantize_tables(edited.graph) or chosen:
            remove_unused_constants(edited.graph)
            return ir.to_proto(edited)
        return result

    def _quantize_products(
        self, edited: ir.Model, chosen: Sequence[ir.Node], *, record: Record, source: onnx.ModelProto
    ) -> None:
        """Quantize ``chosen``, products of ``edited``, which is ``source`` so far. ``record`` is of the FP32 graph."""
        graph = edited.graph
        tensors = {node.name: node.input[0] for node in record.model.graph.node}
        groups: dict[str, list[ir.Node]] = defaultdict(list)
        for node in chosen:
            groups[tensors[str(node.name)]].append(node)
        if record.feeds:
            record.prepare(groups)
        if fuse_attention(graph):
            edited.opset_imports[""] = max(edited.opset_imports[""], ATTENTION_OPSET)
        RemoveUnusedNodesPass()(edited)
        joined = {name: join_products(graph, nodes) for name, nodes in groups.items()}
        static = {name: nodes for name, nodes in joined.items() if _is_normalized(nodes[0].inputs[0])}
        seen = record.activations(static) if static else {}
        divided = equalize(graph, [node for nodes in static.values() for node in nodes], seen=seen, alpha=ALPHA)
        require_equal(record if source is record.model else Record(source, record.feeds), ir.to_proto(edited))
        done, count = 0, sum(map(len, joined.values()))
        for name, weights in rounded_weights(joined, record, half=HALF, divided=divided):
            readers = joined[name]
            if name in static:
                low, high = (side / divided[name] for side in (seen[name].lowest, seen[name].highest))
                _read_static(graph, readers, low=MARGIN * float(low.min()), high=MARGIN * float(high.max()))
                for node, weight in zip(readers, weights, strict=True):
                    read_weight(graph, node, weight)
            else:
                read_by_token(graph, readers, weights)
            done += len(readers)
            self.watch("product", done, count)


def _is_normalized(value: ir.Value | None) -> bool:
    producer = None if value is None else value.producer()
    return producer is not None and producer.op_type == "LayerNormalization"


def _read_static(graph: ir.Graph, readers: Sequence[ir.Node], *, low: float, high: float) -> None:
    """Let ``readers`` read their activation rounded to 256 levels from ``low`` to ``high``, zero among them."""
    activation = readers[0].inputs[0]
    assert activation is not None
    low, high = min(low, 0.0), max(high, 0.0)
    step = np.float32(max((high - low) / 255, float(np.finfo(np.float32).tiny)))
    scale = constant(graph, f"{activation.name}.scale", step)
    zero = constant(graph, f"{activation.name}.zero", np.uint8(np.clip(np.rint(-low / step), 0, 255)))
    levels = operator("QuantizeLinear", [activation, scale, zero], f"{activation.name}.levels")
    rounded = operator("DequantizeLinear", [levels.outputs[0], scale, zero], f"{activation.name}.rounded")
    graph.insert_before(readers[0], [levels, rounded])
    for node in readers:
        node.replace_input_with(0, rounded.outputs[0])
