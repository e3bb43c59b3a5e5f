"""What is measured of a graph: the same as by hand, once, and within the memory that moments may take."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from simmim_export.errors import DataError
from simmim_export.precision import measure
from simmim_export.precision.base import Pass
from simmim_export.precision.int8_dot import Int8ForDotProducts
from simmim_export.precision.int8_s8 import Int8ForTensorRT
from simmim_export.precision.int8_u8 import Int8ForCpu
from simmim_export.precision.measure import Record

NAMES = ["x", "normed", "gelu"]


class Counted(list[dict[str, np.ndarray]]):
    """Feeds that count how many of them have run."""

    ran = 0

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        for feed in super().__iter__():
            self.ran += 1
            yield feed


def block() -> onnx.ModelProto:
    """x [batch, rows, 64] through LayerNormalization, a product to 96 channels, Gelu and a product back."""
    random = np.random.default_rng(0)
    nodes = [
        helper.make_node("LayerNormalization", ["x", "scale"], ["normed"], name="norm"),
        helper.make_node("MatMul", ["normed", "wide"], ["hidden"], name="first"),
        helper.make_node("Gelu", ["hidden"], ["gelu"], name="gelu"),
        helper.make_node("MatMul", ["gelu", "narrow"], ["back"], name="second"),
        helper.make_node("Add", ["back", "x"], ["y"], name="add"),
    ]
    weights = {
        "scale": 1 + random.normal(size=64) ** 2,
        "wide": random.normal(size=(64, 96)),
        "narrow": random.normal(size=(96, 64)),
    }
    graph = helper.make_graph(
        nodes,
        "block",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "rows", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "rows", 64])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def samples(count: int = 12) -> Counted:
    random = np.random.default_rng(1)
    return Counted({"x": random.normal(size=(1, 3 + index % 4, 64)).astype(np.float32)} for index in range(count))


def by_hand(name: str) -> np.ndarray:
    """All rows of a tensor."""
    tensors = measure.run(block(), list(samples()), [name])
    return np.concatenate([each[name].reshape(-1, each[name].shape[-1]) for each in tensors])


@pytest.mark.parametrize("waiting", [1, 1 << 28])
@pytest.mark.parametrize("strip", [40, 768])
def test_moments_and_extremes_are_those_of_all_rows(monkeypatch: pytest.MonkeyPatch, waiting: int, strip: int) -> None:
    monkeypatch.setattr(measure, "WAITING_BYTES", waiting)
    monkeypatch.setattr(measure, "STRIP", strip)
    record = Record(block(), samples())
    moments = dict(record.moments(NAMES))
    for name, seen in record.activations(NAMES).items():
        rows = by_hand(name).astype(np.float64)
        np.testing.assert_allclose(moments[name], rows.T @ rows, rtol=1e-4, atol=1e-3)
        assert np.array_equal(seen.lowest, rows.min(axis=0)) and np.array_equal(seen.highest, rows.max(axis=0))
        assert np.array_equal(seen.largest, np.abs(rows).max(axis=0))
        assert (seen.rows, seen.tokens) == (6, len(rows))


def test_the_graph_runs_once_for_all_that_is_asked() -> None:
    feeds = samples()
    record = Record(block(), feeds)
    record.prepare(NAMES)
    assert len(dict(record.moments(NAMES))) == 3 and len(record.activations(NAMES)) == 3
    assert len(record.outputs()) == measure.PROOF_FEEDS
    assert feeds.ran == len(feeds)


def test_moments_that_do_not_fit_together_come_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = dict(Record(block(), samples()).moments(NAMES))
    monkeypatch.setattr(measure, "MOMENT_BYTES", 1)
    feeds = samples()
    record = Record(block(), feeds)
    parts = dict(record.moments(NAMES))
    assert parts.keys() == whole.keys() and all(np.array_equal(parts[name], whole[name]) for name in NAMES)
    assert feeds.ran == 3 * len(feeds)


def test_the_width_of_a_tensor_may_differ_from_sample_to_sample() -> None:
    first, second = (measure.Activation.of(np.full((2, width), width, np.float32)) for width in (3, 5))
    both = first | second
    assert (both.lowest.tolist(), both.highest.tolist(), both.tokens) == ([3], [5], 4)


def test_measuring_needs_samples() -> None:
    with pytest.raises(DataError) as caught:
        Record(block(), []).activations(["x"])
    assert caught.value.fix


@pytest.mark.parametrize("kind", [Int8ForCpu, Int8ForDotProducts, Int8ForTensorRT])
def test_a_shared_record_changes_no_variant(kind: type[Pass]) -> None:
    model = block()
    record = Record(model, samples())
    Int8ForCpu(record.feeds, record=record)(model)
    shared = kind(record.feeds, record=record)(model)
    assert shared.SerializeToString() == kind(list(samples()))(model).SerializeToString()


def test_a_pass_tells_how_many_products_are_done() -> None:
    told: list[tuple[Any, ...]] = []
    Int8ForCpu(samples(), watch=lambda *words: told.append(words))(block())
    assert told[: len(samples())] == [("sample", index + 1, 12) for index in range(12)]
    assert [words[1:] for words in told[12:]] == [(1, 2), (2, 2)]
