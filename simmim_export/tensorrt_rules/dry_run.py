"""What a build for TensorRT would do, without TensorRT and without a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError, Message  # type: ignore[import-untyped]
from onnx.checker import ValidationError
from onnx.external_data_helper import uses_external_data
from onnx.shape_inference import InferenceError

from simmim_export.bundle import Bundle
from simmim_export.engines.tensorrt import TrtEngine
from simmim_export.engines.tensorrt.request import Profile, Request
from simmim_export.errors import EXPORT_AGAIN, BundleError, GateFailed
from simmim_export.spec import GraphSpec, PrecisionPlan
from simmim_export.tensorrt_rules.groups import module_of
from simmim_export.tensorrt_rules.lint import Finding, lint

# How many findings a message lists.
SHOWN = 20


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """What would be built for one graph: the ``variant``, the shapes of ``profile``, and what the lint finds in the file."""

    graph: str
    variant: str
    profile: Profile
    findings: list[Finding]

    def as_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        findings = [asdict(finding) for finding in self.findings]
        return {"variant": self.variant, "profile": self.profile.as_json(), "findings": findings}


def rehearse(bundle: Bundle, engine: TrtEngine, *, plan: PrecisionPlan, request: Request) -> list[Rehearsal]:
    """A :class:`Rehearsal` for every graph at its precision in ``plan``.

    Raise :class:`UsageError` for shapes that do not fit, :class:`BundleError` for a file that is not the graph of the manifest.
    """
    request.check(bundle.manifest.graphs)
    rehearsals = []
    for spec in bundle.manifest.graphs:
        artifact = bundle.artifact(spec.name, *engine.variants(plan.of(spec.name)))
        rehearsals.append(
            Rehearsal(
                graph=spec.name,
                variant=artifact.variant,
                profile=request.profile(spec),
                findings=lint_file(bundle.file(artifact.path), spec),
            )
        )
    return rehearsals


def lint_file(path: Path, spec: GraphSpec) -> list[Finding]:
    """The findings of the lint in the ONNX model at ``path``.

    Raise :class:`BundleError` naming the file unless it is valid ONNX, whole in this one file, and has the inputs and outputs of
    ``spec``. A type that ONNX does not allow is a finding if a rule covers it, because the rule names the node and its module.
    """
    model, invalid = _load(path), ""
    _require_signature(model, spec, path)
    try:
        onnx.checker.check_model(model)
        # The checker does not compare the bytes of a tensor with its shape.
        for tensor in _tensors(model):
            onnx.numpy_helper.to_array(tensor)
        onnx.checker.check_model(model, full_check=True)
    except InferenceError as error:
        invalid = _line(error)
    # A name in the checker's own message need not be UTF-8, which is a ValueError.
    except (ValidationError, ValueError, TypeError) as error:
        raise BundleError(f"{path.name} is not valid ONNX: {_line(error)}", where=path, fix=EXPORT_AGAIN) from error
    try:
        findings = lint(model)
    except (LookupError, ValueError, TypeError):
        if not invalid:
            raise
        findings = []
    if invalid and not findings:
        raise BundleError(f"{path.name} is not valid ONNX: {invalid}", where=path, fix=EXPORT_AGAIN)
    return findings


def _require_signature(model: onnx.ModelProto, spec: GraphSpec, path: Path) -> None:
    """Raise :class:`BundleError` unless ``model`` is in this one file and has the inputs and outputs of ``spec``."""
    if outside := [tensor.name for tensor in _tensors(model) if uses_external_data(tensor)]:
        what = f"{path.name} keeps tensors in other files, which no digest covers: {', '.join(outside[:3])}"
        raise BundleError(what, where=path, fix=EXPORT_AGAIN)
    for side, tensors, values in (
        ("inputs", spec.inputs, model.graph.input),
        ("outputs", spec.outputs, model.graph.output),
    ):
        names, wanted = sorted(value.name for value in values), sorted(tensor.name for tensor in tensors)
        if names != wanted:
            shown = ", ".join(names)[:200] or "nothing"
            what = f"{path.name} has other {side} than the manifest says: {shown}, not {', '.join(wanted)}"
            raise BundleError(what, where=path, fix=EXPORT_AGAIN)


def _line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:300]


def _load(path: Path) -> onnx.ModelProto:
    try:
        return onnx.load(path, load_external_data=False)
    except DecodeError as error:
        what = f"{path.name} is damaged, or not ONNX: {error}"
        raise BundleError(what, where=path, fix=EXPORT_AGAIN) from error


def _tensors(message: Message) -> Iterator[onnx.TensorProto]:
    """Every tensor in ``message``: weights, constants in attributes, and those of subgraphs and functions."""
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for part in value if isinstance(value, Sequence) else [value]:
            if isinstance(part, onnx.TensorProto):
                yield part
            else:
                yield from _tensors(part)


def require_clean(rehearsals: list[Rehearsal], where: object) -> None:
    """Raise :class:`GateFailed` if there are findings. It names up to :data:`SHOWN`, each with graph, rule, node and module."""
    lines = [f"{r.graph}.{r.variant}: {finding}" for r in rehearsals for finding in r.findings]
    if lines:
        more = [f"and {len(lines) - SHOWN} more (--json has them all)"] if len(lines) > SHOWN else []
        listed = "\n  ".join([*lines[:SHOWN], *more])
        what = f"TensorRT would refuse these graphs, change what they compute, or run them slowly:\n  {listed}"
        raise GateFailed(what, where=where, fix="change the module that is named, or leave its node in float")


def modules(path: Path) -> Callable[[str], str]:
    """A function that gives the PyTorch module of a node of the ONNX file ``path`` by the node's name; "" for an unknown name.

    Raise :class:`BundleError` for a file that is not ONNX.
    """
    nodes = {node.name: node for node in _load(path).graph.node}
    return lambda name: module_of(nodes[name]) if name in nodes else ""
