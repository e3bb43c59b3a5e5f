"""What one field of a manifest says about another: names that must exist, orders that must be possible, sizes that must agree."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from math import isqrt, prod
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec
import numpy as np

from simmim_export.bundle.schema import MAX_TENSOR_BYTES, Parity, metrics_row
from simmim_export.errors import UsageError
from simmim_export.spec import GraphSpec, PrecisionPlan, TensorSpec, Variant

if TYPE_CHECKING:
    from simmim_export.bundle.manifest import Manifest

# A place in the manifest, as $.graphs[2].axes[0], and what is wrong there.
Problem: TypeAlias = tuple[str, str]

BATCH, SEQUENCE, HEAD, LOGITS = "batch", "sequence", "head.", "logits"
# What the runtime and the evidence feed to a graph, and what they read from it. The first three are always there.
GRAPHS: Mapping[str, tuple[set[str], set[str]]] = {
    "image_encoder": ({"pixels"}, {"image_tokens", "image_embed"}),
    "text_encoder": ({"input_ids", "attention_mask"}, {"text_tokens", "text_embed"}),
    "fusion": ({"image_tokens", "text_tokens", "attention_mask"}, {"fused"}),
    "video_encoder": ({"frame_tokens", "frame_mask"}, {"image_tokens"}),
}
ALWAYS = ("image_encoder", "text_encoder", "fusion")
# What a verb feeds to its pipeline, and what the pipeline must promise.
_IMAGE, _TEXT, _CLIP = {"pixels"}, {"input_ids", "attention_mask"}, {"frame_tokens", "frame_mask"}
VERBS: Mapping[str, tuple[set[str], set[str]]] = {
    "embed_image": (_IMAGE, {"image_embed"}),
    "embed_text": (_TEXT, {"text_embed"}),
    "match": (_IMAGE | _TEXT, {LOGITS}),
    "answer": (_IMAGE | _TEXT, {LOGITS}),
    "classify_text": (_IMAGE | _TEXT, {LOGITS}),
    "classify_image": (_IMAGE, {LOGITS}),
    "classify_video": (_CLIP, {LOGITS}),
    "answer_video": (_CLIP | _TEXT, {LOGITS}),
}
# The head whose labels a verb answers with.
HEAD_OF: Mapping[str, str] = {
    "match": "head.match",
    "answer": "head.vqa",
    "classify_text": "head.text_class",
    "classify_image": "head.image_class",
    "classify_video": "head.video_class",
    "answer_video": "head.video_qa",
}
# What a verb reads although the pipeline does not promise it: an image is encoded once for all questions.
KEPT: Mapping[str, set[str]] = {"embed_image": {"image_tokens"}}
# Files that the manifest itself, a certificate or a build writes.
RESERVED = ("manifest.json", "certificate.json", "engines")
REQUIRED_FILES = ("tokenizer.json", "golden.npz")


def problems(manifest: Manifest) -> Iterator[Problem]:
    """Everything that is wrong in ``manifest``, whose fields have the types and bounds of :mod:`.schema`."""
    names = [graph.name for graph in manifest.graphs]
    yield from _repeated("$.graphs", names)
    yield from (("$.graphs", f"there is no graph {name}") for name in ALWAYS if name not in names)
    for index, graph in enumerate(manifest.graphs):
        yield from _graph(f"$.graphs[{index}]", graph)
    yield from _tensors(manifest)
    yield from _makers(manifest)
    yield from _pipelines(manifest)
    yield from _labels(manifest)
    yield from _artifacts(manifest)
    yield from _files(manifest)
    yield from _plans(manifest, names)
    for name, row in manifest.metrics.items():
        yield from _typed(f"$.metrics.{name}", row, metrics_row(row))


def _repeated(place: str, names: Iterable[Any]) -> Iterator[Problem]:
    """A problem for each of ``names`` that was there before."""
    seen = set()
    for index, name in enumerate(names):
        if name in seen:
            shown = " ".join(str(part) for part in name if part) if isinstance(name, tuple) else name
            yield f"{place}[{index}]", f"{shown} is there twice"
        seen.add(name)


def _typed(place: str, value: Any, kind: type[msgspec.Struct]) -> Iterator[Problem]:
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        what, _, inside = str(error).rpartition(" - at ")
        yield place + inside.strip("`").removeprefix("$") if what else place, what or inside


# -- graphs ------------------------------------------------------------------------------------------------------------


def _graph(place: str, graph: GraphSpec) -> Iterator[Problem]:
    """What is wrong with ``graph`` by itself: names, axes, sizes."""
    yield from _repeated(f"{place}.axes", [axis.name for axis in graph.axes])
    taken = [tensor.name for tensor in graph.inputs]
    both = [*taken, *(tensor.name for tensor in graph.outputs)]
    for index, name in enumerate(both):
        if name in both[:index]:
            side = f"inputs[{index}]" if index < len(taken) else f"outputs[{index - len(taken)}]"
            yield f"{place}.{side}", f"{name} is there twice"
    for index, axis in enumerate(graph.axes):
        if axis.minimum > axis.maximum:
            yield (
                f"{place}.axes[{index}]",
                f"the minimum {axis.minimum} of {axis.name} exceeds its maximum {axis.maximum}",
            )
        if not any(axis.name in tensor.shape for tensor in graph.inputs):
            yield f"{place}.axes[{index}]", f"no input has the axis {axis.name}"
    largest = {axis.name: axis.maximum for axis in graph.axes}
    for side, tensors in (("inputs", graph.inputs), ("outputs", graph.outputs)):
        for index, tensor in enumerate(tensors):
            there = f"{place}.{side}[{index}]"
            unknown = [d for d in tensor.shape if isinstance(d, str) and d not in largest]
            if unknown:
                yield f"{there}.shape", f"{tensor.name} has the axis {unknown[0]}, which the graph does not describe"
                continue
            if tensor.shape[0] != BATCH or BATCH in tensor.shape[1:]:
                yield f"{there}.shape", f"the first dimension of {tensor.name}, and no other, must be {BATCH!r}"
            if prod(tensor.resolve(largest)) * np.dtype(tensor.dtype).itemsize > MAX_TENSOR_BYTES:
                yield f"{there}.shape", f"{tensor.name} may take more than {MAX_TENSOR_BYTES / 2**30:.0f} GiB"
    reads, gives = GRAPHS.get(graph.name, (None, set()))
    if graph.name.startswith(HEAD):
        reads, gives = {"fused"} if "fused" in taken else {"image_tokens"}, {LOGITS}
    if reads is not None and set(taken) - reads:
        yield f"{place}.inputs", f"nothing feeds {', '.join(sorted(set(taken) - reads))} to {graph.name}"
    if lacks := gives - {tensor.name for tensor in graph.outputs}:
        yield f"{place}.outputs", f"{graph.name} must give {', '.join(sorted(lacks))}"


def _expected(manifest: Manifest) -> dict[str, TensorSpec]:
    """What the host feeds and the verbs read, by name; more where a graph says so first."""
    image, dim = manifest.preprocessing["image"], manifest.embedding["dim"]
    expected = [
        TensorSpec("pixels", "uint8", (BATCH, image["height"], image["width"], 3)),
        TensorSpec("input_ids", "int64", (BATCH, SEQUENCE)),
        TensorSpec("attention_mask", "int64", (BATCH, SEQUENCE)),
        TensorSpec("frame_mask", "int64", (BATCH, "frames")),
        TensorSpec("image_embed", "float32", (BATCH, dim)),
        TensorSpec("text_embed", "float32", (BATCH, dim)),
    ]
    tokens = next((t for graph in manifest.graphs for t in graph.outputs if t.name == "image_tokens"), None)
    if tokens is not None:
        expected.append(TensorSpec("frame_tokens", tokens.dtype, (BATCH, "frames", *tokens.shape[1:])))
        expected.append(TensorSpec("attention", "float32", (BATCH, SEQUENCE, *tokens.shape[1:2])))
    return {tensor.name: tensor for tensor in expected}


def _tensors(manifest: Manifest) -> Iterator[Problem]:
    """Tensors of one name that differ, and those that differ from what the host feeds or reads; logits are each head's own."""
    expected, length = _expected(manifest), manifest.preprocessing["text"]["max_length"]
    for i, graph in enumerate(manifest.graphs):
        for side, tensors in (("inputs", graph.inputs), ("outputs", graph.outputs)):
            for j, tensor in enumerate(tensors):
                place = f"$.graphs[{i}].{side}[{j}]"
                if tensor.name == LOGITS:
                    if tensor.dtype != "float32" or len(tensor.shape) != 2 or isinstance(tensor.shape[1], str):
                        yield place, "logits must be float32 [batch, classes]"
                    continue
                wanted = expected.setdefault(tensor.name, tensor)
                if (tensor.dtype, tensor.shape) != (wanted.dtype, wanted.shape):
                    what = f"{tensor.name} is {tensor.dtype} {list(tensor.shape)}"
                    yield place, f"{what}, and elsewhere {wanted.dtype} {list(wanted.shape)}"
                if tensor.name == "attention" and not _square(tensor.shape[-1]):
                    yield place, f"{tensor.name} is over {tensor.shape[-1]} image tokens, which make no square"
        for j, axis in enumerate(graph.axes):
            if axis.name == SEQUENCE and not axis.minimum <= length <= axis.maximum:
                what = f"texts have up to {length} tokens, and {graph.name} takes {axis.minimum} to {axis.maximum}"
                yield f"$.graphs[{i}].axes[{j}]", what


