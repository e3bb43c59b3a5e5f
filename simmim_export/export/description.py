"""What the manifest says about a model before any file exists: its graphs, labels and embeddings, and where it comes from."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from simmim_export.bundle import Manifest
from simmim_export.engines import versions
from simmim_export.errors import CheckpointError
from simmim_export.export.origin import AdoptedModel, AnyModel, reference_of, weights_of
from simmim_export.spec import Kind, Verb
from simmim_export.system.files import digest, reading
from simmim_export.version import __version__


def describe(model: AnyModel, family: str, *, provenance: Mapping[str, object]) -> Manifest:
    """The manifest of ``model`` without files and artifacts."""
    return Manifest(
        family=family,
        model=model.config,
        graphs=tuple(graph.spec for graph in model.graphs.values()),
        pipelines=model.pipelines,
        preprocessing=model.preprocessing,
        labels=model.labels,
        embedding={"dim": embedding_channels(model), "digest": embedding_digest(model)},
        files={},
        artifacts=(),
        metrics=model.metrics,
        similarity=model.similarity,
        provenance=provenance,
    )


def embedding_channels(model: AnyModel) -> int:
    """How many channels the model's embeddings have; 0 if it gives none."""
    for graph in model.graphs.values():
        for tensor in graph.spec.outputs:
            if tensor.kind is Kind.EMBEDDING and isinstance(tensor.shape[-1], int):
                return tensor.shape[-1]
    return 0


def embedding_digest(model: AnyModel) -> str:
    """SHA-256 of everything that decides an embedding: the weights behind it, the tokenizer and the preprocessing.

    Vectors with different digests live in different spaces and must not be compared.
    """
    content = hashlib.sha256(model.tokenizer.encode() + repr(sorted(model.preprocessing.items())).encode())
    for pipeline in model.pipelines:
        if pipeline.verb in (Verb.EMBED_IMAGE, Verb.EMBED_TEXT):
            for graph in pipeline.graphs:
                for key, weights in weights_of(model.graphs[graph]):
                    content.update(f"{graph} {key}".encode() + weights)
    return content.hexdigest()


def provenance(checkpoint: Path, model: AnyModel, *, opset: int) -> dict[str, object]:
    """Where a bundle comes from: the digest and history of its checkpoint, or of the ONNX files that were adopted, and the
    versions of the packages that exported it.

    Raise :class:`CheckpointError` for a folder with a file that cannot be read.
    """
    with reading(checkpoint, CheckpointError):
        sha256 = digest(checkpoint)
    adopted = isinstance(model, AdoptedModel)
    packages = {"onnx": version("onnx"), **({} if adopted else versions("torch")), **versions("ort")}
    return {
        "checkpoint_sha256": sha256,
        "training": model.provenance,
        **({"reference": reference_of(model)} if adopted else {}),
        "opset": opset,
        "simmim_export": __version__,
        "python": platform.python_version(),
        "packages": {name: number for name, number in packages.items() if name != "simmim-export"},
    }
