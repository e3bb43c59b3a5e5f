"""Checks the pipelines of a manifest and their labels: what a verb feeds, the order of the graphs, and what the verb reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from simmim_export.bundle.checks.problem import Problem, repeated
from simmim_export.spec import FED, Kind, Pipeline, TensorSpec, Verb

if TYPE_CHECKING:
    from simmim_export.bundle.manifest import Manifest

# What the host feeds with each of the kinds that carry content. A mask only goes with its content.
IMAGE, TEXT, CLIP = frozenset({Kind.IMAGE}), frozenset({Kind.TOKEN_IDS}), frozenset({Kind.FRAMES})
MASKS = {Kind.TEXT_MASK: Kind.TOKEN_IDS, Kind.FRAME_MASK: Kind.FRAMES}
# The content that each verb may feed.
FEEDS: Mapping[Verb, tuple[frozenset[Kind], ...]] = {
    Verb.EMBED_IMAGE: (IMAGE,),
    Verb.EMBED_TEXT: (TEXT,),
    Verb.MATCH: (IMAGE | TEXT, CLIP | TEXT),
    Verb.ANSWER: (IMAGE | TEXT, CLIP | TEXT),
    Verb.CLASSIFY: (IMAGE, CLIP),
    Verb.CLASSIFY_TEXT: (IMAGE | TEXT, CLIP | TEXT),
}
# The task of the evidence that is not about labels.
RESERVED_LABELS = "retrieval"


def _reads(verb: Verb) -> Kind:
    return Kind.EMBEDDING if verb in (Verb.EMBED_IMAGE, Verb.EMBED_TEXT) else Kind.LOGITS


def pipeline_problems(manifest: Manifest) -> Iterator[Problem]:
    """Pipelines that cannot run, that a verb cannot use, or that stand in each other's way."""
    yield from repeated("$.pipelines", [pipeline.name for pipeline in manifest.pipelines])
    names = {graph.name for graph in manifest.graphs}
    heads = {graph.name for graph in manifest.graphs if graph.is_head}
    served: dict[tuple[Verb, bool], str] = {}
    ends: dict[str, str] = {}
    for i, pipeline in enumerate(manifest.pipelines):
        place = f"$.pipelines[{i}]"
        last, end = pipeline.graphs[-1], f"{place}.graphs[{len(pipeline.graphs) - 1}]"
        if last in heads and ends.setdefault(last, pipeline.name) != pipeline.name:
            yield end, f"{ends[last]} ends in {last} already"
        unknown = [(j, name) for j, name in enumerate(pipeline.graphs) if name not in names]
        if unknown:
            yield from ((f"{place}.graphs[{j}]", f"unknown graph {name}") for j, name in unknown)
            continue
        yield from _feeds(manifest, place, pipeline)
        yield from _graphs(manifest, place, pipeline)
        yield from _outputs(manifest, place, pipeline)
        of_clips = Kind.FRAMES in manifest.takes(pipeline)
        other = served.setdefault((pipeline.verb, of_clips), pipeline.name)
        if other != pipeline.name:
            yield place, f"{other} serves {pipeline.verb} for {'clips' if of_clips else 'images and texts'} already"
    for i, graph in enumerate(manifest.graphs):
        if graph.is_head and graph.name not in ends:
            yield f"$.graphs[{i}]", f"no pipeline ends in {graph.name}, so its logits have no meaning"


def _feeds(manifest: Manifest, place: str, pipeline: Pipeline) -> Iterator[Problem]:
    """Inputs that the verb does not feed, or that it feeds and no graph takes."""
    allowed = frozenset[Kind]().union(*FEEDS[pipeline.verb])
    taken = manifest.takes(pipeline).keys()
    for j, name in enumerate(pipeline.graphs):
        for tensor in manifest.graph(name).inputs:
            content = MASKS.get(tensor.kind, tensor.kind)
            if content in FED and (content not in allowed or content not in taken):
                yield f"{place}.graphs[{j}]", f"{pipeline.verb} does not feed {tensor.name} to {name}"
    contents = {kind for kind in taken if kind not in MASKS}
    if contents <= allowed and contents not in FEEDS[pipeline.verb]:
        wanted = " or ".join(" and ".join(sorted(kinds)) for kinds in FEEDS[pipeline.verb])
        yield f"{place}.graphs", f"{pipeline.verb} feeds {wanted}, and the graphs take {', '.join(sorted(contents))}"


