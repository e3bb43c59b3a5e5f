"""Logits and similarities to scores in [0, 1], and the classes with the best of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from simmim_export.spec import Score, Similarity


class Answer(NamedTuple):
    """One class and its score in [0, 1].

    It is a probability, and the probabilities of all classes add up to 1. The exception is a zero-shot classification by a model
    that was trained with a sigmoid (:class:`simmim_export.spec.Score`): it rates each label by itself.
    """

    label: str
    score: float


class Explanation(NamedTuple):
    """Answers, and where the model looked for them: float32 [rows, columns] over the image, each in [0, 1], with sum 1."""

    answers: list[Answer]
    attention: np.ndarray


def softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis, in the precision of ``logits``."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)) of each number, without overflow."""
    return np.exp(-np.logaddexp(0, -logits))


def scores_of(cosines: np.ndarray, similarity: Similarity) -> np.ndarray:
    """What ``similarity`` makes of the ``cosines`` of images and texts, [images, texts]: float64 of the same shape."""
    logits = similarity.scale * np.asarray(cosines, np.float64) + similarity.bias
    return softmax(logits) if similarity.score is Score.SOFTMAX else sigmoid(logits)


def best(scores: np.ndarray, labels: Sequence[str], *, top_k: int) -> list[list[Answer]]:
    """For each row of ``scores`` [rows, labels] its ``top_k`` labels, best first. Of equal ones, the earlier is first."""
    ranked = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
    return [
        [Answer(labels[index], float(row[index])) for index in indices]
        for row, indices in zip(scores, ranked, strict=True)
    ]
