"""What an export starts from, graphs in PyTorch or ONNX files, and the sessions that compute its reference outputs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

from simmim_export.bundle.onnx_file import read_graph
from simmim_export.engines import require_engine
from simmim_export.engines.base import Session
from simmim_export.engines.torch import TorchSession
from simmim_export.models.family import Graph, ModelDescription, SourceModel
from simmim_export.spec import GraphSpec, Precision, Reference
from simmim_export.system.files import digest


@dataclass(frozen=True)
class OnnxGraph:
    """An FP32 file that a bundle takes as it is, and its spec. ONNX Runtime computes the reference outputs."""

    path: Path
    spec: GraphSpec


@dataclass(frozen=True, kw_only=True)
class AdoptedModel(ModelDescription):
    """A model that came as ONNX files. ``graphs`` are in an order in which they can run."""

    graphs: Mapping[str, OnnxGraph]


AnyGraph: TypeAlias = Graph | OnnxGraph
AnyModel: TypeAlias = SourceModel | AdoptedModel


def reference_of(model: AnyModel) -> Reference:
    """What computes the reference outputs of ``model``."""
    return Reference.ONNXRUNTIME if isinstance(model, AdoptedModel) else Reference.PYTORCH


def reference_session(graph: AnyGraph) -> Session:
    """A session that computes the reference outputs of ``graph`` in FP32.

    Raise :class:`BundleError` for a file that ONNX Runtime refuses, and :class:`EngineUnavailable` if it is not installed.
    """
    if isinstance(graph, OnnxGraph):
        return require_engine("ort").open(graph.path, graph.spec, precision=Precision.FP32)
    return TorchSession(graph.module, graph.spec)


def write_fp32(graph: AnyGraph, path: Path, *, opset: int) -> None:
    """Write the FP32 file of ``graph`` to ``path``: traced in ``opset`` from PyTorch, or copied. Raise as
    :func:`simmim_export.export.onnx.trace` does."""
    if isinstance(graph, OnnxGraph):
        shutil.copyfile(graph.path, path)
        return
    # PyTorch takes seconds to import, and an adopted model needs none.
    from simmim_export.export.onnx import trace

    trace(graph, path, opset=opset)


def parameters_of(graph: AnyGraph) -> int:
    """How many numbers the weights of ``graph`` have."""
    if isinstance(graph, OnnxGraph):
        return graph.path.stat().st_size // np.dtype(np.float32).itemsize
    return sum(parameter.numel() for parameter in graph.module.parameters())


def weights_of(graph: AnyGraph) -> Iterator[tuple[str, bytes]]:
    """The weights of ``graph`` with their names; of a file its digest, which covers them."""
    if isinstance(graph, OnnxGraph):
        yield "file", digest(graph.path).encode()
        return
    for key, tensor in sorted(graph.module.state_dict().items()):
        yield key, tensor.contiguous().numpy().tobytes()


def opset_of(graph: OnnxGraph) -> int:
    """The opset of the file of ``graph``."""
    return read_graph(graph.path).opset
