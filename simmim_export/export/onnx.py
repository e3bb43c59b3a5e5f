"""Traces one PyTorch module to one ONNX file, and checks that the file is what the module's spec promises."""

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
from simmim_export.spec import BATCH, SHARED_BATCH, GraphSpec, TensorSpec

# Operators that a graph must not hold, and why.
FORBIDDEN: Mapping[str, str] = {
    "IsNaN": "left over from softmax rows that are masked entirely; our masks never do that",
    "NonZero": "the shape of its output depends on the data; TensorRT cannot plan for that",
    "GatherND": "comes from building a mask; no fused kernel takes it",
    "ScatterND": "restricted in TensorRT, slow everywhere",
    "Loop": "control flow hides nodes from every optimizer",
    "If": "control flow hides nodes from every optimizer",
    "Range": "a mask or positions are built at run time; make them constants",
}


def fold_batch_norms(module: nn.Module) -> nn.Module:
    """A copy of ``module`` (in eval mode) with every BatchNorm folded into the convolution before it.

    Source: Jacob et al., 2018, section 3.2. The exporter does this and not an engine, so that every engine and every
    quantizer sees the same weights.
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
    """Tensors of ones to trace ``spec`` with. Each dynamic axis has a size of its own above 1, so that the tracer does not
    take one for another."""
    sizes: dict[str, int] = {}
    for axis in spec.axes:
        size = max(2, axis.minimum)
        while size in sizes.values():
            size += 1
        sizes[axis.name] = size
    return tuple(torch.ones(t.resolve(sizes), dtype=getattr(torch, t.dtype)) for t in spec.inputs)


def trace(graph: Graph, path: Path, *, opset: int = OPSET) -> onnx.ModelProto:
    """Export ``graph`` to ``path`` and return the ONNX model, checked by :func:`check`.

    Raise :class:`UsageError` for an opset that is not offered and :class:`GateFailed` if the model is not what the spec promises.
    """
    require_opset(opset)
    spec = graph.spec
    axes = {a.name: torch.export.Dim(a.name, min=1, max=max(a.maximum, 2)) for a in spec.axes}
    shapes = tuple({i: axes[d] for i, d in enumerate(t.shape) if isinstance(d, str)} for t in spec.inputs)
    onnx_log = logging.getLogger("torch.onnx")
    level = onnx_log.level
    onnx_log.setLevel(logging.ERROR)
    try:
        # The exporter prints its steps and warns about its own internals. Its errors are exceptions and still arrive.
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
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
    name_axes(model, spec)
    onnx.save(model, str(path))
    check(model, spec, opset=opset)
    return model


def name_axes(model: onnx.ModelProto, spec: GraphSpec) -> None:
    """Name the dynamic axes of each output as in ``spec``. PyTorch's exporter calls a derived axis by its formula, ``s7 + 1``.

    The batch of a shared input, and of what is computed from it alone, becomes :data:`SHARED_BATCH`.
    """
    for value, tensor in zip(model.graph.output, spec.outputs, strict=True):
        for dimension, size in zip(value.type.tensor_type.shape.dim, tensor.shape, strict=True):
            if isinstance(size, str) and not dimension.HasField("dim_value"):
                dimension.dim_param = size
    alone, constants = (
        {tensor.name for tensor in spec.inputs if tensor.shared},
        {i.name for i in model.graph.initializer},
    )
    for node in model.graph.node:
        if (read := {name for name in node.input if name} - constants) <= alone:
            (alone if read else constants).update(node.output)
    for value in (*model.graph.input, *model.graph.value_info):
        dimensions = value.type.tensor_type.shape.dim
        if value.name in alone and dimensions and dimensions[0].dim_param == BATCH:
            dimensions[0].dim_param = SHARED_BATCH


def check(model: onnx.ModelProto, spec: GraphSpec, *, opset: int) -> None:
    """Raise :class:`GateFailed`, naming every problem, unless ``model`` has the tensors of ``spec`` with their names, dtypes and
    axes, is written in ``opset``, and uses only operators that every engine runs."""
    problems = [
        *_tensor_problems("input", model.graph.input, spec.inputs),
        *_tensor_problems("output", model.graph.output, spec.outputs),
    ]
    domains = {entry.domain: entry.version for entry in model.opset_import}
    if domains.get("", 0) != opset:
        problems.append(f"opset is {domains.get('', 0)}, asked for {opset}")
    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx"):
            problems.append(f"{node.name}: operator {node.op_type} of domain {node.domain!r} runs in one engine only")
        elif node.op_type in FORBIDDEN:
            problems.append(f"{node.name}: {node.op_type}: {FORBIDDEN[node.op_type]}")
        elif node.op_type not in OPERATORS:
            problems.append(
                f"{node.name}: {node.op_type} is not in onnx_file.OPERATORS: devices would refuse the graph"
            )
    if model.functions:
        problems.append(f"{len(model.functions)} local functions were not inlined")
    if problems:
        what = f"the exported graph {spec.name} is not what its spec promises:\n  " + "\n  ".join(problems[:20])
        raise GateFailed(what, where=spec.name, fix="report this with the versions that simmim-export doctor prints")
    onnx.checker.check_model(model, full_check=True)


def _tensor_problems(kind: str, values: list[onnx.ValueInfoProto], specs: tuple[TensorSpec, ...]) -> list[str]:
    if [value.name for value in values] != [spec.name for spec in specs]:
        return [f"{kind}s are {[value.name for value in values]}, not {[spec.name for spec in specs]}"]
    problems = []
    for value, spec in zip(values, specs, strict=True):
        tensor = value.type.tensor_type
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
        shape = tuple(d.dim_value if d.HasField("dim_value") else d.dim_param for d in tensor.shape.dim)
        wanted = (SHARED_BATCH, *spec.shape[1:]) if spec.shared else spec.shape
        if dtype != spec.dtype or shape != wanted:
            problems.append(f"{kind} {spec.name} is {dtype} {list(shape)}, not {spec.dtype} {list(wanted)}")
    return problems
