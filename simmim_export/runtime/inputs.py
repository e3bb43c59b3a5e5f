"""Checks what a caller hands in: names, paths, one item or many, and an image that was encoded before."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TypeAlias, TypeVar

import numpy as np
from PIL import Image

from simmim_export.errors import UsageError

Item = TypeVar("Item")
Tensors: TypeAlias = dict[str, np.ndarray]


class EncodedImage:
    """An image, or a ``clip``, that has been through the tower; every verb of a model of the same ``space`` takes it in place of
    an image and reuses it. ``space`` names the weights and the preprocessing that made ``tensors``: other weights give numbers
    that fit and mean something else."""

    def __init__(self, tensors: Tensors, *, space: str, clip: bool = False) -> None:
        self.tensors = tensors
        self.space = space
        self.clip = clip


def a_name(argument: str, value: object, example: str) -> str:
    """``value`` if it is a str, else raise :class:`UsageError` that names the ``argument`` and an ``example`` of it."""
    if not isinstance(value, str):
        raise UsageError(f"{argument} is {value!r}, which is not a name", fix=f"give a string like {example!r}")
    return value


def is_picture(item: object) -> bool:
    """Whether ``item`` is one picture. An array is many from its fourth axis on: the rows of one would each be a grey picture."""
    one = isinstance(item, str | bytes | os.PathLike | Image.Image)
    return one or (isinstance(item, np.ndarray) and item.ndim < 4)


def is_text(item: object) -> bool:
    """Whether ``item`` is one text."""
    return isinstance(item, str | bytes) or (isinstance(item, np.ndarray) and item.ndim < 1)


def listed(verb: str, kind: str, items: Iterable[Item], one: bool, least: int = 1) -> Sequence[Item]:
    """``items``, of which there can be any number. Raise :class:`UsageError` for ``one`` alone, and for fewer than ``least``."""
    if one or not isinstance(items, Iterable):
        what = f"{verb} takes a list of {kind}s, and this is {'one' if one else 'no list'}: {type(items).__name__}"
        raise UsageError(what, fix=f"write [{kind}]")
    found = items if isinstance(items, Sequence) else list(items)
    if len(found) < least:
        raise UsageError(f"{verb} takes a list of one or more {kind}s, and this is empty", fix=f"write [{kind}]")
    return found
