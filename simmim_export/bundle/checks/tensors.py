"""Checks the tensors of a manifest across its graphs: what their kind demands, and which graph gives each of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import isqrt
from typing import TYPE_CHECKING, TypeAlias

from simmim_export.bundle.checks.problem import Problem
from simmim_export.spec import BATCH, FED, Kind, TensorSpec

if TYPE_CHECKING:
    from simmim_export.bundle.manifest import Manifest

# The dtype and shape that a kind demands; None is any fixed size.
Form: TypeAlias = tuple[str, tuple[int | str | None, ...]]


def _everywhere(manifest: Manifest) -> Iterator[tuple[str, TensorSpec]]:
    """The place of every input and output of every graph, and the tensor there."""
    for i, graph in enumerate(manifest.graphs):
        for side, tensors in (("inputs", graph.inputs), ("outputs", graph.outputs)):
            for j, tensor in enumerate(tensors):
                yield f"$.graphs[{i}].{side}[{j}]", tensor


def _second_size(manifest: Manifest, kind: Kind) -> int | str | None:
    """The axis for the tokens of a text or the frames of a clip, or their fixed number; None if no graph has the ``kind``."""
    shapes = (tensor.shape for _, tensor in _everywhere(manifest) if tensor.kind is kind)
    return next((shape[1] for shape in shapes if len(shape) > 1), None)


def _stacked(manifest: Manifest) -> TensorSpec | None:
    """The tensor that the host stacks over the frames of a clip: what a graph gives that reads an image alone."""
    outputs = (tensor for graph in manifest.image_graphs() for tensor in manifest.graph(graph).outputs)
    return next((tensor for tensor in outputs if tensor.name == manifest.stacked), None)


def _forms(manifest: Manifest) -> Mapping[Kind, Form | str]:
    """What a tensor of each kind must be, or what the manifest lacks for one. Any tensor may be hidden."""
    image = manifest.preprocessing["image"]
    text, frames = _second_size(manifest, Kind.TOKEN_IDS), _second_size(manifest, Kind.FRAMES)
    forms: dict[Kind, Form | str] = {
        Kind.IMAGE: ("uint8", (BATCH, image["height"], image["width"], 3)),
        Kind.EMBEDDING: ("float32", (BATCH, manifest.embedding["dim"])),
        Kind.LOGITS: ("float32", (BATCH, None)),
        Kind.TOKEN_IDS: ("int64", (BATCH, text)),
        Kind.TEXT_MASK: ("int64", (BATCH, text)),
        Kind.ATTENTION: ("float32", (BATCH, text, None)),
        Kind.FRAME_MASK: ("int64", (BATCH, frames)),
    }
    if text is None:
        forms |= dict.fromkeys((Kind.TEXT_MASK, Kind.ATTENTION), "no graph takes token ids")
    if frames is None:
        forms[Kind.FRAME_MASK] = "no graph takes frames"
    stacked = _stacked(manifest)
    if stacked is None:
        forms[Kind.FRAMES] = (
            "preprocessing.clip must name a tensor that a graph gives and that depends on an image alone"
        )
    else:
        forms[Kind.FRAMES] = stacked.dtype, (BATCH, frames, *stacked.shape[1:])
    return forms


def _fits(tensor: TensorSpec, form: Form) -> bool:
    dtype, shape = form
    return (
        tensor.dtype == dtype
        and len(tensor.shape) == len(shape)
        and all(
            isinstance(size, int) if wanted is None else size == wanted
            for size, wanted in zip(tensor.shape, shape, strict=True)
        )
    )


def tensor_problems(manifest: Manifest) -> Iterator[Problem]:
    """Tensors that are not what their kind demands, and tensors of one name that differ.

    Logits are the exception to the second rule: each graph that gives some has its own number of classes.
    """
    forms = _forms(manifest)
    first_of_name: dict[str, TensorSpec] = {}
    first_of_kind: dict[Kind, TensorSpec] = {}
    for place, tensor in _everywhere(manifest):
        form = forms.get(tensor.kind, (tensor.dtype, tensor.shape))
        if isinstance(form, str):
            yield place, f"{tensor.name} is of kind {tensor.kind}: {form}"
        elif not _fits(tensor, form):
            demand = f"{form[0]} [{', '.join('*' if size is None else str(size) for size in form[1])}]"
            yield place, f"{tensor.name} is {_described(tensor)}; a tensor of kind {tensor.kind} must be {demand}"
        elif tensor.kind is Kind.ATTENTION and isqrt(int(tensor.shape[-1])) ** 2 != tensor.shape[-1]:
            yield place, f"{tensor.name} is over {tensor.shape[-1]} parts of an image, which do not make a square"
        other = first_of_name.setdefault(tensor.name, tensor)
        if other.kind is not tensor.kind:
            yield place, f"{tensor.name} is of kind {tensor.kind} here, and of kind {other.kind} elsewhere"
        elif tensor.kind is not Kind.LOGITS and (other.dtype, other.shape) != (tensor.dtype, tensor.shape):
            yield place, f"{tensor.name} is {_described(tensor)} here, and {_described(other)} elsewhere"
        first = first_of_kind.setdefault(tensor.kind, tensor)
        if tensor.kind in FED and first.name != tensor.name:
            yield place, f"the host feeds one tensor of kind {tensor.kind}, which is {first.name}, not {tensor.name}"
    if Kind.EMBEDDING not in first_of_kind and manifest.embedding["dim"]:
        yield "$.embedding.dim", "no graph gives an embedding, so this must be 0"
    yield from _text_lengths(manifest)


def _described(tensor: TensorSpec) -> str:
    return f"{tensor.dtype} {list(tensor.shape)}"


def _text_lengths(manifest: Manifest) -> Iterator[Problem]:
    """Graphs that do not take the longest text."""
    text, length = _second_size(manifest, Kind.TOKEN_IDS), manifest.preprocessing["text"]["max_length"]
    if isinstance(text, int) and text != length:
        yield "$.preprocessing.text.max_length", f"the graphs take texts of exactly {text} tokens"
    for i, graph in enumerate(manifest.graphs):
        for j, axis in enumerate(graph.axes):
            if axis.name == text and not axis.minimum <= length <= axis.maximum:
                what = f"texts have up to {length} tokens, and {graph.name} takes {axis.minimum} to {axis.maximum}"
                yield f"$.graphs[{i}].axes[{j}]", what


def clip_problems(manifest: Manifest) -> Iterator[Problem]:
    """What preprocessing.clip says and the graphs do not, or the other way round."""
    frames = _second_size(manifest, Kind.FRAMES)
    if isinstance(frames, int):
        place = next(place for place, tensor in _everywhere(manifest) if tensor.kind is Kind.FRAMES)
        yield f"{place}.shape[1]", "the number of frames must be an axis with a range"
    ranges = [
        (f"$.graphs[{i}].axes[{j}]", axis)
        for i, graph in enumerate(manifest.graphs)
        for j, axis in enumerate(graph.axes)
        if axis.name == frames
    ]
    for place, axis in ranges:
        if axis != ranges[0][1]:
            yield place, f"{axis.name} must have the same range in every graph"
    if manifest.stacked and _stacked(manifest) is None:
        yield "$.preprocessing.clip.stacked", f"no graph that reads an image alone gives {manifest.stacked}"
    if manifest.stacked and frames is None:
        yield "$.preprocessing.clip", "no graph takes frames"


def giver_problems(manifest: Manifest) -> Iterator[Problem]:
    """Tensors that come from the wrong side or too late, and those that two graphs give.

    The host makes the kinds in :data:`FED`; an earlier graph gives every other. If two graphs gave one tensor, a verb could read
    the one and the evidence the other. There are two exceptions: logits, because the graph that gives them is always the last
    one; and the tensor that is stacked over frames, because a clip encoder gives it for the clip as the image's graphs do for
    an image.
    """
    givers: dict[tuple[str, bool], str] = {}
    given: set[str] = set()
    for i, graph in enumerate(manifest.graphs):
        reads_frames = any(tensor.kind is Kind.FRAMES for tensor in graph.inputs)
        for j, tensor in enumerate(graph.inputs):
            place = f"$.graphs[{i}].inputs[{j}]"
            if tensor.kind is Kind.LOGITS:
                yield place, f"{tensor.name} is of kind logits, which only the host reads"
            elif tensor.kind not in FED and tensor.name not in given:
                yield place, f"no graph before {graph.name} gives {tensor.name}"
        for j, tensor in enumerate(graph.outputs):
            place = f"$.graphs[{i}].outputs[{j}]"
            if tensor.kind in FED:
                yield place, f"{tensor.name} is of kind {tensor.kind}, which the host makes and no graph may give"
            if tensor.kind is Kind.LOGITS:
                continue
            of_clip = reads_frames and tensor.name == manifest.stacked
            giver = givers.setdefault((tensor.name, of_clip), graph.name)
            if giver != graph.name:
                yield place, f"{giver} gives {tensor.name} already"
        given |= {tensor.name for tensor in graph.outputs}
