"""A second model family, as another package would add it: other graphs, tensor names, axes, pipelines and checkpoint files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from simmim_export.errors import CheckpointError
from simmim_export.models.family import Graph, SourceModel
from simmim_export.models.weights import check_state
from simmim_export.spec import Axis, GraphSpec, Kind, Pipeline, TensorSpec, Verb

SIDE, WIDTH, LONGEST, ANSWERS = 32, 32, 12, ("no", "yes")
PHOTO = TensorSpec("photo", "uint8", ("batch", SIDE, SIDE, 3), Kind.IMAGE)
WORDS = TensorSpec("words", "int64", ("batch", "length"), Kind.TOKEN_IDS)
REAL = TensorSpec("real", "int64", ("batch", "length"), Kind.TEXT_MASK)
LOOK, SENSE = (TensorSpec(name, "float32", ("batch", WIDTH), Kind.EMBEDDING) for name in ("look", "sense"))
VERDICT = TensorSpec("verdict", "float32", ("batch", len(ANSWERS)), Kind.LOGITS)


def modules(vocabulary: int) -> dict[str, Any]:
    """The PyTorch module of each graph, with random weights."""
    import torch
    from torch import nn
    from torch.nn.functional import normalize

    class Eye(nn.Sequential):
        def forward(self, photo: Any) -> Any:
            return normalize(super().forward(photo.permute(0, 3, 1, 2).float() / 255).mean((2, 3)), dim=-1)

    class Ear(nn.Sequential):
        def forward(self, words: Any, real: Any) -> Any:
            return normalize((super().forward(words) * real.float().unsqueeze(-1)).sum(1), dim=-1)

    class Judge(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.see, self.read = nn.Conv2d(3, WIDTH, 8, 8), nn.Embedding(vocabulary, WIDTH)
            self.decide = nn.Sequential(nn.Linear(WIDTH, 64), nn.ReLU(), nn.Linear(64, len(ANSWERS)))

        def forward(self, photo: Any, words: Any, real: Any) -> Any:
            patches = self.see(photo.permute(0, 3, 1, 2).float() / 255).flatten(2)
            asked = self.read(words)
            seen = torch.softmax(asked @ patches / WIDTH**0.5, dim=-1) @ patches.transpose(1, 2)
            return self.decide((seen * asked * real.float().unsqueeze(-1)).sum(1) / 4)

    eye = Eye(nn.Conv2d(3, WIDTH, 4, 4), nn.ReLU(), nn.Conv2d(WIDTH, WIDTH, 3))
    ear = Ear(nn.Embedding(vocabulary, WIDTH), nn.Linear(WIDTH, WIDTH))
    return {"eye": eye.eval(), "ear": ear.eval(), "judge": Judge().eval()}


class SecondFamily:
    """Its checkpoint is one safetensors file: weights, samples and evidence as tensors, everything else in its metadata."""

    name = "second"

    def recognize(self, path: Path) -> None:
        try:
            with safe_open(path, "np") as file:
                metadata = file.metadata() or {}
        except (OSError, SafetensorError):
            metadata = {}
        if metadata.get("format") != self.name:
            raise CheckpointError("not a checkpoint of the second family", where=path)

    def load(self, path: Path, *, max_batch: int, attention: bool) -> SourceModel:
        from torch import nn

        with safe_open(path, "pt") as file:
            about = json.loads(file.metadata()["about"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        images, evidence = tensors.pop("samples").numpy(), tensors.pop("evidence").numpy().tobytes()
        parts = modules(about["vocabulary"])
        check_state(tensors, nn.ModuleDict(parts).state_dict(), path)
        nn.ModuleDict(parts).load_state_dict(tensors)
        batch, length = Axis("batch", 1, max_batch), Axis("length", 2, LONGEST)
        specs = (
            GraphSpec("eye", (PHOTO,), (LOOK,), (batch,)),
            GraphSpec("ear", (WORDS, REAL), (SENSE,), (batch, length)),
        )
        specs += (GraphSpec("judge", (PHOTO, WORDS, REAL), (VERDICT,), (batch, length)),)
        image = {"height": SIDE, "width": SIDE, "resize": "squash", "interpolation": "bilinear"}
        return SourceModel(
            config={"preset": "second"},
            graphs={spec.name: Graph(parts[spec.name], spec) for spec in specs},
            pipelines=(
                Pipeline("see", ("eye",), ("look",), Verb.EMBED_IMAGE),
                Pipeline("hear", ("ear",), ("sense",), Verb.EMBED_TEXT),
                Pipeline("decide", ("judge",), ("verdict",), Verb.ANSWER, "decision"),
            ),
            preprocessing={"image": image, "text": {"max_length": LONGEST}},
            tokenizer=about["tokenizer"],
            labels={"decision": ANSWERS},
            images=images,
            texts=tuple(about["texts"]),
            evidence=evidence,
        )
