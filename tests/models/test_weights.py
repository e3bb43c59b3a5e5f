"""Odd tensors in checkpoints: each is made plain or refused by name, and no file takes much more memory than it has bytes."""

from __future__ import annotations

import io
import json
import struct
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from simmim_export.errors import CheckpointError
from simmim_export.models.files import read_tensors
from simmim_export.models.simmim import checkpoint as ckpt
from simmim_export.models.weights import ConvertedWeights

KEY = "image_encoder.embed.weight"

PLAIN: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "parameter": torch.nn.Parameter,
    "buffer": torch.nn.Buffer,
    "strided": lambda w: w.t().contiguous().t(),
    "every other row": lambda w: torch.stack([w, -w], dim=1)[:, 0],
    "negated view": lambda w: torch._neg_view(-w),
    "with gradient": lambda w: w.clone().requires_grad_(),
}
ODD: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "sparse": lambda w: w.to_sparse(),
    "compressed": lambda w: w.to_sparse_csr(),
    "float8": lambda w: w.to(torch.float8_e4m3fn),
    "meta": lambda w: w.to("meta"),
    "quantized": lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8),
    "nested": lambda w: torch.nested.nested_tensor([w[0], w[1]]),
    "complex": lambda w: w.to(torch.complex64),
    "conjugated": lambda w: w.to(torch.complex64).conj(),
    "unsigned": lambda w: w.to(torch.uint16),
    "expanded": lambda w: torch.zeros(1).expand(w.shape),
    "huge": lambda w: torch.zeros(1).expand(10**12),
}
MISFITS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "integers": lambda w: w.to(torch.int64),
    "truth values": lambda w: w > 0,
    "empty": lambda w: torch.zeros(0),
}


def with_weight(source: Path, target: Path, change: Callable[[torch.Tensor], Any]) -> Path:
    """A copy of ``source`` whose weight ``KEY`` went through ``change``."""
    content = torch.load(source, weights_only=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        content["state"][KEY] = change(content["state"][KEY])
        torch.save(content, target)
    return target


@pytest.mark.parametrize("kind", PLAIN)
def test_a_plain_form_of_a_weight_is_accepted(tiny_checkpoint: Path, tmp_path: Path, kind: str) -> None:
    loaded = ckpt.load(with_weight(tiny_checkpoint, tmp_path / "a.pt", PLAIN[kind]))
    weight, exact = loaded.state[KEY], ckpt.load(tiny_checkpoint).state[KEY]
    assert type(weight) is torch.Tensor and weight.is_contiguous() and not weight.requires_grad
    assert torch.equal(weight, exact)
    assert torch.equal(ckpt.build(loaded).state_dict()[KEY], exact)
    ckpt.save(loaded, tmp_path / "folder")
    assert torch.equal(ckpt.load(tmp_path / "folder").state[KEY], exact)


@pytest.mark.parametrize("kind", ODD)
def test_an_odd_weight_is_refused_by_name(tiny_checkpoint: Path, tmp_path: Path, kind: str) -> None:
    path = with_weight(tiny_checkpoint, tmp_path / "odd.pt", ODD[kind])
    for read in (ckpt.load, read_tensors):
        with pytest.raises(CheckpointError) as caught:
            read(path)
        assert KEY in caught.value.what and caught.value.where == str(path) and caught.value.fix


@pytest.mark.parametrize("kind", MISFITS)
def test_a_weight_that_is_not_the_models_is_refused_by_name(tiny_checkpoint: Path, tmp_path: Path, kind: str) -> None:
    loaded = ckpt.load(with_weight(tiny_checkpoint, tmp_path / "odd.pt", MISFITS[kind]))
    with pytest.raises(CheckpointError) as caught:
        ckpt.build(loaded)
    assert KEY in caught.value.what


def test_a_subclass_is_refused_by_name(tiny_checkpoint: Path, tmp_path: Path) -> None:
    from torch.masked import MaskedTensor, masked_tensor

    make = lambda w: masked_tensor(w, w > 0)  # noqa: E731
    path = with_weight(tiny_checkpoint, tmp_path / "odd.pt", make)
    # A program that uses such a class allows it for the whole process.
    with torch.serialization.safe_globals([MaskedTensor]), pytest.raises(CheckpointError) as caught:
        ckpt.load(path)
    assert caught.value.where == str(path)


@pytest.mark.parametrize("kind", ["complex", "float8"])
def test_an_odd_weight_in_a_folder_is_refused_by_name(tiny_checkpoint: Path, tmp_path: Path, kind: str) -> None:
    loaded = ckpt.load(tiny_checkpoint)
    loaded.state[KEY] = ODD[kind](loaded.state[KEY])
    ckpt.save(loaded, tmp_path / "folder")
    with pytest.raises(CheckpointError) as caught:
        ckpt.load(tmp_path / "folder")
    assert KEY in caught.value.what


@pytest.mark.parametrize("kind", ["complex", "float8"])
def test_an_odd_tensor_of_a_foreign_file_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    save_file({"a": torch.ones(2), "b": ODD[kind](torch.ones(2, 2))}, tmp_path / "foreign.safetensors")
    with pytest.raises(CheckpointError) as caught:
        read_tensors(tmp_path / "foreign.safetensors")
    assert caught.value.what.startswith("b ")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ["all.pt", "folder"])
