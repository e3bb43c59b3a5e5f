"""The vocabulary: what a graph takes and gives, what a pipeline promises, and how close is close enough."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from math import isfinite
from typing import Any

import numpy as np

from simmim_export.errors import UsageError


class Precision(StrEnum):
    """What an engine is asked to compute in. What it really ran is :meth:`engines.base.Session.precision_proof`."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"

    @classmethod
    def parse(cls, text: str) -> Precision:
        """Return the precision called ``text``; raise :class:`UsageError` naming the choices."""
        try:
            return cls(text.lower())
        except ValueError:
            raise UsageError(f"unknown precision {text!r}", fix=f"choose one of {', '.join(cls)}") from None


class Variant(StrEnum):
    """An ONNX file of a graph: the form that some engine wants for a precision (:meth:`engines.base.Engine.variant`)."""

    FP32 = "fp32"
    FP16 = "fp16"
    INT8_U8 = "int8-u8"
    INT8_S8 = "int8-s8"

    @property
    def precision(self) -> Precision:
        """The precision that this variant is written for."""
        return Precision(self.partition("-")[0])


@dataclass(frozen=True)
class PrecisionPlan:
    """A precision for every graph: ``graphs`` has its own, everything else runs at ``default``.

    As text: ``int8``, or ``image_encoder=int8,text_encoder=bf16`` with FP32 for the rest, or ``*=int8,head.vqa=fp32``.
    """

    default: Precision = Precision.FP32
    graphs: tuple[tuple[str, Precision], ...] = ()

    @classmethod
    def parse(cls, text: str) -> PrecisionPlan:
        """The plan written as ``text``; raise :class:`UsageError` saying which part does not parse."""
        if "=" not in text:
            return cls(Precision.parse(text))
        found: dict[str, Precision] = {}
        for part in text.split(","):
            graph, equals, precision = (word.strip() for word in part.partition("="))
            if not graph or not equals:
                fix = "write GRAPH=PRECISION, parted by commas: image_encoder=int8,text_encoder=bf16"
                raise UsageError(f"{part.strip()!r} of the precision {text!r} is no GRAPH=PRECISION", fix=fix)
            if graph in found:
                raise UsageError(f"the precision {text!r} names {graph} twice", fix="name every graph once")
            found[graph] = Precision.parse(precision)
        return cls(found.pop("*", Precision.FP32), tuple(sorted(found.items())))

    def of(self, graph: str) -> Precision:
        """The precision of ``graph``."""
        return dict(self.graphs).get(graph, self.default)

    def check(self, graphs: Iterable[str]) -> None:
        """Raise :class:`UsageError` naming what the plan names and ``graphs`` lacks."""
        known = sorted(graphs)
        strange = [graph for graph, _ in self.graphs if graph not in known]
        if strange:
            raise UsageError(f"there is no graph {', '.join(strange)}", fix=f"choose among {', '.join(known)}")

    def __str__(self) -> str:
        if not self.graphs:
            return str(self.default)
        rest = [] if self.default is Precision.FP32 else [("*", self.default)]
        return ",".join(f"{graph}={precision}" for graph, precision in [*rest, *self.graphs])


@dataclass(frozen=True)
class Axis:
    """A dynamic axis and the sizes it may take, both ends included."""

    name: str
    minimum: int
    maximum: int


class Kind(StrEnum):
    """What a tensor holds. The host feeds and reads tensors by their kind, so it never needs to know a family's names."""

    # Only graphs read it.
    HIDDEN = "hidden"
    # Pictures as the host prepared them: uint8 [batch, height, width, 3].
    IMAGE = "image"
    # int64 [batch, sequence] each; in the mask 1 is a token and 0 is padding.
    TOKEN_IDS = "token_ids"
    TEXT_MASK = "text_mask"
    # A tensor of every frame of a clip, stacked by the host: [batch, frames, ...]. In the mask, int64, 1 is a frame.
    FRAMES = "frames"
    FRAME_MASK = "frame_mask"
    # float32 [batch, channels], each row of unit length.
    EMBEDDING = "embedding"
    # float32 [batch, classes].
    LOGITS = "logits"
    # Where each token looked: float32 [batch, sequence, rows x columns of the image].
    ATTENTION = "attention"


# The kinds that the host makes; a graph gives every other one.
FED = frozenset({Kind.IMAGE, Kind.TOKEN_IDS, Kind.TEXT_MASK, Kind.FRAMES, Kind.FRAME_MASK})


