"""What a build for TensorRT would do, found out without TensorRT and without a GPU.

Knows bundles and the lint. Must not know how a plan is made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from simmim_export.bundle import Bundle
from simmim_export.engines.trt import TrtEngine
from simmim_export.engines.trt.request import Profile, Request
from simmim_export.errors import GateFailed
from simmim_export.precision.groups import module_of
from simmim_export.precision.lint import SHOWN, Finding, lint
from simmim_export.spec import PrecisionPlan


@dataclass(frozen=True)
class Rehearsal:
    """What would be built for one graph, and what TensorRT would not like about it."""

    graph: str
    variant: str
    profile: Profile
    findings: list[Finding]

    def as_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        found = [{"rule": f.rule, "node": f.node, "module": f.module, "what": f.what} for f in self.findings]
        return {"variant": self.variant, "profile": self.profile.as_json(), "findings": found}


def rehearse(bundle: Bundle, engine: TrtEngine, plan: PrecisionPlan, request: Request) -> list[Rehearsal]:
    """One for every graph at the precision that ``plan`` has for it. Raise :class:`UsageError` for shapes that do not fit."""
    request.check(bundle.manifest.graphs)
    found = []
    for spec in bundle.manifest.graphs:
        artifact = bundle.artifact(spec.name, engine.variant(plan.of(spec.name)))
        model = onnx.load(bundle.file(artifact.path))
        found.append(Rehearsal(spec.name, artifact.variant, request.profile(spec), lint(model)))
    return found


def require_clean(rehearsals: list[Rehearsal], where: object) -> None:
    """Raise :class:`GateFailed` that names up to 20 findings, each with its graph, rule, node and module."""
    lines = [f"{r.graph}.{r.variant}: {finding}" for r in rehearsals for finding in r.findings]
    if lines:
        more = [f"and {len(lines) - SHOWN} more (--json has them all)"] if len(lines) > SHOWN else []
        listed = "\n  ".join([*lines[:SHOWN], *more])
        what = f"TensorRT would refuse these graphs, change what they compute, or run them slowly:\n  {listed}"
        raise GateFailed(what, where=where, fix="change the module that is named, or leave its node in float")


def modules(path: Path) -> Callable[[str], str]:
    """What names the PyTorch module of a node of the ONNX file ``path``, by the node's name; "" for one that it does not know."""
    nodes = {node.name: node for node in onnx.load(path, load_external_data=False).graph.node}
    return lambda name: module_of(nodes[name]) if name in nodes else ""