def test_weights_of_another_precision_are_converted_with_a_warning(
    tiny_checkpoint: Path, tmp_path: Path, dtype: torch.dtype, name: str
) -> None:
    loaded = ckpt.load(tiny_checkpoint)
    loaded.state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in loaded.state.items()}
    ckpt.save(loaded, tmp_path / name)
    with pytest.warns(ConvertedWeights) as said:
        again = ckpt.load(tmp_path / name)
    assert len(said) == 1
    for key, value in again.state.items():
        wanted = loaded.state[key]
        assert torch.equal(value, wanted.float() if wanted.is_floating_point() else wanted)
        assert not wanted.is_floating_point() or value.dtype == torch.float32


def test_a_bundle_of_half_precision_weights_computes_what_pytorch_computes(
    tiny_checkpoint: Path, tmp_path: Path, run_cli
) -> None:
    loaded = ckpt.load(tiny_checkpoint)
    loaded.state = {k: v.bfloat16() if v.is_floating_point() else v for k, v in loaded.state.items()}
    ckpt.save(loaded, tmp_path / "half.pt")
    done = run_cli("export", "onnx", tmp_path / "half.pt", "-o", tmp_path / "bundle")
    assert done.returncode == 0 and "bfloat16" in done.stderr, done.stderr
    done = run_cli("export", "verify", tmp_path / "bundle")
    assert done.returncode == 0, done.stderr


def test_a_float64_weight_too_large_for_float32_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    path = with_weight(tiny_checkpoint, tmp_path / "large.pt", lambda w: w.double() * 0 + 1e300)
    with pytest.warns(ConvertedWeights), pytest.raises(CheckpointError) as caught:
        ckpt.build(ckpt.load(path))
    assert KEY in caught.value.what


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("evidence",), torch.zeros(3, dtype=torch.complex64)),
        (("evidence",), torch.zeros(1, dtype=torch.uint8).expand(10**12)),
        (("samples", "pixels"), torch.zeros(1, dtype=torch.uint8).expand(16, 64, 64, 3)),
        (("samples", "pixels"), torch.zeros(16, 64, 64, 3, dtype=torch.uint8, device="meta")),
        (("samples", "texts", 0), torch.zeros(3)),
        (("metrics", "vqa"), {"accuracy": torch.tensor(0.5)}),
        (("metrics", "vqa"), {"accuracy": 1j}),
        (("metrics", "vqa"), {1: 0.5}),
        (("provenance", "digest"), b"bytes"),
        (("provenance", "count"), 10**4000),
        (("provenance", "name"), "\ud800"),
        (("config", "text", "hidden_size"), torch.tensor(64)),
        (("preprocessing", "text", "max_length"), {1, 2}),
        (("labels", "match", 0), torch.zeros(1)),
    ],
)
def test_an_odd_value_elsewhere_is_refused(tiny_checkpoint: Path, tmp_path: Path, place: tuple, value: object) -> None:
    content = torch.load(tiny_checkpoint, weights_only=True)
    inner = content
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    torch.save(content, tmp_path / "odd.pt")
    with pytest.raises(CheckpointError):
        ckpt.build(ckpt.load(tmp_path / "odd.pt"))


