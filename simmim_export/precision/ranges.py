"""Static ranges of activations, and the means of their channels, measured on real inputs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from simmim_export.errors import GateFailed
from simmim_export.precision.base import Feeds
from simmim_export.precision.measure import run
from simmim_export.precision.surgery import constant, operator


@dataclass(frozen=True)
class Levels:
    """The values that U8 levels stand for: (level - ``zero``) * ``scale``."""

    scale: np.float32
    zero: np.uint8

    @classmethod
    def between(cls, low: float, high: float) -> Levels:
        """Levels from ``low`` <= 0 to ``high`` >= 0, one of which is zero."""
        scale = np.float32(max((high - low) / 255, float(np.finfo(np.float32).tiny)))
        return cls(scale, np.uint8(np.clip(np.rint(-low / scale), 0, 255)))


def pair_of(graph: ir.Graph, value: ir.Value, levels: Levels) -> tuple[ir.Node, ir.Node]:
    """A QuantizeLinear and a DequantizeLinear that round ``value`` to ``levels``. They are not in ``graph`` yet."""
    inputs = [constant(graph, f"{value.name}.scale", levels.scale), constant(graph, f"{value.name}.zero", levels.zero)]
    quantize = operator("QuantizeLinear", [value, *inputs], f"{value.name}.levels")
    return quantize, operator("DequantizeLinear", [quantize.outputs[0], *inputs], f"{value.name}.rounded")


@dataclass(frozen=True)
class Measured:
    """The smallest and the largest value of a tensor, zero included, and ``means`` float64 [C] of its channels: the entries of
    axis 1 in [b, C, H, W], and of the last axis in any other shape."""

    low: float
    high: float
    means: np.ndarray

    @property
    def levels(self) -> Levels:
        """Levels from ``low`` to ``high``, one of which is zero."""
        return Levels.between(self.low, self.high)


def measure(model: onnx.ModelProto, feeds: Feeds, names: Iterable[str]) -> dict[str, Measured]:
    """Each tensor of ``names`` over all ``feeds``. Raise :class:`GateFailed` for one that is not finite."""
    measured: dict[str, Measured] = {}
    names = list(dict.fromkeys(names))
    for count, tensors in enumerate(run(model, feeds, names), start=1):
        for name, tensor in tensors.items():
            low, high = float(tensor.min(initial=0)), float(tensor.max(initial=0))
            if not (np.isfinite(low) and np.isfinite(high)):
                raise GateFailed(
                    f"{name} is not finite on the samples", fix="check them, or leave --precision int8 out"
                )
            axes = (0, 2, 3) if tensor.ndim == 4 else tuple(range(tensor.ndim - 1))
            means = tensor.mean(axis=axes, dtype=np.float64)
            if name in measured:
                before = measured[name]
                low, high = min(low, before.low), max(high, before.high)
                means = before.means + (means - before.means) / count
            measured[name] = Measured(low, high, means)
    return measured
