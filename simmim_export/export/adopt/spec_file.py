"""The TOML file that says what a foreign ONNX model is (docs/adopt.md): graphs, preprocessing, tokenizer, pipelines and labels.

Every table has exactly the keys of its class here; an unknown key is an error that names it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta, Struct

from simmim_export.bundle.schema import MAX_SIDE, MAX_TOKENS, Name, Short
from simmim_export.errors import CheckpointError
from simmim_export.spec import Score, Verb
from simmim_export.system.files import read_file

# A spec with 100,000 labels has 2 MB.
MAX_BYTES = 4 * 2**20
FIX = "correct the spec; docs/adopt.md has an example and lists the keys"

Side = Annotated[int, Meta(ge=1, le=MAX_SIDE)]
Three: TypeAlias = tuple[float, float, float]
ForeignName = Annotated[str, Meta(min_length=1, max_length=1024)]
Names = Annotated[tuple[Name, ...], Meta(min_length=1, max_length=64)]


class _Table(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of the file."""


class ImageTable(_Table, frozen=True, kw_only=True):
    """How a picture becomes pixels; sides in pixels. ``mean`` and ``std`` have a number for each of red, green and blue, whose
    values are in [0, 1]; only graphs that take floats need them. ``layout`` is the order of their axes."""

    height: Side
    width: Side
    resize: Literal["squash", "crop"]
    interpolation: Literal["bilinear", "bicubic"]
    shortest: Annotated[int, Meta(ge=0, le=MAX_SIDE)] = 0
    mean: Three | None = None
    std: Three | None = None
    layout: Literal["NCHW", "NHWC"] = "NCHW"

    def __post_init__(self) -> None:
        if self.resize == "squash" and self.shortest:
            raise ValueError("only a crop has a shortest side")
        if self.resize == "crop" and self.shortest < max(self.height, self.width):
            raise ValueError("a crop needs shortest, which is as long as the sides of the crop or longer")
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std belong together")
        if self.std is not None and min(self.std) <= 0:
            raise ValueError("each std must be above 0")
        if not all(abs(number) < 1e6 for number in (*(self.mean or ()), *(self.std or ()))):
            raise ValueError("mean and std must be finite")


class TextTable(_Table, frozen=True, kw_only=True):
    """``tokenizer`` is the path of a tokenizer.json, from the folder of the spec. ``max_length`` counts tokens, special tokens
    included. ``samples`` are real texts to check and calibrate the model with, in place of English captions."""

    tokenizer: Annotated[str, Meta(min_length=1, max_length=4096)]
    max_length: Annotated[int, Meta(ge=3, le=MAX_TOKENS)]
    samples: Annotated[tuple[Annotated[str, Meta(min_length=1, max_length=4096)], ...], Meta(max_length=4096)] = ()

    def __post_init__(self) -> None:
        if len(self.samples) == 1 or not all(text.strip() for text in self.samples):
            raise ValueError("samples must be two or more texts, none of them blank")


class InputTable(_Table, frozen=True, kw_only=True, rename={"alias": "as"}):
    """``name`` is the tensor's in the file, and ``as`` that in the bundle. ``zeros`` feeds zeros in the shape of the token ids:
    token types."""

    name: ForeignName
    kind: Literal["image", "token_ids", "text_mask", "hidden", "zeros"]
    alias: Name | None = None

    @property
    def known_as(self) -> str:
        """The name of the tensor in the bundle."""
        return self.alias or FED_NAMES.get(self.kind, self.name)


class OutputTable(_Table, frozen=True, kw_only=True, rename={"alias": "as"}):
    """``name`` and ``as`` are those of an input. ``pool`` makes one vector of [batch, tokens, channels]: the mean over the tokens
    of the text mask, or the first token. ``normalize`` divides each row by its length."""

    name: ForeignName
    kind: Literal["embedding", "logits", "hidden"]
    alias: Name | None = None
    pool: Literal["none", "mean", "first"] = "none"
    normalize: bool = False

    @property
    def known_as(self) -> str:
        """The name of the tensor in the bundle."""
        return self.alias or self.name


class GraphTable(_Table, frozen=True, kw_only=True):
    """``file`` lies in the folder of the model; without it the model is one file. A graph is what computes its ``outputs``."""

    name: Name
    file: Annotated[str, Meta(max_length=4096)] = ""
    inputs: Annotated[tuple[InputTable, ...], Meta(min_length=1, max_length=32)]
    outputs: Annotated[tuple[OutputTable, ...], Meta(min_length=1, max_length=32)]


class PipelineTable(_Table, frozen=True, kw_only=True):
    """:class:`simmim_export.spec.Pipeline`. By default it is called like its verb and gives what the verb reads."""

    verb: Verb
    graphs: Names
    name: Name | None = None
    outputs: Annotated[tuple[Name, ...], Meta(max_length=32)] = ()
    labels: Annotated[str, Meta(pattern=r"\A([A-Za-z0-9][A-Za-z0-9_.-]*)?\Z", max_length=128)] = ""


class SimilarityTable(_Table, frozen=True, kw_only=True):
    """:class:`simmim_export.spec.Similarity`."""

    scale: Annotated[float, Meta(gt=0, le=1e4)]
    bias: Annotated[float, Meta(ge=-1e4, le=1e4)] = 0.0
    score: Score = Score.SOFTMAX


class SpecFile(_Table, frozen=True, kw_only=True):
    """The whole file. ``name`` is a short name of the model."""

    name: Short
    graphs: Annotated[tuple[GraphTable, ...], Meta(min_length=1, max_length=64)]
    pipelines: Annotated[tuple[PipelineTable, ...], Meta(min_length=1, max_length=64)]
    image: ImageTable | None = None
    text: TextTable | None = None
    similarity: SimilarityTable | None = None
    labels: dict[Name, tuple[Short, ...]] = {}

    def __post_init__(self) -> None:
        kinds = {tensor.kind for graph in self.graphs for tensor in graph.inputs}
        if "image" in kinds and self.image is None:
            raise ValueError("a graph takes an image, so the file needs the table [image]")
        if kinds & {"token_ids", "text_mask", "zeros"} and self.text is None:
            raise ValueError("a graph takes a text, so the file needs the table [text]")


# The names of what the host feeds, unless the spec gives others.
FED_NAMES: Mapping[str, str] = {"image": "pixels", "token_ids": "input_ids", "text_mask": "attention_mask"}


def read_spec(path: Path) -> SpecFile:
    """The spec at ``path``. Raise :class:`CheckpointError`, naming the key, for a file that cannot be read, is not TOML, or does
    not have exactly the keys that a spec has."""
    try:
        content = read_file(path, most=MAX_BYTES)
        return msgspec.toml.decode(content, type=SpecFile)
    except FileNotFoundError as error:
        raise CheckpointError("no such spec", where=path, fix="give the TOML file with --like") from error
    except OSError as error:
        what = f"the spec cannot be read: {error.strerror or error}"
        raise CheckpointError(what, where=path, fix="allow reading it, or copy it again") from error
    except msgspec.ValidationError as error:
        what, _, place = str(error).partition(" - at ")
        place = place.strip("`")
        raise CheckpointError(f"the spec is wrong: {what}", where=f"{path}, {place or '$'}", fix=FIX) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"the spec is not TOML: {error}", where=path, fix=FIX) from error