def _graphs(manifest: Manifest, place: str, pipeline: Pipeline) -> Iterator[Problem]:
    """Graphs that run too early, give a tensor that is there already (as a repeated graph does), or give logits too early."""
    given: dict[str, Kind] = {}
    for j, name in enumerate(pipeline.graphs):
        graph, there = manifest.graph(name), f"{place}.graphs[{j}]"
        for tensor in graph.inputs:
            if tensor.kind not in FED and tensor.name not in given:
                yield there, f"no graph before {name} gives {tensor.name}"
        for tensor in graph.outputs:
            if tensor.name in given:
                yield there, f"a graph before {name} gives {tensor.name} already"
            if tensor.kind is Kind.ATTENTION and Kind.ATTENTION in given.values():
                yield there, f"a graph before {name} gives attention already"
            given[tensor.name] = tensor.kind
        if graph.is_head and _reads(pipeline.verb) is not Kind.LOGITS:
            yield there, f"{name} gives logits, which {pipeline.verb} does not read"
        elif graph.is_head and j < len(pipeline.graphs) - 1:
            yield there, f"{name} gives logits, so it must be the last graph"


def _outputs(manifest: Manifest, place: str, pipeline: Pipeline) -> Iterator[Problem]:
    """Outputs that no graph gives, and a first output that is not what the verb reads."""
    yield from repeated(f"{place}.outputs", pipeline.outputs)
    given: dict[str, TensorSpec] = {
        tensor.name: tensor for name in pipeline.graphs for tensor in manifest.graph(name).outputs
    }
    for j, name in enumerate(pipeline.outputs):
        if name not in given:
            yield f"{place}.outputs[{j}]", f"no graph of {pipeline.name} gives {name}"
    first, kind = given.get(pipeline.outputs[0]), _reads(pipeline.verb)
    if first is None:
        return
    if first.kind is not kind:
        yield f"{place}.outputs[0]", f"{pipeline.verb} reads the kind {kind}, and {first.name} is of kind {first.kind}"
    elif pipeline.verb is Verb.MATCH and first.shape[-1] != 2:
        yield f"{place}.outputs[0]", f"match needs 2 classes (no, yes), and {first.name} has {first.shape[-1]}"


def label_problems(manifest: Manifest) -> Iterator[Problem]:
    """Labels that are missing, that nothing uses, or that do not fit the classes.

    Two classes may have the same label: in English, a crane is a bird and a machine.
    """
    graphs = {graph.name: graph for graph in manifest.graphs}
    users: dict[str, str] = {}
    for i, pipeline in enumerate(manifest.pipelines):
        place, name = f"$.pipelines[{i}].labels", pipeline.labels
        if _reads(pipeline.verb) is Kind.EMBEDDING:
            if name:
                yield place, f"{pipeline.verb} gives an embedding, which has no labels"
            continue
        if name not in manifest.labels:
            yield place, f"{pipeline.name} needs labels, and the manifest has no labels {name!r}"
            continue
        if users.setdefault(name, pipeline.name) != pipeline.name:
            yield place, f"{users[name]} uses the labels {name} already"
        if name == RESERVED_LABELS:
            yield place, f"labels may not be called {name}: the evidence has a task of that name"
        last = graphs.get(pipeline.graphs[-1])
        classes = [t.shape[-1] for t in last.outputs if t.kind is Kind.LOGITS] if last is not None else []
        if classes and classes[0] != len(manifest.labels[name]):
            yield f"$.labels.{name}", f"{len(manifest.labels[name])} labels for {classes[0]} classes"
    for name in manifest.labels:
        if name not in users:
            yield f"$.labels.{name}", "no pipeline uses these labels"
