"""Checks what a caller hands in, and finds the tensors that the host feeds to a bundle's graphs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import numpy as np
from PIL import Image

from simmim_export.errors import UsageError
from simmim_export.spec import GraphSpec, Kind

Item = TypeVar("Item")
Tensors: TypeAlias = dict[str, np.ndarray]


@dataclass(frozen=True, eq=False, kw_only=True)
class EncodedImage:
    """An image, or with ``clip`` a clip, that went through the graphs that read nothing else.

    A verb takes it in place of an image and reuses ``tensors``. ``space`` names the weights and the preprocessing that made them:
    tensors made by other weights would fit a graph but mean something else.
    """

    tensors: Tensors
    space: str
    clip: bool = False


def second_axis(graphs: Iterable[GraphSpec], kind: Kind) -> tuple[int, int]:
    """The least and the greatest size of the second axis of the tensor of ``kind`` that all ``graphs`` accept.

    (0, 0) if no graph reads such a tensor.
    """
    ranges = []
    for graph in graphs:
        for tensor in graph.inputs:
            if tensor.kind is kind:
                size = tensor.shape[1]
                if isinstance(size, int):
                    ranges.append((size, size))
                else:
                    axis = graph.axis(size)
                    ranges.append((axis.minimum, axis.maximum))
    return max((least for least, _ in ranges), default=0), min((most for _, most in ranges), default=0)


def require_name(argument: str, value: object, *, example: str) -> str:
    """``value`` if it is a str; else raise :class:`UsageError` that names the ``argument`` and gives an ``example``."""
    if not isinstance(value, str):
        raise UsageError(f"{argument} is {value!r}, which is not a name", fix=f"give a string like {example!r}")
    return value


def picture_list(verb: str, items: Iterable[Item], *, noun: str = "image", least: int = 1) -> Sequence[Item]:
    """``items`` as a sequence of pictures, for the method ``verb``.

    Raise :class:`UsageError` for a single picture and for fewer than ``least``. An array is a list from its fourth axis on;
    the rows of a smaller one would each pass as a gray picture.
    """
    alone = isinstance(items, str | bytes | os.PathLike | Image.Image)
    alone = alone or (isinstance(items, np.ndarray) and items.ndim < 4)
    return _listed(verb, items, noun=noun, alone=alone, least=least)


def text_list(verb: str, items: Iterable[Item]) -> Sequence[Item]:
    """``items`` as a sequence of one or more texts, for the method ``verb``; raise :class:`UsageError` for a single text."""
    alone = isinstance(items, str | bytes) or (isinstance(items, np.ndarray) and items.ndim < 1)
    return _listed(verb, items, noun="text", alone=alone, least=1)


def _listed(verb: str, items: Iterable[Item], *, noun: str, alone: bool, least: int) -> Sequence[Item]:
    if alone or not isinstance(items, Iterable):
        what = f"{verb} takes a list of {noun}s, not {'one' if alone else 'this'}: {type(items).__name__}"
        raise UsageError(what, fix=f"write [{noun}]")
    sequence = items if isinstance(items, Sequence) else list(items)
    if len(sequence) < least:
        raise UsageError(f"{verb} takes a list of one or more {noun}s, and this list is empty", fix=f"write [{noun}]")
    return sequence
