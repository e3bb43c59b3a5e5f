"""Parity must fail when the numbers are wrong: every check here is fed something it has to refuse."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from simmim_export.bundle import Bundle
from simmim_export.engines import get_engine
from simmim_export.errors import BundleError, GateFailed
from simmim_export.proof.parity import Golden, ParityReport, compare, difference, invariance, logits_error
from simmim_export.spec import TOLERANCES, Precision, Tolerance
from simmim_export.system.files import digest
from simmim_export.system.npz import pack, unpack

FP32 = TOLERANCES[Precision.FP32]


class Spoiled:
    """A real session whose outputs are edited on the way out."""

    def __init__(self, session, edit) -> None:
        self.session, self.edit = session, edit

    def run(self, feeds):
        return self.edit(feeds, self.session.run(feeds))


@pytest.fixture(scope="module")
def opened(tiny_bundle: Path):
    bundle = Bundle.open(tiny_bundle)
    return bundle, Golden.load(bundle.file("golden.npz"))


def text_session(bundle: Bundle):
    spec = bundle.manifest.graph("text_encoder")
    return get_engine("ort").open(bundle.root / "graphs/text_encoder.fp32.onnx", spec, precision=Precision.FP32), spec


def failing(report) -> set[str]:
    return {row.check.split(",")[0] for row in report.rows if not row.passed}


def test_the_untouched_graph_passes(opened) -> None:
    bundle, golden = opened
    session, spec = text_session(bundle)
    report = compare(session, spec, golden, Precision.FP32)
    assert report.passed and report.cosine >= FP32.cosine and report.scaled_error <= FP32.scaled_error
    report.require("here", "nothing")


def test_a_small_error_fails_every_check(opened) -> None:
    bundle, golden = opened
    session, spec = text_session(bundle)

    def add(feeds, found):
        return {name: value + np.float32(3e-4) for name, value in found.items()}

    report = compare(Spoiled(session, add), spec, golden, Precision.FP32)
    assert not any(row.passed for row in report.rows)
    with pytest.raises(GateFailed, match="text_encoder at fp32 differs from PyTorch") as caught:
        report.require("here", "look")
    assert caught.value.exit_code == 4


def test_a_neighbour_that_leaks_into_a_sample_fails(opened) -> None:
    """Only in larger batches: what a batch statistic left in training mode would do."""
    bundle, golden = opened
    session, spec = text_session(bundle)

    def leak(feeds, found):
        shift = np.float32(1e-2) * (len(feeds["input_ids"]) == 1)
        return {name: value + shift for name, value in found.items()}

    report = compare(Spoiled(session, leak), spec, golden, Precision.FP32)
    assert "alone" in failing(report)


def test_an_ignored_mask_fails_padding_invariance(opened) -> None:
    """The session is given a mask of ones: texts with padding must come out wrong."""
    bundle, golden = opened
    session, spec = text_session(bundle)

    class Unmasked:
        def run(self, feeds):
            return session.run(dict(feeds) | {"attention_mask": np.ones_like(feeds["attention_mask"])})

    report = compare(Unmasked(), spec, golden, Precision.FP32)
    assert not report.passed
    # A text without padding is right even then: what fails is exactly what has padding.
    assert all(
        row.passed for row in report.rows if row.check.startswith("without padding") and row.output == "text_tokens"
    )


def test_padding_invariance_is_measured_on_texts_with_padding(opened) -> None:
    """What a session does to padded texts alone, and what all of it is compared with, must show."""
    bundle, golden = opened
    session, spec = text_session(bundle)

    def lose(feeds, found):
        padded = feeds["attention_mask"].min(axis=1) == 0
        return found | {"text_embed": np.where(padded[:, None], -found["text_embed"], found["text_embed"])}

    report = compare(Spoiled(session, lose), spec, golden, Precision.FP32)
    assert "alone" in failing(report) and "without padding" not in failing(report)
    found = invariance(Spoiled(session, lose), spec, golden)
    assert found["padding"] > 0.1 and found["batch"] < FP32.scaled_error
    assert invariance(session, spec, golden)["padding"] < FP32.scaled_error


def test_nan_and_a_wrong_shape_fail() -> None:
    good = np.ones((2, 3), np.float32)
    bad = good.copy()
    bad[0, 0] = np.nan
    assert difference(bad, good) == (float("inf"), -1.0)
    assert difference(good[:1], good) == (float("inf"), -1.0)


def test_difference_by_hand() -> None:
    expected = np.array([[3.0, 4.0]])
    error, cosine = difference(np.array([[3.0, 4.5]]), expected)
    assert error == pytest.approx(0.5 / np.sqrt(12.5))
    assert cosine == pytest.approx((9 + 18) / (5 * np.hypot(3, 4.5)))
    assert difference(np.zeros((1, 2)), np.zeros((1, 2))) == (0.0, 1.0)
    assert difference(np.ones((1, 2)), np.zeros((1, 2)))[1] == 0.0


@given(arrays(np.float32, (3, 4), elements=st.floats(-1e3, 1e3, width=32)))
def test_a_tensor_equals_itself(array: np.ndarray) -> None:
    error, cosine = difference(array, array)
    assert error == 0.0 and cosine == pytest.approx(1.0, abs=1e-6)


def test_golden_round_trips_to_the_same_bytes(opened, tmp_path: Path) -> None:
    bundle, golden = opened
    assert golden.save() == (bundle.root / "golden.npz").read_bytes()
    shapes = {(len(case["pixels"]), case["input_ids"].shape[1]) for case in golden.cases.values()}
    length = bundle.manifest.preprocessing["text"]["max_length"]
    assert {1, 2, 5, 8} == {batch for batch, _ in shapes} and {3, 7, length} == {s for _, s in shapes}
    masks = golden.cases[f"batch 8, sequence {length}"]["attention_mask"].sum(axis=1)
    assert length in masks and masks.min() < length


def test_golden_that_is_damaged_or_pickled(tmp_path: Path) -> None:
    path = tmp_path / "golden.npz"
    path.write_bytes(b"PK nonsense")
    with pytest.raises(BundleError):
        Golden.load(path)
    np.savez(path, **{"case/pixels": np.array([{"code": 1}], dtype=object)})
    with pytest.raises(BundleError, match=r"golden\.npz cannot be read"):
        Golden.load(path)


def test_tolerances_are_those_promised() -> None:
    assert Tolerance(1e-4, 0.99999) == FP32


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
        Golden.load(path, graphs=graphs)
    assert caught.value.exit_code == 5 and caught.value.where == str(path) and caught.value.fix
    assert CASE in str(caught.value) and key in str(caught.value)


@pytest.mark.parametrize("key", ["pixels", "attention_mask", "text_encoder:text_tokens", "head.match:logits"])
def test_a_missing_golden_tensor_is_an_error(whole, tmp_path: Path, key: str) -> None:
    graphs, tensors = whole
    path = tmp_path / "golden.npz"
    path.write_bytes(pack({name: array for name, array in tensors.items() if name != f"{CASE}/{key}"}))
    with pytest.raises(BundleError) as caught:
        Golden.load(path, graphs=graphs)
    assert caught.value.exit_code == 5 and CASE in str(caught.value) and key in str(caught.value)


@pytest.mark.parametrize(
    "extra", ["no slash", f"{CASE}/stranger", f"{CASE}/nobody:logits", "/pixels", "x" * 101 + "/pixels"]
)
def test_a_golden_tensor_of_no_graph_or_case_is_an_error(whole, tmp_path: Path, extra: str) -> None:
    graphs, tensors = whole
    path = tmp_path / "golden.npz"
    path.write_bytes(pack(tensors | {extra: np.zeros(1, np.float32)}))
    with pytest.raises(BundleError):
        Golden.load(path, graphs=graphs)


def test_no_golden_case_at_all_is_an_error(whole, tmp_path: Path) -> None:
    path = tmp_path / "golden.npz"
    path.write_bytes(pack({}))
    with pytest.raises(BundleError):
        Golden.load(path, graphs=whole[0])


def test_golden_tensors_as_exported_fit(whole, every_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "golden.npz"
    path.write_bytes(pack(whole[1]))
    assert len(Golden.load(path, graphs=whole[0]).cases) == 9
    bundle = Bundle.open(every_bundle)
    golden = Golden.load(bundle.file("golden.npz"), graphs=bundle.manifest.graphs)
    assert golden.largest() == max(golden.cases, key=lambda name: golden.cases[name]["input_ids"].size)


@pytest.mark.parametrize("key", ["image_encoder:image_embed", "head.match:logits"])
def test_verify_ends_with_bad_input_for_nan_in_golden_tensors(
    tiny_bundle: Path, tmp_path: Path, run_cli, key: str
) -> None:
    """In a bundle whose digests fit: one that somebody made, and not one that was damaged."""
    root = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, root)
    tensors = unpack(root / "golden.npz")
    tensors[f"{CASE}/{key}"] = spoil(tensors[f"{CASE}/{key}"], np.nan)
    (root / "golden.npz").write_bytes(pack(tensors))
    manifest = Bundle.open(tiny_bundle).manifest
    files = dict(manifest.files) | {"golden.npz": digest(root / "golden.npz")}
    (root / "manifest.json").write_text(replace(manifest, files=files).dumps(), encoding="utf-8")
    done = run_cli("export", "verify", root)
    assert done.returncode == 5 and CASE in done.stderr and key in done.stderr


def test_parity_does_not_depend_on_the_names_of_inputs(opened) -> None:
    """The golden tensors of one graph alone, without pixels or input_ids."""
    bundle, golden = opened
    spec = bundle.manifest.graph("head.match")
    session = get_engine("ort").open(bundle.root / "graphs/head.match.fp32.onnx", spec, precision=Precision.FP32)
    alone = {
        case: {name: tensors[name] for name in ("fusion:fused", "head.match:logits")}
        for case, tensors in golden.cases.items()
    }
    assert compare(session, spec, Golden(alone), Precision.FP32).passed
    assert invariance(session, spec, Golden(alone))["batch"] < FP32.scaled_error


def test_what_cannot_be_compared_fails() -> None:
    good, failed = np.ones((2, 3), np.float32), (float("inf"), -1.0)
    assert difference(good + 0j, good) == failed and difference(good, good + 1j) == failed
    assert difference(good, np.full_like(good, np.nan)) == failed
    assert difference(good, np.full_like(good, np.inf)) == failed
    assert difference(good[:0], good[:0]) == failed
    assert difference(good[:, :0], good[:, :0]) == failed
    assert difference(good.astype(object), good) == failed
    assert difference(good.astype(str), good.astype(str)) == failed
    # Squares of these overflow, and an infinite scale would make any error small.
    huge = np.full((2, 3), 1e200)
    assert difference(-huge, huge) == failed
    assert difference(np.float32(2), np.float32(2)) == (0.0, 1.0)


NUMBERS = st.one_of(
    arrays(np.float64, (2, 3), elements=st.floats()),
    arrays(np.complex64, (2, 3)),
    arrays(np.float32, st.sampled_from([(0,), (2, 0), (), (3,)])),
)


@given(NUMBERS, NUMBERS)
def test_whatever_is_compared_gives_two_numbers_and_passes_only_if_close(
    found: np.ndarray, expected: np.ndarray
) -> None:
    error, cosine = difference(found, expected)
    assert error >= 0 and -1.001 <= cosine <= 1.001
    if error <= FP32.scaled_error:
        assert found.shape == expected.shape and found.size
        # Every value, not the mean: nothing that is not finite passes.
        assert np.abs(found - expected).max() <= 1e-4 * max(1.0, np.abs(expected).max())


def test_a_report_of_nothing_does_not_pass() -> None:
    report = ParityReport("fusion", Precision.FP32, ())
    assert not report.passed and report.summary()["checks"] == 0
    with pytest.raises(GateFailed):
        report.require("here", "look")


@pytest.mark.parametrize(("scale", "offset"), [(1.0, 0.0), (1e-6, 0.0), (1e-2, 1000.0)])
@pytest.mark.parametrize("graph", ["head.match", "head.vqa"])
def test_a_head_that_answers_otherwise_fails_at_any_scale(opened, graph: str, scale: float, offset: float) -> None:
    bundle, golden = opened
    spec = bundle.manifest.graph(graph)
    session = get_engine("ort").open(bundle.root / f"graphs/{graph}.fp32.onnx", spec, precision=Precision.FP32)
    key = f"{graph}:logits"

    def moved(values):
        return (values * np.float32(scale) + np.float32(offset)).astype(np.float32)

    changed = Golden({case: dict(rows) | {key: moved(rows[key])} for case, rows in golden.cases.items()})
    honest = Spoiled(session, lambda feeds, found: {"logits": moved(found["logits"])})
    assert compare(honest, spec, changed, Precision.FP32).passed
    other = Spoiled(session, lambda feeds, found: {"logits": moved(found["logits"])[:, ::-1]})
    report = compare(other, spec, changed, Precision.FP32)
    assert failing(report) == {"batch 1", "batch 2", "batch 5", "batch 8", "alone"}


def test_equal_classes_of_an_untrained_head_are_no_error() -> None:
    level = np.full((3, 4), 0.25, np.float32)
    assert logits_error(level, level) == 0 and logits_error(np.zeros((2, 2)), np.zeros((2, 2))) == 0
    assert logits_error(np.nextafter(level, np.float32(1)), level) == 0
    assert logits_error(level * 0 + np.eye(3, 4, dtype=np.float32), level) > 1
    assert logits_error(np.full((1, 2), np.nan), np.zeros((1, 2))) == np.inf


def test_golden_tensors_without_the_largest_batch_prove_too_little(whole, tmp_path: Path) -> None:
    graphs, tensors = whole
    path = tmp_path / "golden.npz"
    for lost in ("batch 8,", f"sequence {graphs[1].axis('sequence').maximum}/"):
        path.write_bytes(pack({name: array for name, array in tensors.items() if lost not in name}))
        with pytest.raises(BundleError) as caught:
            Golden.load(path, graphs=graphs)
        assert caught.value.exit_code == 5 and caught.value.where == str(path)
