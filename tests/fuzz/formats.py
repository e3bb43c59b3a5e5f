"""Mutators that know one format each: pictures, protobuf and ONNX, PyTorch checkpoints, tokenizers, tar."""

from __future__ import annotations

import io
import json
import random
import struct
import tarfile
import zlib
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from mutators import Raw, damage, dumps, mutate_tree, nasty, patch_zip, unzipped, zipped
from PIL import Image

STILL = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "MPO", "ICO", "AVIF", "JPEG2000", "TGA", "EPS", "ICNS", "PCX")
MOVING = ("GIF", "WEBP", "PNG", "TIFF", "AVIF", "MPO")


# -- pictures ----------------------------------------------------------------------------------------------------------


def pictures() -> list[bytes]:
    """A small picture in every format and mode that Pillow writes here."""
    noise = np.random.default_rng(0).integers(0, 256, (24, 32, 4), np.uint8)
    rgba = Image.fromarray(noise)
    exif = Image.Exif()
    exif[0x0112] = 6
    found = []
    for form in STILL:
        for mode in ("RGB", "RGBA", "L", "P", "1", "CMYK", "I;16", "I", "F", "LA"):
            image = rgba.convert("L").convert(mode) if mode.startswith(("I", "F")) else rgba.convert("RGB").convert(mode)
            extra = {"exif": exif} if form in ("JPEG", "PNG", "WEBP", "TIFF") and mode == "RGB" else {}
            found += _written(image, form, **extra)
    found += _written(rgba.convert("RGB"), "JPEG", progressive=True) + _written(rgba.convert("RGB"), "TIFF", compression="jpeg")
    for compression in ("tiff_lzw", "tiff_deflate", "packbits", "group4", "tiff_adobe_deflate", "webp", "zstd", "lzma"):
        found += _written(rgba.convert("1" if compression == "group4" else "RGB"), "TIFF", compression=compression)
    return found + animations()


def animations() -> list[bytes]:
    """Three small frames in every format that has animations."""
    noise = np.random.default_rng(1).integers(0, 256, (3, 20, 24, 3), np.uint8)
    first, *rest = [Image.fromarray(frame) for frame in noise]
    return [data for form in MOVING for data in _written(first, form, save_all=True, append_images=rest)]


def _written(image: Image.Image, form: str, **options: Any) -> list[bytes]:
    buffer = io.BytesIO()
    try:
        image.save(buffer, form, **options)
    # Not every format takes every mode, and not every build of Pillow has every codec.
    except (OSError, KeyError, ValueError, TypeError, RuntimeError):
        return []
    return [buffer.getvalue()]


def mutate_picture(rng: random.Random, data: bytes, others: Sequence[bytes] = ()) -> bytes:
    """A picture after edits of its bytes or, of a PNG, of its chunks with their checksums put right."""
    if data.startswith(b"\x89PNG") and rng.random() < 0.7:
        return _mutate_png(rng, data)
    return damage(rng, data, others)


def _mutate_png(rng: random.Random, data: bytes) -> bytes:
    chunks, place = [], 8
    while place + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, place)
        chunks.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + length]))
        place += 12 + length
    for _ in range(rng.choice((1, 1, 2, 4))):
        index = rng.randrange(len(chunks))
        kind, body = chunks[index]
        action = rng.randrange(5)
        if action < 2:
            chunks[index] = (kind, damage(rng, body))
        elif action == 2 and len(chunks) > 1:
            del chunks[index]
        elif action == 3:
            chunks.insert(rng.randrange(len(chunks) + 1), (kind, body))
        else:
            kinds = (b"PLTE", b"tRNS", b"acTL", b"fcTL", b"fdAT", b"iCCP", b"zTXt", b"iTXt", b"eXIf", b"gAMA", b"pHYs", b"IHDR")
            bomb = b"k\0\0" + zlib.compress(bytes(5_000_000))
            chunks.insert(rng.randrange(len(chunks) + 1), (rng.choice(kinds), rng.choice((rng.randbytes(26), b"", bomb, body))))
    made = data[:8]
    for kind, body in chunks:
        made += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return made


# -- protobuf and ONNX -------------------------------------------------------------------------------------------------


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
    found, place = [], 0
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
        found.append((key, value))
    return found


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


