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
from simmim_export.proof.asked import IMAGES, LOGITS, TEXTS, asked, graphs_behind
from simmim_export.proof.evidence import Evidence
from simmim_export.proof.rows import Keep, Rows, RowSession
from simmim_export.spec import BATCH, GraphSpec, Kind, Pipeline, TensorSpec
from simmim_export.system.watch import Watch, unwatched

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
    """Asks a model what ``evidence`` holds.

    ``tokens(texts)`` gives what graphs take of texts, by name, as the runtime does: int64 [n, s] each. ``watch(step, done,
    total)`` is called before each batch. ``batch`` rows run at once, by default as many as a graph takes.
    """

    def __init__(
        self,
        manifest: Manifest,
        evidence: Evidence,
        *,
        tokens: Callable[[list[str]], Mapping[str, np.ndarray]],
        watch: Watch = unwatched,
        batch: int | None = None,
    ) -> None:
        self.evidence = evidence
        self._manifest, self._watch, self._batch = manifest, watch, batch
        self._asked = asked(evidence, manifest)
        texts = evidence.texts()
        self._number = {text: index for index, text in enumerate(texts)}
        tensors = tokens(texts) if texts else {}
        self._texts = {name: Rows.of(array, each=TEXTS, origin=(TEXTS,)) for name, array in tensors.items()}
        self._kept: dict[tuple[str, ...], Any] = {}

    def _numbers(self, texts: Iterable[Iterable[str]]) -> np.ndarray:
        """The row of each of ``texts`` in the output ``texts``: int64, with the rows and columns of ``texts``."""
        return np.array([[self._number[text] for text in row] for row in texts], np.int64)

    def outputs(self, session: Callable[[str], Session], made_by: Callable[[str], str] = str) -> dict[str, np.ndarray]:
        """``images/SET`` float32 [n, E], ``texts`` [distinct texts, E] and ``logits/TASK`` [n, k, classes]: those that the model
        gives and the evidence asks for.

        ``session(graph)`` gives the session to ask; ``made_by(graph)`` names what is in it: outputs of the same names are
        taken from an earlier call.
        """
        model, outputs = _Model(session, made_by), dict[str, np.ndarray]()
        for output, pipeline in self._asked.items():
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
            task = self.evidence.tasks[name]
            tensors |= self._images(task.images, pipeline, model)
            questions[IMAGES] = np.repeat(np.arange(len(task.labels)), task.labels.shape[1])
            questions[TEXTS] = self._numbers(task.texts).reshape(-1)
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
        images, takes = self.evidence.images[name], self._manifest.takes(pipeline)
        origin = f"{IMAGES}/{name}"
        if images.ndim == 4:
            return _named(takes, {Kind.IMAGE: Rows.of(images, each=IMAGES, origin=(origin,))})
        graphs = self._manifest.frame_graphs()

        def read() -> np.ndarray:
            # Frames take much memory, so what they gave is not kept.
            frames = Rows.of(images.reshape(-1, *images.shape[2:]), each=IMAGES, origin=())
            tensors = {t.name: frames for spec in graphs for t in spec.inputs if t.kind is Kind.IMAGE}
            flowing = self._run(graphs, tensors, model=model, questions={}, keep=lambda key, make: make())
            values = flowing[self._manifest.stacked].read()
            return values.reshape(*images.shape[:2], *values.shape[1:])

        makers = (origin, *(model.name(spec.name) for spec in graphs))
        mask = np.ones(images.shape[:2], np.int64)
        clips = Rows(each=IMAGES, origin=makers, read=read)
        return _named(takes, {Kind.FRAMES: clips, Kind.FRAME_MASK: Rows.of(mask, each=IMAGES, origin=makers)})


def _named(takes: Mapping[Kind, TensorSpec], tensors: Mapping[Kind, Rows]) -> dict[str, Rows]:
    """``tensors`` by the names under which a pipeline takes them; what it does not take is left out."""
    return {takes[kind].name: rows for kind, rows in tensors.items() if kind in takes}
