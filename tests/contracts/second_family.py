"""A second model family, as a package of its own would add it: other graphs, names, axes, pipelines and checkpoint files."""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

from simmim_export.errors import CheckpointError
from simmim_export.models.family import Graph, LoadOptions, SourceModel
from simmim_export.models.weights import check_state
from simmim_export.spec import Axis, GraphSpec, Kind, Pipeline, TensorSpec, Verb

SIDE, WIDTH, LONGEST, ANSWERS = 32, 64, 12, ("no", "yes")
PHOTO = TensorSpec("photo", "uint8", ("batch", SIDE, SIDE, 3), Kind.IMAGE)
WORDS = TensorSpec("words", "int64", ("batch", "length"), Kind.TOKEN_IDS)
REAL = TensorSpec("real", "int64", ("batch", "length"), Kind.TEXT_MASK)
LOOK, SENSE = (TensorSpec(name, "float32", ("batch", WIDTH), Kind.EMBEDDING) for name in ("look", "sense"))
VERDICT = TensorSpec("verdict", "float32", ("batch", len(ANSWERS)), Kind.LOGITS)
PIPELINES = (
    Pipeline("see", ("eye",), ("look",), Verb.EMBED_IMAGE),
    Pipeline("hear", ("ear",), ("sense",), Verb.EMBED_TEXT),
    Pipeline("decide", ("judge",), ("verdict",), Verb.ANSWER, "decision"),
)


def modules(vocabulary: int):
    """The graphs' PyTorch modules by name, with random weights for a ``vocabulary`` of so many tokens."""
    import torch
    from torch import nn
    from torch.nn.functional import normalize

    class Eye(nn.Sequential):
        def forward(self, photo):
            return normalize(super().forward(photo.permute(0, 3, 1, 2).float() / 255).mean((2, 3)), dim=-1)

    class Ear(nn.Sequential):
        def forward(self, words, real):
            return normalize((super().forward(words) * real.float().unsqueeze(-1)).sum(1), dim=-1)

    class Judge(nn.Sequential):
        def forward(self, photo, words, real):
            patches, asked = self[0](photo.permute(0, 3, 1, 2).float() / 255).flatten(2), self[1](words)
            seen = torch.softmax(asked @ patches / WIDTH**0.5, dim=-1) @ patches.transpose(1, 2)
            return (self[2](seen * asked) * real.float().unsqueeze(-1)).sum(1)

    eye = Eye(nn.Conv2d(3, WIDTH, 4, 4), nn.ReLU(), nn.Conv2d(WIDTH, WIDTH, 3))
    ear = Ear(nn.Embedding(vocabulary, 256), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, WIDTH))
    end = nn.Sequential(nn.Linear(WIDTH, 256), nn.ReLU(), nn.Linear(256, len(ANSWERS)))
    judge = Judge(nn.Conv2d(3, WIDTH, 8, 8), nn.Embedding(vocabulary, WIDTH), end)
    return nn.ModuleDict({"eye": eye, "ear": ear, "judge": judge}).eval()


class SecondFamily:
    """Its checkpoint is a safetensors file: weights, images and evidence as tensors, the rest as JSON in the metadata."""

    name = "second"

    def recognize(self, path: Path) -> None:
        try:
            with safe_open(path, "np") as file:
                metadata = file.metadata() or {}
        except (OSError, SafetensorError):
            metadata = {}
        if metadata.get("format") != self.name:
            raise CheckpointError("not a checkpoint of the second family", where=path)

    def load(self, path: Path, options: LoadOptions) -> SourceModel:
        with safe_open(path, "pt") as file:
            about = json.loads(file.metadata()["about"])
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - a file cannot be iterated
        images, evidence = state.pop("images").numpy(), state.pop("evidence").numpy().tobytes()
        parts = modules(about["config"]["vocabulary"])
        check_state(state, parts.state_dict(), where=path, fix="copy it again, whole")
        parts.load_state_dict(state)
        axes = Axis("batch", 1, options.max_batch), Axis("length", 2, LONGEST)
        specs = [GraphSpec("eye", (PHOTO,), (LOOK,), axes[:1]), GraphSpec("ear", (WORDS, REAL), (SENSE,), axes)]
        specs.append(GraphSpec("judge", (PHOTO, WORDS, REAL), (VERDICT,), axes))
        graphs = {spec.name: Graph(parts[spec.name], spec) for spec in specs}
        return SourceModel(graphs=graphs, pipelines=PIPELINES, images=images, evidence=evidence, **about)
