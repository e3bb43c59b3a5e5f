"""Other ways to quantise a text tower, each by its own defaults: what ours is measured beside.

Knows other quantisers and ONNX files. Must not know engines, or how any of it is measured.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path

from simmim_export.errors import EngineUnavailable, UsageError
from simmim_export.precision.quantizer import Feeds, quantize, quiet
from simmim_export.precision.weights import unshare
from simmim_export.system.telemetry import without_telemetry


def static(source: Path, target: Path, feeds: Feeds) -> None:
    """onnxruntime.quantization.quantize_static: U8 activations with ranges by least and greatest, S8 weights by channel."""
    quantize(source, target, feeds, per_channel=True)


def dynamic(source: Path, target: Path, feeds: Feeds) -> None:
    """onnxruntime.quantization.quantize_dynamic: ranges of each call, over its whole batch."""
    with without_telemetry("onnxruntime"):
        from onnxruntime.quantization import quantize_dynamic

    with quiet():
        quantize_dynamic(source, target, per_channel=True)


def nncf(source: Path, target: Path, feeds: Feeds) -> None:
    """nncf.quantize with the transformer recipe: SmoothQuant, then static ranges, asymmetric for activations."""
    import onnx

    # Its progress bars go to stdout, which may be for JSON.
    with without_telemetry("nncf", "openvino", "onnxruntime"), redirect_stdout(sys.stderr):
        import nncf

        nncf.set_log_level(logging.ERROR)
        data = nncf.Dataset([dict(feed) for feed in feeds])
        model = nncf.quantize(onnx.load(source), data, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(feeds))
    onnx.save(model, target)


# name -> how, and the package that it needs beyond ours.
RECIPES: Mapping[str, tuple[Callable[[Path, Path, Feeds], None], str | None]] = {
    "static": (static, None),
    "dynamic": (dynamic, None),
    "nncf": (nncf, "nncf"),
}


def quantise(name: str, source: Path, target: Path, feeds: Feeds) -> None:
    """Write to ``target`` what the recipe ``name`` makes of the graph ``source``, its constants as ONNX Runtime can open them."""
    import onnx

    RECIPES[name][0](source, target, feeds)
    model = onnx.load(target)
    unshare(model)
    onnx.save(model, target)


def lacking(name: str) -> str | None:
    """None when the recipe ``name`` can run here, else what is missing. Raise :class:`UsageError` for an unknown one."""
    if name not in RECIPES:
        raise UsageError(f"unknown recipe {name!r}", fix=f"choose among {', '.join(RECIPES)}")
    package = RECIPES[name][1]
    return None if package is None or find_spec(package) else f"the package {package} is not installed"


def require(name: str) -> None:
    """Raise :class:`EngineUnavailable` if the recipe ``name`` cannot run here."""
    reason = lacking(name)
    if reason is not None:
        raise EngineUnavailable(f"recipe {name!r}: {reason}", fix="pip install 'simmim-export[peers]'")
