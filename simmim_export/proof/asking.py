"""Asks a model everything that the evidence holds.

Outputs are kept by what made them: after one graph of a model has changed, only that graph and those that follow it run again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from simmim_export.bundle import Manifest
from simmim_export.engines.base import Session
from simmim_export.engines.pipeline import run_graphs
from simmim_export.proof.asked import IMAGES, LOGITS, TEXTS, asked, frame_graphs, graphs_behind, stacked
from simmim_export.proof.evidence import Evidence
from simmim_export.proof.rows import Keep, Rows, RowSession, Watch
from simmim_export.spec import BATCH, GraphSpec, Kind, Pipeline, TensorSpec

# So many versions of the outputs of each graph are kept: with fewer, a planner that goes back and forth would ask again.
KEPT = 4


@dataclass(frozen=True)
class _Model:
    """The graphs of one call: ``open(graph)`` gives a session, and ``name(graph)`` says which version of the graph it runs."""

    open: Callable[[str], Session]
    made_by: Callable[[str], str]

    def name(self, graph: str) -> str:
        return f"{graph} {self.made_by(graph)}"


class Asker:
    """Asks the questions of ``evidence``. For the arguments see :class:`simmim_export.proof.examine.Examiner`."""

    def __init__(
        self,
        manifest: Manifest,
        evidence: Evidence,
        *,
        tokens: Callable[[list[str]], Mapping[str, np.ndarray]],
        watch: Watch,
        batch: int | None,
    ) -> None:
        self._manifest, self._evidence, self._watch, self._batch = manifest, evidence, watch, batch
        texts = evidence.texts()
        self._number = {text: index for index, text in enumerate(texts)}
        tensors = tokens(texts) if texts else {}
        self._texts = {name: Rows.of(array, each=TEXTS, origin=(TEXTS,)) for name, array in tensors.items()}
        self._kept: dict[tuple[str, ...], Any] = {}

    def numbers(self, texts: Iterable[Iterable[str]]) -> np.ndarray:
        """The row of each of ``texts`` in the output ``texts``: int64, as many rows and columns as ``texts`` has."""
        return np.array([[self._number[text] for text in row] for row in texts], np.int64)

    def outputs(self, session: Callable[[str], Session], made_by: Callable[[str], str]) -> dict[str, np.ndarray]:
        """See :meth:`simmim_export.proof.examine.Examiner.outputs`."""
        model, outputs = _Model(session, made_by), dict[str, np.ndarray]()
        for output, pipeline in asked(self._evidence, self._manifest).items():
            makers = map(model.name, graphs_behind(self._manifest, output))
            outputs[output] = self._keep((output, "", *makers), partial(self._ask, output, pipeline, model))
        return outputs

    def _keep(self, key: tuple[str, ...], make: Callable[[], Any]) -> Any:
        """What ``make`` gives, or gave before. The first two parts of ``key`` say of what; the others, which version of it."""
        if key not in self._kept:
            for old in [other for other in self._kept if other[:2] == key[:2]][: 1 - KEPT]:
                del self._kept[old]
            self._kept[key] = make()
        return self._kept[key]

    def _ask(self, output: str, pipeline: Pipeline, model: _Model) -> np.ndarray:
        """One output: the graphs of its pipeline in order over named tensors, as the runtime runs them."""
        kind, _, name = output.partition("/")
        questions: dict[str, np.ndarray] = {}
        tensors = dict(self._texts)
        if kind == IMAGES:
            tensors |= self._images(name, pipeline, model)
        if kind == LOGITS:
            task = self._evidence.tasks[name]
            tensors |= self._images(task.images, pipeline, model)
            questions[IMAGES] = np.repeat(np.arange(len(task.labels)), task.labels.shape[1])
            questions[TEXTS] = self.numbers(task.texts).reshape(-1)
        specs = [self._manifest.graph(graph) for graph in pipeline.graphs]
        answers = self._run(specs, tensors, model=model, questions=questions, keep=self._keep)[pipeline.outputs[0]]
        values = answers.read()
        if kind != LOGITS:
            return values
        if answers.each in questions:
            values = values[questions[answers.each]]
        return values.reshape(*task.labels.shape, -1)

    def _run(
        self,
        specs: Iterable[GraphSpec],
        tensors: Mapping[str, Rows],
        *,
        model: _Model,
        questions: Mapping[str, np.ndarray],
        keep: Keep,
    ) -> dict[str, Rows]:
        def session_for(graph: str) -> RowSession:
            spec = self._manifest.graph(graph)
            return RowSession(
                spec=spec,
                made_by=model.name(graph),
                open=lambda: model.open(graph),
                questions=questions,
                keep=keep,
                batch=self._batch or spec.axis(BATCH).maximum,
                watch=self._watch,
            )

        return run_graphs(specs, tensors, session_for)

    def _images(self, name: str, pipeline: Pipeline, model: _Model) -> dict[str, Rows]:
        """What ``pipeline`` takes of the set ``name``: its images, or its clips with a mask of ones."""
        images, takes = self._evidence.images[name], self._manifest.takes(pipeline)
        origin = f"{IMAGES}/{name}"
        if images.ndim == 4:
            return _named(takes, {Kind.IMAGE: Rows.of(images, each=IMAGES, origin=(origin,))})
        graphs = frame_graphs(self._manifest)

        def read() -> np.ndarray:
            # Frames take much memory, so what they gave is not kept.
            frames = Rows.of(images.reshape(-1, *images.shape[2:]), each=IMAGES, origin=())
            tensors = {t.name: frames for spec in graphs for t in spec.inputs if t.kind is Kind.IMAGE}
            flowing = self._run(graphs, tensors, model=model, questions={}, keep=lambda key, make: make())
            values = flowing[stacked(self._manifest)].read()
            return values.reshape(*images.shape[:2], *values.shape[1:])

        makers = (origin, *(model.name(spec.name) for spec in graphs))
        mask = np.ones(images.shape[:2], np.int64)
        clips = Rows(each=IMAGES, origin=makers, read=read)
        return _named(takes, {Kind.FRAMES: clips, Kind.FRAME_MASK: Rows.of(mask, each=IMAGES, origin=makers)})


def _named(takes: Mapping[Kind, TensorSpec], tensors: Mapping[Kind, Rows]) -> dict[str, Rows]:
    """``tensors`` by the names under which a pipeline takes them; what it does not take is left out."""
    return {takes[kind].name: rows for kind, rows in tensors.items() if kind in takes}
