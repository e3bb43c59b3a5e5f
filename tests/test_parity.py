"""Parity must fail when the numbers are wrong: every check here is fed something it has to refuse."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from simmim_export.bundle import Bundle
from simmim_export.engines import get_engine
from simmim_export.errors import BundleError, GateFailed
from simmim_export.parity import Golden, compare, difference, invariance
from simmim_export.spec import TOLERANCES, Precision, Tolerance

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
    return get_engine("ort").open(bundle.root / "graphs/text_encoder.fp32.onnx", spec, Precision.FP32), spec


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
