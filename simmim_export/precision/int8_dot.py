"""The pass for the variant int8-dot, for CPUs with integer dot products: weights of 8 bits, and less arithmetic around products.

Such a processor adds U8 x S8 products in 32 bits, so full-range weights are exact. Only small operators are left to save: int8-u8
spends half as much time on computing ranges of activations as on its products. So a product reads its activation in one of two
ways:

- **static**: one range for all inputs, measured on samples after SmoothQuant. It costs one QuantizeLinear. It is accurate after a
  LayerNormalization, whose outputs have nearly the same range for all inputs.
- **per token**, as in int8-u8 (:mod:`simmim_export.precision.tokens`): all other products use this, because the outputs of GELU
  and attention have long tails.

In addition, products that read the same tensor are joined, attention becomes one node, and large embedding tables are INT8.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from simmim_export.precision.fusing import ATTENTION_OPSET, fuse_attention, join_products
from simmim_export.precision.int8_u8 import Int8OnCpu
from simmim_export.precision.measure import Record
from simmim_export.precision.ranges import Levels, pair_of
from simmim_export.precision.smooth import equalize, require_equal
from simmim_export.precision.surgery import maker, remove_unused_constants, with_types
from simmim_export.precision.tables import quantize_tables
from simmim_export.precision.tokens import grouped, read_by_token, read_weight, rounded_weights
from simmim_export.precision.weights import products
from simmim_export.spec import Variant

HALF = 127
# Static ranges need more of the spread in the weights than ranges by token: with 0.5, 0.6, 0.7, 0.8 and 0.9 MiniLM kept a cosine
# of 0.99924, 0.99941, 0.99950, 0.99953 and 0.99949.
ALPHA = 0.8
# How much further a static range reaches than the samples: it costs accuracy on inputs like them, and saves it on others (see
# docs/decisions.md).
MARGIN = 1.05


class Int8ForDotProducts(Int8OnCpu):
    """Requires an FP32 graph, and real feeds if the graph has convolutions, or products after a LayerNormalization."""

    variant = Variant.INT8_DOT
    raises_opset_to = ATTENTION_OPSET

    def call(self, model: onnx.ModelProto) -> onnx.ModelProto:
        result = self.with_convolutions(model)
        edited = with_types(result)
        chosen = [node for node in products(edited.graph) if node.name not in self.options.keep_float]
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
        groups = grouped(chosen, record)
        if fuse_attention(graph):
            edited.opset_imports[""] = max(edited.opset_imports[""], ATTENTION_OPSET)
        RemoveUnusedNodesPass()(edited)
        joined = {name: join_products(graph, nodes) for name, nodes in groups.items()}
        static = {name: nodes for name, nodes in joined.items() if maker(nodes[0].inputs[0]) == "LayerNormalization"}
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


def _read_static(graph: ir.Graph, readers: Sequence[ir.Node], *, low: float, high: float) -> None:
    """Let ``readers`` read their activation rounded to 256 levels from ``low`` to ``high``, zero among them."""
    activation = readers[0].inputs[0]
    assert activation is not None
    quantize, dequantize = pair_of(graph, activation, Levels.between(min(low, 0.0), max(high, 0.0)))
    graph.insert_before(readers[0], [quantize, dequantize])
    for node in readers:
        node.replace_input_with(0, dequantize.outputs[0])
