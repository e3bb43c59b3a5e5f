"""Certificates whose digest fits, but which contradict themselves or the bundle: whoever wrote them could compute a digest."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from certificates import FAILED, HOST, put, row
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simmim_export.bundle import Bundle
from simmim_export.engines import versions
from simmim_export.errors import BundleError, EngineUnavailable
from simmim_export.proof.certificate import choose, read
from simmim_export.proof.records import Certificate, CertifiedGraph, Line, verdict

LOST = {
    **{"value": 0.0, "reference": 1.0, "loss": 100.0, "interval": [93.0, 100.0], "n": 48, "images": 48, "gained": 0},
    **{"lost": 48, "suspicious": False, "metric": "accuracy", "top1": 0.0, "not_finite": 0},
}


def without(*names: str, limit: str) -> list[dict[str, str]]:
    return [{"name": name, "limit": limit, "why": "few"} for name in names]


WRONG: dict[str, Callable[[dict[str, Any]], object]] = {
    "passed with a failed line": lambda c: c["lines"].append(dict(FAILED[0], name="x")),
    "passed with a line that was not computed": lambda c: c["lines"][2].update(measured=None),
    "failed with nothing that failed": lambda c: c.update(passed=False),
    "a word for passed": lambda c: c.update(passed="yes"),
    "one for passed": lambda c: c.update(passed=1),
    "the engine that the others are compared with": lambda c: c.update(engine="torch"),
    "no time at all": lambda c: c["latency"].update(embed_image=1e-300),
    "a loss beyond doubt that was not judged": lambda c: (
        c["figures"]["tasks"].update(vqa=LOST),
        c.update(
            budget="answers=0.5pt,cosine=0.99",
            not_judged=without("answers match", "answers vqa", limit="answers=0.5pt"),
        ),
    ),
    "no lines": lambda c: c.update(lines=[]),
    "a line less": lambda c: c["lines"].pop(0),
    "no line on references": lambda c: c["lines"].pop(),
    "a line twice": lambda c: c["lines"].append(c["lines"][0]),
    "a line of an older schema": lambda c: c["lines"][0].update(found=c["lines"][0].pop("measured")),
    "a line that is judged and not judged": lambda c: c["not_judged"].extend(
        without("cosine texts", limit="cosine=0.99")
    ),
    "a line that its figures contradict": lambda c: c["figures"]["embeddings"]["images"].update(cosine_mean=0.5),
    "outputs that are not finite": lambda c: c["figures"]["embeddings"]["images"].update(not_finite=1),
    "nothing judged": lambda c: c.update(
        lines=c["lines"][2:], not_judged=without("cosine images", "cosine texts", limit="cosine=0.99")
    ),
    "a budget that does not parse": lambda c: c.update(budget="cosine=2"),
    "no budget": lambda c: c.update(budget=""),
    "another budget": lambda c: c.update(budget="cosine=0.999"),
    "failed parity": lambda c: c["graphs"]["fusion"]["parity"].update(passed=False),
    "parity of no check": lambda c: c["graphs"]["fusion"]["parity"].update(checks=0),
    "a graph less": lambda c: c["graphs"].pop("fusion"),
    "no graphs": lambda c: c.update(graphs={}),
    "a graph more": lambda c: c["graphs"].update(more=c["graphs"]["fusion"]),
    "a graph at another precision": lambda c: c["graphs"]["fusion"].update(precision="fp32"),
    "an unknown precision": lambda c: c["graphs"]["fusion"].update(precision="fp64"),
    "another graph's file": lambda c: c["graphs"]["fusion"].update(artifact="0" * 64),
    "another variant of the same graph": lambda c: c["graphs"]["fusion"].update(variant="int8-s8"),
    "an unknown variant": lambda c: c["graphs"]["fusion"].update(variant="int4"),
    "not a digest": lambda c: c["graphs"]["fusion"].update(artifact="x"),
    "an unknown plan": lambda c: c.update(plan="int9"),
    "another plan": lambda c: c.update(plan="fp32"),
    "a plan that the bundle lacks": lambda c: c.update(precision="planned"),
    "a plan for another graph": lambda c: c.update(plan="x=int8", precision="x=int8"),
    "no latency": lambda c: c.update(latency={}),
    "a latency less": lambda c: c["latency"].pop("embed_text"),
    "a latency of zero": lambda c: c["latency"].update(embed_text=0),
    "a negative latency": lambda c: c["latency"].update(embed_text=-0.1),
    "a latency that is null": lambda c: c["latency"].update(embed_text=None),
    "a latency beyond any number": lambda c: c["latency"].update(embed_text=10**400),
    "a word for a latency": lambda c: c["latency"].update(embed_text="0.1"),
    "a share of two": lambda c: c["figures"]["embeddings"]["images"].update(top1=2),
    "a field more": lambda c: c.update(more=1),
    "a field more inside": lambda c: c["graphs"]["fusion"]["parity"].update(more=1),
    "a field less": lambda c: c.pop("host"),
    "a field less inside": lambda c: c["graphs"]["fusion"].pop("executed"),
    "a run that is not a time": lambda c: c.update(run="yesterday"),
    "a list for a host": lambda c: c.update(host=[]),
    "a host that is nested": lambda c: c.update(host={"cpu": {}}),
    "a number for an engine": lambda c: c.update(engine=3),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_certificate_that_contradicts_itself_is_refused(bundle: Bundle, name: str) -> None:
    content = row(bundle)
    put(bundle, [content])
    assert [one.name for one in read(bundle)] == ["ort:int8"]
    WRONG[name](content)
    path = put(bundle, [content])
    with pytest.raises(BundleError) as caught:
        read(bundle)
    assert caught.value.exit_code == 5 and caught.value.where == str(path)


def test_int8_of_the_fp32_file_is_refused(bundle: Bundle) -> None:
    content = row(bundle)
    content["graphs"]["fusion"].update(variant="fp32", artifact=bundle.artifact("fusion", "fp32").sha256)
    path = put(bundle, [content])
    with pytest.raises(BundleError) as caught:
        read(bundle)
    assert caught.value.exit_code == 5 and caught.value.where == str(path)


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**30), 10**30), st.floats(), st.text(max_size=5), st.just([]), st.just({})
)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_an_altered_certificate_is_refused_or_holds(bundle: Bundle, data: st.DataObject) -> None:
    """One value anywhere is replaced or removed."""
    content = row(bundle)
    place: Any = content
    key: Any = None
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            break
        key = data.draw(st.sampled_from(keys))
        if not isinstance(place[key], dict | list) or data.draw(st.booleans()):
            break
        place = place[key]
    if place:
        if data.draw(st.booleans()):
            place[key] = data.draw(VALUES)
        else:
            del place[key]
    put(bundle, [content])
    try:
        certificates = read(bundle)
    except BundleError as error:
        assert error.fix and error.exit_code == 5
        return
    (one,) = certificates
    assert one.passed == verdict(one.lines, one.graphs) and 0 < one.speed() < 1e6
    assert json.loads(json.dumps(one.as_json(), allow_nan=False)) == one.as_json()
    for engine in (None, "ort"):
        try:
            best, _ = choose(certificates, HOST, versions=versions, engine=engine)
        except EngineUnavailable:
            continue
        assert best.passed


def test_a_verdict_needs_lines_graphs_and_numbers(certificate: Callable[..., Certificate]) -> None:
    made = certificate()
    line, graph = made.lines[0], made.graphs["fusion"]
    lost = msgspec.structs.replace(line, measured=None)
    odd = msgspec.structs.replace(line, measured=float("nan"))
    unchecked = msgspec.structs.replace(graph, parity=msgspec.structs.replace(graph.parity, checks=0))
    assert verdict([line], {"a": graph})
    lines: list[tuple[list[Line], dict[str, CertifiedGraph]]]
    lines = [([], {"a": graph}), ([line], {}), ([line, lost], {"a": graph}), ([line, odd], {"a": graph})]
    for some, graphs in [*lines, ([line], {"a": graph, "b": unchecked})]:
        assert not verdict(some, graphs)
    failed = msgspec.structs.replace(made, lines=(lost,), graphs=made.graphs | {"b": unchecked})
    assert len(msgspec.structs.replace(failed, lines=(odd,)).failures()) == 1
    assert "parity of b" in failed.failures()
