"""ONNX Runtime's quantizer, with ranges measured on real inputs. The caller says which nodes it quantizes, and how."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from simmim_export.precision.base import Feeds
from simmim_export.system.telemetry import without_telemetry


def quantize_static(model: onnx.ModelProto, feeds: Feeds, **options: Any) -> onnx.ModelProto:
    """``model`` as ``onnxruntime.quantization.quantize_static`` writes it with these ``options``."""
    with without_telemetry("onnxruntime"):
        from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.feeds = iter(feeds)

        def get_next(self) -> dict[str, np.ndarray] | None:
            feed = next(self.feeds, None)
            return None if feed is None else dict(feed)

    with tempfile.TemporaryDirectory() as folder, without_advice():
        # As files: given a model, the quantizer moves the weights of that very object to a file that it then deletes.
        source, target = Path(folder) / "model.onnx", Path(folder) / "quantized.onnx"
        onnx.save(model, source)
        quantization.quantize_static(source, target, Reader(), **options)
        return onnx.load(target)


@contextlib.contextmanager
def without_advice() -> Iterator[None]:
    """Silence the quantizer's advice: it asks for a preprocessing that our graphs, folded and shape-inferred, do not need."""
    log = logging.getLogger()
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
