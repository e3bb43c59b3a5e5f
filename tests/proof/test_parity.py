"""Parity fails when the numbers are wrong: every check gets something that it must refuse."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from support import golden_of

from simmim_export.bundle import Bundle
from simmim_export.bundle.golden import Golden
from simmim_export.engines import get_engine
from simmim_export.engines.ort import OrtEngine
from simmim_export.errors import GateFailed
from simmim_export.proof.parity import ParityReport, compare, difference, invariance, logits_error, tolerance_of
from simmim_export.runtime import load
from simmim_export.spec import TOLERANCES, Precision, Tolerance

FP32 = TOLERANCES[Precision.FP32]


class Spoiled:
    """A real session whose outputs are edited."""

    def __init__(self, session, edit) -> None:
        self.session, self.edit = session, edit

    def run(self, feeds):
        return self.edit(feeds, self.session.run(feeds))


@pytest.fixture(scope="module")
def opened(tiny_bundle: Path):
    bundle = Bundle.open(tiny_bundle)
    return bundle, golden_of(tiny_bundle)


def text_session(bundle: Bundle):
    spec = bundle.manifest.graph("text_encoder")
    return get_engine("ort").open(bundle.root / "graphs/text_encoder.fp32.onnx", spec, precision=Precision.FP32), spec


def failing(report) -> set[str]:
    return {row.check.split(",")[0] for row in report.rows if not row.passed}


def test_the_untouched_graph_passes(opened) -> None:
    bundle, golden = opened
    session, spec = text_session(bundle)
    report = compare(session, spec, golden=golden, precision=Precision.FP32)
    assert report.passed and report.cosine >= FP32.cosine and report.scaled_error <= FP32.scaled_error
    report.require("here", "nothing")


def test_a_small_error_fails_every_check(opened) -> None:
    bundle, golden = opened
    session, spec = text_session(bundle)

    def add(feeds, outputs):
        return {name: value + np.float32(3e-4) for name, value in outputs.items()}

    report = compare(Spoiled(session, add), spec, golden=golden, precision=Precision.FP32)
    assert not any(row.passed for row in report.rows)
    with pytest.raises(GateFailed) as caught:
        report.require("here", "look")
    assert caught.value.exit_code == 4 and caught.value.where == "here" and "text_encoder" in caught.value.what


def test_a_sample_that_depends_on_its_batch_fails(opened) -> None:
    """Only in larger batches: what a batch statistic left in training mode would do."""
    bundle, golden = opened
    session, spec = text_session(bundle)

    def leak(feeds, outputs):
        shift = np.float32(1e-2) * (len(feeds["input_ids"]) == 1)
        return {name: value + shift for name, value in outputs.items()}

    report = compare(Spoiled(session, leak), spec, golden=golden, precision=Precision.FP32)
    assert "alone" in failing(report)


def test_an_ignored_mask_fails_padding_invariance(opened) -> None:
    """The session is given a mask of ones: texts with padding must come out wrong."""
    bundle, golden = opened
    session, spec = text_session(bundle)

    class Unmasked:
        def run(self, feeds):
            return session.run(dict(feeds) | {"attention_mask": np.ones_like(feeds["attention_mask"])})

    report = compare(Unmasked(), spec, golden=golden, precision=Precision.FP32)
    assert not report.passed
    # A text without padding is right even then: what fails is exactly what has padding.
    assert all(
        row.passed for row in report.rows if row.check.startswith("without padding") and row.output == "text_tokens"
    )


def test_padding_invariance_is_measured_on_texts_with_padding(opened) -> None:
    """A session that is wrong only for padded texts."""
    bundle, golden = opened
    session, spec = text_session(bundle)

    def lose(feeds, outputs):
        padded = feeds["attention_mask"].min(axis=1) == 0
        embed = outputs["text_embed"]
        return outputs | {"text_embed": np.where(padded[:, None], -embed, embed)}

    report = compare(Spoiled(session, lose), spec, golden=golden, precision=Precision.FP32)
    assert "alone" in failing(report) and "without padding" not in failing(report)
    errors = invariance(Spoiled(session, lose), spec, golden=golden)
    assert errors["padding"] > 0.1 and errors["batch"] < FP32.scaled_error
    assert invariance(session, spec, golden=golden)["padding"] < FP32.scaled_error


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


def test_the_tolerance_of_fp32_is_the_promised_one() -> None:
    assert Tolerance(1e-4, 0.99999) == FP32


def test_parity_does_not_depend_on_the_names_of_inputs(opened) -> None:
    """The golden tensors of one graph alone, without pixels or input_ids."""
    bundle, golden = opened
    spec = bundle.manifest.graph("head.match")
    session = get_engine("ort").open(bundle.root / "graphs/head.match.fp32.onnx", spec, precision=Precision.FP32)
    alone = {
        case: {name: tensors[name] for name in ("fusion:fused", "head.match:logits")}
        for case, tensors in golden.cases.items()
    }
    assert compare(session, spec, golden=Golden(alone), precision=Precision.FP32).passed
    assert invariance(session, spec, golden=Golden(alone))["batch"] < FP32.scaled_error


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
def test_any_two_arrays_give_two_numbers_and_pass_only_if_close(output: np.ndarray, expected: np.ndarray) -> None:
    error, cosine = difference(output, expected)
    assert error >= 0 and -1.001 <= cosine <= 1.001
    if error <= FP32.scaled_error:
        assert output.shape == expected.shape and output.size
        # Every value, not the mean: nothing that is not finite passes.
        assert np.abs(output - expected).max() <= 1e-4 * max(1.0, np.abs(expected).max())


def test_an_empty_report_does_not_pass() -> None:
    report = ParityReport(graph="fusion", precision=Precision.FP32, rows=(), tolerance=FP32)
    assert not report.passed and report.summary()["checks"] == 0
    with pytest.raises(GateFailed):
        report.require("here", "look")


@pytest.mark.parametrize(("scale", "offset"), [(1.0, 0.0), (1e-6, 0.0), (1e-2, 1000.0)])
@pytest.mark.parametrize("graph", ["head.match", "head.vqa"])
def test_a_head_with_other_answers_fails_at_any_scale(opened, graph: str, scale: float, offset: float) -> None:
    bundle, golden = opened
    spec = bundle.manifest.graph(graph)
    session = get_engine("ort").open(bundle.root / f"graphs/{graph}.fp32.onnx", spec, precision=Precision.FP32)
    key = f"{graph}:logits"

    def moved(values):
        return (values * np.float32(scale) + np.float32(offset)).astype(np.float32)

    changed = Golden({case: dict(rows) | {key: moved(rows[key])} for case, rows in golden.cases.items()})
    honest = Spoiled(session, lambda feeds, outputs: {"logits": moved(outputs["logits"])})
    assert compare(honest, spec, golden=changed, precision=Precision.FP32).passed
    other = Spoiled(session, lambda feeds, outputs: {"logits": moved(outputs["logits"])[:, ::-1]})
    report = compare(other, spec, golden=changed, precision=Precision.FP32)
    assert failing(report) == {"batch 1", "batch 2", "batch 5", "batch 8", "alone"}


def test_equal_classes_of_an_untrained_head_pass() -> None:
    level = np.full((3, 4), 0.25, np.float32)
    assert logits_error(level, level) == 0 and logits_error(np.zeros((2, 2)), np.zeros((2, 2))) == 0
    assert logits_error(np.nextafter(level, np.float32(1)), level) == 0
    assert logits_error(level * 0 + np.eye(3, 4, dtype=np.float32), level) > 1
    assert logits_error(np.full((1, 2), np.nan), np.zeros((1, 2))) == np.inf


class Coarser:
    """A session of an INT8 graph whose outputs are ``times`` as far from those of the FP32 graph."""

    def __init__(self, session, exact, times: float) -> None:
        self.session, self.exact, self.times = session, exact, np.float32(times)

    def run(self, feeds):
        outputs, exact = self.session.run(feeds), self.exact.run(feeds)
        return {name: exact[name] + self.times * (values - exact[name]) for name, values in outputs.items()}

    def close(self) -> None:
        self.session.close()


@pytest.mark.parametrize(("times", "passes"), [(1, True), (1.5, True), (10, False)])
def test_int8_that_is_ten_times_less_exact_than_when_it_was_exported_fails(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, times: float, passes: bool
) -> None:
    """OpenVINO on Arm is, and stays within the tolerance that a new export has."""
    opens = OrtEngine.open

    def coarse(engine: OrtEngine, path: Path, spec, **options):
        session = opens(engine, path, spec, **options)
        exact = path.with_name(f"{spec.name}.fp32.onnx")
        return Coarser(session, opens(engine, exact, spec, precision=Precision.FP32), times)

    monkeypatch.setattr(OrtEngine, "open", coarse)
    with load(tiny_bundle, precision="fusion=int8") as model:
        report = next(report for report in model.verify() if report.graph == "fusion")
    assert report.passed == passes
    tolerance = TOLERANCES[Precision.INT8]
    assert report.scaled_error < tolerance.scaled_error and report.cosine > tolerance.cosine


@given(error=st.floats(0, 1e30), cosine=st.floats(-1e30, 1e30))
def test_no_manifest_makes_the_tolerance_of_int8_wider(error: float, cosine: float) -> None:
    """Nor stricter than FP32's. Its parity may come from a stranger."""
    tolerance, widest = (
        tolerance_of(Precision.INT8, {"scaled_error": error, "cosine": cosine}),
        TOLERANCES[Precision.INT8],
    )
    assert FP32.scaled_error <= tolerance.scaled_error <= widest.scaled_error
    assert widest.cosine <= tolerance.cosine <= FP32.cosine


def test_other_precisions_do_not_depend_on_the_export() -> None:
    exported = {"scaled_error": 0.0, "cosine": 1.0}
    for precision in Precision:
        assert tolerance_of(precision, None) == TOLERANCES[precision]
        assert precision is Precision.INT8 or tolerance_of(precision, exported) == TOLERANCES[precision]
