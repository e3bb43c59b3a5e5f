"""onnxruntime's quantiser over real feeds. Knows its calibration protocol; must not know which nodes, or why."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from simmim_export.system.telemetry import without_telemetry

Feeds = Sequence[Mapping[str, np.ndarray]]


def quantize(source: Path | onnx.ModelProto, target: Path, feeds: Feeds, **options: Any) -> None:
    """Write the quantised form of ``source`` to ``target``: ``quantize_static`` with ranges measured on ``feeds``."""
    with without_telemetry("onnxruntime"):
        from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.feeds = iter(feeds)

        def get_next(self) -> dict[str, np.ndarray] | None:
            found = next(self.feeds, None)
            return None if found is None else dict(found)

    with quiet():
        quantize_static(source, target, Reader(), **options)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the quantiser's advice: it asks for a preprocessing that our graphs, folded and shape-inferred, do not need."""
    log = logging.getLogger()
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
