"""The graphs of a bundle compiled for this device, one after the other, each proven before it is kept.

Knows bundles, parity, and the engine that compiles ahead of time. Must not know how a plan is made.

A build can be cut off at any time: what is finished stays, and the same command goes on with the rest.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simmim_export.bundle import Bundle
from simmim_export.bundle.golden import Golden
from simmim_export.engines.base import Session, require_host
from simmim_export.engines.tensorrt import TrtEngine
from simmim_export.engines.tensorrt import plan as plans
from simmim_export.engines.tensorrt.request import Request
from simmim_export.errors import UsageError
from simmim_export.proof.parity import compare
from simmim_export.spec import GraphSpec, Precision, PrecisionPlan
from simmim_export.system.files import locked

LOCK = ".lock"


@dataclass(frozen=True)
class Built:
    """The plan of one graph. ``new`` is false for one that was there already and fits what was asked for."""

    path: Path
    sidecar: plans.Sidecar
    new: bool

    def as_json(self) -> dict[str, Any]:
        """Its figures."""
        card = self.sidecar
        figures = {"bytes": card.bytes, "executed": dict(card.executed), "parity": dict(card.parity)}
        return {"plan": str(self.path), "precision": card.precision, "new": self.new, "recipe": card.recipe} | figures


def build(
    bundle: Bundle,
    engine: TrtEngine,
    plan: PrecisionPlan,
    request: Request,
    modules: Callable[[Path], Callable[[str], str]],
    watch: Callable[[str, int, int], None],
) -> list[Built]:
    """The plan of every graph at the precision that ``plan`` has for it.

    ``modules`` gives, for the path of a graph, what names the PyTorch module of one of its nodes; ``watch`` is told of
    progress. Raise :class:`UsageError` where another build of the bundle is running or shapes do not fit,
    :class:`GateFailed` for a plan that differs from PyTorch or has the wrong precision (it is not kept), and what the engine
    raises.
    """
    graphs = bundle.manifest.graphs
    request.check(graphs)
    for spec in graphs:
        request.profile(spec)
    artifacts = {spec.name: bundle.artifact(spec.name, engine.variant(plan.of(spec.name))) for spec in graphs}
    golden = Golden.load(bundle.file("golden.npz"), graphs=graphs)
    found = []
    with _locked(plans.plan_path(bundle.root, "x", "x").parent / LOCK):
        for spec in graphs:
            artifact, precision = artifacts[spec.name], plan.of(spec.name)
            path = plans.plan_path(bundle.root, spec.name, precision)
            if engine.up_to_date(path, spec, precision, artifact.sha256, request):
                found.append(Built(path, plans.read(path), new=False))
                continue
            require_host(engine, artifact.built_for, bundle.root / artifact.path)
            graph = bundle.file(artifact.path)
            prove = _Prover(spec, precision, golden, graph)
            sidecar = engine.compile(graph, spec, precision, path, request, prove, modules(graph), watch)
            found.append(Built(path, sidecar, new=True))
    return found


@dataclass(frozen=True)
class _Prover:
    """Compares a plan with PyTorch; raises :class:`GateFailed` for one that differs, else gives the figures."""

    spec: GraphSpec
    precision: Precision
    golden: Golden
    graph: Path

    def __call__(self, session: Session) -> dict[str, Any]:
        report = compare(session, self.spec, golden=self.golden, precision=self.precision)
        report.require(
            self.graph, "another --precision, or report this with the versions that simmim-export doctor prints"
        )
        return dict(report.summary())


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock file ``path``; raise :class:`UsageError` naming the process that holds it. It goes with its process."""
    held = ExitStack()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        held.enter_context(locked(path, timeout=0))
    except TimeoutError:
        owner = "unknown"
        with suppress(OSError):  # Windows lets nobody read what is locked
            owner = path.read_text(encoding="utf-8", errors="replace").strip() or owner
        what = f"another build of this bundle is running (process {owner})"
        raise UsageError(what, where=path, fix="wait for it, then run the same command again") from None
    except OSError as error:
        fix = "copy the bundle to where plans can be written"
        raise UsageError(
            f"plans are kept in the bundle, and it cannot be written: {error}", where=path, fix=fix
        ) from error
    with held:
        with suppress(OSError):
            path.write_text(str(os.getpid()), encoding="utf-8")
        yield
