"""The graphs of a bundle in one engine: each is opened when it is first needed, and pipelines run over their sessions."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from simmim_export.bundle import Bundle
from simmim_export.bundle.onnx_file import read_graph
from simmim_export.engines.base import CompilingEngine, Engine, KeepsOnDevice, Session
from simmim_export.engines.checks import require_hint, threads_for
from simmim_export.engines.pipeline import Runs, run_graphs
from simmim_export.errors import BundleError, CheckpointError, EngineUnavailable, UsageError
from simmim_export.runtime.inputs import Tensors
from simmim_export.spec import BATCH, PrecisionPlan, Reference, Variant
from simmim_export.system.files import digest, reading


class Sessions:
    """The sessions of one bundle at one precision plan. Threads may share them.

    A graph is opened, and the digest of its file checked, when it is first needed.
    """

    def __init__(
        self,
        bundle: Bundle,
        engine: Engine,
        *,
        plan: PrecisionPlan,
        checkpoint: Path | None,
        threads: int | None,
        hint: str,
    ) -> None:
        """Open nothing yet. ``checkpoint`` is given if and only if ``engine`` runs from one.

        Raise :class:`EngineUnavailable` for a precision or hint that the engine lacks, :class:`UsageError` for options that do
        not fit the engine, and :class:`CheckpointError` for another model's checkpoint.
        """
        self.bundle, self.engine, self.plan = bundle, engine, plan
        # Asked now, so that a precision that the engine lacks is an error here, not when a graph is first needed.
        self._variants = {graph.name: engine.variants(plan.of(graph.name)) for graph in bundle.manifest.graphs}
        require_hint(engine.name, hint, has=engine.hints)
        # How many threads a session computes in.
        self.threads = threads_for(threads)
        self._threads, self._hint = threads, hint
        self._checkpoint = _own_checkpoint(bundle, engine, path=checkpoint)
        # Held while a graph is opened, so that no other thread opens it a second time.
        self._opening, self._closed = Lock(), False
        self._opened: dict[str, Session] = {}
        # For each open graph: its inputs that pick rows of a table, and the number of rows.
        self._tables: dict[str, Mapping[str, int]] = {}

    def open(self, graph: str) -> Session:
        """The session of ``graph``, opened on first use.

        Raise :class:`UsageError` for an unknown graph, and for any graph after :meth:`close`.
        """
        session = self._opened.get(graph)
        if session is not None:
            return session
        names = [spec.name for spec in self.bundle.manifest.graphs]
        if graph not in names:
            raise UsageError(f"unknown graph {graph!r}", fix=f"choose one of {', '.join(names)}")
        with self._opening:
            if self._closed:
                raise UsageError("this model was closed", where=self.bundle.root, fix="load the bundle again")
            if graph not in self._opened:
                self._opened[graph] = self._open(graph)
            return self._opened[graph]

    def _open(self, graph: str) -> Session:
        spec, precision, path = self.bundle.manifest.graph(graph), self.plan.of(graph), self._checkpoint
        if path is None:
            artifact = self.bundle.artifact(graph, *self._variants[graph])
            onnx = self.bundle.root / artifact.path
            if isinstance(self.engine, CompilingEngine):
                path = self.engine.compiled(self.bundle.root, spec, precision=precision, sha256=artifact.sha256)
            else:
                path = self.bundle.file(artifact.path)
            self._tables[graph] = read_graph(onnx).tables
        return self.engine.open(path, spec, precision=precision, threads=self._threads, hint=self._hint)

    def variant(self, graph: str) -> Variant:
        """The variant of ``graph`` that this bundle has for the engine; that of the checkpoint for an engine that runs from one.
        Raise :class:`EngineUnavailable` if the bundle has none of those that the engine takes."""
        if self._checkpoint is not None:
            return self._variants[graph][0]
        return self.bundle.artifact(graph, *self._variants[graph]).variant

    def exported(self, graph: str) -> Mapping[str, Any] | None:
        """How far the file that ``graph`` runs from was from PyTorch when it was exported, as the manifest has it; None for an
        engine that runs from a checkpoint. Raise as :meth:`variant` does."""
        return None if self._checkpoint is not None else self.bundle.artifact(graph, *self._variants[graph]).parity

    def run(self, graphs: Iterable[str], tensors: Mapping[str, Any], *, promised: Iterable[str]) -> Tensors:
        """Run ``graphs`` in order over ``tensors``; see :func:`simmim_export.engines.pipeline.run_graphs`.

        The ``promised`` tensors are arrays in the result; others may have stayed on a GPU. Raise :class:`BundleError` for a
        promised tensor that is not finite, because answers made from it are meaningless, and for a token id outside its table.
        """
        specs = [self.bundle.manifest.graph(name) for name in graphs]
        outputs = run_graphs(specs, tensors, self._checked)
        for name in promised:
            outputs[name] = np.asarray(outputs[name])
            if not np.isfinite(outputs[name]).all():
                makers = [spec.name for spec in specs if any(tensor.name == name for tensor in spec.outputs)]
                raise self._not_finite(name, graph=makers[-1])
        return outputs

    def _not_finite(self, tensor: str, *, graph: str) -> BundleError:
        engine, root = self.engine.name, shlex.quote(str(self.bundle.root))
        what = f"{tensor} of {graph} is not finite, in engine {engine!r} at {self.plan.of(graph)}"
        verify = f"simmim-export verify {root} --engine {engine} --precision {self.plan}"
        fix = f"{verify}, to see which graph is the first to differ; or use another --precision"
        return BundleError(what, where=self.bundle.root, fix=fix)

    def _checked(self, graph: str) -> Runs:
        """The session of ``graph``, which checks ids first if the graph looks up rows of a table."""
        session = self.open(graph)
        if not self._tables.get(graph):
            return session
        checked = _ChecksIdsOnDevice if isinstance(session, KeepsOnDevice) else _ChecksIds
        return checked(session, self._tables[graph], graph=graph, where=self.bundle.root)

    def largest_batch(self, graphs: Iterable[str]) -> int:
        """The most rows that all of ``graphs`` take at once; 1 without graphs."""
        return min((self.bundle.manifest.graph(name).axis(BATCH).maximum for name in graphs), default=1)

    def close(self) -> None:
        """Close every session. Calling it twice is fine; opening a graph afterwards is a :class:`UsageError`."""
        with self._opening:
            self._closed = True
            for session in self._opened.values():
                session.close()
            self._opened.clear()


class _ChecksIds:
    """Checks the token ids that a session is fed. For an id outside its table, OpenVINO would return whatever lies in memory."""

    def __init__(self, session: Any, tables: Mapping[str, int], *, graph: str, where: Path) -> None:
        self._session, self._tables, self._graph, self._where = session, tables, graph, where

    def run(self, feeds: Mapping[str, Any]) -> Mapping[str, np.ndarray]:
        self._check(feeds)
        outputs: Mapping[str, np.ndarray] = self._session.run(feeds)
        return outputs

    def _check(self, feeds: Mapping[str, Any]) -> None:
        for name, rows in self._tables.items():
            ids = feeds.get(name)
            if not isinstance(ids, np.ndarray) or ids.dtype.kind not in "iu":
                continue  # The session refuses these.
            if ids.size and (ids.min() < 0 or ids.max() >= rows):
                what = f"{name} of {self._graph} holds ids {ids.min()} to {ids.max()}, and its table has rows 0 to {rows - 1}"
                fix = "use the tokenizer.json that was exported with the graph, or export the bundle again"
                raise BundleError(what, where=self._where, fix=fix)


class _ChecksIdsOnDevice(_ChecksIds):
    """:class:`_ChecksIds` for a session whose outputs can stay on a GPU."""

    def run_on_device(self, feeds: Mapping[str, Any]) -> Mapping[str, Any]:
        self._check(feeds)
        outputs: Mapping[str, Any] = self._session.run_on_device(feeds)
        return outputs


def _own_checkpoint(bundle: Bundle, engine: Engine, *, path: Path | None) -> Path | None:
    """``path``, checked to be the checkpoint that ``bundle`` was exported from; None for an engine that reads graphs. Raise
    :class:`EngineUnavailable` if there is no checkpoint, because the model came as ONNX files."""
    if not engine.reads_checkpoint:
        if path is not None:
            raise UsageError(f"engine {engine.name!r} reads the bundle's graphs", fix="drop the checkpoint")
        return None
    if bundle.manifest.reference is not Reference.PYTORCH:
        what = (
            f"engine {engine.name!r} runs from a checkpoint, and this bundle was made from ONNX files, which have none"
        )
        raise EngineUnavailable(what, where=bundle.root, fix="choose an engine that reads graphs, such as --engine ort")
    if path is None:
        raise UsageError(f"engine {engine.name!r} runs from a checkpoint", fix="give --checkpoint ckpt.pt")
    with reading(path, CheckpointError):
        if not path.exists():
            fix = "give the ckpt.pt that the bundle was made from"
            raise CheckpointError("no such checkpoint", where=path, fix=fix)
        sha256 = digest(path)
    if sha256 != bundle.manifest.provenance["checkpoint_sha256"]:
        raise CheckpointError(
            "this bundle was exported from another checkpoint",
            where=path,
            fix="give the checkpoint of this bundle, or export this one",
        )
    return path
