"""Figures with their intervals and controls. Knows numbers; must not know models or data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
from tokenizers import Tokenizer

from simmim_export.models.simmim import SimMIM
from simmim_export.training.data.base import Data

SCENES = 1024
BATCH = 64
# Scenes whose questions the question-only control learns from.
CONTROL_SCENES = 8192

# What each control is, for whoever reads the checkpoint.
CONTROLS = {
    "question_only": "majority answer of the exact text (else of its family, else of all) among the questions of "
    f"{CONTROL_SCENES} training scenes",
    "shuffled_image": f"the model itself, every question asked about another image of its batch of {BATCH}",
    "image_only": f"the model itself, every question replaced by that of another image of its batch of {BATCH}",
    "shuffled_frames": "the model itself, the frames of every clip in random order",
    "single_frame": "the model itself, every frame replaced by the middle one",
    "majority": "the class that is most frequent in training",
}

Watch = Callable[[str, int, int], None]


class Evaluator(Protocol):
    """Measures one head on ``scenes`` images or clips of ``data``."""

    def __call__(
        self, head: str, model: SimMIM, tokenizer: Tokenizer, data: Data, scenes: int, watch: Watch
    ) -> dict[str, Any]:
        """The figures, as a checkpoint keeps them."""
        ...


def wilson(successes: float, n: int) -> tuple[float, float]:
    """95 % interval of a proportion in [0, 1]; Wilson, 1927. For scores between 0 and 1 it is too wide, never too narrow."""
    z = 1.959964
    p, scale = successes / n, 1 + z * z / n
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / scale
    centre = (p + z * z / (2 * n)) / scale
    # At 0 and 1 rounding would leave the figure itself outside.
    return min(max(centre - half, 0.0), p), max(min(centre + half, 1.0), p)


def accuracy(right: np.ndarray) -> dict[str, Any]:
    """``accuracy``, ``n`` and the 95 % ``interval`` of an array of hits, or of scores in [0, 1]."""
    low, high = wilson(float(right.sum()), right.size)
    return {"accuracy": float(right.mean()), "n": int(right.size), "interval": [low, high]}


class Hits:
    """Hits of the model and of each control, batch by batch."""

    def __init__(self) -> None:
        self._parts: dict[str, list[np.ndarray]] = {}

    def add(self, name: str, right: np.ndarray) -> None:
        """Note one batch of hits (or scores) of ``name``: "model" or a control."""
        self._parts.setdefault(name, []).append(np.asarray(right, np.float64).ravel())

    def of(self, name: str) -> np.ndarray:
        """All of ``name``'s."""
        return np.concatenate(self._parts[name])

    def figures(self) -> dict[str, Any]:
        """The model's accuracy, and under ``controls`` that of every control with what it is."""
        controls = {name: accuracy(self.of(name)) | {"is": CONTROLS[name]} for name in self._parts if name != "model"}
        return {**accuracy(self.of("model")), "controls": controls}


def batches(scenes: int, limit: int | None, what: str, watch: Watch) -> Iterator[tuple[int, int]]:
    """(number, how many of it to keep) of the batches that hold ``scenes``, or ``limit`` if there are no more."""
    scenes = scenes if limit is None else min(scenes, limit)
    count = math.ceil(scenes / BATCH)
    for index in range(count):
        watch(f"evaluate {what}", index, count)
        yield index, min(BATCH, scenes - index * BATCH)


def untrained() -> dict[str, Any]:
    """The metrics of a head that was never trained."""
    return {"untrained": True}
