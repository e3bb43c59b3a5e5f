"""The form of manifest.json: the type and the bounds of every field, as :mod:`msgspec` checks them.

:mod:`.checks` then checks what one field says about another. Classes that forbid unknown fields are written by this project
alone; the others (:class:`Model`, :class:`Provenance`, the metrics) hold what a checkpoint brings, and only the fields that
are read somewhere are typed.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from simmim_export.spec import Kind, Precision, Variant, Verb

# The manifest of a planned model with 23 answers takes 22 kB; 100,000 labels take 2 MB.
MAX_BYTES = 4 * 2**20
# How deep objects and arrays may be nested. Each training run that started from another adds two levels of provenance.
MAX_DEPTH = 100
# The longest side of an image in pixels.
MAX_SIDE = 4096
# The most tokens of a text.
MAX_TOKENS = 8192
# What a tensor may take at its largest batch, in bytes.
MAX_TENSOR_BYTES = 2**32

Name = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9_.-]*\Z", max_length=128)]
EngineName = Annotated[str, Meta(pattern=r"\A[a-z0-9]+(-[a-z0-9]+)*(@[a-z0-9]+)?\Z", max_length=64)]
Sha256 = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
FilePath = Annotated[str, Meta(min_length=1, max_length=255)]
Short = Annotated[str, Meta(max_length=256)]
Count = Annotated[int, Meta(ge=0, le=2**53)]


class Row(Struct, frozen=True, forbid_unknown_fields=True):
    """An object that has exactly these fields."""


class AxisRow(Row, frozen=True, forbid_unknown_fields=True):
    """:class:`simmim_export.spec.Axis`."""

    name: Name
    minimum: Annotated[int, Meta(ge=1, le=2**16)]
    maximum: Annotated[int, Meta(ge=1, le=2**16)]


class TensorRow(Row, frozen=True, forbid_unknown_fields=True):
    """:class:`simmim_export.spec.TensorSpec`. The first dimension is always the batch."""

    name: Name
    dtype: Literal["uint8", "int64", "float32"]
    shape: Annotated[tuple[Annotated[int, Meta(ge=1, le=2**31 - 1)] | Name, ...], Meta(min_length=1, max_length=8)]
    kind: Kind


class GraphRow(Row, frozen=True, forbid_unknown_fields=True):
    """:class:`simmim_export.spec.GraphSpec`."""

    name: Name
    inputs: Annotated[tuple[TensorRow, ...], Meta(min_length=1, max_length=32)]
    outputs: Annotated[tuple[TensorRow, ...], Meta(min_length=1, max_length=32)]
    axes: Annotated[tuple[AxisRow, ...], Meta(min_length=1, max_length=16)]


class PipelineRow(Row, frozen=True, forbid_unknown_fields=True):
    """:class:`simmim_export.spec.Pipeline`."""

    name: Name
    graphs: Annotated[tuple[Name, ...], Meta(min_length=1, max_length=64)]
    outputs: Annotated[tuple[Name, ...], Meta(min_length=1, max_length=32)]
    verb: Verb
    labels: Annotated[str, Meta(pattern=r"\A([A-Za-z0-9][A-Za-z0-9_.-]*)?\Z", max_length=128)]


class ImageRow(Row, frozen=True, forbid_unknown_fields=True):
    """:class:`simmim_export.runtime.images.ImagePreprocessing`; sides in pixels."""

    height: Annotated[int, Meta(ge=1, le=MAX_SIDE)]
    width: Annotated[int, Meta(ge=1, le=MAX_SIDE)]
    resize: Literal["squash"]
    interpolation: Literal["bilinear"]


class TextRow(Row, frozen=True, forbid_unknown_fields=True):
    """The most tokens of a text: [CLS], at least one word, [SEP]."""

    max_length: Annotated[int, Meta(ge=3, le=MAX_TOKENS)]


class ClipRow(Row, frozen=True, forbid_unknown_fields=True):
    """The tensor that the image's graphs give for each frame, and that the host stacks over the frames of a clip."""

    stacked: Name


