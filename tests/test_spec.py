"""The vocabulary: plans of precisions as text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simmim_export.errors import UsageError
from simmim_export.spec import Precision, PrecisionPlan

GRAPHS = ("image_encoder", "text_encoder", "fusion", "head.vqa")
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
    assert str(plan) == precision and plan.of("fusion") is precision
    assert PrecisionPlan.parse(f"*={precision}") == plan


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "unknown precision ''"),
        ("int4", "unknown precision 'int4'"),
        ("fusion=int4", "unknown precision 'int4'"),
        ("=int8", "'=int8' of the precision '=int8' is no GRAPH=PRECISION"),
        ("fusion=int8,", "'' of the precision 'fusion=int8,' is no GRAPH=PRECISION"),
        ("fusion=int8,int8", "'int8' of the precision"),
        ("fusion=int8, fusion=fp32", "names fusion twice"),
        ("*=fp32,*=int8", r"names \* twice"),
    ],
)
def test_what_is_no_plan_is_refused(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        PrecisionPlan.parse(text)
    assert caught.value.exit_code == 2 and caught.value.fix


@given(text=st.text(alphabet="*=,. fp1236int8bx", max_size=20))
def test_any_text_is_a_plan_or_refused(text: str) -> None:
    try:
        plan = PrecisionPlan.parse(text)
    except UsageError:
        return
    assert PrecisionPlan.parse(str(plan)) == plan


def test_a_graph_that_is_not_there_is_named() -> None:
    with pytest.raises(UsageError, match=r"there is no graph head\.x") as caught:
        PrecisionPlan.parse("head.x=int8").check(GRAPHS)
    assert "head.vqa" in str(caught.value)
