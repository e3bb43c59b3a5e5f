"""The vocabulary of all packages: precisions, tensors and their kinds, graphs, pipelines and their verbs, and tolerances."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from simmim_export.errors import UsageError


class Precision(StrEnum):
    """The number format that an engine is asked to compute in. :meth:`engines.base.Session.precision_proof` says what ran."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"

    @classmethod
    def parse(cls, text: str) -> Precision:
        """The precision called ``text``; raise :class:`UsageError` naming the choices."""
        try:
            return cls(text.lower())
        except ValueError:
            raise UsageError(f"unknown precision {text!r}", fix=f"choose one of {', '.join(cls)}") from None


class Variant(StrEnum):
    """One ONNX file of a graph: the form that an engine needs for a precision (:meth:`engines.base.Engine.variants`)."""

    FP32 = "fp32"
    FP16 = "fp16"
    # For CPUs with integer dot products (VNNI, and every Arm): weights have 8 bits.
    INT8_DOT = "int8-dot"
    # For every CPU: weights have 7 bits.
    INT8_U8 = "int8-u8"
    # For TensorRT: products in INT8, and the rest in FP32 or in FP16.
    INT8_S8 = "int8-s8"
    INT8_S8_FP16 = "int8-s8-fp16"

    @property
    def precision(self) -> Precision:
        """The precision that this variant is written for."""
        return Precision(self.partition("-")[0])


@dataclass(frozen=True)
class PrecisionPlan:
    """A precision for every graph: those in ``graphs`` have their own, all others run at ``default``.

    As text, a plan is one precision for all graphs (``int8``), or one for each graph (``a=int8,b=bf16``). In the second form,
    ``*`` stands for all other graphs (``*=int8,a=fp32``), which run at FP32 without it.
    """

    default: Precision = Precision.FP32
    graphs: tuple[tuple[str, Precision], ...] = ()

    @classmethod
    def parse(cls, text: str) -> PrecisionPlan:
        """The plan that ``text`` describes; raise :class:`UsageError` saying which part does not parse."""
        if "=" not in text:
            return cls(Precision.parse(text))
        precisions: dict[str, Precision] = {}
        for part in text.split(","):
            graph, equals, precision = (word.strip() for word in part.partition("="))
            if not graph or not equals:
                fix = "write GRAPH=PRECISION,GRAPH=PRECISION,... with * for all other graphs"
                raise UsageError(f"{part.strip()!r} in the precision {text!r} is not GRAPH=PRECISION", fix=fix)
            if graph in precisions:
                raise UsageError(f"the precision {text!r} names {graph} twice", fix="name every graph once")
            precisions[graph] = Precision.parse(precision)
        return cls(precisions.pop("*", Precision.FP32), tuple(sorted(precisions.items())))

    def of(self, graph: str) -> Precision:
        """The precision of ``graph``."""
        return dict(self.graphs).get(graph, self.default)

    def check(self, graphs: Iterable[str]) -> None:
        """Raise :class:`UsageError` if the plan names a graph that is not in ``graphs``."""
        known = sorted(graphs)
        unknown = [graph for graph, _ in self.graphs if graph not in known]
        if unknown:
            raise UsageError(f"unknown graph {', '.join(map(repr, unknown))}", fix=f"choose among {', '.join(known)}")

    def __str__(self) -> str:
        if not self.graphs:
            return str(self.default)
        others = [] if self.default is Precision.FP32 else [("*", self.default)]
        return ",".join(f"{graph}={precision}" for graph, precision in [*others, *self.graphs])


# The first axis of every tensor: the number of images, texts or clips.
BATCH = "batch"
# What an ONNX file calls that axis for a tensor that all rows of a batch may share. With one name, ONNX Runtime would take the
# two sizes for equal, and reuse memory that is too small.
SHARED_BATCH = "batch_or_1"


@dataclass(frozen=True)
class Axis:
    """A dynamic axis and the sizes that it may have, from ``minimum`` to ``maximum`` with both included."""

    name: str
    minimum: int
    maximum: int


class Kind(StrEnum):
    """What a tensor holds. The host feeds and reads tensors by kind, so it need not know a family's names."""

    # Only graphs read it.
    HIDDEN = "hidden"
    # Images after preprocessing: uint8 [batch, height, width, 3].
    IMAGE = "image"
    # int64 [batch, sequence] each; in the mask, 1 is a token and 0 is padding.
    TOKEN_IDS = "token_ids"
    TEXT_MASK = "text_mask"
    # One tensor of each frame of a clip, stacked by the host: [batch, frames, ...].
    FRAMES = "frames"
    # int64 [batch, frames]: 1 is a frame and 0 is padding.
    FRAME_MASK = "frame_mask"
    # float32 [batch, channels], each row of unit length.
    EMBEDDING = "embedding"
    # float32 [batch, classes].
    LOGITS = "logits"
    # Where each token looked: float32 [batch, sequence, rows x columns of the image].
    ATTENTION = "attention"


