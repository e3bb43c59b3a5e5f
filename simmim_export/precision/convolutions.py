"""Convolutions to INT8 with ranges measured on real images. Knows onnxruntime's quantiser; must not know bundles.

Activations are U8 and asymmetric, weights S8 and per channel: what CPU kernels take. Only convolutions are quantised: with
Add, Relu and MaxPool as well ONNX Runtime was slower (7.5 ms instead of 6.7 for ResNet-18) and OpenVINO hardly faster.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx


def quantize_convolutions(source: Path, target: Path, pixels: np.ndarray) -> list[str]:
    """Write the quantised form of the image graph ``source`` to ``target`` and return the convolutions' names.

    ``pixels``: uint8 [n, height, width, 3]; the range of an activation is the least and the greatest over all of them.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.images = iter(pixels)

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(self.images, None)
            return None if image is None else {"pixels": image[None]}

    with _quiet():
        quantize_static(
            source,
            target,
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
    return [node.name for node in onnx.load(target).graph.node if node.op_type == "Conv"]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    # The quantiser advises a preprocessing that our graphs, folded and shape-inferred, do not need.
    log = logging.getLogger()
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
