"""A checkpoint to a bundle: trace every graph, prove it in ONNX Runtime against PyTorch, publish.

Knows the order of the steps. Must not know how any of them is done.
"""

from __future__ import annotations

import hashlib
import platform
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from simmim_export.bundle import Artifact, Bundle, Manifest, Staging
from simmim_export.engines import require_engine
from simmim_export.engines.base import Engine
from simmim_export.errors import ShortcutLearned, UsageError
from simmim_export.export.golden import make_golden
from simmim_export.export.onnx import OPSET, trace
from simmim_export.files import digest
from simmim_export.models.checkpoint import Checkpoint, build, load
from simmim_export.models.graphs import graphs, pipelines
from simmim_export.parity import Golden, ParityReport, compare
from simmim_export.precision.calibration import Calibration, calibrate
from simmim_export.precision.int8 import VARIANT, to_int8
from simmim_export.spec import GraphSpec, Precision
from simmim_export.version import __version__

PACKAGES = ("torch", "torchvision", "transformers", "onnx", "onnxruntime")
MAX_BATCH = 8

Progress = Callable[[str, int, int], None]


def _quiet(step: str, done: int, total: int) -> None:
    """The progress of a caller who does not watch."""


def export_bundle(
    checkpoint_path: Path,
    output: Path,
    *,
    overwrite: bool = False,
    opset: int = OPSET,
    max_batch: int = MAX_BATCH,
    maps: bool = False,
    int8: bool = False,
    calibration: Path | None = None,
    progress: Progress = _quiet,
) -> tuple[Bundle, list[ParityReport]]:
    """Export every graph of a checkpoint, and return the bundle with a parity report for each graph and precision.

    With ``maps`` the fusion also gives where each word looked. With ``int8`` every graph is written in INT8 as well,
    calibrated on the images of the folder ``calibration`` or on the checkpoint's own samples.
    ``progress(step, done, total)`` is called before each step.
    Raises :class:`CheckpointError` for the input, :class:`DataError` for the calibration images, :class:`UsageError` for the
    output, :class:`GateFailed` if a graph is not clean or differs from PyTorch; in every case nothing has been written at
    ``output``.
    """
    if max_batch < 2:
        raise UsageError(f"--max-batch {max_batch} is too small", fix="give 2 or more: a batch of 1 is always included")
    if calibration is not None and not int8:
        raise UsageError("--calibration without a precision that needs it", fix="add --precision int8")
    engine = require_engine("ort")
    with Staging(output, overwrite) as staging:
        progress("load the checkpoint", 0, 1)
        checkpoint = load(checkpoint_path)
        warn_of_shortcuts(checkpoint.metrics)
        model = build(checkpoint, checkpoint_path)
        found = graphs(model, max_batch, maps)
        images = None
        if int8:
            pixels = checkpoint.samples["pixels"].numpy()
            images = calibrate(pixels, calibration, checkpoint.preprocessing["image"])
        total = len(found) + 2
        progress("golden tensors", 0, total)
        golden = make_golden(checkpoint, found, max_batch)
        staging.add("golden.npz", golden.save())
        staging.add("tokenizer.json", checkpoint.tokenizer)
        artifacts, reports = [], []
        for index, (name, graph) in enumerate(found.items()):
            progress(name, index + 1, total)
            relative = f"graphs/{name}.fp32.onnx"
            path = staging.add(relative)
            trace(graph, path, opset)
            wanted = {Precision.FP32: path}
            if images is not None:
                wanted[Precision.INT8] = staging.add(f"graphs/{name}.{VARIANT}.onnx")
                to_int8(path, wanted[Precision.INT8], images)
            for precision, file in wanted.items():
                report = _prove(engine, file, graph.spec, precision, golden)
                reports.append(report)
                variant, relative = engine.variant(precision), str(file.relative_to(staging.root))
                parity = report.summary() | {"engine": engine.name}
                size = file.stat().st_size
                artifacts.append(Artifact(name, variant, relative, digest(file), size, None, precision, {}, parity))
        progress("write the bundle", total - 1, total)
        manifest = Manifest(
            model=asdict(checkpoint.config),
            graphs=tuple(graph.spec for graph in found.values()),
            pipelines=pipelines(model),
            preprocessing=checkpoint.preprocessing,
            labels={
                name: tuple(classes) for name, classes in checkpoint.labels.items() if name in checkpoint.config.heads
            },
            embedding={"dim": checkpoint.config.embed_dim, "digest": embedding_digest(checkpoint)},
            files={},
            artifacts=tuple(artifacts),
            metrics=checkpoint.metrics,
            provenance=provenance(checkpoint_path, checkpoint, opset)
            | ({} if images is None else {"calibration": _describe(images)}),
        )
        return staging.publish(manifest, ("tokenizer.json", "golden.npz")), reports


def _describe(images: Calibration) -> dict[str, object]:
    return {"images": len(images.pixels), "sha256": images.digest, "source": images.source}


def _prove(engine: Engine, path: Path, spec: GraphSpec, precision: Precision, golden: Golden) -> ParityReport:
    session = engine.open(path, spec, precision)
    report = compare(session, spec, golden, precision)
    session.close()
    fix = "report this with the versions that simmim-export doctor prints"
    report.require(spec.name, fix if precision is Precision.FP32 else "leave out --precision int8")
    return report


# A head that is hardly better than it would be blind has learned the questions and not the images.
LEAST_GAP = 0.05


def warn_of_shortcuts(metrics: Mapping[str, Any]) -> None:
    """Warn :class:`ShortcutLearned` of every head that is less than LEAST_GAP (of 1) above its best blind control."""
    for name, found in metrics.items():
        controls = {key: row["accuracy"] for key, row in found.get("controls", {}).items() if "accuracy" in row}
        if "accuracy" not in found or not controls:
            continue
        best = max(controls, key=lambda key: controls[key])
        if found["accuracy"] - controls[best] < LEAST_GAP:
            figures = f"{found['accuracy']:.1%} correct, and {controls[best]:.1%} by {best.replace('_', ' ')}"
            warnings.warn(f"{name}: {figures}: it may not look at its input", ShortcutLearned, stacklevel=3)


def embedding_digest(checkpoint: Checkpoint) -> str:
    """SHA-256 of all that decides an embedding: the towers' weights, the tokenizer, the preprocessing.

    Vectors of different digests live in different spaces and must not be compared.
    """
    found = hashlib.sha256()
    for key in sorted(checkpoint.state):
        if key.startswith(("image_encoder.", "text_encoder.")):
            found.update(key.encode() + checkpoint.state[key].contiguous().numpy().tobytes())
    found.update(checkpoint.tokenizer.encode() + repr(sorted(checkpoint.preprocessing.items())).encode())
    return found.hexdigest()


def provenance(path: Path, checkpoint: Checkpoint, opset: int) -> dict[str, object]:
    """Where a bundle comes from: the checkpoint's digest and history, and the versions that exported it."""
    return {
        "checkpoint_sha256": digest(path),
        "training": checkpoint.provenance,
        "opset": opset,
        "simmim_export": __version__,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
    }
