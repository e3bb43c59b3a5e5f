"""Golden tensors: what does not fit the manifest is refused, naming the case and the tensor."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from simmim_export.bundle import Bundle
from simmim_export.bundle.golden import Golden
from simmim_export.errors import BundleError
from simmim_export.system.files import digest
from simmim_export.system.npz import pack, unpack


@pytest.fixture(scope="module")
def opened(tiny_bundle: Path):
    bundle = Bundle.open(tiny_bundle)
    return bundle, Golden.load(bundle.file("golden.npz"), bundle.manifest.graphs)


def test_golden_tensors_are_saved_as_the_same_bytes(opened) -> None:
    bundle, golden = opened
    assert golden.save() == (bundle.root / "golden.npz").read_bytes()
    shapes = {(len(case["pixels"]), case["input_ids"].shape[1]) for case in golden.cases.values()}
    length = bundle.manifest.preprocessing["text"]["max_length"]
    assert {1, 2, 5, 8} == {batch for batch, _ in shapes} and {3, 7, length} == {s for _, s in shapes}
    masks = golden.cases[f"batch 8, sequence {length}"]["attention_mask"].sum(axis=1)
    assert length in masks and masks.min() < length


def test_damaged_and_pickled_golden_tensors_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "golden.npz"
    path.write_bytes(b"PK nonsense")
    with pytest.raises(BundleError):
        Golden.load(path, ())
    np.savez(path, **{"case/pixels": np.array([{"code": 1}], dtype=object)})
    with pytest.raises(BundleError) as caught:
        Golden.load(path, ())
    assert caught.value.where == str(path) and isinstance(caught.value.__cause__, ValueError)


@pytest.fixture(scope="module")
def whole(opened):
    """The graphs of the bundle, and its golden tensors as one dict that a test may copy and spoil."""
    bundle, golden = opened
    return bundle.manifest.graphs, {f"{c}/{k}": array for c, case in golden.cases.items() for k, array in case.items()}


def spoil(array: np.ndarray, value: complex | float) -> np.ndarray:
    changed = array.astype(np.result_type(array, type(value)) if isinstance(value, complex) else array.dtype)
    changed.flat[-1] = value
    return changed


CASE = "batch 2, sequence 3"
SPOILED = {
    "nan": ("head.vqa:logits", lambda array: spoil(array, np.nan)),
    "infinity": ("text_encoder:text_embed", lambda array: spoil(array, np.inf)),
    "complex": ("fusion:fused", lambda array: spoil(array, 1 + 1j)),
    "another dtype": ("fusion:fused", lambda array: array.astype(np.float64)),
    "another byte order": ("input_ids", lambda array: array.astype(">i8")),
    "another rank": ("pixels", lambda array: array[0]),
    "another fixed size": ("pixels", lambda array: array[:, :, :-1]),
    "an empty batch": ("pixels", lambda array: array[:0]),
    "another batch than the rest": ("head.vqa:logits", lambda array: array[:1]),
    "another length than the rest": ("attention_mask", lambda array: array[:, :2]),
    "a batch above the maximum": ("pixels", lambda array: np.repeat(array, 10, axis=0)),
}


@pytest.mark.parametrize("name", SPOILED)
def test_a_golden_tensor_that_does_not_fit_is_an_error(whole, tmp_path: Path, name: str) -> None:
    graphs, tensors = whole
    key, change = SPOILED[name]
    path = tmp_path / "golden.npz"
    path.write_bytes(pack(tensors | {f"{CASE}/{key}": change(tensors[f"{CASE}/{key}"])}))
    with pytest.raises(BundleError) as caught:
        Golden.load(path, graphs)
    assert caught.value.exit_code == 5 and caught.value.where == str(path) and caught.value.fix
    assert CASE in str(caught.value) and key in str(caught.value)


@pytest.mark.parametrize("key", ["pixels", "attention_mask", "text_encoder:text_tokens", "head.match:logits"])
def test_a_missing_golden_tensor_is_an_error(whole, tmp_path: Path, key: str) -> None:
    graphs, tensors = whole
    path = tmp_path / "golden.npz"
    path.write_bytes(pack({name: array for name, array in tensors.items() if name != f"{CASE}/{key}"}))
    with pytest.raises(BundleError) as caught:
        Golden.load(path, graphs)
    assert caught.value.exit_code == 5 and CASE in str(caught.value) and key in str(caught.value)


@pytest.mark.parametrize(
    "extra", ["no slash", f"{CASE}/stranger", f"{CASE}/nobody:logits", "/pixels", "x" * 101 + "/pixels"]
)
def test_an_unknown_golden_tensor_is_an_error(whole, tmp_path: Path, extra: str) -> None:
    graphs, tensors = whole
    path = tmp_path / "golden.npz"
    path.write_bytes(pack(tensors | {extra: np.zeros(1, np.float32)}))
    with pytest.raises(BundleError):
        Golden.load(path, graphs)


def test_golden_tensors_without_a_case_are_an_error(whole, tmp_path: Path) -> None:
    path = tmp_path / "golden.npz"
    path.write_bytes(pack({}))
    with pytest.raises(BundleError):
        Golden.load(path, whole[0])


def test_golden_tensors_as_exported_fit(whole, every_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "golden.npz"
    path.write_bytes(pack(whole[1]))
    assert len(Golden.load(path, whole[0]).cases) == 9
    bundle = Bundle.open(every_bundle)
    golden = Golden.load(bundle.file("golden.npz"), bundle.manifest.graphs)
    assert golden.largest() == max(golden.cases, key=lambda name: golden.cases[name]["input_ids"].size)


@pytest.mark.parametrize("key", ["image_encoder:image_embed", "head.match:logits"])
def test_verify_exits_5_for_nan_in_golden_tensors(tiny_bundle: Path, tmp_path: Path, run_cli, key: str) -> None:
    """The digests of the bundle fit: somebody made it so."""
    root = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    tensors = unpack(root / "golden.npz")
    tensors[f"{CASE}/{key}"] = spoil(tensors[f"{CASE}/{key}"], np.nan)
    (root / "golden.npz").write_bytes(pack(tensors))
    manifest = Bundle.open(tiny_bundle).manifest
    files = dict(manifest.files) | {"golden.npz": digest(root / "golden.npz")}
    (root / "manifest.json").write_text(replace(manifest, files=files).dumps(), encoding="utf-8")
    done = run_cli("export", "verify", root)
    assert done.returncode == 5 and CASE in done.stderr and key in done.stderr


def test_golden_tensors_must_have_the_maximum_of_every_axis(whole, tmp_path: Path) -> None:
    graphs, tensors = whole
    path = tmp_path / "golden.npz"
    for lost in ("batch 8,", f"sequence {graphs[1].axis('sequence').maximum}/"):
        path.write_bytes(pack({name: array for name, array in tensors.items() if lost not in name}))
        with pytest.raises(BundleError) as caught:
            Golden.load(path, graphs)
        assert caught.value.exit_code == 5 and caught.value.where == str(path)
