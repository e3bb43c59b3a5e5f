"""SimMIM as a model family: from its checkpoint to graphs, pipelines, labels and samples."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from simmim_export.models.family import LoadOptions, SourceModel
from simmim_export.models.simmim.parts import require_checkpoint
from simmim_export.spec import Similarity


class SimMIMFamily:
    """The model of the source article, as ``simmim-train`` writes it."""

    name = "simmim"

    def recognize(self, path: Path) -> None:
        """Accept any file, and a folder with a checkpoint.json; :meth:`load` says what is wrong with one."""
        require_checkpoint(path)

    def load(self, path: Path, options: LoadOptions) -> SourceModel:
        options.refuse("a checkpoint of simmim-train", "answers", "image_size")
        from simmim_export.models.simmim.checkpoint import build, load
        from simmim_export.models.simmim.graphs import STACKED, graphs, pipelines

        checkpoint = load(path)
        model = build(checkpoint, path)
        preprocessing = {name: checkpoint.preprocessing[name] for name in ("image", "text")}
        if checkpoint.config.frames:
            preprocessing["clip"] = {"stacked": STACKED}
        return SourceModel(
            config=asdict(checkpoint.config),
            graphs=graphs(model, options.max_batch, attention=options.attention),
            pipelines=pipelines(model),
            preprocessing=preprocessing,
            tokenizer=checkpoint.tokenizer,
            labels={name: tuple(checkpoint.labels[name]) for name in checkpoint.config.heads},
            images=checkpoint.samples["pixels"].numpy(),
            texts=tuple(checkpoint.samples["texts"]),
            similarity=Similarity(scale=model.similarity_scale()),
            evidence=checkpoint.evidence.numpy().tobytes(),
            metrics=checkpoint.metrics,
            provenance=checkpoint.provenance,
        )
