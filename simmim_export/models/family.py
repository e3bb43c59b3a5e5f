"""What a model family provides, and which families there are: the only way from a checkpoint to graphs.

A family is a kind of model that can be exported. The exporter, the PyTorch engine and everything behind them work on
:class:`SourceModel` and know no tensor by name. To add a family, write a class with the two methods of :class:`ModelFamily` and
name it in :data:`FAMILIES`, before SimMIM, or in the entry point group :data:`GROUP` of a package of your own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from simmim_export.errors import CheckpointError
from simmim_export.spec import GraphSpec, Pipeline

if TYPE_CHECKING:
    from torch import nn

# The families of this package: name -> module:class. A string, so that looking for one imports no other, and no PyTorch.
FAMILIES: Mapping[str, str] = {"simmim": "simmim_export.models.simmim.family:SimMIMFamily"}
# Installed packages add families under this name.
GROUP = "simmim_export.families"


@dataclass(frozen=True)
class Graph:
    """A module in eval mode, ready to be run or traced, and what it takes and gives."""

    module: nn.Module
    spec: GraphSpec


@dataclass(frozen=True, kw_only=True)
class SourceModel:
    """A model as its checkpoint holds it, in PyTorch.

    ``config`` describes it to people and is copied to the manifest; it has a ``preset``, the short name of its size.
    ``graphs`` are in an order in which they can run. ``preprocessing`` is the manifest's: ``image`` (height, width, resize,
    interpolation), ``text`` (max_length) and, for clips, ``clip`` (stacked). ``tokenizer`` is the text of a tokenizer.json;
    ``labels`` names the classes that the logits of each pipeline are for. ``images`` uint8 [n, height, width, 3] and ``texts``,
    one or more of each, are real samples: the golden tensors are made of them, and INT8 is calibrated on them. ``evidence`` holds
    labeled examples that were kept out of training (:meth:`simmim_export.proof.evidence.Evidence.save`), or nothing. ``metrics``
    are its figures with their controls; ``provenance`` says how it was trained.
    """

    config: Mapping[str, Any]
    graphs: Mapping[str, Graph]
    pipelines: tuple[Pipeline, ...]
    preprocessing: Mapping[str, Mapping[str, Any]]
    tokenizer: str
    labels: Mapping[str, tuple[str, ...]]
    images: np.ndarray
    texts: tuple[str, ...]
    evidence: bytes = b""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)


class ModelFamily(Protocol):
    """A kind of model. Its module, constructor and :meth:`recognize` must not import PyTorch: they run before that is needed."""

    name: str

    def recognize(self, path: Path) -> None:
        """Raise :class:`CheckpointError` unless what is at ``path`` looks like a checkpoint of this family."""
        ...

    def load(self, path: Path, *, max_batch: int, attention: bool) -> SourceModel:
        """The model at ``path``, whose graphs take 1 to ``max_batch`` rows; with ``attention``, a graph that can also gives where
        each token looked.

        Raise :class:`CheckpointError` for a checkpoint that is missing, damaged or hostile, and :class:`UsageError` if the model
        has no attention to give.
        """
        ...


def family_of(path: Path) -> ModelFamily:
    """The family whose checkpoint is at ``path``: installed packages are asked first, and SimMIM last.

    Raise :class:`CheckpointError`, as the last family words it, if no family recognizes what is there.
    """
    others = [entry.load() for entry in entry_points(group=GROUP)]
    for cls in [*others, *map(_imported, FAMILIES.values())]:
        family: ModelFamily = cls()
        try:
            family.recognize(path)
        except CheckpointError as error:
            refusal = error
        else:
            return family
    raise refusal


def _imported(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)
