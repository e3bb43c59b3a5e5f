"""What one timed run of a job does, in the process of an engine.

The stages of a verb, each of which contains the one before it: ``graphs`` runs its sessions one after another on tensors that
are already there, ``pipeline`` adds checking and passing tensors on, ``prepared`` adds decoding and tokenizing, and ``api``
calls the method of :class:`~simmim_export.runtime.Model` that a user calls. Two more do not belong to that ladder: ``alone`` asks
each of several questions in a call of its own, and ``pillow`` is ``pipeline`` after decoding with plain Pillow.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from simmim_export.benchmarks.jobs import Job
from simmim_export.benchmarks.photographs import QUESTIONS, SIZES, STATEMENT, photograph
from simmim_export.bundle.golden import Golden
from simmim_export.runtime import Model
from simmim_export.spec import BATCH, GraphSpec, Kind, Verb, fed_tensors

STAGES = ("graphs", "pipeline", "prepared", "api")
# The verbs that read an image, and those that read a text.
OF_IMAGES = frozenset(Verb) - {Verb.EMBED_TEXT}
OF_TEXTS = frozenset(Verb) - {Verb.EMBED_IMAGE, Verb.CLASSIFY}
# Calls in one timed run of a job with streams, for each stream.
CALLS_PER_STREAM = 8


@dataclass(frozen=True)
class Workload:
    """``run`` does the work once. ``inputs`` is the SHA-256 of what it is fed. ``feeds`` is that of a single graph, or None."""

    run: Callable[[], object]
    inputs: str
    feeds: Mapping[str, np.ndarray] | None = None


class Workloads:
    """Makes the workload of each job for one open ``model``.

    ``pictures`` is the folder of the generated photographs. ``open_throughput`` opens the same model for many calls at once.
    """

    def __init__(
        self, model: Model, golden: Golden, *, pictures: Path | None, open_throughput: Callable[[], Model]
    ) -> None:
        self._model, self._golden, self._pictures = model, golden, pictures
        self._open_throughput = open_throughput
        self._throughput: Model | None = None
        self._pools: dict[int, ThreadPoolExecutor] = {}

    def of(self, job: Job) -> Workload:
        """The workload of ``job``. Raise what the model raises for it."""
        kind, _, name = job.target.partition(":")
        if kind == "verb":
            return self._verb(Verb(name), job)
        feeds = self._feeds(kind, name, job)
        inputs = hashlib.sha256(b"".join(key.encode() + feeds[key].tobytes() for key in sorted(feeds))).hexdigest()
        if "streams" in job.params:
            return Workload(self._streams(name, job=job, feeds=feeds), inputs)
        if kind == "pipeline":
            return Workload(lambda: self._model.run(name, feeds), inputs)
        session = self._model.session(name)
        return Workload(lambda: session.run(feeds), inputs, feeds)

    def _feeds(self, kind: str, name: str, job: Job) -> dict[str, np.ndarray]:
        """Golden rows in the sizes of ``job``: the same for every engine. A pipeline gets every tensor that the host gives to any
        graph. A golden tensor that is too small is repeated, a larger one cut."""
        manifest, case = self._model.bundle.manifest, self._golden.largest()
        if kind == "graph":
            spec = manifest.graph(name)
            rows = self._golden.feeds(case, spec)
            return {key: resized(array, spec, name=key, params=job.params) for key, array in rows.items()}
        inputs = {tensor.name for graph in manifest.graphs for tensor in graph.inputs}
        rows = {key: array for key, array in self._golden.cases[case].items() if key in inputs}
        return {key: np.take(array, range(job.batch), axis=0, mode="wrap") for key, array in rows.items()}

    def _streams(self, pipeline: str, *, job: Job, feeds: Mapping[str, np.ndarray]) -> Callable[[], object]:
        """Many calls of ``pipeline`` from as many threads as the job has streams; ends when the last call has ended."""
        count = int(job.params["streams"])
        model = self._throughput = self._throughput or self._open_throughput()
        pool = self._pools.setdefault(count, ThreadPoolExecutor(count))
        calls = CALLS_PER_STREAM * count
        return lambda: list(pool.map(lambda _: model.run(pipeline, feeds), range(calls)))

    def _verb(self, verb: Verb, job: Job) -> Workload:
        picture = None if self._pictures is None else photograph(self._pictures, picture_size(job))
        count = int(job.params.get("questions", 1))
        texts = list(QUESTIONS[:count]) if verb is Verb.ANSWER else [STATEMENT] * count
        hashed = hashlib.sha256()
        if verb in OF_IMAGES and picture is not None:
            hashed.update(picture.read_bytes())
        if verb in OF_TEXTS:
            hashed.update("\n".join(texts).encode())
        # In the suite of photographs PyTorch does without our decoder, as its users do.
        plain = job.suite == "photos" and self._model.engine.reads_checkpoint
        stage = "pillow" if plain else str(job.params.get("stage", "api"))
        return Workload(self._stage(verb, stage, picture=picture, texts=texts), hashed.hexdigest())

    def _stage(self, verb: Verb, stage: str, *, picture: Path | None, texts: list[str]) -> Callable[[], object]:
        model, pipeline = self._model, self._model.pipeline(verb)

        def prepare() -> dict[str, np.ndarray]:
            feeds = dict(model.tokens(texts)) if verb in OF_TEXTS else {}
            return feeds | ({self._image: model.pixels([picture])} if verb in OF_IMAGES and picture is not None else {})

        if stage == "api":
            return lambda: call(model, verb, picture=picture, texts=texts)
        if stage == "alone":
            return lambda: [call(model, verb, picture=picture, texts=[text]) for text in texts]
        if stage == "pillow":
            return lambda: model.run(pipeline.name, {self._image: self._plain(picture)})
        if stage == "prepared":
            return lambda: model.run(pipeline.name, prepare())
        feeds = prepare()
        if stage == "pipeline":
            return lambda: model.run(pipeline.name, feeds)
        tensors = {name: np.asarray(tensor) for name, tensor in model.run(pipeline.name, feeds).items()}
        sessions = [model.session(graph) for graph in pipeline.graphs]
        return lambda: [session.run(tensors) for session in sessions]

    @property
    def _image(self) -> str:
        return fed_tensors(self._model.bundle.manifest.graphs)[Kind.IMAGE].name

    def _plain(self, picture: Path | None) -> np.ndarray:
        """``picture`` as a user of PyTorch and Pillow decodes and resizes it, without our decoder."""
        assert picture is not None
        _, height, width, _ = fed_tensors(self._model.bundle.manifest.graphs)[Kind.IMAGE].shape
        with Image.open(picture) as image:
            small = image.convert("RGB").resize((int(width), int(height)), Image.Resampling.BILINEAR)
        return np.asarray(small)[None]


def picture_size(job: Job) -> float:
    """The megapixels of the photograph that ``job`` reads; those of the smallest one if it does not say."""
    return float(job.params.get("megapixels", min(SIZES)))


def call(model: Model, verb: Verb, *, picture: Path | None, texts: list[str]) -> Any:
    """Call ``verb`` of ``model`` as a user does."""
    match verb:
        case Verb.EMBED_IMAGE:
            return model.embed_image([picture] if picture else [])
        case Verb.EMBED_TEXT:
            return model.embed_text(texts)
    assert picture is not None
    match verb:
        case Verb.ANSWER:
            return model.answers(picture, texts)
        case Verb.MATCH:
            return model.match(picture, texts)
        case Verb.CLASSIFY_TEXT:
            return model.classify_text(picture, texts)
    return model.classify(picture)


def resized(array: np.ndarray, spec: GraphSpec, *, name: str, params: Mapping[str, Any]) -> np.ndarray:
    """``array``, the input ``name`` of ``spec``, with each dynamic axis that ``params`` names in that size, repeated or cut."""
    (shape,) = (tensor.shape for tensor in spec.inputs if tensor.name == name)
    for position, axis in enumerate(shape):
        if isinstance(axis, str) and (axis in params or axis == BATCH):
            array = np.take(array, range(int(params.get(axis, 1))), axis=position, mode="wrap")
    return np.ascontiguousarray(array)
