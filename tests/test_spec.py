"""The vocabulary: precision plans as text, and tensors against their specs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simmim_export.errors import UsageError
from simmim_export.spec import Precision, PrecisionPlan, TensorSpec, Variant

GRAPHS = ("eye", "ear", "mix", "head.says")
PRECISIONS = st.sampled_from(Precision)


@given(default=PRECISIONS, graphs=st.dictionaries(st.sampled_from(GRAPHS), PRECISIONS, min_size=1))
def test_a_plan_is_read_as_it_was_written(default: Precision, graphs: dict[str, Precision]) -> None:
    plan = PrecisionPlan(default, tuple(sorted(graphs.items())))
    assert PrecisionPlan.parse(str(plan)) == plan
    assert all(plan.of(graph) is graphs.get(graph, default) for graph in GRAPHS)
    plan.check(GRAPHS)


@given(precision=PRECISIONS)
def test_one_precision_is_that_of_every_graph(precision: Precision) -> None:
    plan = PrecisionPlan.parse(str(precision).upper())
    assert str(plan) == precision and plan.of("mix") is precision
    assert PrecisionPlan.parse(f"*={precision}") == plan


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        ("", "''"),
        ("int4", "'int4'"),
        ("mix=int4", "'int4'"),
        ("=int8", "'=int8'"),
        ("mix=int8,", "''"),
        ("mix=int8,int8", "'int8'"),
        ("mix=int8, mix=fp32", "mix"),
        ("*=fp32,*=int8", "*"),
    ],
)
def test_a_text_that_is_not_a_plan_is_refused(text: str, quoted: str) -> None:
    with pytest.raises(UsageError) as caught:
        PrecisionPlan.parse(text)
    assert caught.value.exit_code == 2 and caught.value.fix and quoted in caught.value.what


@given(text=st.text(alphabet="*=,. fp1236int8bx", max_size=20))
def test_any_text_is_a_plan_or_refused(text: str) -> None:
    try:
        plan = PrecisionPlan.parse(text)
    except UsageError:
        return
    assert PrecisionPlan.parse(str(plan)) == plan


def test_an_unknown_graph_is_named_with_the_known_ones() -> None:
    with pytest.raises(UsageError) as caught:
        PrecisionPlan.parse("head.x=int8").check(GRAPHS)
    assert "head.x" in caught.value.what and "head.says" in str(caught.value.fix)


def test_every_variant_has_its_precision() -> None:
    assert {variant: variant.precision for variant in Variant} == {
        Variant.FP32: Precision.FP32,
        Variant.FP16: Precision.FP16,
        Variant.INT8_DOT: Precision.INT8,
        Variant.INT8_U8: Precision.INT8,
        Variant.INT8_S8: Precision.INT8,
        Variant.INT8_S8_FP16: Precision.INT8,
    }


@pytest.mark.parametrize(
    ("shape", "dtype"), [((2, 4), np.float64), ((2, 5), np.float32), ((2,), np.float32), ((2, 4, 1), np.float32)]
)
def test_an_array_that_does_not_fit_its_spec_is_refused(shape: tuple[int, ...], dtype: type) -> None:
    spec = TensorSpec("x", "float32", ("batch", 4))
    spec.check(np.zeros((2, 4), np.float32))
    with pytest.raises(UsageError) as caught:
        spec.check(np.zeros(shape, dtype))
    assert "x:" in caught.value.what
