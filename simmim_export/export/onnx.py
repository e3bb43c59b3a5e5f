"""One graph wrapper to one ONNX file, and what that file must satisfy.

Knows torch.onnx and onnx. Must not know which graphs a model has, or bundles. requires: a module in eval mode and its
spec; ensures: names, dtypes, symbolic axes and operators as promised, or :class:`GateFailed`.
"""

from __future__ import annotations

import contextlib
import copy
import io
import itertools
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path

import onnx
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from simmim_export.bundle.onnx_file import OPERATORS
from simmim_export.errors import GateFailed
from simmim_export.export.limits import OPSET, require_opset
from simmim_export.models.family import Graph
from simmim_export.spec import GraphSpec, TensorSpec

# Operators that no graph of ours may hold, and why. Range is fine outside an encoder (it builds positions from a shape).
FORBIDDEN: Mapping[str, str] = {
    "IsNaN": "left over from a fully masked softmax row; our masks never mask a whole row",
    "NonZero": "its output shape depends on the data, which TensorRT cannot plan for",
    "GatherND": "a scatter-gather of mask building; no fused kernel takes it",
    "ScatterND": "restricted in TensorRT, slow everywhere",
    "Loop": "control flow hides nodes from every optimiser",
    "If": "control flow hides nodes from every optimiser",
    "Range": "positions are constants here; a Range means that a mask or a position is built at run time",
}


def fold_batch_norms(module: nn.Module) -> nn.Module:
    """A copy of ``module`` (in eval mode) with every BatchNorm folded into the convolution before it.

    Source: Jacob et al., 2018, section 3.2. Done here and not by an engine, so that every engine and every quantiser
    sees the same weights.
    """
    folded = copy.deepcopy(module)
    for parent in folded.modules():
        names = list(parent._modules)
        for first, second in itertools.pairwise(names):
            conv, norm = parent._modules[first], parent._modules[second]
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                parent._modules[first] = fuse_conv_bn_eval(conv, norm)
                parent._modules[second] = nn.Identity()
    return folded


def example_inputs(spec: GraphSpec) -> tuple[torch.Tensor, ...]:
    """Tensors to trace with. Every dynamic axis has its own size above 1, so that none is mistaken for another."""
    sizes = {axis.name: 2 + index for index, axis in enumerate(spec.axes)}
    sizes = {name: max(size, spec.axis(name).minimum) for name, size in sizes.items()}
    return tuple(torch.ones(t.resolve(sizes), dtype=getattr(torch, t.dtype)) for t in spec.inputs)


def trace(graph: Graph, path: Path, opset: int = OPSET) -> onnx.ModelProto:
    """Export ``graph`` to ``path`` and return the checked model.

    Raise :class:`UsageError` for an opset out of range and :class:`GateFailed` if the graph is not what its spec says.
    """
    require_opset(opset)
    spec = graph.spec
    axes = {a.name: torch.export.Dim(a.name, min=1, max=max(a.maximum, 2)) for a in spec.axes}
    shapes = tuple({i: axes[d] for i, d in enumerate(t.shape) if isinstance(d, str)} for t in spec.inputs)
    log = io.StringIO()
    onnx_log = logging.getLogger("torch.onnx")
    level = onnx_log.level
    onnx_log.setLevel(logging.ERROR)
    try:
        # The exporter prints its steps and warns about its own internals; an error still arrives as an exception.
        with warnings.catch_warnings(), contextlib.redirect_stdout(log):
            warnings.simplefilter("ignore")
            torch.onnx.export(
                fold_batch_norms(graph.module),
                example_inputs(spec),
                str(path),
                input_names=[t.name for t in spec.inputs],
                output_names=[t.name for t in spec.outputs],
                dynamic_shapes=shapes,
                opset_version=opset,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    finally:
        onnx_log.setLevel(level)
    model = onnx.load(str(path))
    name_outputs(model, spec)
    onnx.save(model, str(path))
    check(model, spec, opset)
    return model


def name_outputs(model: onnx.ModelProto, spec: GraphSpec) -> None:
    """Give each output the symbolic axes of ``spec``: the exporter names a derived axis after itself (``s77 + 1``)."""
    for value, tensor in zip(model.graph.output, spec.outputs, strict=True):
        for found, wanted in zip(value.type.tensor_type.shape.dim, tensor.shape, strict=True):
            if isinstance(wanted, str) and not found.HasField("dim_value"):
                found.dim_param = wanted


def check(model: onnx.ModelProto, spec: GraphSpec, opset: int) -> None:
    """Raise :class:`GateFailed` naming every way in which ``model`` is not what ``spec`` promises."""
    problems = [
        *_tensor_problems("input", model.graph.input, spec.inputs),
        *_tensor_problems("output", model.graph.output, spec.outputs),
    ]
    domains = {entry.domain: entry.version for entry in model.opset_import}
    if domains.get("", 0) != opset:
        problems.append(f"opset is {domains.get('', 0)}, asked for {opset}")
    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx"):
            problems.append(f"{node.name}: operator {node.op_type} of domain {node.domain!r} runs in no other engine")
        elif node.op_type in FORBIDDEN:
            problems.append(f"{node.name}: {node.op_type}: {FORBIDDEN[node.op_type]}")
        elif node.op_type not in OPERATORS:
            problems.append(
                f"{node.name}: {node.op_type} is not in onnx_file.OPERATORS, so no device would open the graph"
            )
    if model.functions:
        problems.append(f"{len(model.functions)} local functions were not inlined")
    if problems:
        raise GateFailed(
            f"the exported graph {spec.name} is not what it must be:\n  " + "\n  ".join(problems[:20]),
            where=spec.name,
            fix="report this with the versions that simmim-export doctor prints",
        )
    onnx.checker.check_model(model, full_check=True)


def _tensor_problems(kind: str, values: list[onnx.ValueInfoProto], specs: tuple[TensorSpec, ...]) -> list[str]:
    if [value.name for value in values] != [spec.name for spec in specs]:
        return [f"{kind}s are {[value.name for value in values]}, not {[spec.name for spec in specs]}"]
    problems = []
    for value, spec in zip(values, specs, strict=True):
        tensor = value.type.tensor_type
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
        shape = tuple(d.dim_value if d.HasField("dim_value") else d.dim_param for d in tensor.shape.dim)
        if dtype != spec.dtype or shape != spec.shape:
            problems.append(f"{kind} {spec.name} is {dtype} {list(shape)}, not {spec.dtype} {list(spec.shape)}")
    return problems
