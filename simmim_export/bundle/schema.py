"""The type and the range of every field of manifest.json, as :mod:`msgspec` checks them. docs/format.md explains the fields.

:mod:`.checks` then checks that the fields agree. A :class:`Row` has exactly the fields listed here. The other classes
(:class:`Model`, :class:`Provenance`, :class:`Parity`, the metrics) may have more, because a checkpoint or a later version brings
them; only the fields that this project reads are typed.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from simmim_export.spec import Kind, Precision, Reference, Score, Variant, Verb

# The manifest of a planned model with 23 answers has 22 kB; 100,000 labels have 2 MB.
MAX_BYTES = 4 * 2**20
# How deep objects and arrays may be nested. Each training run that starts from another adds two levels of provenance.
MAX_DEPTH = 100
# The longest side of an image in pixels.
MAX_SIDE = 4096
# The most tokens of a text.
MAX_TOKENS = 8192
# The most bytes of a tensor at its largest batch.
MAX_TENSOR_BYTES = 2**32

Name = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9_.-]*\Z", max_length=128)]
EngineName = Annotated[str, Meta(pattern=r"\A[a-z0-9]+(-[a-z0-9]+)*(@[a-z0-9]+)?\Z", max_length=64)]
Sha256 = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
FilePath = Annotated[str, Meta(min_length=1, max_length=255)]
Short = Annotated[str, Meta(max_length=256)]
Count = Annotated[int, Meta(ge=0, le=2**53)]


class Row(Struct, frozen=True, forbid_unknown_fields=True):
    """An object that has exactly these fields."""


class AxisRow(Row, frozen=True):
    """:class:`simmim_export.spec.Axis`."""

    name: Name
    minimum: Annotated[int, Meta(ge=1, le=2**16)]
    maximum: Annotated[int, Meta(ge=1, le=2**16)]


class TensorRow(Row, frozen=True):
    """:class:`simmim_export.spec.TensorSpec`. The first dimension is the batch."""

    name: Name
    dtype: Literal["uint8", "int64", "float32"]
    shape: Annotated[tuple[Annotated[int, Meta(ge=1, le=2**31 - 1)] | Name, ...], Meta(min_length=1, max_length=8)]
    kind: Kind
    shared: bool = False


class GraphRow(Row, frozen=True):
    """:class:`simmim_export.spec.GraphSpec`."""

    name: Name
    inputs: Annotated[tuple[TensorRow, ...], Meta(min_length=1, max_length=32)]
    outputs: Annotated[tuple[TensorRow, ...], Meta(min_length=1, max_length=32)]
    axes: Annotated[tuple[AxisRow, ...], Meta(min_length=1, max_length=16)]


class PipelineRow(Row, frozen=True):
    """:class:`simmim_export.spec.Pipeline`."""

    name: Name
    graphs: Annotated[tuple[Name, ...], Meta(min_length=1, max_length=64)]
    outputs: Annotated[tuple[Name, ...], Meta(min_length=1, max_length=32)]
    verb: Verb
    labels: Annotated[str, Meta(pattern=r"\A([A-Za-z0-9][A-Za-z0-9_.-]*)?\Z", max_length=128)]


class ImageRow(Row, frozen=True):
    """:class:`simmim_export.runtime.images.ImagePreprocessing`; sides in pixels."""

    height: Annotated[int, Meta(ge=1, le=MAX_SIDE)]
    width: Annotated[int, Meta(ge=1, le=MAX_SIDE)]
    resize: Literal["squash", "crop"]
    interpolation: Literal["bilinear", "bicubic"]
    shortest: Annotated[int, Meta(ge=0, le=MAX_SIDE)] = 0

    def __post_init__(self) -> None:
        if self.resize == "squash" and self.shortest:
            raise ValueError("only a crop has a shortest side")
        if self.resize == "crop" and self.shortest < max(self.height, self.width):
            raise ValueError("the shortest side must be as long as the sides of the crop")


class TextRow(Row, frozen=True):
    """The most tokens of a text, its special tokens included."""

    max_length: Annotated[int, Meta(ge=3, le=MAX_TOKENS)]


class ClipRow(Row, frozen=True):
    """The tensor that the image's graphs give for each frame; the host stacks it over the frames of a clip."""

    stacked: Name


class PreprocessingRow(Row, frozen=True):
    """What the host does to images, texts and clips before it feeds them."""

    image: ImageRow
    text: TextRow
    clip: ClipRow | None = None


class EmbeddingRow(Row, frozen=True):
    """The channels of an embedding (0 for a model that gives none), and a digest of all that decides one."""

    dim: Annotated[int, Meta(ge=0, le=2**16)]
    digest: Sha256


