"""ONNX files as other people export them: float NCHW pixels, int32 or int64 ids, and whatever goes wrong with such files."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from support import word_tokenizer
from torch import nn
from translations import keep_translations

SIDE, LONGEST, WIDTH, DIM = 32, 12, 32, 16
MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
WORDS = 40


class Vision(nn.Module):
    """pixel_values float32 [batch, 3, SIDE, SIDE] -> image_embeds [batch, DIM], not of unit length; and logits of two classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, WIDTH, 4, 4, bias=False)
        self.norm = nn.BatchNorm2d(WIDTH)
        self.norm.running_mean.uniform_(-0.1, 0.1)
        self.norm.running_var.uniform_(0.5, 1.5)
        self.second = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.end, self.head = nn.Linear(WIDTH, DIM), nn.Linear(WIDTH, 2)

    def forward(self, pixel_values):
        hidden = torch.relu(self.second(torch.relu(self.norm(self.conv(pixel_values)))))
        pooled = torch.flatten(nn.functional.adaptive_avg_pool2d(hidden, 1), 1)
        return self.end(pooled), self.head(pooled)


class Text(nn.Module):
    """input_ids, attention_mask and token_type_ids [batch, n] -> last_hidden_state [batch, n, DIM]."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, WIDTH), nn.Embedding(LONGEST, WIDTH)
        self.types = nn.Embedding(2, WIDTH)
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.norm, self.end = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, DIM)

    def forward(self, input_ids, attention_mask, token_type_ids):
        place = torch.arange(input_ids.shape[1], device=input_ids.device)
        hidden = self.norm(self.words(input_ids) + self.places(place) + self.types(token_type_ids))
        away = (1.0 - attention_mask.float())[:, None, :] * -1e4
        seen = torch.softmax(self.query(hidden) @ self.key(hidden).transpose(1, 2) / WIDTH**0.5 + away, dim=-1)
        return self.end(hidden + seen @ self.value(hidden))


def export(
    module: nn.Module,
    path: Path,
    inputs: dict[str, torch.Tensor],
    outputs: tuple[str, ...],
    *,
    axes: tuple[int, ...] = (0,),
    opset: int = 20,
    external: bool = False,
) -> Path:
    """Export as people do. ``axes`` are the dynamic ones of every input."""
    keep_translations()
    names = {0: "batch", 1: "sequence"}
    dims = {axis: torch.export.Dim(names[axis], min=1, max=LONGEST if axis else 64) for axis in axes}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            tuple(inputs.values()),
            str(path),
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=tuple(dims for _ in inputs),
            opset_version=opset,
            dynamo=True,
            external_data=external,
            verbose=False,
        )
    return path


def vision(path: Path, **options) -> Path:
    """vision.onnx: image_embeds and logits of float pixels."""
    torch.manual_seed(0)
    return export(Vision(), path, {"pixel_values": torch.ones(2, 3, SIDE, SIDE)}, ("image_embeds", "logits"), **options)


def text(path: Path, *, dtype: torch.dtype = torch.int64, **options) -> Path:
    """text.onnx: last_hidden_state of ids of ``dtype``."""
    torch.manual_seed(1)
    names = ("input_ids", "attention_mask", "token_type_ids")
    inputs = {name: torch.ones(2, 5, dtype=dtype) for name in names}
    return export(Text(), path, inputs, ("last_hidden_state",), axes=(0, 1), **options)


def folder(path: Path, *, dtype: torch.dtype = torch.int64) -> Path:
    """A folder with vision.onnx, text.onnx, tokenizer.json and the spec of docs/adopt.md."""
    path.mkdir()
    vision(path / "vision.onnx")
    text(path / "text.onnx", dtype=dtype)
    (path / "tokenizer.json").write_text(word_tokenizer())
    return path


def change(path: Path, target: Path, edit) -> Path:
    """``path`` after ``edit(model)``, saved as ``target``."""
    model = onnx.load(path)
    edit(model)
    onnx.save(model, target)
    return target


def by_hand(path: Path, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """All outputs of the original file, in ONNX Runtime without anything of ours."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    types = {"tensor(int32)": np.int32, "tensor(int64)": np.int64, "tensor(float)": np.float32}
    return session.run(None, {one.name: feeds[one.name].astype(types[one.type]) for one in session.get_inputs()})