def test_a_checkpoint_that_holds_itself_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    content = torch.load(tiny_checkpoint, weights_only=True)
    content["metrics"]["loop"] = content["metrics"]
    torch.save(content, tmp_path / "loop.pt")
    many: list = [0]
    for _ in range(40):
        many = [many, many]
    content["metrics"] = {"many": many}
    torch.save(content, tmp_path / "many.pt")
    for name in ("loop.pt", "many.pt"):
        with pytest.raises(CheckpointError):
            ckpt.load(tmp_path / name)


def test_tensors_that_share_their_memory_too_often_are_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    content = torch.load(tiny_checkpoint, weights_only=True)
    one = torch.zeros(1_000_000)
    content["state"] |= {f"copy.{number}": one for number in range(100)}
    torch.save(content, tmp_path / "shared.pt")
    with pytest.raises(CheckpointError):
        ckpt.load(tmp_path / "shared.pt")


# -- bytes ---------------------------------------------------------------------------------------------------------------


def archive(data: bytes, change: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """The zip archive ``data`` with every member's content through ``change``; checksums are made again."""
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(packed, "w", compression) as target:
        for name in source.namelist():
            target.writestr(name, change(name, source.read(name)))
    return packed.getvalue()


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_compressed_archive_is_refused(tmp_path: Path, compression: int) -> None:
    packed = io.BytesIO()
    torch.save({"kind": ckpt.KIND, "state": {"a": torch.zeros(10_000_000)}}, packed)
    path = tmp_path / "bomb.pt"
    path.write_bytes(archive(packed.getvalue(), lambda name, part: part, compression))
    assert path.stat().st_size < 100_000
    for read in (ckpt.load, read_tensors):
        with pytest.raises(CheckpointError):
            read(path)


@pytest.mark.parametrize(
    "made",
    [
        b"cbuiltins\nbytearray\n\x8a\x06\x00\x00\x00\x00\x00\x10\x85R.",
        b"ctorch.storage\nUntypedStorage\n\x8a\x06\x00\x00\x00\x00\x00\x10\x85R.",
        b"ctorch\nFloatStorage\n\x8a\x06\x00\x00\x00\x00\x00\x01\x85R.",
    ],
)
def test_a_pickle_that_asks_for_memory_is_refused(tmp_path: Path, made: bytes) -> None:
    packed = io.BytesIO()
    torch.save({"a": torch.zeros(3)}, packed)
    path = tmp_path / "bomb.pt"
    path.write_bytes(
        archive(packed.getvalue(), lambda name, part: b"\x80\x02" + made if name.endswith("data.pkl") else part)
    )
    with pytest.raises(CheckpointError):
        ckpt.load(path)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> tuple[bytes, bytes, bytes]:
    """A checkpoint with a few small weights: the bytes of the .pt, of checkpoint.json and of model.safetensors."""
    loaded = ckpt.load(tiny_checkpoint)
    content = {"kind": ckpt.KIND, "schema": 1} | asdict(loaded)
    content["samples"] = {"pixels": loaded.samples["pixels"][:1], "texts": loaded.samples["texts"][:1]}
    content["state"] = {f"w{number}": torch.arange(4.0) for number in range(4)}
    packed = io.BytesIO()
    torch.save(content, packed)
    folder = tmp_path_factory.mktemp("small") / "folder"
    loaded.state, loaded.samples = content["state"], content["samples"]
    ckpt.save(loaded, folder)
    read = [(folder / name).read_bytes() for name in ("checkpoint.json", "model.safetensors")]
    return packed.getvalue(), read[0], read[1]


EDITS = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=4)
FUZZ = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def edit(data: bytes, edits: list[tuple[float, int]], end: int | None = None) -> bytes:
    """``data`` with some bytes before ``end`` replaced."""
    changed = bytearray(data)
    for place, value in edits:
        changed[int(place * (end or len(data)))] = value
    return bytes(changed)