class SimilarityRow(Row, frozen=True):
    """:class:`simmim_export.spec.Similarity`. A scale of 0 would make all texts alike."""

    scale: Annotated[float, Meta(gt=0, le=1e4)]
    bias: Annotated[float, Meta(ge=-1e4, le=1e4)]
    score: Score


class Parity(Struct, frozen=True):
    """How far an artifact was from PyTorch when it was exported: the worst error and cosine of so many comparisons."""

    passed: bool
    checks: Annotated[int, Meta(ge=1, le=2**31)]
    scaled_error: Annotated[float, Meta(ge=0)]
    cosine: float
    engine: Short = ""


class ArtifactRow(Row, frozen=True):
    """:class:`simmim_export.bundle.manifest.Artifact`. An ONNX file is a protobuf message, so it ends at 2 GiB."""

    graph: Name
    variant: Variant
    path: FilePath
    sha256: Sha256
    bytes: Annotated[int, Meta(ge=1, le=2**31 - 1)]
    engine: EngineName | None
    precision: Precision
    parity: Parity


class Model(Struct, frozen=True):
    """The configuration of the model, for people to read."""

    preset: Short


class Provenance(Struct, frozen=True):
    """Where the bundle comes from. The engine that runs from a checkpoint compares the digest."""

    checkpoint_sha256: Sha256
    reference: Reference = Reference.PYTORCH
    planning: Annotated[tuple[dict[str, Any], ...], Meta(max_length=64)] = ()


class ManifestRow(Row, frozen=True):
    """:class:`simmim_export.bundle.manifest.Manifest`, with its own digest."""

    schema: Literal[3]
    digest: Sha256
    family: Name
    model: Model
    graphs: Annotated[tuple[GraphRow, ...], Meta(min_length=1, max_length=256)]
    pipelines: Annotated[tuple[PipelineRow, ...], Meta(min_length=1, max_length=256)]
    preprocessing: PreprocessingRow
    labels: Annotated[
        dict[Name, Annotated[tuple[Annotated[str, Meta(max_length=1024)], ...], Meta(min_length=1, max_length=2**17)]],
        Meta(max_length=256),
    ]
    embedding: EmbeddingRow
    files: Annotated[dict[FilePath, Sha256], Meta(max_length=64)]
    artifacts: Annotated[tuple[ArtifactRow, ...], Meta(min_length=1, max_length=2048)]
    metrics: Annotated[dict[Short, dict[str, Any]], Meta(max_length=256)]
    provenance: Provenance
    # Only bundles that were exported with a budget have plans.
    plans: Annotated[
        dict[EngineName, Annotated[dict[Variant, Annotated[str, Meta(max_length=2**16)]], Meta(max_length=16)]],
        Meta(max_length=64),
    ] = {}
    similarity: SimilarityRow | None = None


# -- the rows of ``metrics``, as simmim_export.console.metrics prints them --------------------------------------------------


class Control(Struct, frozen=True):
    """The accuracy of a blind control, which lacks part of the input, or why it could not be measured."""

    accuracy: float | None = None
    not_measurable: Annotated[str, Meta(max_length=1024)] | None = None

    def __post_init__(self) -> None:
        if (self.accuracy is None) == (self.not_measurable is None):
            raise ValueError("a control has either an accuracy or a reason why it is not measurable")


class Figure(Struct, frozen=True):
    """A share in [0, 1] of ``n`` examples, with its 95 % confidence interval."""

    accuracy: float
    n: Count
    interval: tuple[float, float]


class RecallFigure(Figure, frozen=True):
    """Recall at 1 among ``among`` candidates, and the recall of guessing."""

    among: Count
    chance: float


class Accuracy(Figure, frozen=True):
    """The accuracy of a task beside its controls."""

    controls: Annotated[dict[Short, Control], Meta(max_length=256)] = {}
    by_family: Annotated[dict[Short, Figure], Meta(max_length=2**12)] = {}
    chance: float = 0.0
    any_thing: float = 0.0
    text_to_image_recall_at_1: RecallFigure | None = None


class Way(Struct, frozen=True):
    """Retrieval in one direction: by embeddings alone, and with the best candidates ranked again by ``match``."""

    embeddings: Annotated[dict[Short, Figure], Meta(max_length=64)]
    reranked: Annotated[dict[Short, Figure], Meta(max_length=64)]
    chance: float
    oracle: float = 0.0


class Recall(Struct, frozen=True):
    """Retrieval in both directions."""

    captions: Count
    images: Count
    text_to_image: Way
    image_to_text: Way


class Unmeasured(Struct, frozen=True):
    """A task that was not measured or not trained."""

    not_measured: Annotated[str, Meta(max_length=1024)] | None = None


def metrics_row(row: dict[str, Any]) -> type[Struct]:
    """The class that ``row`` of the metrics must fit. The same keys decide how it is printed."""
    if "accuracy" in row:
        return Accuracy
    return Recall if "text_to_image" in row else Unmeasured
