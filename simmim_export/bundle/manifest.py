"""manifest.json to typed objects and back: parsed once, with every field checked.

``SCHEMA`` is the version of the manifest. Raise it when an older reader would misunderstand a newer bundle: add the rows of the
new version to :mod:`.schema`, teach :func:`parse_manifest` to read both, and keep a bundle of the old version among the tests.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain, islice
from typing import Any, NoReturn

import msgspec

from simmim_export.bundle.checks import problems
from simmim_export.bundle.checks.files import REQUIRED_FILES
from simmim_export.bundle.checks.problem import Problem, refusal
from simmim_export.bundle.schema import MAX_BYTES, MAX_DEPTH, ManifestRow
from simmim_export.errors import EXPORT_AGAIN, BundleError, UsageError
from simmim_export.spec import (
    GraphSpec,
    Kind,
    Pipeline,
    Precision,
    Reference,
    Similarity,
    TensorSpec,
    Variant,
    Verb,
    fed_tensors,
    graphs_of_frames,
    graphs_of_images,
)
from simmim_export.system.files import parse_json
from simmim_export.system.plain import as_json

SCHEMA = 3
# How many problems one message lists, and how many characters of each: a hostile manifest could fill the terminal.
SHOWN, LONGEST = 20, 400


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """One file that computes one graph: an ONNX variant (``engine`` is None), or the form that an engine compiled from one.

    ``bytes`` is the size of the file at ``path``, ``precision`` the one that ``variant`` is written for, and ``parity`` how
    far it was from PyTorch when it was exported.
    """

    graph: str
    variant: Variant
    path: str
    sha256: str
    bytes: int
    engine: str | None
    precision: Precision
    parity: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The content of manifest.json; docs/format.md says what each field means."""

    family: str
    model: Mapping[str, Any]
    graphs: tuple[GraphSpec, ...]
    pipelines: tuple[Pipeline, ...]
    preprocessing: Mapping[str, Any]
    labels: Mapping[str, tuple[str, ...]]
    embedding: Mapping[str, Any]
    files: Mapping[str, str]
    artifacts: tuple[Artifact, ...]
    metrics: Mapping[str, Any]
    provenance: Mapping[str, Any]
    # engine -> INT8 variant that the engine takes -> the precision plan for it, as PrecisionPlan writes it.
    plans: Mapping[str, Mapping[Variant, str]] = field(default_factory=dict)
    # None for a model that does not embed both images and texts, and for bundles of versions before this field.
    similarity: Similarity | None = None
    schema: int = SCHEMA

    @cached_property
    def _graphs(self) -> Mapping[str, GraphSpec]:
        return {graph.name: graph for graph in self.graphs}

    def graph(self, name: str) -> GraphSpec:
        """The graph called ``name``. KeyError if there is none."""
        return self._graphs[name]

    def pipeline(self, name: str) -> Pipeline:
        """The pipeline called ``name``; raise :class:`UsageError` naming those that this bundle has."""
        pipelines = {pipeline.name: pipeline for pipeline in self.pipelines}
        if name not in pipelines:
            raise UsageError(f"this bundle has no pipeline {name!r}", fix=f"choose one of {', '.join(pipelines)}")
        return pipelines[name]

    def pipeline_for(self, verb: Verb, *, clip: bool = False) -> Pipeline | None:
        """The pipeline that serves ``verb`` for images or texts, or with ``clip`` for clips; None if this bundle has none."""
        fitting = (p for p in self.pipelines if p.verb is verb and (Kind.FRAMES in self.takes(p)) == clip)
        return next(fitting, None)

    @property
    def stacked(self) -> str:
        """The tensor of each frame that the host stacks over a clip; empty for a model without clips."""
        clip = self.preprocessing.get("clip")
        return "" if clip is None else str(clip["stacked"])

    @property
    def reference(self) -> Reference:
        """What computed the golden tensors and the references of the evidence."""
        return Reference(self.provenance.get("reference", Reference.PYTORCH))

    def takes(self, pipeline: Pipeline) -> Mapping[Kind, TensorSpec]:
        """What the host feeds to ``pipeline``, by kind: the inputs of its graphs that no graph gives."""
        return fed_tensors(map(self.graph, pipeline.graphs))

    def image_graphs(self, *, clip: bool = False) -> tuple[str, ...]:
        """The graphs that read an image alone, or with ``clip`` a clip, and do not give logits, in order: they run once per
        image, for all questions."""
        return tuple(graph.name for graph in graphs_of_images(self.graphs, clip=clip))

    def frame_graphs(self) -> tuple[GraphSpec, ...]:
        """The graphs through which the host takes every frame of a clip, in order; empty for a model without clips."""
        return tuple(graphs_of_frames(self.graphs, self.stacked))

    def dumps(self) -> str:
        """The manifest as JSON text, its own digest included."""
        content = as_json(self)
        return json.dumps(content | {"digest": digest_of(content)}, indent=1, ensure_ascii=False) + "\n"