class Verb(StrEnum):
    """What a user calls on a model. A pipeline serves one verb, for images or, if it takes frames, for clips."""

    EMBED_IMAGE = "embed_image"
    EMBED_TEXT = "embed_text"
    MATCH = "match"
    ANSWER = "answer"
    CLASSIFY = "classify"
    CLASSIFY_TEXT = "classify_text"


@dataclass(frozen=True)
class TensorSpec:
    """A named tensor. ``dtype`` is a NumPy name; in ``shape`` a ``str`` is a dynamic axis, an ``int`` is fixed."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    kind: Kind = Kind.HIDDEN

    def resolve(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The concrete shape for the given axis sizes. KeyError if one is missing."""
        return tuple(sizes[d] if isinstance(d, str) else d for d in self.shape)

    def check(self, array: np.ndarray) -> None:
        """Raise :class:`UsageError` unless ``array`` has this dtype, rank and fixed sizes."""
        wanted = f"{self.name}: {self.dtype} {list(self.shape)}"
        got = f"{array.dtype} {list(array.shape)}"
        fits = array.dtype == np.dtype(self.dtype) and array.ndim == len(self.shape)
        if not fits or any(isinstance(d, int) and d != n for d, n in zip(self.shape, array.shape, strict=True)):
            raise UsageError(f"tensor does not fit: expected {wanted}, got {got}")


@dataclass(frozen=True)
class GraphSpec:
    """One graph: its name (``image_encoder``, ``head.vqa``), its tensors, and the range of each dynamic axis."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    axes: tuple[Axis, ...]

    @property
    def is_head(self) -> bool:
        """Whether it gives logits."""
        return any(tensor.kind is Kind.LOGITS for tensor in self.outputs)

    def axis(self, name: str) -> Axis:
        """The dynamic axis called ``name``. KeyError if the graph has none."""
        for axis in self.axes:
            if axis.name == name:
                return axis
        raise KeyError(name)


@dataclass(frozen=True)
class Pipeline:
    """Graphs to run in order over one dict of named tensors, and the outputs they promise.

    ``verb`` is what it serves, and ``outputs[0]`` is what the verb reads: an embedding or logits. ``labels`` names the entry of
    the manifest's labels that the logits are for, and the task of the evidence; it is empty for an embedding.
    """

    name: str
    graphs: tuple[str, ...]
    outputs: tuple[str, ...]
    verb: Verb
    labels: str = ""


@dataclass(frozen=True)
class Tolerance:
    """How far an output may be from the FP32 reference of PyTorch.

    ``scaled_error`` bounds max|a - b| / max(1, rms(b)): an absolute bound for unit-scale outputs (tokens after a
    LayerNorm, unit-length embeddings), relative to scale for larger ones (logits). ``cosine`` bounds the worst row.
    """

    scaled_error: float
    cosine: float


# FP32 differs from PyTorch by the order of summation alone. FP16 keeps 11 bits of a number (a step of 2^-11 = 0.05 %): rounded
# after every node, trained and real weights showed 0.0062 and 0.9999976 at the worst value and row. BF16 keeps 8 bits (a step of
# 2^-8 = 0.4 %), which add up over layers: a trained tiny showed 0.03 and 0.99993. INT8 has 255 levels: the same model showed
# 0.16 and 0.9976. Its tolerance finds a graph that is broken; whether a model still answers well is for its own metric.
TOLERANCES: Mapping[Precision, Tolerance] = {
    Precision.FP32: Tolerance(scaled_error=1e-4, cosine=0.99999),
    Precision.FP16: Tolerance(scaled_error=0.03, cosine=0.9999),
    Precision.BF16: Tolerance(scaled_error=0.1, cosine=0.999),
    Precision.INT8: Tolerance(scaled_error=1.0, cosine=0.98),
}


def shown(value: float) -> str:
    """A figure in words: a share just below one, as a cosine is, with the digits that tell it from its limit."""
    return f"{value:.6g}" if 0.9 < value < 1 else f"{value:.4g}"


def as_json(value: Any) -> Any:
    """A frozen dataclass of this module (or a tuple, dict or scalar of them) as plain JSON values.

    Infinity and NaN, which JSON lacks, become None: an error that could not be measured is no number.
    """
    if hasattr(value, "__dataclass_fields__"):
        return {name: as_json(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [as_json(item) for item in value]
    return None if isinstance(value, float) and not isfinite(value) else value
