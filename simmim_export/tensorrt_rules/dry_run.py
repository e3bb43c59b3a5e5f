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
from simmim_export.engines.tensorrt.library import RTX, Library, use
from simmim_export.engines.tensorrt.request import Profile, Request
from simmim_export.errors import EXPORT_AGAIN, BundleError, GateFailed
from simmim_export.spec import GraphSpec, PrecisionPlan
from simmim_export.tensorrt_rules.groups import module_of
from simmim_export.tensorrt_rules.lint import Finding, lint

# How many findings a message lists.
SHOWN = 20


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What TensorRT's own ``parser`` (its name and version) said of a graph: why it is ``refused``, or None; and how many
    products and convolutions it read as quantized."""

    parser: str
    refused: str | None
    products: int


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """What would be built for one graph: the ``variant``, the shapes of ``profile``, what the lint finds in the file, and the
    parser's ``verdict``, None if no parser is installed."""

    graph: str
    variant: str
    profile: Profile
    findings: list[Finding]
    verdict: Verdict | None = None

    def as_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "variant": self.variant,
            "profile": self.profile.as_json(),
            "findings": [asdict(finding) for finding in self.findings],
            "parser": None if self.verdict is None else asdict(self.verdict),
        }


def rehearse(bundle: Bundle, engine: TrtEngine, *, plan: PrecisionPlan, request: Request) -> list[Rehearsal]:
    """A :class:`Rehearsal` for every graph at its precision in ``plan``.

    Raise :class:`UsageError` for shapes that do not fit, :class:`BundleError` for a file that is not the graph of the manifest.
    """
    request.check(bundle.manifest.graphs)
    library = parser_of(engine)
    rehearsals = []
    for spec in bundle.manifest.graphs:
        artifact = bundle.artifact(spec.name, *engine.variants(plan.of(spec.name)))
        path = bundle.file(artifact.path)
        rehearsals.append(
            Rehearsal(
                graph=spec.name,
                variant=artifact.variant,
                profile=request.profile(spec),
                findings=lint_file(path, spec),
                verdict=None if library is None else verdict(path, spec, library=library),
            )
        )
    return rehearsals


def parser_of(engine: TrtEngine) -> Library | None:
    """Whose parser can read graphs here: that of ``engine`` if it can build, else that of TensorRT for RTX, which needs no GPU.
    None if neither can."""
    if engine.why_no_build() is None:
        return engine.library
    return RTX if RTX.why_missing() is None else None


def verdict(path: Path, spec: GraphSpec, *, library: Library) -> Verdict:
    """What the parser of ``library`` says of the ONNX file at ``path``. Raise :class:`EngineUnavailable` if it cannot be
    loaded."""
    parser = f"{library.title} {use(library).__version__}"
    from simmim_export.engines.tensorrt.network import parse, quantized_products

    try:
        network = parse(path, spec, module_of=modules(path), fix=EXPORT_AGAIN)
    except BundleError as error:
        return Verdict(parser=parser, refused=error.what, products=0)
    return Verdict(parser=parser, refused=None, products=len(quantized_products(network)))


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
    """Raise :class:`GateFailed` if a rule is broken or the parser refuses a graph. It names up to :data:`SHOWN` findings, each
    with graph, rule, node and module. Advice does not count."""
    lines = [f"{r.graph}.{r.variant}: {finding}" for r in rehearsals for finding in r.findings if not finding.advice]
    # The parser stops at the first node that it refuses, which a rule has usually named already.
    refused = [f"{r.graph}.{r.variant}: {v.refused}" for r in rehearsals if (v := r.verdict) is not None and v.refused]
    if lines or refused:
        more = [f"and {len(lines) - SHOWN} more (--json has them all)"] if len(lines) > SHOWN else []
        listed = "\n  ".join([*lines[:SHOWN], *more, *refused])
        what = f"TensorRT would refuse these graphs, change what they compute, or run them slowly:\n  {listed}"
        raise GateFailed(what, where=where, fix="change the module that is named, or leave its node in float")


def modules(path: Path) -> Callable[[str], str]:
    """A function that gives the PyTorch module of a node of the ONNX file ``path`` by the node's name; "" for an unknown name.

    Raise :class:`BundleError` for a file that is not ONNX.
    """
    nodes = {node.name: node for node in _load(path).graph.node}
    return lambda name: module_of(nodes[name]) if name in nodes else ""
