"""Mutators for protobuf messages and ONNX models."""

from __future__ import annotations

import random
from collections.abc import Sequence

from mutators import damage


def _varint(number: int) -> bytes:
    made = bytearray()
    while True:
        number, low = number >> 7, number & 127
        made.append(low | (128 if number else 0))
        if not number:
            return bytes(made)


def _read_varint(data: bytes, place: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = data[place]
        number |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return number, place
        if shift > 70:
            raise ValueError("not a varint")


def _fields(data: bytes) -> list[tuple[int, bytes | int]]:
    """(key, value) of every field of a message. IndexError or ValueError for what is not one."""
    fields, place = [], 0
    while place < len(data):
        key, place = _read_varint(data, place)
        value: bytes | int
        if key & 7 == 0:
            value, place = _read_varint(data, place)
        elif key & 7 in (1, 5):
            size = 8 if key & 7 == 1 else 4
            value, place = data[place : place + size], place + size
        elif key & 7 == 2:
            size, place = _read_varint(data, place)
            value, place = data[place : place + size], place + size
        else:
            raise ValueError("not a message")
        if place > len(data) or key >> 3 == 0:
            raise ValueError("not a message")
        fields.append((key, value))
    return fields


def _message(fields: Sequence[tuple[int, bytes | int]]) -> bytes:
    made = b""
    for key, value in fields:
        made += _varint(key)
        if isinstance(value, int):
            made += _varint(value)
        else:
            made += (_varint(len(value)) if key & 7 == 2 else b"") + value
    return made


def mutate_message(rng: random.Random, data: bytes, depth: int = 0) -> bytes:
    """A protobuf message after an edit of one field, at any depth, with the lengths around it put right."""
    try:
        fields = _fields(data)
    except (IndexError, ValueError):
        return damage(rng, data)
    if not fields:
        return damage(rng, data)
    index = rng.randrange(len(fields))
    key, value = fields[index]
    if isinstance(value, bytes) and key & 7 == 2 and value and rng.random() < 0.85 and depth < 6:
        fields[index] = (key, mutate_message(rng, value, depth + 1))
        return _message(fields)
    action = rng.randrange(6)
    if action == 0:
        del fields[index]
    elif action == 1:
        fields.insert(index, fields[index])
    elif action == 2:
        fields[index] = (rng.randrange(1, 40) << 3 | key & 7, value)
    elif action == 3 and isinstance(value, int):
        fields[index] = (key, rng.choice((0, 1, 2, 2**31, 2**63, 2**64 - 1, value + 1, rng.randrange(30))))
    elif action == 4:
        other = rng.randrange(len(fields))
        fields[index], fields[other] = fields[other], fields[index]
    else:
        fields[index] = (key, damage(rng, value) if isinstance(value, bytes) else value ^ 1)
    return _message(fields)


_OPERATORS = (
    "Loop",
    "If",
    "Scan",
    "Identity",
    "Reshape",
    "Gather",
    "Expand",
    "Tile",
    "Concat",
    "MatMul",
    "Conv",
    "Pad",
    "Range",
)
_OPERATORS += (
    "ConstantOfShape",
    "NonZero",
    "Slice",
    "Split",
    "Softmax",
    "QuantizeLinear",
    "Cast",
    "Transpose",
    "RandomNormal",
)
_OPERATORS += (
    "Optional",
    "SequenceAt",
    "StringNormalizer",
    "Einsum",
    "Resize",
    "GRU",
    "Attention",
    "NoSuchOperator",
    "",
)


def mutate_onnx(rng: random.Random, data: bytes) -> bytes:
    """An ONNX model after edits of its nodes, tensors and declarations, or of its protobuf fields."""
    import onnx

    if rng.random() < 0.4:
        return mutate_message(rng, data)
    if rng.random() < 0.1:
        return damage(rng, data)
    model = onnx.load_from_string(data)
    graph = model.graph
    for _ in range(rng.choice((1, 1, 2))):
        if not graph.node:
            break
        node, tensor = rng.choice(graph.node), rng.choice(graph.initializer) if graph.initializer else None
        action = rng.randrange(14)
        if action == 0:
            node.op_type = rng.choice(_OPERATORS)
        elif action == 1:
            node.domain = rng.choice(("com.microsoft", "ai.onnx.ml", "evil", "\0", "com.microsoft.nchwc"))
        elif action == 2 and node.input:
            names = [name for other in graph.node for name in (*other.output, *other.input)]
            node.input[rng.randrange(len(node.input))] = rng.choice((*names, "", "nothing"))
        elif action == 3:
            graph.node.remove(node)
        elif action == 4:
            graph.node.insert(rng.randrange(len(graph.node) + 1), node)
        elif action == 5 and node.attribute:
            attribute = rng.choice(node.attribute)
            odd = (-1, 0, 2**31, 2**62, -(2**62), 10**6)
            attribute.i = rng.choice(odd)
            if attribute.ints:
                attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice(odd)
        elif action == 6 and tensor:
            tensor.dims[:] = rng.choice(([2**40], [-1], [0], [], [1], [2**31, 2**31], [*tensor.dims, 1], [2**62, 4]))
        elif action == 7 and tensor:
            tensor.data_type = rng.randrange(30)
        elif action == 8 and tensor:
            tensor.raw_data = rng.choice((b"", tensor.raw_data[:-1], tensor.raw_data * 2, bytes(len(tensor.raw_data))))
        elif action == 9 and tensor:
            tensor.data_location = onnx.TensorProto.EXTERNAL
            location = rng.choice(
                ("w.bin", "../w.bin", "/etc/passwd", "../manifest.json", "", "image_encoder.fp32.onnx")
            )
            for key, value in (("location", location), ("offset", "0"), ("length", str(len(tensor.raw_data)))):
                entry = tensor.external_data.add()
                entry.key, entry.value = key, value
            if rng.random() < 0.7:
                tensor.ClearField("raw_data")
        elif action == 10:
            part = rng.choice([*graph.input, *graph.output])
            dim = part.type.tensor_type.shape.dim.add()
            dim.dim_value = rng.choice((0, 1, -1, 2**40))
        elif action == 11:
            part = rng.choice([*graph.input, *graph.output])
            part.name = rng.choice((part.name + "x", "", graph.input[0].name, graph.output[0].name))
        elif action == 12:
            model.ir_version = rng.choice((0, 1, 3, 99, 2**62))
            model.opset_import[0].version = rng.choice((0, 1, 7, 999, -1))
        else:
            body = onnx.helper.make_graph(list(graph.node[:1]), "body", [], [])
            node.attribute.append(onnx.helper.make_attribute("body", body))
    return model.SerializeToString()


def uses_external_data(data: bytes) -> bool:
    """Whether a file that ONNX can parse keeps a tensor of its graph outside."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load_from_string(data)
    except DecodeError:
        return False
    return any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer)
