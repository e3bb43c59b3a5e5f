"""Compiles the graphs of a bundle for this device, one after the other, and proves each plan file before it is kept.

A build can be interrupted at any time: finished plan files stay, and the same command goes on with the rest.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from simmim_export.bundle import Artifact, Bundle
from simmim_export.bundle.golden import Golden
from simmim_export.engines.base import Session
from simmim_export.engines.tensorrt import TrtEngine
from simmim_export.engines.tensorrt import plan_file as plan_files
from simmim_export.engines.tensorrt.request import Request
from simmim_export.errors import UsageError
from simmim_export.proof.parity import compare
from simmim_export.spec import GraphSpec, PrecisionPlan, Reference
from simmim_export.system.files import locked
from simmim_export.system.watch import Watch

LOCK = ".lock"


@dataclass(frozen=True)
class Built:
    """The plan file of one graph. ``new`` is false if it was already there and fits the request."""

    path: Path
    sidecar: plan_files.Sidecar
    new: bool

    def as_json(self) -> dict[str, Any]:
        """Its figures."""
        card = self.sidecar
        parity = None if card.parity is None else dict(card.parity)
        figures = {"bytes": card.bytes, "executed": dict(card.executed), "parity": parity}
        return {"plan": str(self.path), "precision": card.precision, "new": self.new, "recipe": card.recipe} | figures


def build(
    bundle: Bundle,
    engine: TrtEngine,
    *,
    plan: PrecisionPlan,
    request: Request,
    modules: Callable[[Path], Callable[[str], str]],
    watch: Watch,
) -> list[Built]:
    """Build a plan file for every graph at the precision that ``plan`` has for it.

    ``modules`` gives for the path of a graph a function that names the PyTorch module of a node; ``watch`` is told the progress.
    Raise :class:`UsageError` if another build of the bundle is running or shapes do not fit, :class:`GateFailed` for a plan file
    that differs from PyTorch or has the wrong precision (it is not kept), and what the engine raises.
    """
    graphs = bundle.manifest.graphs
    engine.require_request(request)
    request.check(graphs)
    for spec in graphs:
        request.profile(spec)
    artifacts = {spec.name: bundle.artifact(spec.name, *engine.variants(plan.of(spec.name))) for spec in graphs}
    golden = bundle.golden()
    built = []
    with _locked(bundle.root / plan_files.FOLDER / engine.name / LOCK):
        for spec in graphs:
            artifact, precision = artifacts[spec.name], plan.of(spec.name)
            path = plan_files.plan_file_path(bundle.root, spec.name, engine=engine.name, precision=precision)
            if engine.up_to_date(path, spec, precision=precision, sha256=artifact.sha256, request=request):
                built.append(Built(path, plan_files.read_sidecar(path), new=False))
                continue
            graph = bundle.file(artifact.path)
            sidecar = engine.compile(
                graph,
                spec,
                precision=precision,
                path=path,
                request=request,
                prove=partial(
                    _prove,
                    spec=spec,
                    artifact=artifact,
                    golden=golden,
                    graph=graph,
                    reference=bundle.manifest.reference,
                ),
                module_of=modules(graph),
                watch=watch,
            )
            built.append(Built(path, sidecar, new=True))
    return built


def _prove(
    session: Session, *, spec: GraphSpec, artifact: Artifact, golden: Golden, graph: Path, reference: Reference
) -> dict[str, Any]:
    """Compare ``session`` with ``reference``. Raise :class:`GateFailed` if it differs, else return the figures."""
    precision, exported = artifact.precision, artifact.parity
    report = compare(session, spec, golden=golden, precision=precision, exported=exported, reference=reference)
    report.require(graph, "another --precision, or report this with the versions that simmim-export doctor prints")
    return dict(report.summary())


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock file ``path``. Raise :class:`UsageError` naming the process if another one holds it."""
    held = ExitStack()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        held.enter_context(locked(path, timeout=0))
    except TimeoutError:
        owner = "unknown"
        with suppress(OSError):  # Windows does not let anybody read a locked file
            owner = path.read_text(encoding="utf-8", errors="replace").strip() or owner
        what = f"another build of this bundle is running (process {owner})"
        raise UsageError(what, where=path, fix="wait for it, then run the same command again") from None
    except OSError as error:
        what = f"plan files are kept in the bundle, and it cannot be written: {error}"
        raise UsageError(what, where=path, fix="copy the bundle to a folder that can be written") from error
    with held:
        with suppress(OSError):
            path.write_text(str(os.getpid()), encoding="utf-8")
        yield
