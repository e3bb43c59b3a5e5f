"""The pass for the variant fp16: FP16 throughout, except for islands of nodes whose numbers do not fit.

A LayerNormalization takes its statistics in FP32 by ONNX's definition (stash_type 1), and its epsilon is an attribute, which
no conversion touches. It becomes an island only if its sum of squares would overflow in an engine that does otherwise.
Preprocessing needs no island: pixels up to 255 are exact in FP16. With preprocessing in FP32 one tower came closer to PyTorch
(3.8e-3 instead of 6.0e-3) and another did not (4.4e-3 instead of 3.9e-3).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from simmim_export.errors import DataError, GateFailed
from simmim_export.precision.base import Feeds, Options, Pass
from simmim_export.precision.emulation import rounded
from simmim_export.precision.halve import halve, to_half
from simmim_export.precision.islands import LARGEST, find_islands, ranges
from simmim_export.precision.measure import Record
from simmim_export.spec import Variant
from simmim_export.system.watch import Watch, unwatched
from simmim_export.tensorrt_rules.graph import Graph

# The operators whose weights must be in FP16 outside the islands.
PRODUCTS = ("MatMul", "Gemm", "Conv")


class Fp16(Pass):
    """Requires an FP32 graph without subgraphs and real feeds. Ensures that every FP16 constant is finite and the rounded FP32
    constant, that products and convolutions outside the islands have FP16 weights, and that no value exceeds FP16 on the feeds.
    """

    variant = Variant.FP16

    def __init__(
        self, feeds: Feeds, options: Options = Options(), *, record: Record | None = None, watch: Watch = unwatched
    ) -> None:
        super().__init__(feeds, options, record=record, watch=watch)
        # The nodes that call() left in FP32, and why.
        self.islands: Mapping[str, str] = {}

    def requires(self, model: onnx.ModelProto) -> None:
        super().requires(model)
        if not self.feeds:
            raise DataError("no samples to measure the ranges of FP16 on", fix="give at least one")
        names = [node.name for node in model.graph.node]
        if "" in names or len(set(names)) < len(names):
            raise GateFailed("the graph has nodes without a unique name, which islands need", fix="report this")
        graph = Graph(model)
        if len(graph.nodes) > len(names) or any(node.op_type == "Constant" for node in graph.nodes):
            raise GateFailed("the graph has subgraphs or Constant nodes", fix="report this")
        if any(graph.dtype(name) == TensorProto.FLOAT16 for name in graph.names):
            raise GateFailed("the graph already has FP16 tensors", fix="start from the variant fp32")

    def call(self, model: onnx.ModelProto) -> onnx.ModelProto:
        return halve(model, self.find(model))

    def find(self, model: onnx.ModelProto) -> Mapping[str, str]:
        """The nodes of ``model`` that stay in FP32, and why; also kept in :attr:`islands`."""
        self.islands = find_islands(model, self.feeds)
        return self.islands

    def ensures(self, before: onnx.ModelProto, after: onnx.ModelProto) -> None:
        super().ensures(before, after)
        self._ensure_constants(before, after)
        self.ensure_values(after)

    def _ensure_constants(self, before: onnx.ModelProto, after: onnx.ModelProto) -> None:
        exact = {tensor.name: tensor for tensor in before.graph.initializer}
        constants = {tensor.name: tensor for tensor in after.graph.initializer}
        for name, tensor in constants.items():
            if tensor.data_type != TensorProto.FLOAT16:
                continue
            half = numpy_helper.to_array(tensor)
            if not np.isfinite(half).all():
                raise GateFailed(f"the constant {name} is beyond FP16's range", fix="leave its nodes in FP32")
            if name not in exact or not np.array_equal(half, to_half(numpy_helper.to_array(exact[name]))):
                raise GateFailed(f"the constant {name} is not the rounded FP32 constant", fix="report this")
        for node in after.graph.node:
            weight = constants.get(node.input[1]) if node.op_type in PRODUCTS else None
            if weight is not None and weight.data_type != TensorProto.FLOAT16 and node.name not in self.islands:
                raise GateFailed(f"the weight {weight.name} of {node.name} is not in FP16", fix="report this")

    def ensure_values(self, after: onnx.ModelProto) -> None:
        """Raise :class:`GateFailed` if a value of ``after`` exceeds FP16 on the feeds."""
        graph = Graph(after)
        largest = ranges(rounded(after), self.feeds)
        halves = [name for name in largest if graph.dtype(name) == TensorProto.FLOAT16]
        beyond = [f"{name}: {largest[name]}" for name in halves if not largest[name] <= LARGEST]
        outputs = sorted(graph.outputs & largest.keys())
        beyond += [f"{name}: {largest[name]}" for name in outputs if not np.isfinite(largest[name])]
        if beyond:
            listed = "\n  ".join(beyond[:5])
            raise GateFailed(
                f"{len(beyond)} tensors do not fit FP16 on real inputs:\n  {listed}", fix="leave it in FP32"
            )