def digest_of(content: Mapping[str, Any]) -> str:
    """SHA-256 of a manifest's content apart from ``digest``, as lower-case hex.

    It covers the UTF-8 bytes that Python's ``json.dumps(content, sort_keys=True, ensure_ascii=False)`` gives. Raise
    :class:`BundleError` if ``content`` holds a text that is not Unicode (half of a surrogate pair).
    """
    return hashlib.sha256(_encoded({key: value for key, value in content.items() if key != "digest"})).hexdigest()


def _encoded(content: Any, where: object = None) -> bytes:
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        what = f"the manifest holds a text that is not Unicode: {text[error.start : error.end]!r}"
        raise BundleError(what, where=where, fix=EXPORT_AGAIN) from error


def parse_manifest(text: str, where: object) -> Manifest:
    """The manifest whose JSON is ``text``, read from the file ``where``.

    Raise :class:`BundleError` for a text that is too long or not JSON, for another schema, for a digest that does not match, and
    for any field that has a wrong type, is out of range, or contradicts another. The error names the place, for example
    ``$.graphs[2].axes[0]``.
    """
    content = _content(text, where)
    try:
        row = msgspec.convert(content, ManifestRow)
        if digest_of(content) != row.digest:
            what = "the manifest was changed after it was written: its digest does not match"
            raise BundleError(what, where=where, fix=EXPORT_AGAIN)
        del content["digest"]
        manifest = msgspec.convert(content, Manifest)
    except msgspec.ValidationError as error:
        _refuse([refusal(error)], where)
    if wrong := list(islice(problems(manifest), SHOWN + 1)):
        _refuse(wrong, where)
    return manifest


_CORRECT = "make the checkpoint again with simmim-train, or correct the model family that reads it"


def check_draft(draft: Manifest, where: object, *, fix: str = _CORRECT) -> None:
    """Raise :class:`BundleError` with ``fix`` for anything in ``draft``, a manifest without files and artifacts, that would keep
    its bundle from opening. An export calls this before the slow steps; ``where`` names the checkpoint or the spec that ``draft``
    comes from."""
    placeholder = "0" * 64
    artifacts = tuple(
        Artifact(
            graph=graph.name,
            variant=Variant.FP32,
            path=f"graphs/{graph.name}",
            sha256=placeholder,
            bytes=1,
            engine=None,
            precision=Precision.FP32,
            parity={"passed": True, "checks": 1, "scaled_error": 0.0, "cosine": 1.0},
        )
        for graph in draft.graphs
    )
    whole = replace(draft, artifacts=artifacts, files=dict.fromkeys(REQUIRED_FILES, placeholder))
    try:
        parse_manifest(whole.dumps(), where)
    except BundleError as error:
        what = f"the bundle of this model would not open: {error.what}"
        raise BundleError(what, where=where, fix=fix) from error


def _content(text: str, where: object) -> Any:
    """The JSON value of ``text``; raise :class:`BundleError` for a text that two readers could understand differently, and for
    another schema."""
    if len(text) > MAX_BYTES:
        what = f"the manifest is longer than {MAX_BYTES / 2**20:.0f} MiB"
        raise BundleError(what, where=where, fix=EXPORT_AGAIN)
    try:
        content = parse_json(text, finite=True)
    except ValueError as error:
        what = f"the manifest is not JSON: {str(error)[:LONGEST]}"
        raise BundleError(what, where=where, fix=EXPORT_AGAIN) from error
    if _depth(content) > MAX_DEPTH:
        what = f"the manifest is nested more than {MAX_DEPTH} levels deep"
        raise BundleError(what, where=where, fix=EXPORT_AGAIN)
    # msgspec does not report a text that is not Unicode as its own kind of error.
    _encoded(content, where)
    schema = content.get("schema") if isinstance(content, dict) else None
    # ManifestRow refuses a schema that is not a number.
    if type(schema) is int and schema != SCHEMA:
        what = f"the bundle has schema {str(schema)[:20]}, and this version reads schema {SCHEMA}"
        fix = EXPORT_AGAIN if schema < SCHEMA else "pip install -U simmim-export"
        raise BundleError(what, where=where, fix=fix)
    return content


def _depth(value: Any) -> int:
    """How deep ``value`` is nested: 0 for a number or a text. Not recursive, because Python's limit differs between machines."""
    depth, level = 0, [value]
    while level := [held for held in level if isinstance(held, dict | list)]:
        level = list(chain.from_iterable(held.values() if isinstance(held, dict) else held for held in level))
        depth += 1
    return depth


def _refuse(wrong: list[Problem], where: object) -> NoReturn:
    lines = [f"{place[:LONGEST]}: {what[:LONGEST]}" for place, what in wrong[:SHOWN]]
    if len(wrong) > SHOWN:
        lines.append("and more")
    what = "the manifest is wrong at " + "\n  ".join(lines)
    fix = f"{EXPORT_AGAIN}; for a bundle of a newer version: pip install -U simmim-export"
    raise BundleError(what, where=where, fix=fix)
