"""What a pass is: an object that requires something of a graph, rewrites it, and ensures something of the result.

The idea is that of ``onnx_ir.passes``. Its classes are not used: they replace our errors, which carry an exit code and a fix, by
their own, and their ``ensures`` does not see the graph from before the pass.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import onnx
from onnx import TensorProto, helper

from simmim_export.errors import GateFailed, UsageError
from simmim_export.spec import Variant
from simmim_export.system.watch import Watch, unwatched
from simmim_export.tensorrt_rules.graph import ONNX_DOMAINS

if TYPE_CHECKING:
    from simmim_export.precision.measure import Record

# Inputs of one graph by name, one sample (batch 1) in each.
Feeds = Sequence[Mapping[str, np.ndarray]]


@dataclass(frozen=True, kw_only=True)
class Options:
    """``keep_float`` names the nodes that an INT8 pass leaves as they are. The repr is part of a cache key."""

    keep_float: tuple[str, ...] = ()


class Pass(ABC):
    """Makes one ``variant`` of a graph. ``feeds`` are real inputs of that graph, which the pass measures it on; ``record`` is
    what other passes have measured of the same graph on the same feeds. ``watch`` is told how far the pass is.

    Call the object with an FP32 model: it returns a new one, or the same object if there is nothing to change.
    """

    variant: ClassVar[Variant]
    # A pass may raise the opset of a graph up to this one; 0 if it must keep the opset.
    raises_opset_to: ClassVar[int] = 0

    def __init__(
        self, feeds: Feeds, options: Options = Options(), *, record: Record | None = None, watch: Watch = unwatched
    ) -> None:
        self.feeds, self.options, self.watch = feeds, options, watch
        self._record = record

    def __call__(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """Check ``model``, rewrite it, and check the result. ``model`` itself is not changed.

        Raise :class:`DataError` for missing feeds, :class:`UsageError` for options that do not fit the graph, and
        :class:`GateFailed` for a graph that this pass does not take or a result that is not what it promises.
        """
        self.requires(model)
        result = self.call(model)
        if result is not model:
            self.ensures(model, result)
        return result

    def record(self, model: onnx.ModelProto) -> Record:
        """What has been measured of ``model`` on the feeds: the record that the pass was given, or else a new one."""
        from simmim_export.precision.measure import Record  # which imports Feeds from here

        return self._record or Record(model, self.feeds, self.watch)

    @classmethod
    def touched(cls, model: onnx.ModelProto) -> list[str]:
        """The names of the nodes of the FP32 graph ``model`` that an INT8 pass quantizes if its measurements allow it. Those that
        a precision plan leaves in float are chosen among them."""
        return []

    def requires(self, model: onnx.ModelProto) -> None:
        """Raise unless every node in ``keep_float`` is in the graph. Subclasses require more."""
        missing = sorted(set(self.options.keep_float) - {node.name for node in model.graph.node})
        if missing:
            raise UsageError(
                f"the graph has no node {', '.join(missing)} to keep in float", fix="name nodes of the graph"
            )

    @abstractmethod
    def call(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """The new model, or ``model`` itself if there is nothing to change."""

    def ensures(self, before: onnx.ModelProto, after: onnx.ModelProto) -> None:
        """Raise :class:`GateFailed` unless ``after`` is valid ONNX with the inputs and outputs (names, types, shapes) of
        ``before``, with ONNX's own operators only, and with the opset of ``before`` or a later one up to
        :attr:`raises_opset_to`. Subclasses ensure more."""
        onnx.checker.check_model(after, full_check=True)
        for side in ("input", "output"):
            old, new = ([_signature(value) for value in getattr(model.graph, side)] for model in (before, after))
            if old != new:
                raise GateFailed(f"the pass changed the {side}s from {old} to {new}", fix="report this")
        foreign = {node.op_type for node in after.graph.node if node.domain not in ONNX_DOMAINS}
        if foreign:
            raise GateFailed(f"the pass left operators that are not ONNX's own: {sorted(foreign)}", fix="report this")
        opsets = [{entry.domain: entry.version for entry in model.opset_import}.get("", 0) for model in (before, after)]
        if not opsets[0] <= opsets[1] <= max(opsets[0], self.raises_opset_to):
            raise GateFailed(f"the pass changed the opset from {opsets[0]} to {opsets[1]}", fix="report this")


def _signature(value: onnx.ValueInfoProto) -> tuple[str, str, tuple[int | str, ...]]:
    tensor = value.type.tensor_type
    shape = tuple(d.dim_value if d.HasField("dim_value") else d.dim_param for d in tensor.shape.dim)
    kind = tensor.elem_type
    return value.name, "?" if kind == TensorProto.UNDEFINED else helper.tensor_dtype_to_np_dtype(kind).name, shape