def only_checkpoint_errors(path: Path) -> None:
    """Reading and building ``path`` works, or raises a CheckpointError that says what to do."""
    reads = [ckpt.load] if path.is_dir() else [ckpt.load, read_tensors]
    for read in reads:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvertedWeights)
                loaded = read(path)
            if isinstance(loaded, ckpt.Checkpoint):
                ckpt.build(loaded)
        except CheckpointError as error:
            assert error.fix


@pytest.mark.parametrize("place", ["compression", "disk"])
def test_a_damaged_directory_of_the_archive_is_refused(small: tuple, tmp_path: Path, place: str) -> None:
    """As the fuzzer found: zipfile raises errors of its own kinds for these."""
    data, path = bytearray(small[0]), tmp_path / "damaged.pt"
    if place == "compression":
        for signature, offset in ((b"PK\x01\x02", 10), (b"PK\x03\x04", 8)):
            data[data.index(signature) + offset] = zipfile.ZIP_LZMA
    else:
        data[data.rindex(b"PK\x06\x07") + 4] = 7
    path.write_bytes(data)
    only_checkpoint_errors(path)
    with pytest.raises(CheckpointError):
        ckpt.load(path)


@FUZZ
@given(edits=EDITS)
def test_edits_of_the_pickle_end_in_a_checkpoint_error(small: tuple, tmp_path: Path, edits: list) -> None:
    path = tmp_path / "edited.pt"
    path.write_bytes(archive(small[0], lambda name, part: edit(part, edits) if name.endswith("data.pkl") else part))
    only_checkpoint_errors(path)


@FUZZ
@given(edits=EDITS, near_the_end=st.booleans())
def test_edits_of_the_archive_end_in_a_checkpoint_error(
    small: tuple, tmp_path: Path, edits: list, near_the_end: bool
) -> None:
    """Half of them in the central directory, where sizes and places are."""
    data, path = small[0], tmp_path / "edited.pt"
    start = data.index(b"PK\x01\x02") if near_the_end else 0
    path.write_bytes(data[:start] + edit(data[start:], edits))
    only_checkpoint_errors(path)


@FUZZ
@given(edits=EDITS, which=st.sampled_from(["checkpoint.json", "model.safetensors"]))
def test_edits_of_a_folder_end_in_a_checkpoint_error(small: tuple, tmp_path: Path, edits: list, which: str) -> None:
    _, description, tensors = small
    (tmp_path / "folder").mkdir(exist_ok=True)
    if which == "checkpoint.json":
        description = edit(description, edits)
    else:
        tensors = edit(tensors, edits, end=8 + struct.unpack("<Q", tensors[:8])[0])
    (tmp_path / "folder/checkpoint.json").write_bytes(description)
    (tmp_path / "folder/model.safetensors").write_bytes(tensors)
    only_checkpoint_errors(tmp_path / "folder")


@pytest.mark.parametrize(
    "header",
    [
        {"w": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}},
        {"w": {"dtype": "F32", "shape": [2**32, 2**32], "data_offsets": [0, 0]}},
        {"w": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}},
        {"w": {"dtype": "F64", "shape": [-1], "data_offsets": [0, 8]}},
    ],
)
def test_an_absurd_safetensors_header_is_refused(tmp_path: Path, header: dict) -> None:
    text = json.dumps(header).encode()
    for size in (len(text), 2**62):
        path = tmp_path / "absurd.safetensors"
        path.write_bytes(struct.pack("<Q", size) + text + bytes(1))
        with pytest.raises(CheckpointError):
            read_tensors(path)
