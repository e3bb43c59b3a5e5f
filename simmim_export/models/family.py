"""What a model family provides, and how the family of a checkpoint is found.

A family is a kind of model that can be exported. The exporter and the PyTorch engine use only its :class:`SourceModel`, and find
tensors by kind, never by name. To add a family, write a class with the name and the two methods of :class:`ModelFamily`. Then add
it to :data:`FAMILIES`, before SimMIM, or register it in your own package under the entry point group :data:`GROUP`.
tests/contracts/second_family.py is a complete family in under 80 lines.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import EntryPoint, distributions
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from simmim_export.errors import CheckpointError, EngineUnavailable, SimmimError
from simmim_export.spec import GraphSpec, Pipeline

if TYPE_CHECKING:
    from torch import nn

# The families of this package: name -> module:class. A family is imported only when it is asked.
FAMILIES: Mapping[str, str] = {"simmim": "simmim_export.models.simmim.family:SimMIMFamily"}
# Installed packages add families under this name.
GROUP = "simmim_export.families"


@dataclass(frozen=True)
class Graph:
    """A module in eval mode, ready to be run and traced, and its spec.

    The module takes the spec's inputs as positional arguments, in order, and returns its outputs: one tensor, or a tuple.
    """

    module: nn.Module
    spec: GraphSpec


@dataclass(frozen=True, kw_only=True)
class SourceModel:
    """A model from a checkpoint, in PyTorch, and everything that its bundle will say about it.

    ``config`` describes the model to people and is copied to the manifest; its ``preset`` is the short name of the model's size.
    ``graphs`` are in an order in which they can run. ``preprocessing`` is the manifest's: ``image`` (height and width in pixels,
    resize, interpolation), ``text`` (max_length in tokens) and, for clips, ``clip`` (stacked). ``tokenizer`` is the text of a
    tokenizer.json. ``labels`` names the classes of each pipeline's logits, by :attr:`simmim_export.spec.Pipeline.labels`.
    ``images`` uint8 [n, height, width, 3] and ``texts``, at least one of each, are real samples: the golden tensors are made of
    them, and INT8 is calibrated on them. ``evidence`` holds labeled examples that were kept out of training
    (:meth:`simmim_export.proof.evidence.Evidence.save`), or is empty. ``metrics`` are the model's figures with their controls;
    ``provenance`` says how it was trained.
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
    """A kind of model. Importing its module, making one and :meth:`recognize` must not import PyTorch, which takes seconds."""

    name: str

    def recognize(self, path: Path) -> None:
        """Raise :class:`CheckpointError` unless ``path`` looks like a checkpoint of this family."""
        ...

    def load(self, path: Path, *, max_batch: int, attention: bool) -> SourceModel:
        """The model at ``path``. Its graphs take 1 to ``max_batch`` rows. With ``attention``, a graph also gives where each token
        looked, if the model has such a graph.

        Raise :class:`CheckpointError` for a checkpoint that is missing, damaged or hostile. Read files from strangers with
        :mod:`simmim_export.models.files`, and compare weights with :func:`simmim_export.models.weights.check_state`.
        """
        ...


def family_of(path: Path) -> ModelFamily:
    """The family whose checkpoint is at ``path``. Families of other packages are asked first, and SimMIM last.

    Raise :class:`CheckpointError`, with the last family's reason, if no family recognizes the checkpoint, and
    :class:`EngineUnavailable`, naming the package, if the code of another package's family fails.
    """
    refusal = CheckpointError("no such model family", where=path)
    for family in (*_installed(), *(_imported(place)() for place in FAMILIES.values())):
        try:
            family.recognize(path)
        except CheckpointError as error:
            refusal = error
        else:
            return family
    raise refusal


class _PackagedFamily:
    """A family of another package. Whatever goes wrong in its code is an error that names the package."""

    def __init__(self, entry: EntryPoint, package: str) -> None:
        self._package, self.name = package, entry.name
        with self._guard("be imported"):
            self._family: ModelFamily = entry.load()()
            self.name = str(self._family.name)

    def recognize(self, path: Path) -> None:
        with self._guard("look at the checkpoint"):
            self._family.recognize(path)

    def load(self, path: Path, *, max_batch: int, attention: bool) -> SourceModel:
        with self._guard("load the checkpoint"):
            model = self._family.load(path, max_batch=max_batch, attention=attention)
            if not isinstance(model, SourceModel):
                raise TypeError(f"load returned {type(model).__name__}, not a SourceModel")
            return model

    @contextmanager
    def _guard(self, doing: str) -> Iterator[None]:
        try:
            yield
        except SimmimError:
            raise
        # Another package's code can raise anything, and even end the process.
        except (Exception, SystemExit) as error:
            why = f"{type(error).__name__}: {error}".removesuffix(": ")
            what = f"the model family {self.name!r} of the package {self._package} cannot {doing}: {why}"
            raise EngineUnavailable(what, fix=f"repair it, or pip uninstall {self._package}") from error


def _installed() -> Iterator[_PackagedFamily]:
    """The families of installed packages.

    A package in the working directory is not installed, even where ``python -m`` searches there: a stranger may have put it
    beside a checkpoint.
    """
    try:
        here: Path | None = Path.cwd()
    except FileNotFoundError:  # it was removed
        here = None
    folders = [folder for folder in sys.path if Path(folder).is_absolute() and Path(folder).resolve() != here]
    for distribution in distributions(path=folders):
        try:
            text = distribution.read_text("entry_points.txt") or ""
            entries = list(distribution.entry_points.select(group=GROUP)) if GROUP in text else []
            package = str(distribution.metadata["Name"])
        # The metadata of a package that has nothing to do with us may be damaged.
        except (ValueError, KeyError, AttributeError):
            continue
        for entry in entries:
            yield _PackagedFamily(entry, package)


def _imported(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)