_OPERATORS = ("Loop", "If", "Scan", "Identity", "Reshape", "Gather", "Expand", "Tile", "Concat", "MatMul", "Conv", "Pad", "Range")
_OPERATORS += ("ConstantOfShape", "NonZero", "Slice", "Split", "Softmax", "QuantizeLinear", "Cast", "Transpose", "RandomNormal")
_OPERATORS += ("Optional", "SequenceAt", "StringNormalizer", "Einsum", "Resize", "GRU", "Attention", "NoSuchOperator", "")


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
            location = rng.choice(("w.bin", "../w.bin", "/etc/passwd", "../manifest.json", "", "image_encoder.fp32.onnx"))
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


# -- checkpoints -------------------------------------------------------------------------------------------------------


def _odd_tensor(rng: random.Random) -> Any:
    import torch

    makers = (
        lambda: torch.full((4,), float("nan")),
        lambda: torch.zeros(2, 2).to_sparse(),
        lambda: torch.eye(3).to_sparse_csr(),
        lambda: torch.zeros(4, dtype=torch.float8_e4m3fn),
        lambda: torch.zeros(4, device="meta"),
        lambda: torch.quantize_per_tensor(torch.zeros(4), 0.1, 0, torch.qint8),
        lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
        lambda: torch.nn.Parameter(torch.zeros(4)),
        lambda: torch.zeros(4, dtype=torch.complex64),
        lambda: torch.zeros(1).expand(2**40),
        lambda: torch.zeros(1).expand(2**20, 2**20),
        lambda: torch.zeros(0),
        lambda: torch.zeros(()),
        lambda: torch.zeros(3, 4).t(),
        lambda: torch.zeros(4, dtype=torch.bool),
        lambda: torch.zeros(4, dtype=torch.bfloat16),
        lambda: torch.zeros(16, 64, 64, 3, dtype=torch.uint8),
        lambda: torch.frombuffer(bytearray(b"PK\x03\x04" + bytes(60)), dtype=torch.uint8),
        lambda: torch.zeros(4).conj().neg() if rng.random() < 0.5 else torch._neg_view(torch.zeros(4)),
    )
    return rng.choice(makers)()


def mutate_pt(rng: random.Random, data: bytes) -> bytes:
    """A ``.pt`` file with other content, odd tensors, damaged pickle opcodes or tricks of the archive."""
    import torch

    kind = rng.random()
    if kind < 0.1:
        return damage(rng, data)
    if kind < 0.2:
        return patch_zip(rng, data)
    if kind < 0.5:
        members = unzipped(data)
        name = rng.choice([name for name in members if name.endswith(("data.pkl", "byteorder", "version"))] * 5 + list(members))
        if name.endswith("data.pkl") and rng.random() < 0.5:
            words = (b"_rebuild_tensor_v2", b"FloatStorage", b"OrderedDict", b"_rebuild_parameter", b"torch._utils")
            others = (b"_rebuild_sparse_tensor", b"_rebuild_qtensor", b"ComplexFloatStorage", b"HalfStorage", b"eval", b"builtins")
            members[name] = members[name].replace(rng.choice(words), rng.choice((*others, *words)), rng.choice((1, -1)))
        else:
            members[name] = damage(rng, members[name])
        return zipped(members, 0)
    content = torch.load(io.BytesIO(data), weights_only=True)

    def fresh(rng: random.Random) -> Any:
        value = _odd_tensor(rng) if rng.random() < 0.5 else nasty(rng)
        return float(value.text) if isinstance(value, Raw) and value.text[0] not in '[{"' and len(value.text) < 400 else value

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(key) if isinstance(key, str) else key: plain(item) for key, item in value.items()}
        if isinstance(value, list):
            return [plain(item) for item in value]
        return [[[[]]]] if isinstance(value, Raw) else value

    buffer = io.BytesIO()
    try:
        torch.save(plain(mutate_tree(rng, content, fresh)), buffer)
    except (RuntimeError, NotImplementedError, UnicodeEncodeError):  # not everything that is odd can be saved
        return damage(rng, data)
    return buffer.getvalue()


def mutate_safetensors(rng: random.Random, data: bytes) -> bytes:
    """A ``.safetensors`` file whose header, or whose bytes, are others."""
    if rng.random() < 0.2:
        return damage(rng, data)
    (length,) = struct.unpack_from("<Q", data)
    header = dumps(mutate_tree(rng, json.loads(data[8 : 8 + length]))).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(header) + rng.choice((0, 0, 0, 1, 2**40))) + header + data[8 + length :]


# -- tokenizers and tar ------------------------------------------------------------------------------------------------

