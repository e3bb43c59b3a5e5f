"""Reads an ONNX file that a stranger may have made: one standard graph in FP32 with all its weights, or an error.

Weights in other files are read into the model, if those files lie in the model's folder.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import TensorProto, helper, version_converter

from simmim_export.bundle.onnx_reader import MAX_BYTES, MAX_NODES, OPSETS
from simmim_export.errors import CheckpointError
from simmim_export.export.limits import OPSET
from simmim_export.system.files import read_file, reading

_FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE)
_HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
# The types of ONNX Runtime's and onnx's exceptions share no base below this.
CONVERTER_ERRORS = (RuntimeError, ValueError, TypeError, KeyError, AttributeError, IndexError, NotImplementedError)
EXPORT_PLAIN = (
    "export it with standard operators: torch.onnx.export(model, inputs, 'model.onnx', dynamo=True), without a tool that "
    "fuses nodes for one engine"
)


@dataclass(frozen=True)
class Foreign:
    """The ``original`` model with every weight inside, and the same ``model`` in an opset that we export."""

    original: onnx.ModelProto
    model: onnx.ModelProto


def read_foreign(path: Path) -> Foreign:
    """The model at ``path``.

    Raise :class:`CheckpointError` for a file that is missing, too large or not an ONNX model; for custom operators, control flow
    and local functions, which are named; for weights that are missing, lie outside the folder or are not FP32; and for an opset
    that cannot be converted.
    """
    with reading(path, CheckpointError):
        if not path.is_file():
            raise CheckpointError("no such ONNX file", where=path, fix="check the path")
        try:
            content = read_file(path, most=MAX_BYTES)
            model = onnx.load_model_from_string(content)
        except (ValueError, DecodeError) as error:
            raise CheckpointError(f"not an ONNX model: {error}", where=path, fix="give a file .onnx, whole") from error
    if not model.HasField("graph") or not model.graph.node:
        raise CheckpointError("not an ONNX model: it has no graph", where=path, fix="give a file .onnx, whole")
    _refuse_operators(model, path)
    _read_weights(model, path)
    _refuse_number_formats(model, path)
    try:
        onnx.checker.check_model(model)
        return Foreign(model, _in_our_opset(model, path))
    except (onnx.checker.ValidationError, *CONVERTER_ERRORS) as error:
        what = f"the ONNX model is malformed: {str(error).strip().splitlines()[0][:300]}"
        raise CheckpointError(what, where=path, fix=EXPORT_PLAIN) from error


def _tensors(model: onnx.ModelProto) -> Iterator[TensorProto]:
    yield from model.graph.initializer
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def _refuse_operators(model: onnx.ModelProto, path: Path) -> None:
    if len(model.graph.node) > MAX_NODES:
        what = f"the graph has {len(model.graph.node):,} nodes, and engines take {MAX_NODES:,} at most"
        raise CheckpointError(what, where=path, fix="export a smaller part of the model")
    problems = []
    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx"):
            problems.append(f"node {node.name!r}: {node.domain}::{node.op_type} is not a standard operator")
        elif any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            problems.append(f"node {node.name!r}: {node.op_type} is control flow, which hides nodes from every engine")
        elif "Random" in node.op_type or node.op_type in ("Bernoulli", "Multinomial"):
            problems.append(f"node {node.name!r}: {node.op_type} draws random numbers")
    if model.functions:
        names = ", ".join(function.name for function in model.functions[:5])
        problems.append(f"local functions, which can hide operators: {names}")
    if model.graph.sparse_initializer:
        problems.append("sparse weights")
    if problems:
        more = [f"and {len(problems) - 10} more"] if len(problems) > 10 else []
        what = "the ONNX model holds what other engines do not run:\n  " + "\n  ".join([*problems[:10], *more])
        fix = EXPORT_PLAIN
        if model.functions:
            fix = "inline them: onnx.save(onnx.inliner.inline_local_functions(onnx.load(path)), path)"
        raise CheckpointError(what, where=path, fix=fix)


def _read_weights(model: onnx.ModelProto, path: Path) -> None:
    """Read external weights into ``model``. The whole must fit into one file."""
    folder, total = path.absolute().parent.resolve(), path.stat().st_size
    for tensor in _tensors(model):
        if tensor.data_location != TensorProto.EXTERNAL and not tensor.external_data:
            continue
        fields = {entry.key: entry.value for entry in tensor.external_data}

        def refuse(what: str, name: str = tensor.name) -> CheckpointError:
            fix = "copy the model's folder again, whole; weights may only lie in files beside the model"
            return CheckpointError(f"the weights {name!r} cannot be read: {what}", where=path, fix=fix)

        location = fields.get("location", "")
        file = (folder / location).resolve() if location.isprintable() else folder
        if not location or not file.is_relative_to(folder) or file == folder:
            raise refuse(f"they lie in {location[:200]!r}, outside the model's folder")
        if not file.is_file():
            raise refuse(f"there is no file {location[:200]!r}")
        try:
            offset, length = int(fields.get("offset", 0)), int(fields.get("length", -1))
        except ValueError as error:
            raise refuse(f"their place is not a number: {error}") from error
        size = file.stat().st_size
        length = size - offset if length < 0 else length
        if offset < 0 or offset + length > size:
            raise refuse(f"{location[:200]!r} is cut off: it has {size:,} bytes, and they end at {offset + length:,}")
        total += length
        if total > MAX_BYTES:
            what = "the model with its weights is larger than 2 GiB, and a graph of a bundle is one ONNX file"
            raise CheckpointError(what, where=path, fix="adopt a smaller model")
        with reading(file, CheckpointError), file.open("rb") as stream:
            stream.seek(offset)
            tensor.raw_data = stream.read(length)
        del tensor.external_data[:]
        tensor.data_location = TensorProto.DEFAULT


def _refuse_number_formats(model: onnx.ModelProto, path: Path) -> None:
    """Raise :class:`CheckpointError` for a model that is not FP32: nothing can be compared with what FP32 computes."""
    quantized = [node.op_type for node in model.graph.node if "Quantize" in node.op_type or "Integer" in node.op_type]
    halves = [tensor.name for tensor in _tensors(model) if tensor.data_type in _HALVES]
    halves += [value.name for value in model.graph.input if value.type.tensor_type.elem_type in _HALVES]
    if quantized or halves:
        found = f"{len(quantized)} nodes such as {quantized[0]}" if quantized else f"{halves[0]!r} is FP16 or BF16"
        what = f"the ONNX model is not in FP32: {found}"
        fix = "give the FP32 file of the model; --precision int8 and --precision fp16 make the others of it"
        raise CheckpointError(what, where=path, fix=fix)


def _in_our_opset(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    version = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if version > OPSETS[-1]:
        what = f"the ONNX model has opset {version}, and this version reads up to {OPSETS[-1]}"
        raise CheckpointError(what, where=path, fix=f"export it again with opset_version={OPSET}")
    if version not in OPSETS:
        model = version_converter.convert_version(model, OPSET)
    else:
        original, model = model, onnx.ModelProto()
        model.CopyFrom(original)
        del model.opset_import[:]
        model.opset_import.append(helper.make_opsetid("", version))
    model.ir_version = min(max(model.ir_version, 8), 10)
    return model