class PreprocessingRow(Row, frozen=True, forbid_unknown_fields=True):
    """What the host does to an image, to a text and to a clip."""

    image: ImageRow
    text: TextRow
    clip: ClipRow | None = None


class EmbeddingRow(Row, frozen=True, forbid_unknown_fields=True):
    """The channels of both embeddings, and the digest of the space they live in."""

    dim: Annotated[int, Meta(ge=0, le=2**16)]
    digest: Sha256


class Parity(Struct, frozen=True):
    """How far an artifact was from PyTorch when it was exported (:meth:`simmim_export.proof.parity.ParityReport.summary`)."""

    passed: bool
    checks: Annotated[int, Meta(ge=1, le=2**31)]
    scaled_error: Annotated[float, Meta(ge=0)]
    cosine: float
    engine: Short = ""


class ArtifactRow(Row, frozen=True, forbid_unknown_fields=True):
    """:class:`simmim_export.bundle.manifest.Artifact`. ONNX is protobuf, which ends at 2 GiB."""

    graph: Name
    variant: Variant
    path: FilePath
    sha256: Sha256
    bytes: Annotated[int, Meta(ge=1, le=2**31 - 1)]
    engine: EngineName | None
    precision: Precision
    built_for: Annotated[dict[Short, Short], Meta(max_length=16)]
    parity: Parity


class Model(Struct, frozen=True):
    """The configuration of the model; the preset is for people to read."""

    preset: Short


class Provenance(Struct, frozen=True):
    """Where the bundle comes from. The digest ties it to its checkpoint, for the engine that runs from one."""

    checkpoint_sha256: Sha256
    planning: Annotated[tuple[dict[str, Any], ...], Meta(max_length=64)] = ()


class ManifestRow(Row, frozen=True, forbid_unknown_fields=True):
    """:class:`simmim_export.bundle.manifest.Manifest`, with its own digest."""

    schema: Literal[2]
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
    # Bundles from before there was a planner have none.
    plans: Annotated[dict[EngineName, Annotated[str, Meta(max_length=2**16)]], Meta(max_length=64)] = {}


# The rows of ``metrics``, as simmim_export.console.metrics prints them.


class Control(Struct, frozen=True):
    """A blind control of a head: its accuracy, or why it could not be measured."""

    accuracy: float | None = None
    not_measurable: Annotated[str, Meta(max_length=1024)] | None = None

    def __post_init__(self) -> None:
        if (self.accuracy is None) == (self.not_measurable is None):
            raise ValueError("a control has an accuracy, or says why it is not measurable")


class Figure(Struct, frozen=True):
    """A share in [0, 1] of ``n`` examples, with its 95 % interval."""

    accuracy: float
    n: Count
    interval: tuple[float, float]


class RecallFigure(Figure, frozen=True):
    """Recall at 1 among so many candidates, and what guessing reaches."""

    among: Count
    chance: float


class Accuracy(Figure, frozen=True):
    """A head's accuracy beside its controls."""

    controls: Annotated[dict[Short, Control], Meta(max_length=256)] = {}
    by_family: Annotated[dict[Short, Figure], Meta(max_length=2**12)] = {}
    chance: float = 0.0
    any_thing: float = 0.0
    text_to_image_recall_at_1: RecallFigure | None = None


class Way(Struct, frozen=True):
    """Retrieval in one direction, by embeddings and ranked again by the match head."""

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
    """A head that was not measured, or not trained."""

    not_measured: Annotated[str, Meta(max_length=1024)] | None = None


def metrics_row(row: dict[str, Any]) -> type[Struct]:
    """The class that a row of ``metrics`` has to fit, chosen by the keys that decide how it is printed."""
    if "accuracy" in row:
        return Accuracy
    return Recall if "text_to_image" in row else Unmeasured