# The kinds that the host makes. Graphs give all others.
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
    """A named tensor. ``dtype`` is a NumPy name. In ``shape``, a ``str`` is a dynamic axis and an ``int`` a fixed size.

    A graph takes a ``shared`` input with one row for each row of the batch, or with a single row for all of them: several texts
    about one image.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    kind: Kind = Kind.HIDDEN
    shared: bool = False

    def resolve(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape for the given axis sizes. KeyError if one is missing."""
        return tuple(sizes[size] if isinstance(size, str) else size for size in self.shape)

    def check(self, array: np.ndarray) -> None:
        """Raise :class:`UsageError` unless ``array`` has this dtype, rank and fixed sizes."""
        wanted = f"{self.name}: {self.dtype} {list(self.shape)}"
        got = f"{array.dtype} {list(array.shape)}"
        fits = array.dtype == np.dtype(self.dtype) and array.ndim == len(self.shape)
        if not fits or any(isinstance(d, int) and d != n for d, n in zip(self.shape, array.shape, strict=True)):
            raise UsageError(f"tensor does not fit: expected {wanted}, got {got}")


@dataclass(frozen=True)
class GraphSpec:
    """One graph: its name, its tensors, and the range of each dynamic axis."""

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


def fed_tensors(graphs: Iterable[GraphSpec]) -> dict[Kind, TensorSpec]:
    """The tensors that the host feeds to ``graphs``, by kind."""
    fed: dict[Kind, TensorSpec] = {}
    for graph in graphs:
        for tensor in graph.inputs:
            if tensor.kind in FED:
                fed.setdefault(tensor.kind, tensor)
    return fed


def graphs_of_images(graphs: Sequence[GraphSpec], *, clip: bool = False) -> list[GraphSpec]:
    """Those of ``graphs`` that read an image alone, or with ``clip`` a clip, and do not give logits, in order."""
    kinds = {Kind.FRAMES, Kind.FRAME_MASK} if clip else {Kind.IMAGE}
    known = {tensor.name for graph in graphs for tensor in graph.inputs if tensor.kind in kinds}
    chosen = []
    for graph in graphs:
        if {tensor.name for tensor in graph.inputs} <= known and not graph.is_head:
            known |= {tensor.name for tensor in graph.outputs}
            chosen.append(graph)
    return chosen


def graphs_of_frames(graphs: Sequence[GraphSpec], stacked: str) -> list[GraphSpec]:
    """Those of ``graphs`` through which the host takes every frame of a clip, in order: they make ``stacked``, which the host
    stacks over the frames. The pipelines for clips do not name them. Empty for a model without clips."""
    wanted, chosen = {stacked}, list[GraphSpec]()
    for graph in reversed(graphs_of_images(graphs)):
        if wanted & {tensor.name for tensor in graph.outputs}:
            wanted |= {tensor.name for tensor in graph.inputs}
            chosen.insert(0, graph)
    return chosen


@dataclass(frozen=True)
class Pipeline:
    """Graphs to run in order over one dict of named tensors, and the outputs that they promise.

    It serves ``verb``, which reads ``outputs[0]``: an embedding or logits. ``labels`` names the labels of the logits in the
    manifest, and their task in the evidence; it is empty for an embedding.
    """

    name: str
    graphs: tuple[str, ...]
    outputs: tuple[str, ...]
    verb: Verb
    labels: str = ""


class Score(StrEnum):
    """What a model was trained to make of the similarities of an image and several texts."""

    # The texts exclude each other, and their scores add up to 1: CLIP (Radford et al., 2021).
    SOFTMAX = "softmax"
    # Each text by itself: SigLIP (Zhai et al., 2023).
    SIGMOID = "sigmoid"


@dataclass(frozen=True, kw_only=True)
class Similarity:
    """How the cosine of an image and a text becomes a score in [0, 1]: ``score`` of ``scale`` x cosine + ``bias``."""

    scale: float
    bias: float = 0.0
    score: Score = Score.SOFTMAX


class Reference(StrEnum):
    """What computed the outputs that a bundle is compared with: its golden tensors and the references of its evidence."""

    PYTORCH = "pytorch"
    # For a model that came as ONNX files (simmim-export adopt).
    ONNXRUNTIME = "onnxruntime"

    @property
    def words(self) -> str:
        """As a message names it."""
        return "PyTorch" if self is Reference.PYTORCH else "ONNX Runtime in FP32"


@dataclass(frozen=True)
class Tolerance:
    """How far an output may be from the FP32 output of the reference.

    ``scaled_error`` is the largest max|a - b| / max(1, rms(b)): an absolute error for outputs of unit scale (tokens after a
    LayerNorm, unit-length embeddings), and one relative to their scale for larger ones (logits). ``cosine`` is the smallest
    cosine of a row.
    """

    scaled_error: float
    cosine: float


# How far off trained models were, as (scaled error, cosine) of the worst output:
# - FP32 differs from PyTorch only by the order of summation.
# - FP16 keeps 11 bits of a number (a step of 2^-11 = 0.05 %). Rounding after every node gave (0.0062, 0.9999976).
# - BF16 keeps 8 bits (a step of 2^-8 = 0.4 %), and errors add up over layers: (0.03, 0.99993).
# - INT8 has 255 levels: (0.16, 0.9976).
# The tolerance of INT8 finds broken graphs; a task's own metric shows whether a model still answers well.
TOLERANCES: Mapping[Precision, Tolerance] = {
    Precision.FP32: Tolerance(scaled_error=1e-4, cosine=0.99999),
    Precision.FP16: Tolerance(scaled_error=0.03, cosine=0.9999),
    Precision.BF16: Tolerance(scaled_error=0.1, cosine=0.999),
    Precision.INT8: Tolerance(scaled_error=1.0, cosine=0.98),
}
