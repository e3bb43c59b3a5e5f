"""Other ways to quantize a text tower, each with its own defaults: what ours is compared with."""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path

import onnx

from simmim_export.errors import EngineUnavailable, UsageError
from simmim_export.precision.base import Feeds
from simmim_export.precision.quantizer import quantize_static, without_advice
from simmim_export.precision.weights import unshare
from simmim_export.system.telemetry import without_telemetry


def static(model: onnx.ModelProto, feeds: Feeds) -> onnx.ModelProto:
    """onnxruntime.quantization.quantize_static: U8 activations from smallest to largest, S8 weights by channel."""
    return quantize_static(model, feeds, per_channel=True)


def dynamic(model: onnx.ModelProto, feeds: Feeds) -> onnx.ModelProto:
    """onnxruntime.quantization.quantize_dynamic: ranges of each call, over its whole batch."""
    with without_telemetry("onnxruntime"):
        from onnxruntime.quantization import quantize_dynamic

    with tempfile.TemporaryDirectory() as folder, without_advice():
        source, target = Path(folder) / "model.onnx", Path(folder) / "quantized.onnx"
        onnx.save(model, source)
        quantize_dynamic(source, target, per_channel=True)
        return onnx.load(target)


def nncf(model: onnx.ModelProto, feeds: Feeds) -> onnx.ModelProto:
    """nncf.quantize with the transformer recipe: SmoothQuant, then static ranges, asymmetric for activations."""
    # Its progress bars go to stdout, which may be for JSON.
    with without_telemetry("nncf", "openvino", "onnxruntime"), redirect_stdout(sys.stderr):
        import nncf

        nncf.set_log_level(logging.ERROR)
        data = nncf.Dataset([dict(feed) for feed in feeds])
        return nncf.quantize(model, data, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(feeds))


# name -> the recipe, and the package that it needs beyond ours.
RECIPES: Mapping[str, tuple[Callable[[onnx.ModelProto, Feeds], onnx.ModelProto], str | None]] = {
    "static": (static, None),
    "dynamic": (dynamic, None),
    "nncf": (nncf, "nncf"),
}


def quantize(source: Path, target: Path, *, recipe: str, feeds: Feeds) -> None:
    """Write the graph ``source`` as ``recipe`` quantizes it to ``target``, with constants that ONNX Runtime can open."""
    quantized = RECIPES[recipe][0](onnx.load(source), feeds)
    onnx.save(unshare(quantized), target)


def lacking(recipe: str) -> str | None:
    """Why ``recipe`` cannot run here, or None if it can. Raise :class:`UsageError` for an unknown one."""
    if recipe not in RECIPES:
        raise UsageError(f"unknown recipe {recipe!r}", fix=f"choose among {', '.join(RECIPES)}")
    package = RECIPES[recipe][1]
    return None if package is None or find_spec(package) else f"the package {package} is not installed"


def require(recipe: str) -> None:
    """Raise :class:`EngineUnavailable` if ``recipe`` cannot run here."""
    reason = lacking(recipe)
    if reason is not None:
        raise EngineUnavailable(f"recipe {recipe!r}: {reason}", fix="pip install 'simmim-export[peers]'")
