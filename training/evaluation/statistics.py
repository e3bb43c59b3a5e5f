"""Figures with their intervals and controls, and the batches that they are measured on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
from tokenizers import Tokenizer

from simmim_export.models.simmim.model import SimMIM
from simmim_export.training.data.base import Data

SCENES = 1024
BATCH = 64
# Scenes whose questions the question-only control learns from.
CONTROL_SCENES = 8192

# What each control is, for whoever reads the checkpoint.
CONTROLS = {
    "question_only": "majority answer of the exact text (else of its family, else of all) among the questions of "
    f"{CONTROL_SCENES} training scenes",
    "shuffled_image": f"the model itself, every question asked about another image of its batch of {BATCH}, never one that "
    "is asked the same and has the same answer",
    "image_only": f"the model itself, every question replaced by a different one of its batch of {BATCH}, of another image "
    "where there is one",
    "shuffled_frames": "the model itself, the frames of every clip in another order",
    "single_frame": "the model itself, every frame replaced by the middle one",
    "majority": "the class that is most frequent in training",
}
# Why a control has nothing to show a model for some of its texts or clips.
IMPOSSIBLE = {
    "shuffled_image": "no other image of their batch is known to have another answer to them",
    "image_only": "their batch asks nothing else",
    "shuffled_frames": "their frames are all alike",
    "single_frame": "their frames are all alike",
}
# The share of all texts or clips that a control must be measured on; a figure on fewer says nothing about all of them.
LEAST_SHARE = 0.5

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
        self._possible: dict[str, list[np.ndarray]] = {}

    def add(self, name: str, right: np.ndarray, possible: np.ndarray | None = None) -> None:
        """Add one batch of hits (or scores) of ``name``: "model" or a control.

        ``possible`` (bool, one for each hit) says where the control could be shown something else than the model; the hits
        elsewhere are not counted. Without it all are.
        """
        hits = np.asarray(right, np.float64).ravel()
        self._parts.setdefault(name, []).append(hits)
        self._possible.setdefault(name, []).append(np.ones(len(hits), bool) if possible is None else possible)

    def of(self, name: str) -> np.ndarray:
        """All of ``name``'s hits."""
        return np.concatenate(self._parts[name])

    def figures(self) -> dict[str, Any]:
        """The model's accuracy, and under ``controls`` that of every control, as :meth:`control` gives it."""
        return {
            **accuracy(self.of("model")),
            "controls": {name: self.control(name) for name in self._parts if name != "model"},
        }

    def control(self, name: str) -> dict[str, Any]:
        """The accuracy of a control and what it ``is``; or, measured on fewer than LEAST_SHARE of all, why it is
        ``not_measurable``. Measured on fewer than all it also has ``model``, the model's accuracy on the same ones."""
        possible = np.concatenate(self._possible[name])
        missing = int((~possible).sum())
        if possible.sum() < max(1.0, LEAST_SHARE * len(possible)):
            return {"not_measurable": f"{missing} of {len(possible)}: {IMPOSSIBLE[name]}", "is": CONTROLS[name]}
        row = accuracy(self.of(name)[possible]) | {"is": CONTROLS[name]}
        return row | ({"model": float(self.of("model")[possible].mean())} if missing else {})


def batches(scenes: int, limit: int | None, what: str, watch: Watch) -> Iterator[tuple[int, int]]:
    """(number, how many of it to keep) of the batches that hold ``scenes``, or ``limit`` if there are no more.

    ``watch`` is told how many scenes are done, of how many.
    """
    scenes = scenes if limit is None else min(scenes, limit)
    for index in range(math.ceil(scenes / BATCH)):
        watch(f"evaluate {what}, scene {index * BATCH} of {scenes}", index * BATCH, scenes)
        yield index, min(BATCH, scenes - index * BATCH)


def untrained() -> dict[str, Any]:
    """The metrics of a head that was never trained."""
    return {"untrained": True}