def _makers(manifest: Manifest) -> Iterator[Problem]:
    """Tensors that a second graph gives.

    If two graphs gave one tensor, a verb could read the one and the evidence the other. Only the logits are each head's own, and
    a video encoder gives the tokens of a clip under the name of an image's.
    """
    makers: dict[str, str] = {}
    for i, graph in enumerate(manifest.graphs):
        for j, tensor in enumerate(graph.outputs):
            clip = graph.name == "video_encoder" and tensor.name == "image_tokens"
            if clip or (tensor.name == LOGITS and graph.name.startswith(HEAD)):
                continue
            maker = makers.setdefault(tensor.name, graph.name)
            if maker != graph.name:
                yield f"$.graphs[{i}].outputs[{j}]", f"{tensor.name} is what {maker} gives"


def _square(size: int | str) -> bool:
    return isinstance(size, int) and isqrt(size) ** 2 == size


# -- pipelines and labels ----------------------------------------------------------------------------------------------


def _pipelines(manifest: Manifest) -> Iterator[Problem]:
    yield from _repeated("$.pipelines", [pipeline.name for pipeline in manifest.pipelines])
    graphs = {graph.name: graph for graph in manifest.graphs}
    # What some graph computes cannot come from the host.
    computed = {tensor.name for graph in manifest.graphs for tensor in graph.outputs}
    heads: dict[str, str] = {}
    for i, pipeline in enumerate(manifest.pipelines):
        place = f"$.pipelines[{i}]"
        unknown = [(j, name) for j, name in enumerate(pipeline.graphs) if name not in graphs]
        if unknown:
            yield from ((f"{place}.graphs[{j}]", f"there is no graph {name}") for j, name in unknown)
            continue
        yield from _repeated(f"{place}.graphs", pipeline.graphs)
        yield from _repeated(f"{place}.outputs", pipeline.outputs)
        fed, given = VERBS.get(pipeline.name, (None, set()))
        made: set[str] = set()
        for j, name in enumerate(pipeline.graphs):
            needed = {tensor.name for tensor in graphs[name].inputs} - made
            if late := needed & computed:
                yield f"{place}.graphs[{j}]", f"no graph before {name} gives {', '.join(sorted(late))}"
            if fed is not None and (never := needed - computed - fed):
                yield f"{place}.graphs[{j}]", f"{pipeline.name} does not feed {', '.join(sorted(never))}"
            if twice := made & {tensor.name for tensor in graphs[name].outputs}:
                yield f"{place}.graphs[{j}]", f"a graph before {name} gives {', '.join(sorted(twice))} already"
            if name.startswith(HEAD) and j < len(pipeline.graphs) - 1:
                yield f"{place}.graphs[{j}]", f"{name} is a head, and must be the last graph of {pipeline.name}"
            made |= {tensor.name for tensor in graphs[name].outputs}
        for j, output in enumerate(pipeline.outputs):
            if output not in made:
                yield f"{place}.outputs[{j}]", f"no graph of the pipeline gives {output}"
        if lacks := (given - set(pipeline.outputs)) | (KEPT.get(pipeline.name, set()) - made):
            yield f"{place}.outputs", f"{pipeline.name} must give {', '.join(sorted(lacks))}"
        last, end = pipeline.graphs[-1], f"{place}.graphs[{len(pipeline.graphs) - 1}]"
        if last.startswith(HEAD) and heads.setdefault(last, pipeline.name) != pipeline.name:
            yield end, f"{last} is the head of {heads[last]}"
        if HEAD_OF.get(pipeline.name, last) != last:
            yield end, f"{pipeline.name} must end in {HEAD_OF[pipeline.name]}, not in {last}"
        if LOGITS in pipeline.outputs and not last.startswith(HEAD):
            yield end, f"{pipeline.name} must end in a head, not in {last}"
        elif pipeline.name == "match" and [t.shape[-1] for t in graphs[last].outputs if t.name == LOGITS] != [2]:
            yield end, "match must end in a head of 2 classes"


