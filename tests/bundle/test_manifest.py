"""Every field of a manifest has a type and a range; the error for a bad one names its place. How graphs and pipelines must agree
is in test_kinds_and_verbs.py."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edits import Content, Edit, again, drop, dumped, put, refused_places
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_manifest import content_of, small_manifest

from simmim_export.bundle import Bundle, Manifest, check_draft, parse_manifest
from simmim_export.console.metrics import print_metrics
from simmim_export.errors import BundleError, EngineUnavailable
from simmim_export.runtime.images import ImagePreprocessing
from simmim_export.runtime.loading import plan_of
from simmim_export.spec import Kind, Pipeline, Precision, Verb
from simmim_export.system.plain import as_json


def use(manifest: Manifest) -> None:
    """Read all that commands read of a manifest: inspect, the verbs, certify, bench."""
    json.dumps(as_json(manifest), allow_nan=False)
    assert str(manifest.model["preset"]) is not None and manifest.provenance["checkpoint_sha256"][:12]
    for artifact in manifest.artifacts:
        assert manifest.graph(artifact.graph).axis("batch").maximum
        assert f"{artifact.bytes / 1e6:.2f} {artifact.parity['scaled_error']:.1e} {artifact.parity['cosine']:.6f}"
    ImagePreprocessing.from_json(manifest.preprocessing["image"])
    assert f"{manifest.embedding['dim']} {manifest.embedding['digest'][:12]}"
    for pipeline in manifest.pipelines:
        use_pipeline(manifest, pipeline)
    bundle = Bundle(Path("nowhere"), manifest)
    assert len(bundle.digest) == 64
    for graph in manifest.graphs:
        assert bundle.artifact(graph.name, "fp32").precision is Precision.FP32
    for engine in manifest.plans:
        with suppress(EngineUnavailable):  # the bundle has no plan for this processor
            plan_of(bundle, engine, precision="planned")
    if manifest.metrics:
        print_metrics(manifest.metrics)


def use_pipeline(manifest: Manifest, pipeline: Pipeline) -> None:
    """What a verb relies on: every tensor is there when a graph needs it, and the first output can be read."""
    known = {tensor.name: tensor for tensor in manifest.takes(pipeline).values()}
    for name in pipeline.graphs:
        for tensor in manifest.graph(name).inputs:
            # Whether a tensor is shared is a matter of the graph that reads it.
            assert known[tensor.name] == replace(tensor, shared=known[tensor.name].shared)
        known |= {tensor.name: tensor for tensor in manifest.graph(name).outputs}
    assert set(pipeline.outputs) <= set(known)
    length = manifest.preprocessing["text"]["max_length"]
    for kind, tensor in manifest.takes(pipeline).items():
        if kind is Kind.IMAGE:
            image = manifest.preprocessing["image"]
            tensor.check(np.zeros((1, image["height"], image["width"], 3), np.uint8))
        elif kind is Kind.TOKEN_IDS:
            tensor.check(np.zeros((1, length), np.int64))
        elif kind is Kind.FRAMES:
            assert manifest.preprocessing["clip"]["stacked"]
    clip = Kind.FRAMES in manifest.takes(pipeline)
    assert manifest.pipeline_for(pipeline.verb, clip=clip) is pipeline
    read = known[pipeline.outputs[0]]
    if pipeline.labels:
        assert read.kind is Kind.LOGITS and read.shape == ("batch", len(manifest.labels[pipeline.labels]))
    else:
        assert read.kind is Kind.EMBEDDING and read.shape == ("batch", manifest.embedding["dim"])


def test_every_bundle_parses_and_comes_back_as_it_was(content: Content, tiny_bundle: Path, every_bundle: Path) -> None:
    for folder in (tiny_bundle, every_bundle):
        text = (folder / "manifest.json").read_text()
        manifest = parse_manifest(text, "here")
        assert manifest.dumps() == text
        use(manifest)
    manifest = parse_manifest(dumped(content), "here")
    assert json.loads(manifest.dumps()) == json.loads(dumped(content))
    use(manifest)


def test_a_manifest_from_before_there_were_plans_opens(content: Content) -> None:
    old = {key: value for key, value in content.items() if key not in ("plans", "digest")}
    assert parse_manifest(dumped(old), "here").plans == {}


def test_a_clip_that_is_null_is_a_clip_that_is_absent() -> None:
    content = content_of("see")
    content["preprocessing"]["clip"] = None
    assert parse_manifest(dumped(content), "here").stacked == ""


HUGE, BIG, SIDE = 10**400, 10**9, 4097
BAD: list[tuple[str, Edit]] = [
    ("$.preprocessing.image.height", put("preprocessing", "image", "height", value=64.0)),
    ("$.preprocessing.image.height", put("preprocessing", "image", "height", value=BIG)),
    ("$.preprocessing.image.height", put("preprocessing", "image", "height", value=True)),
    ("$.preprocessing.image.width", put("preprocessing", "image", "width", value=SIDE)),
    ("$.preprocessing.image.width", put("preprocessing", "image", "width", value=0)),
    ("$.preprocessing.image.width", put("preprocessing", "image", "width", value=HUGE)),
    ("$.preprocessing.image.resize", put("preprocessing", "image", "resize", value="stretch")),
    ("$.preprocessing.image.interpolation", put("preprocessing", "image", "interpolation", value="nearest")),
    ("$.preprocessing.image", put("preprocessing", "image", "gamma", value=1)),
    ("$.preprocessing.image", drop("preprocessing", "image", "resize")),
    ("$.preprocessing.text.max_length", put("preprocessing", "text", "max_length", value=BIG)),
    ("$.preprocessing.text.max_length", put("preprocessing", "text", "max_length", value=2)),
    ("$.preprocessing.clip.stacked", put("preprocessing", "clip", "stacked", value=3)),
    ("$.family", put("family", value="../simmim")),
    ("$", drop("family")),
    ("$.artifacts[10]", again("artifacts")),
    ("$.graphs[0]", drop("artifacts", 0)),
    ("$.artifacts[0].graph", put("artifacts", 0, "graph", value="other")),
    ("$.artifacts[0].variant", put("artifacts", 0, "variant", value="fp8")),
    ("$.artifacts[0].precision", put("artifacts", 0, "precision", value="int8")),
    ("$.artifacts[0].precision", put("artifacts", 0, "precision", value="int4")),
    ("$.artifacts[0].bytes", put("artifacts", 0, "bytes", value=-1)),
    ("$.artifacts[0].bytes", put("artifacts", 0, "bytes", value=2**31)),
    ("$.artifacts[0].sha256", put("artifacts", 0, "sha256", value="0" * 63)),
    ("$.artifacts[0].engine", put("artifacts", 0, "engine", value="../ort")),
    ("$.artifacts[0].path", put("artifacts", 0, "path", value="/etc/passwd")),
    ("$.artifacts[0].path", put("artifacts", 0, "path", value="graphs/../../secret")),
    ("$.artifacts[0].path", put("artifacts", 0, "path", value="manifest.json")),
    ("$.artifacts[0].path", put("artifacts", 0, "path", value="engines/x")),
    ("$.artifacts[0].path", put("artifacts", 0, "path", value="./x")),
    ("$.artifacts[0].path", put("artifacts", 0, "path", value=".")),
    ("$.artifacts[0].path", put("artifacts", 0, "path", value="a\\b")),
    ("$.artifacts[0].path", put("artifacts", 0, "path", value="a\0b")),
    ("$.artifacts[0].path", put("artifacts", 0, "path", value="x" * 256)),
    ("$.artifacts[0].path", put("artifacts", 0, "path", value="Golden.npz")),
    ("$.artifacts[1].path", lambda c: c["artifacts"][1].update(path=c["artifacts"][0]["path"])),
    ("$.artifacts[0].parity", put("artifacts", 0, "parity", value={})),
    ("$.artifacts[0].parity.scaled_error", put("artifacts", 0, "parity", "scaled_error", value=None)),
    ("$.artifacts[0].parity.cosine", put("artifacts", 0, "parity", "cosine", value=HUGE)),
    ("$.artifacts[0]", put("artifacts", 0, "built_for", value={})),
    ("$.files", drop("files", "golden.npz")),
    ("$.files.../secret", put("files", "../secret", value="0" * 64)),
    ("$.files.manifest.json", put("files", "manifest.json", value="0" * 64)),
    ("$.files[...]", put("files", "x", value="0")),
    ("$.embedding.dim", put("embedding", "dim", value=1e30)),
    ("$.embedding.dim", put("embedding", "dim", value=64.0)),
    ("$.embedding.digest", put("embedding", "digest", value="space")),
    ("$.model", put("model", value={})),
    ("$.model.preset", put("model", "preset", value=7)),
    ("$.provenance", put("provenance", value={})),
    ("$.provenance.planning", put("provenance", "planning", value="ort")),
    ("$.plans.ort.int8-u8", put("plans", "ort", "int8-u8", value="int4")),
    ("$.plans.ort.int8-u8", put("plans", "ort", "int8-u8", value="other=int8")),
    ("$.plans.ort.fp32", put("plans", "ort", "fp32", value="fp32")),
    ("$.plans[...]", put("plans", "ort", "int4", value="fp32")),
    ("$.plans[...]", put("plans", "ort", value="fp32")),
    ("$.plans", put("plans", "Not an engine", value={})),
    ("$.metrics.vqa.accuracy", put("metrics", "vqa", "accuracy", value="half")),
    ("$.metrics.vqa.interval", put("metrics", "vqa", "interval", value=[0.1])),
    ("$.metrics.vqa", drop("metrics", "vqa", "n")),
    ("$.metrics.vqa.controls[...]", put("metrics", "vqa", "controls", "blind", value={})),
    ("$.metrics.match.text_to_image_recall_at_1", drop("metrics", "match", "text_to_image_recall_at_1", "chance")),
    ("$.metrics.retrieval", drop("metrics", "retrieval", "captions")),
    (
        "$.metrics.retrieval.text_to_image.embeddings",
        put("metrics", "retrieval", "text_to_image", "embeddings", value=3),
    ),
    ("$.metrics.image_class.not_measured", put("metrics", "image_class", "not_measured", value=[])),
    ("$.metrics[...]", put("metrics", "vqa", value=3)),
    ("$", put("more", value=1)),
    ("$", drop("artifacts")),
    ("$.schema", put("schema", value=True)),
]


@pytest.mark.parametrize(("place", "edit"), BAD, ids=[f"{i}-{place}" for i, (place, _) in enumerate(BAD)])
def test_a_bad_field_is_refused_by_its_place(content: Content, place: str, edit: Edit) -> None:
    changed = copy.deepcopy(content)
    edit(changed)
    assert place in refused_places(changed)


@pytest.mark.parametrize(
    ("schema", "command"), [(0, "simmim-export onnx"), (2, "simmim-export onnx"), (4, "pip install")]
)
def test_another_schema_is_refused(content: Content, schema: int, command: str) -> None:
    with pytest.raises(BundleError) as caught:
        parse_manifest(dumped(content | {"schema": schema}), "here")
    assert caught.value.where == "here" and command in str(caught.value.fix)


@pytest.mark.parametrize(
    ("control", "accepted"),
    [
        ({"accuracy": 0.5}, True),
        ({"not_measurable": "4 of 4: their batch asks nothing else", "is": "the image with another question"}, True),
        ({}, False),
        ({"accuracy": 0.5, "not_measurable": "why"}, False),
    ],
)
def test_a_control_has_either_an_accuracy_or_a_reason(content: Content, control: Content, accepted: bool) -> None:
    changed = copy.deepcopy(content)
    changed["metrics"]["vqa"]["controls"] = {"image_only": control}
    if accepted:
        assert parse_manifest(dumped(changed), "here").metrics["vqa"]["controls"]["image_only"] == control
    else:
        assert "$.metrics.vqa.controls[...]" in refused_places(changed)


def test_everything_wrong_is_said_at_once(content: Content) -> None:
    changed = copy.deepcopy(content)
    changed["graphs"][0]["axes"][0]["minimum"] = 9
    changed["plans"]["ort"]["int8-u8"] = "int4"
    with pytest.raises(BundleError) as caught:
        parse_manifest(dumped(changed), "here")
    assert "$.graphs[0].axes[0]" in caught.value.what and "$.plans.ort" in caught.value.what


@pytest.mark.parametrize(
    "replaced",
    [
        ('"model": {', '"model": {}, "model": {'),
        ('"preset": "tiny"', '"preset": "tiny", "preset": "tiny"'),
        ('"accuracy": 0.5', '"accuracy": NaN'),
        ('"accuracy": 0.5', '"accuracy": -Infinity'),
        ('"accuracy": 0.5', '"accuracy": 1e999'),
        ('"accuracy": 0.5', '"accuracy": ' + "9" * 5000),
        ('"red"', '"\\ud800"'),
        ('"digest": "', '"digest": "\\ud800'),
    ],
    ids=lambda pair: pair[1][:40],
)
def test_json_that_readers_understand_differently_is_refused(content: Content, replaced: tuple[str, str]) -> None:
    text = dumped(content)
    assert replaced[0] in text
    with pytest.raises(BundleError):
        parse_manifest(text.replace(*replaced, 1), "here")


def test_two_classes_may_have_one_label(content: Content) -> None:
    changed = copy.deepcopy(content)
    changed["labels"]["vqa"][1] = changed["labels"]["vqa"][0]
    use(parse_manifest(dumped(changed), "here"))


def test_a_draft_is_checked_before_its_files_exist(every_bundle: Path) -> None:
    from dataclasses import replace

    draft = replace(Bundle.open(every_bundle).manifest, files={}, artifacts=())
    check_draft(draft, "checkpoint")
    with pytest.raises(BundleError) as caught:
        check_draft(replace(draft, metrics={"vqa": {"accuracy": "half"}}), "checkpoint")
    assert caught.value.where == "checkpoint" and "$.metrics.vqa.accuracy" in caught.value.what


# -- any change at all -------------------------------------------------------------------------------------------------


def places(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The path of every value under ``value``."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, held in items:
        yield (*path, key)
        yield from places(held, (*path, key))


def nested(levels: int) -> Any:
    value: Any = 0
    for _ in range(levels):
        value = [value]
    return value


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 100),
    st.sampled_from([2**31, 2**53, 2**64, HUGE, -1, 0, 1, 2, 3, 4, 8, 16, 64]),
    st.floats(allow_nan=True, allow_infinity=True),
    st.text(max_size=20),
    st.sampled_from(["", "batch", "length", "fp32", "int8", "*=int8", "../x", "\0", "\x1b[31m", "0" * 64, "\ud800"]),
    st.sampled_from(["x" * 5000, "eye", "look", "patches", "says", "fusion", "image_tokens", "head.vqa", "pixels"]),
    st.sampled_from([*Kind, *Verb]),
)
VALUES = st.one_of(
    SCALARS,
    st.recursive(
        SCALARS,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=5,
    ),
    st.integers(50, 200).map(nested),
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_change_is_refused_or_harmless(content: Content, data: st.DataObject) -> None:
    small = json.loads(small_manifest().dumps())
    changed = copy.deepcopy(data.draw(st.sampled_from([content, small])))
    for _ in range(data.draw(st.integers(1, 3))):
        there = data.draw(st.sampled_from(list(places(changed))))
        held: Any = changed
        for key in there[:-1]:
            held = held[key]
        how = data.draw(st.sampled_from(["put", "put", "put", "drop", "repeat", "move", "copy"]))
        if how == "put":
            held[there[-1]] = data.draw(VALUES)
        elif how == "drop":
            del held[there[-1]]
        elif how == "repeat" and isinstance(held, list):
            held.append(copy.deepcopy(held[there[-1]]))
        elif how == "move" and isinstance(held, list):
            held.insert(0, held.pop(there[-1]))
        elif isinstance(held, dict):
            held[data.draw(st.text(max_size=8))] = copy.deepcopy(held[there[-1]])
    try:
        text = dumped(changed)
    except (RecursionError, ValueError):
        return  # not JSON at all: an integer or a nesting that Python does not write
    try:
        manifest = parse_manifest(text, "here")
    except BundleError as error:
        assert error.where == "here" and error.fix
        return
    use(manifest)