_SPLIT = {"type": "Split", "behavior": "Isolated", "invert": False}
_PARTS: tuple[dict, ...] = (
    {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 50},
    {"type": "Sequence", "normalizers": [{"type": "Replace", "pattern": {"Regex": "."}, "content": "aaaaaaaa"}] * 12},
    {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "x" * 1000}] * 8},
    {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": ""},
    {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
    {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": True},
    {**_SPLIT, "pattern": {"Regex": "(a|a)*b"}},
    {**_SPLIT, "pattern": {"Regex": "(((((a{1,1000}){1,1000}){1,1000}"}},
    {**_SPLIT, "pattern": {"Regex": "(?=" * 500}},
    {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
    {"type": "Sequence", "pretokenizers": []},
    {"type": "Whitespace"},
    {"type": "BertProcessing", "sep": ["[SEP]", 2**31], "cls": ["[CLS]", 4_000_000_000]},
    {"type": "RobertaProcessing", "sep": ["x", 0], "cls": ["y", 1], "trim_offsets": True, "add_prefix_space": True},
    {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}] * 1000, "pair": []},
    {"type": "TemplateProcessing", "single": [], "pair": [], "special_tokens": {}},
    {"strategy": {"Fixed": 10**9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0},
    {"strategy": "BatchLongest", "direction": "Left", "pad_to_multiple_of": 10**9, "pad_id": 2**32 - 1, "pad_type_id": 0},
    {"max_length": 0, "strategy": "LongestFirst", "stride": 10**9, "direction": "Right"},
    {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]], "unk_token": None, "byte_fallback": True},
    {"type": "Unigram", "vocab": [["a", 0.0], ["b", -1.0]], "unk_id": 5, "byte_fallback": False},
    {"type": "Unigram", "vocab": [["", 0.0]], "unk_id": None},
    {"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "no", "continuing_subword_prefix": "", "max_input_chars_per_word": 0},
    {"type": "WordLevel", "vocab": {"a": 4294967295}, "unk_token": "a"},
    {"type": "WordLevel", "vocab": {}, "unk_token": ""},
    {"id": 0, "content": "a", "single_word": False, "lstrip": True, "rstrip": True, "normalized": True, "special": True},
    {"id": 10**9, "content": "", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False},
)
PADDING = {"strategy": "BatchLongest", "direction": "Right", "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"}


def mutate_tokenizer(rng: random.Random, data: bytes) -> bytes:
    """A tokenizer.json with other parts, each known to its library, or with any JSON in their place."""
    if rng.random() < 0.1:
        return damage(rng, data)
    content = json.loads(data)
    if rng.random() < 0.5:
        for _ in range(rng.choice((1, 1, 2, 3))):
            part = rng.choice(_PARTS)
            place = rng.choice(("normalizer", "pre_tokenizer", "post_processor", "decoder", "model", "padding", "truncation"))
            if "special" in part:
                content["added_tokens"] = [dict(part)] * rng.choice((1, 2))
            else:
                own = "model" if "vocab" in part else "padding" if "pad_id" in part else "normalizer" if "pattern" in part else place
                content[rng.choice((own, place))] = json.loads(json.dumps(part))
        if rng.random() < 0.5:
            return dumps(content).encode("utf-8", "surrogatepass")
    fresh = partial(lambda parts, rng: json.loads(json.dumps(rng.choice(parts))) if rng.random() < 0.3 else nasty(rng), _PARTS)
    return dumps(mutate_tree(rng, content, fresh)).encode("utf-8", "surrogatepass")


def mutate_tar(rng: random.Random, data: bytes, fresh: Sequence[bytes]) -> bytes:
    """A tar whose members have other names, kinds or content, or whose bytes are damaged."""
    if rng.random() < 0.4:
        return damage(rng, data)
    members = [(info, data[info.offset_data : info.offset_data + info.size]) for info in tarfile.open(fileobj=io.BytesIO(data))]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=rng.choice((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))) as archive:
        for info, body in members:
            for _ in range(rng.choice((0, 1, 1, 1, 1, 1, 2))):
                content = rng.choice((body, body, damage(rng, body), rng.choice(fresh), b""))
                info.size = len(content)
                if rng.random() < 0.1:
                    info.name = rng.choice(("../" + info.name, "/" + info.name, info.name + "x", "a" * 200, "é", ".", "x/001.cls"))
                if rng.random() < 0.05:
                    info.type = rng.choice((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE))
                archive.addfile(info, io.BytesIO(content))
    return damage(rng, buffer.getvalue()) if rng.random() < 0.1 else buffer.getvalue()