def _labels(manifest: Manifest) -> Iterator[Problem]:
    """Each head has a label for each class. Two classes may have one label: in English a crane is a bird and a machine."""
    heads = {graph.name.removeprefix(HEAD): graph for graph in manifest.graphs if graph.name.startswith(HEAD)}
    for name in sorted(heads.keys() ^ manifest.labels.keys()):
        lacks = "there are no labels for this head" if name in heads else "there is no such head"
        yield f"$.labels.{name}", lacks
    for name, labels in manifest.labels.items():
        sizes = [tensor.shape[-1] for tensor in heads[name].outputs if tensor.name == LOGITS] if name in heads else []
        if sizes and sizes[0] != len(labels):
            yield f"$.labels.{name}", f"{len(labels)} labels for {sizes[0]} classes"


# -- files -------------------------------------------------------------------------------------------------------------


def _artifacts(manifest: Manifest) -> Iterator[Problem]:
    artifacts, graphs = manifest.artifacts, {graph.name for graph in manifest.graphs}
    yield from _repeated("$.artifacts", [(a.graph, a.variant, a.engine) for a in artifacts])
    for index, artifact in enumerate(artifacts):
        place = f"$.artifacts[{index}]"
        if artifact.graph not in graphs:
            yield f"{place}.graph", f"there is no graph {artifact.graph}"
        if artifact.precision is not artifact.variant.precision:
            yield f"{place}.precision", f"{artifact.variant} is not {artifact.precision}"
        yield from _typed(f"{place}.parity", artifact.parity, Parity)
    given = {artifact.graph for artifact in artifacts if artifact.variant is Variant.FP32 and artifact.engine is None}
    for index, graph in enumerate(manifest.graphs):
        if graph.name not in given:
            yield f"$.graphs[{index}]", f"{graph.name} has no fp32 artifact"


