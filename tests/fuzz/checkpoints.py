"""Mutators for PyTorch and safetensors files."""

from __future__ import annotations

import io
import json
import random
import struct
from typing import Any

from arrays import patch_zip, unzipped, zipped
from mutators import Raw, damage, dumps, mutate_tree, nasty


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
        name = rng.choice(
            [name for name in members if name.endswith(("data.pkl", "byteorder", "version"))] * 5 + list(members)
        )
        if name.endswith("data.pkl") and rng.random() < 0.5:
            words = (b"_rebuild_tensor_v2", b"FloatStorage", b"OrderedDict", b"_rebuild_parameter", b"torch._utils")
            others = (
                b"_rebuild_sparse_tensor",
                b"_rebuild_qtensor",
                b"ComplexFloatStorage",
                b"HalfStorage",
                b"eval",
                b"builtins",
            )
            members[name] = members[name].replace(rng.choice(words), rng.choice((*others, *words)), rng.choice((1, -1)))
        else:
            members[name] = damage(rng, members[name])
        return zipped(members, 0)
    content = torch.load(io.BytesIO(data), weights_only=True)

    def fresh(rng: random.Random) -> Any:
        value = _odd_tensor(rng) if rng.random() < 0.5 else nasty(rng)
        return (
            float(value.text)
            if isinstance(value, Raw) and value.text[0] not in '[{"' and len(value.text) < 400
            else value
        )

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
