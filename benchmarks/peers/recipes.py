"""Makes the file that a peer runs: exports the module of a graph, and quantizes it, with other people's tools.

A :class:`Maker` is served by a :class:`~simmim_export.system.workers.Worker`, so that a tool that fails or prints cannot hurt the
measurement.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from simmim_export.benchmarks.peers.contestants import OPENVINO, PLAIN
from simmim_export.benchmarks.peers.inputs import read_feeds
from simmim_export.errors import UsageError
from simmim_export.models.family import Graph, LoadOptions, family_of
from simmim_export.precision import peers
from simmim_export.precision.calibration import distinct_images
from simmim_export.spec import Kind
from simmim_export.system.telemetry import without_telemetry

_TRACED_ROWS = 2
# At most so many images calibrate.
_IMAGES = 64
# Our recipes in precision/peers.py for a plain graph, by the name that the table shows.
_QUANTIZED = {"onnxruntime static": "static", "onnxruntime dynamic": "dynamic", "nncf": "nncf"}
ONNX, IR = "onnx", "xml"


class Maker:
    """Makes the files of one graph of a checkpoint."""

    def __init__(self) -> None:
        self._graph: Graph
        self._folder: Path
        self._calibration: Sequence[Mapping[str, np.ndarray]]

    def open(self, checkpoint: Path, graph: str, *, inputs: Path, folder: Path) -> None:
        """Load the module. ``inputs`` holds the feeds that calibrate a text encoder; the checkpoint's own images calibrate an
        image encoder."""
        source = family_of(checkpoint).load(checkpoint, LoadOptions(max_batch=8))
        self._graph, self._folder = source.graphs[graph], folder
        self._calibration = read_feeds(inputs, "calibration")
        if not self._calibration:
            (image,) = (tensor.name for tensor in self._graph.spec.inputs if tensor.kind is Kind.IMAGE)
            self._calibration = [{image: one[None]} for one in distinct_images(source.images)[:_IMAGES]]
        # Both attentions compute the same. Ours is written for export: a peer gets the one that its users get.
        for module in self._graph.module.modules():
            config = getattr(module, "config", None)
            if config is not None and hasattr(config, "_attn_implementation"):
                config._attn_implementation = "sdpa"

    def make(self, recipe: str, engine: str) -> Path:
        """The file for ``engine`` that ``recipe`` makes. Whatever the tool raises passes through."""
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        # The tools have progress bars of their own, which would break into ours.
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            if recipe == PLAIN or recipe in _QUANTIZED:
                return self._plain(recipe)
            return self._exported(recipe.partition(" ")[2], to_ir=engine == OPENVINO)

    def _plain(self, recipe: str) -> Path:
        """torch.onnx.export with its defaults, and one of the quantizers in precision/peers.py."""
        import torch

        plain = self._folder / f"{PLAIN}.{ONNX}"
        if not plain.exists():
            spec = self._graph.spec
            axes = {axis.name: torch.export.Dim(axis.name, min=axis.minimum, max=axis.maximum) for axis in spec.axes}
            shapes = [{i: axes[n] for i, n in enumerate(t.shape) if isinstance(n, str)} for t in spec.inputs]
            torch.onnx.export(
                self._graph.module,
                tuple(self._traced().values()),
                plain,
                dynamo=True,
                dynamic_shapes=tuple(shapes),
                external_data=False,
                verbose=False,
                input_names=[tensor.name for tensor in spec.inputs],
                output_names=[tensor.name for tensor in spec.outputs],
            )
        if recipe == PLAIN:
            return plain
        target = self._folder / f"{_QUANTIZED[recipe]}.{ONNX}"
        peers.quantize(plain, target, recipe=_QUANTIZED[recipe], feeds=self._calibration)
        return target

    def _exported(self, quantizer: str, *, to_ir: bool) -> Path:
        """transformers.exporters: the ONNX exporter with its fusions for ONNX Runtime on a CPU, or that for OpenVINO."""
        with without_telemetry("transformers", "openvino", "onnxruntime", "nncf"):
            from transformers import exporters

            chosen = self._quantizer(exporters, quantizer, to_ir=to_ir)
            if to_ir:
                config: Any = exporters.OpenVINOConfig(dynamic=True, quantizer=chosen)
                exporter: Any = exporters.OpenVINOExporter()
            else:
                # The quantizers read a graph without the fusions. ONNX Runtime makes its own when it opens the result.
                fusions = None if chosen is not None else "cpu"
                config = exporters.OnnxConfig(dynamic=True, quantizer=chosen, ort_fusions=fusions)
                exporter = exporters.OnnxExporter()
            program = exporter.export(self._graph.module, self._traced(), config).program
            kind = IR if to_ir else ONNX
            target = self._folder / f"exporters-{kind}-{quantizer or 'fp32'}.{kind}"
            exporter.save_program(program, target)
        return target

    def _quantizer(self, exporters: Any, name: str, *, to_ir: bool) -> Any:
        """The quantizer called ``name``, with per-channel weights where that is an option; None for "" (FP32)."""
        import torch

        samples = [{key: torch.from_numpy(array) for key, array in feed.items()} for feed in self._calibration]
        match name:
            case "":
                return None
            case "static":
                config = exporters.OnnxRuntimeStaticConfig(per_channel=True)
                return exporters.OnnxRuntimeQuantizer(config, calibration_dataset=samples)
            case "dynamic":
                return exporters.OnnxRuntimeQuantizer(exporters.OnnxRuntimeDynamicConfig(per_channel=True))
            case "nncf":
                config = exporters.NNCFQuantizationConfig(subset_size=len(samples))
                quantizer = exporters.NNCFOpenVINOQuantizer if to_ir else exporters.NNCFOnnxQuantizer
                return quantizer(config, calibration_dataset=samples)
        names = "static, dynamic or nncf"
        raise UsageError(f"transformers.exporters have no quantizer {name!r}", fix=f"choose {names}")

    def _traced(self) -> dict[str, Any]:
        """The inputs that are traced: a real one in two rows, because an axis of size 1 would become a constant."""
        import torch

        sample, traced = self._calibration[0], {}
        for tensor in self._graph.spec.inputs:
            array = np.repeat(sample[tensor.name], _TRACED_ROWS, axis=0)
            traced[tensor.name] = torch.from_numpy(array)
        return traced