def _files(manifest: Manifest) -> Iterator[Problem]:
    """Each file is named once: INT8 writes a file of its own even where it changes nothing."""
    yield from (("$.files", f"there is no {name}") for name in REQUIRED_FILES if name not in manifest.files)
    named = [(f"$.files.{path}", path) for path in manifest.files]
    named += [(f"$.artifacts[{i}].path", artifact.path) for i, artifact in enumerate(manifest.artifacts)]
    seen = set()
    for place, path in named:
        pure = PurePosixPath(path)
        if pure.is_absolute() or ".." in pure.parts or "\\" in path or not path.isprintable():
            yield place, f"a path outside the bundle, or one that is not portable: {path!r}"
        elif str(pure) != path or not pure.parts:
            yield place, f"the path {path!r} is not in its shortest form"
        elif pure.parts[0].casefold() in RESERVED:
            yield place, f"{path} is not for the manifest to name"
        # Some file systems do not tell upper case from lower.
        elif path.casefold() in seen:
            yield place, f"{path} is named twice"
        seen.add(path.casefold())


def _plans(manifest: Manifest, graphs: Iterable[str]) -> Iterator[Problem]:
    for engine, text in manifest.plans.items():
        try:
            PrecisionPlan.parse(text).check(graphs)
        except UsageError as error:
            yield f"$.plans.{engine}", error.what
