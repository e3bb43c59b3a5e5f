"""How close the INT8 variants of an image encoder are to FP32 on images that they were not calibrated on.

    python -P tests/programs/image_tower.py BUNDLE

BUNDLE carries evidence. Its first 128 images calibrate; up to 512 others judge, in ONNX Runtime.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx

from simmim_export.bundle import Bundle
from simmim_export.precision.calibration import MOST
from simmim_export.precision.int8_dot import Int8ForDotProducts
from simmim_export.precision.int8_u8 import Int8ForCpu
from simmim_export.precision.measure import run
from simmim_export.proof.examine import require_evidence
from simmim_export.spec import Variant

JUDGES = 512


def cosines(exact: np.ndarray, rounded: np.ndarray) -> np.ndarray:
    """The cosine of each pair of rows [.., D]."""
    exact, rounded = exact.astype(np.float64), rounded.astype(np.float64)
    lengths = np.linalg.norm(exact, axis=-1) * np.linalg.norm(rounded, axis=-1)
    return (exact * rounded).sum(axis=-1) / lengths


def main(path: Path) -> None:
    bundle = Bundle.open(path)
    spec = bundle.manifest.graph("image_encoder")
    images = np.concatenate(list(require_evidence(bundle).images.values()))
    feeds = [{spec.inputs[0].name: image[None]} for image in images[: MOST + JUDGES]]
    names = [tensor.name for tensor in spec.outputs]
    model = onnx.load(path / bundle.artifact("image_encoder", Variant.FP32).path)
    exact = list(run(model, feeds[MOST:], names))
    for kind in (Int8ForCpu, Int8ForDotProducts):
        rounded = list(run(kind(feeds[:MOST])(model), feeds[MOST:], names))
        for name in names:
            figures = cosines(*(np.concatenate([tensors[name] for tensors in each]) for each in (exact, rounded)))
            print(f"{kind.variant:9} {name:13} mean {figures.mean():.5f}  least {figures.min():.5f}  of {figures.size}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
