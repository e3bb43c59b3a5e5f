"""What a model family provides, and how the family of a checkpoint is found.

A family is a kind of model that can be exported. The exporter and the PyTorch engine use only its :class:`SourceModel`, and find
tensors by kind, never by name. To add a family, write a class with the name and the two methods of :class:`ModelFamily`. Then add
it to :data:`FAMILIES`, before SimMIM, or register it in your own package under the entry point group :data:`GROUP`.
tests/contracts/second_family.py is a complete family in under 80 lines; a model of Hugging Face's transformers has most of its
parts in :mod:`simmim_export.models.huggingface`.
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

from simmim_export.errors import CheckpointError, EngineUnavailable, SimmimError, UsageError
from simmim_export.models.huggingface.folder import model_type, unsupported
from simmim_export.spec import GraphSpec, Pipeline, Similarity

if TYPE_CHECKING:
    from torch import nn

# The families of this package: name -> module:class. A family is imported only when it is asked.
FAMILIES: Mapping[str, str] = {
    "clip": "simmim_export.models.clip.family:CLIPFamily",
    "siglip": "simmim_export.models.siglip.family:SiglipFamily",
    "dual_encoder": "simmim_export.models.dual_encoder.family:DualEncoderFamily",
    "blip": "simmim_export.models.blip.family:BlipFamily",
    "vilt": "simmim_export.models.vilt.family:ViltFamily",
    "simmim": "simmim_export.models.simmim.family:SimMIMFamily",
}
# Installed packages add families under this name.
GROUP = "simmim_export.families"


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """What a user asks of a model besides its weights.

    Its graphs take 1 to ``max_batch`` rows. With ``attention``, a graph also gives where each token looked, if the model has such
    a graph. ``answers`` are the candidates that a model ranks. ``image_size``, (height, width) in pixels, is the size that the
    graphs take, for a model that can take another one than its own.
    """

    max_batch: int
    attention: bool = False
    answers: tuple[str, ...] = ()
    image_size: tuple[int, int] | None = None

    def refuse(self, what: str, *options: str) -> None:
        """Raise :class:`UsageError` if one of ``options``, names of fields, is set: the model ``what`` has no use for it."""
        for option in options:
            if getattr(self, option):
                flag = f"--{option.replace('_', '-')}"
                raise UsageError(f"{what} has no use for {flag}", fix=f"leave out {flag}")


@dataclass(frozen=True)
class Graph:
    """A module in eval mode, ready to be run and traced, and its spec.

    The module takes the spec's inputs as positional arguments, in order, and returns its outputs: one tensor, or a tuple.
    """

    module: nn.Module
    spec: GraphSpec


@dataclass(frozen=True, kw_only=True)
class ModelDescription:
    """Everything that a bundle says about a model besides its graphs.

    ``config`` describes the model to people and is copied to the manifest; its ``preset`` is the short name of the model's size.
    ``preprocessing`` is the manifest's: ``image`` (height and width in pixels,
    resize, interpolation), ``text`` (max_length in tokens) and, for clips, ``clip`` (stacked). ``tokenizer`` is the text of a
    tokenizer.json. ``labels`` names the classes of each pipeline's logits, by :attr:`simmim_export.spec.Pipeline.labels`.
    ``similarity`` turns the cosine of an image and a text into a score, if the model embeds both.
    ``images`` uint8 [n, height, width, 3] and ``texts`` are real samples: the golden tensors are made of them, and INT8 is
    calibrated on them. A model that brings no samples leaves both empty, and gets those of
    :mod:`simmim_export.export.bundled_samples`.
    ``evidence`` holds labeled examples that were kept out of training (:meth:`simmim_export.proof.evidence.Evidence.save`), or is
    empty. ``metrics`` are the model's figures with their controls; ``provenance`` says how it was trained.
    """

    config: Mapping[str, Any]
    pipelines: tuple[Pipeline, ...]
    preprocessing: Mapping[str, Mapping[str, Any]]
    tokenizer: str
    labels: Mapping[str, tuple[str, ...]]
    images: np.ndarray = field(default_factory=lambda: np.empty((0, 1, 1, 3), np.uint8))
    texts: tuple[str, ...] = ()
    similarity: Similarity | None = None
    evidence: bytes = b""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SourceModel(ModelDescription):
    """A model from a checkpoint, in PyTorch. ``graphs`` are in an order in which they can run."""

    graphs: Mapping[str, Graph]


class ModelFamily(Protocol):
    """A kind of model. Importing its module, making one and :meth:`recognize` must not import PyTorch, which takes seconds."""

    name: str

    def recognize(self, path: Path) -> None:
        """Raise :class:`CheckpointError` unless ``path`` looks like a checkpoint of this family.

        It may lack its weights: those of a model from the hub are downloaded only after a family has recognized it. Once a family
        has accepted a checkpoint, its :meth:`load` says what is wrong with it.
        """
        ...

    def load(self, path: Path, options: LoadOptions) -> SourceModel:
        """The model at ``path``, as ``options`` ask for it.

        Raise :class:`UsageError` for an option that this model has no use for (:meth:`LoadOptions.refuse`), and
        :class:`CheckpointError` for a checkpoint that is missing, damaged or hostile. Read files from strangers with
        :mod:`simmim_export.models.files`, and compare weights with :func:`simmim_export.models.weights.check_state`.
        """
        ...


def family_of(path: Path, *, name: str = "") -> ModelFamily:
    """The family whose checkpoint is at ``path``, or the one called ``name``, whatever it thinks of ``path``. Families of other
    packages are asked first, and SimMIM last.

    Raise :class:`UsageError` for an unknown ``name``, :class:`CheckpointError`, with the last family's reason, if no family
    recognizes the checkpoint, and :class:`EngineUnavailable`, naming the package, if the code of another package's family fails.
    """
    if name:
        return _named(name)
    refusal = CheckpointError("no such model family", where=path)
    for family in (*_installed(), *(_imported(place)() for place in FAMILIES.values())):
        try:
            family.recognize(path)
        except CheckpointError as error:
            refusal = error
        else:
            return family
    if model_type(path) is not None:
        raise unsupported(path, families=FAMILIES)
    raise refusal


def _named(name: str) -> ModelFamily:
    if name in FAMILIES:
        return _imported(FAMILIES[name])()
    installed = {family.name: family for family in _installed()}
    if name in installed:
        return installed[name]
    raise UsageError(f"unknown model family {name!r}", fix=f"choose one of {', '.join([*FAMILIES, *installed])}")


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

    def load(self, path: Path, options: LoadOptions) -> SourceModel:
        with self._guard("load the checkpoint"):
            model = self._family.load(path, options)
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
