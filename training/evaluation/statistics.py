"""Figures with their intervals and controls, and the batches that they are measured on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from tokenizers import Tokenizer

from simmim_export.models.simmim.model import SimMIM
from simmim_export.system.watch import Watch
from simmim_export.training.data.base import Data
from simmim_export.training.progress import Countdown

BATCH = 64
# Number of training images whose questions the question-only control learns from.
CONTROL_SCENES = 8192

# What each control is; stored in the checkpoint.
CONTROLS = {
    "question_only": f"the most frequent answer to the same question (else to its family, else of all) in {CONTROL_SCENES} "
    "training scenes",
    "shuffled_image": f"the model, asked every question about another image of its batch of {BATCH}, never one with the same "
    "question and the same answer",
    "image_only": f"the model, asked a different question of its batch of {BATCH}, of another image if possible",
    "shuffled_frames": "the model, with the frames of every clip in another order",
    "single_frame": "the model, with every frame replaced by the middle one",
    "majority": "the most frequent class in training",
}
# Why a control may have nothing different to show the model.
IMPOSSIBLE = {
    "shuffled_image": "no other image of the batch is known to have another answer",
    "image_only": "the batch asks nothing else",
    "shuffled_frames": "all frames are alike",
    "single_frame": "all frames are alike",
}
# A control must cover at least this share of all texts or clips; a figure on fewer would say nothing about all of them.
LEAST_SHARE = 0.5


class Evaluator(Protocol):
    """Measures one head on ``scenes`` images or clips of ``data``."""

    def __call__(
        self, head: str, model: SimMIM, *, tokenizer: Tokenizer, data: Data, scenes: int, watch: Watch
    ) -> dict[str, Any]:
        """The figures, as a checkpoint stores them."""
        ...


def wilson(successes: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a proportion in [0, 1] (Wilson, 1927). For scores between 0 and 1 it is too wide, never too
    narrow.

    scipy's version takes only whole numbers of successes; ours also takes sums of scores.
    """
    z = 1.959964
    p, scale = successes / n, 1 + z * z / n
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / scale
    center = (p + z * z / (2 * n)) / scale
    # Without this, rounding would exclude the figure itself at 0 and 1.
    return min(max(center - half, 0.0), p), max(min(center + half, 1.0), p)


def accuracy(right: np.ndarray) -> dict[str, Any]:
    """``accuracy``, ``n`` and the 95 % ``interval`` of an array of hits, or of scores in [0, 1]."""
    low, high = wilson(float(right.sum()), right.size)
    return {"accuracy": float(right.mean()), "n": int(right.size), "interval": [low, high]}


class Hits:
    """Collects the hits of the model and of each control, batch by batch."""

    def __init__(self) -> None:
        self._parts: dict[str, list[np.ndarray]] = {}
        self._possible: dict[str, list[np.ndarray]] = {}

    def add(self, name: str, right: np.ndarray, possible: np.ndarray | None = None) -> None:
        """Add a batch of hits (or scores) of ``name``: "model" or a control.

        ``possible`` (bool, one for each hit) says where the control could show the model something different; other
        hits are not counted (None: count all).
        """
        hits = np.asarray(right, np.float64).ravel()
        self._parts.setdefault(name, []).append(hits)
        self._possible.setdefault(name, []).append(np.ones(len(hits), bool) if possible is None else possible)

    def of(self, name: str) -> np.ndarray:
        """All hits of ``name``."""
        return np.concatenate(self._parts[name])

    def figures(self) -> dict[str, Any]:
        """The model's accuracy, and under ``controls`` that of each control, as :meth:`control` gives it."""
        return {
            **accuracy(self.of("model")),
            "controls": {name: self.control(name) for name in self._parts if name != "model"},
        }

    def control(self, name: str) -> dict[str, Any]:
        """The accuracy of a control and what the control ``is``, or why it is ``not_measurable``.

        It is not measurable if it covers less than LEAST_SHARE. If it does not cover everything, ``model`` is the
        model's accuracy on what it covers.
        """
        possible = np.concatenate(self._possible[name])
        missing = int((~possible).sum())
        if possible.sum() < max(1.0, LEAST_SHARE * len(possible)):
            return {"not_measurable": f"{missing} of {len(possible)}: {IMPOSSIBLE[name]}", "is": CONTROLS[name]}
        row = accuracy(self.of(name)[possible]) | {"is": CONTROLS[name]}
        return row | ({"model": float(self.of("model")[possible].mean())} if missing else {})


def batches(scenes: int, limit: int | None, *, what: str, watch: Watch) -> Iterator[tuple[int, int]]:
    """The number of each batch, and how many of its images to keep, until there are ``scenes`` (or ``limit``, if that
    is fewer).

    ``watch`` is told how many images are done, and how long the rest will take.
    """
    scenes = scenes if limit is None else min(scenes, limit)
    countdown = Countdown(scenes)
    for index in range(math.ceil(scenes / BATCH)):
        done = index * BATCH
        watch(f"evaluate {what}, image {done} of {scenes}{countdown.left(done)}", done, scenes)
        yield index, min(BATCH, scenes - index * BATCH)
