"""Every field of a manifest has a type and bounds, and agrees with the others; what does not is refused by its place."""

from __future__ import annotations

import copy
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simmim_export.bundle import Bundle, Manifest, check_draft, digest_of, parse_manifest
from simmim_export.bundle.schema import MAX_BYTES, MAX_DEPTH
from simmim_export.console.metrics import print_metrics
from simmim_export.errors import BundleError
from simmim_export.runtime.images import ImagePreprocessing
from simmim_export.runtime.loading import plan_of
from simmim_export.spec import Precision, Variant, as_json

FIGURE = {"accuracy": 0.5, "n": 4, "interval": [0.1, 0.9]}
WAY = {"embeddings": {"recall_at_1": FIGURE}, "reranked": {"recall_at_1": FIGURE}, "chance": 0.1}
# A row of every kind that training writes.
METRICS = {
    "vqa": FIGURE | {"controls": {"blind": {"accuracy": 0.5}}, "by_family": {"count": FIGURE}, "data": {"name": "x"}},
    "match": FIGURE | {"text_to_image_recall_at_1": FIGURE | {"among": 4, "chance": 0.25}},
    "pointing": FIGURE | {"any_thing": 0.4, "chance": 0.1},
    "retrieval": {"captions": 4, "images": 2, "text_to_image": WAY | {"oracle": 0.9}, "image_to_text": WAY},
    "text_class": {"untrained": True},
    "image_class": {"not_measured": "the data set has none"},
}


@pytest.fixture(scope="module")
def content(every_bundle: Path) -> dict[str, Any]:
    """A real manifest of every head and of clips, with metrics of every kind and a plan."""
    read = json.loads((every_bundle / "manifest.json").read_text())
    read |= {"metrics": METRICS, "plans": {"ort": "image_encoder=int8,text_encoder=bf16", "ort@cuda": "fp32"}}
    return read


def dumped(content: dict[str, Any]) -> str:
    """JSON with a digest that fits, as an attacker would write it."""
    text = json.dumps(content, allow_nan=True)
    try:
        return json.dumps(content | {"digest": digest_of(content)}, allow_nan=True)
    except BundleError:
        return text


def use(manifest: Manifest) -> None:
    """Read all that commands read of a manifest: inspect, the verbs, certify, bench."""
    json.dumps(as_json(manifest), allow_nan=False)
    assert str(manifest.model["preset"]) is not None and manifest.provenance["checkpoint_sha256"][:12]
    for artifact in manifest.artifacts:
        assert manifest.graph(artifact.graph).axis("batch").maximum and artifact.built_for.get("needs") != 0
        assert f"{artifact.bytes / 1e6:.2f} {artifact.parity['scaled_error']:.1e} {artifact.parity['cosine']:.6f}"
    ImagePreprocessing.from_json(manifest.preprocessing["image"])
    assert manifest.preprocessing["text"]["max_length"] <= manifest.graph("text_encoder").axis("sequence").maximum
    assert f"{manifest.embedding['dim']} {manifest.embedding['digest'][:12]}"
    for pipeline in manifest.pipelines:
        made = {tensor.name for graph in pipeline.graphs for tensor in manifest.graph(graph).outputs}
        assert made >= set(pipeline.outputs)
        last = pipeline.graphs[-1]
        if last.startswith("head."):
            classes = manifest.graph(last).outputs[0].shape[-1]
            assert len(manifest.labels[last.removeprefix("head.")]) == classes
            assert ", ".join(manifest.labels[last.removeprefix("head.")]) is not None
    bundle = Bundle(Path("nowhere"), manifest)
    assert len(bundle.digest) == 64
    for graph in manifest.graphs:
        assert bundle.artifact(graph.name, "fp32").precision is Precision.FP32
    for engine in manifest.plans:
        plan_of(bundle, engine, precision="planned")
    if manifest.metrics:
        print_metrics(manifest.metrics)


def test_every_bundle_parses_and_comes_back_as_it_was(
    content: dict[str, Any], tiny_bundle: Path, every_bundle: Path
) -> None:
    for folder in (tiny_bundle, every_bundle):
        text = (folder / "manifest.json").read_text()
        manifest = parse_manifest(text, "here")
        assert manifest.dumps() == text
        use(manifest)
    manifest = parse_manifest(dumped(content), "here")
    assert json.loads(manifest.dumps()) == json.loads(dumped(content))
    use(manifest)


def test_a_manifest_from_before_there_were_plans_opens(content: dict[str, Any]) -> None:
    old = {key: value for key, value in content.items() if key not in ("plans", "digest")}
    assert parse_manifest(dumped(old), "here").plans == {}


def test_every_variant_has_its_precision() -> None:
    assert {v: v.precision for v in Variant} == {
        Variant.FP32: Precision.FP32,
        Variant.FP16: Precision.FP16,
        Variant.INT8_U8: Precision.INT8,
        Variant.INT8_S8: Precision.INT8,
    }


def put(*path: str | int, value: Any) -> Callable[[dict[str, Any]], None]:
    """An edit that sets one place to ``value``."""

    def edit(content: dict[str, Any]) -> None:
        held: Any = content
        for key in path[:-1]:
            held = held[key]
        held[path[-1]] = value

    return edit


def drop(*path: str | int) -> Callable[[dict[str, Any]], None]:
    """An edit that removes one place."""

    def edit(content: dict[str, Any]) -> None:
        held: Any = content
        for key in path[:-1]:
            held = held[key]
        del held[path[-1]]

    return edit


def again(*path: str | int) -> Callable[[dict[str, Any]], None]:
    """An edit that repeats the first item of a list at its end."""

    def edit(content: dict[str, Any]) -> None:
        held: Any = content
        for key in path:
            held = held[key]
        held.append(copy.deepcopy(held[0]))

    return edit


def polish(content: dict[str, Any], output: str, pipeline: int) -> None:
    """One more graph that gives ``output`` from the tokens of a text, before the last of a pipeline."""
    text, fusion = content["graphs"][1], content["graphs"][3]
    given = next(t for t in (*text["outputs"], *fusion["outputs"]) if t["name"] == output)
    tokens = next(t for t in text["outputs"] if t["name"] == "text_tokens")
    content["graphs"].append({"name": "polish", "inputs": [tokens], "outputs": [given], "axes": text["axes"]})
    fp32 = next(a for a in content["artifacts"] if a["graph"] == "fusion" and a["variant"] == "fp32")
    content["artifacts"].append(fp32 | {"graph": "polish", "path": "graphs/polish.fp32.onnx"})
    if pipeline:
        content["pipelines"][pipeline]["graphs"].insert(-1, "polish")


HUGE, BIG, SIDE = 10**400, 10**9, 4097
# Its pipelines: embed_image, embed_text, match, answer, classify_text, classify_image, classify_video, answer_video.
# Its graphs: image_encoder, text_encoder, video_encoder, fusion, head.match, head.vqa and four more heads.
BAD: list[tuple[str, Callable[[dict[str, Any]], None]]] = [
    ("$.preprocessing.image.height", put("preprocessing", "image", "height", value=64.0)),
    ("$.preprocessing.image.height", put("preprocessing", "image", "height", value=BIG)),
    ("$.preprocessing.image.height", put("preprocessing", "image", "height", value=True)),
    ("$.preprocessing.image.width", put("preprocessing", "image", "width", value=SIDE)),
    ("$.preprocessing.image.width", put("preprocessing", "image", "width", value=0)),
    ("$.preprocessing.image.width", put("preprocessing", "image", "width", value=HUGE)),
    ("$.graphs[0].inputs[0]", put("preprocessing", "image", "width", value=65)),
    ("$.preprocessing.image.resize", put("preprocessing", "image", "resize", value="crop")),
    ("$.preprocessing.image.interpolation", put("preprocessing", "image", "interpolation", value="nearest")),
    ("$.preprocessing.image", put("preprocessing", "image", "gamma", value=1)),
    ("$.preprocessing.image", drop("preprocessing", "image", "resize")),
    ("$.preprocessing.text.max_length", put("preprocessing", "text", "max_length", value=BIG)),
    ("$.preprocessing.text.max_length", put("preprocessing", "text", "max_length", value=2)),
    ("$.graphs[1].axes[1]", put("preprocessing", "text", "max_length", value=21)),
    ("$.labels.vqa", drop("labels", "vqa")),
    ("$.labels.vqa", put("labels", "vqa", value=["one"])),
    ("$.labels.other", put("labels", "other", value=["one"])),
    ("$.labels[...]", put("labels", "vqa", value=[])),
    ("$.labels[...][1]", put("labels", "vqa", value=["a", 1, "b", "c"])),
    ("$.labels", put("labels", value=[])),
    ("$.pipelines[3].graphs[0]", lambda c: c["pipelines"][3]["graphs"].reverse()),
    ("$.pipelines[3].graphs[4]", again("pipelines", 3, "graphs")),
    ("$.pipelines[3].graphs", put("pipelines", 3, "graphs", value=[])),
    ("$.pipelines[3].graphs[1]", put("pipelines", 3, "graphs", 1, value="head.other")),
    ("$.pipelines[3].graphs", put("pipelines", 3, "graphs", value=["image_encoder"] * 100_000)),
    ("$.pipelines[3].outputs", put("pipelines", 3, "outputs", value=["fused"])),
    ("$.pipelines[3].outputs[1]", put("pipelines", 3, "outputs", value=["logits", "text_embedding"])),
    ("$.pipelines[3].outputs[1]", again("pipelines", 3, "outputs")),
    ("$.pipelines[0].outputs", put("pipelines", 0, "outputs", value=["image_tokens"])),
    ("$.pipelines[2].graphs[3]", put("pipelines", 2, "graphs", 3, value="head.vqa")),
    ("$.pipelines[5].graphs[0]", put("pipelines", 5, "graphs", 0, value="video_encoder")),
    ("$.pipelines[5].graphs[2]", lambda c: c["pipelines"][5]["graphs"].append("text_encoder")),
    ("$.pipelines[5].graphs[1]", lambda c: c["pipelines"][5]["graphs"].append("head.video_class")),
    ("$.pipelines[5].graphs[1]", put("pipelines", 5, "graphs", 1, value="head.video_class")),
    ("$.pipelines[2].graphs[3]", put("pipelines", 2, "graphs", 3, value="head.text_class")),
    ("$.pipelines[3].graphs[3]", lambda c: c["pipelines"][3]["graphs"].insert(3, "head.text_class")),
    ("$.pipelines[3].graphs[3]", lambda c: polish(c, "fused", 3)),
    ("$.graphs[10].outputs[0]", lambda c: polish(c, "fused", 3)),
    ("$.graphs[10].outputs[0]", lambda c: polish(c, "text_embed", 0)),
    ("$.pipelines[8].graphs[3]", lambda c: c["pipelines"].append(c["pipelines"][3] | {"name": "other"})),
    ("$.pipelines[8]", again("pipelines")),
    ("$.pipelines", put("pipelines", value=[])),
    ("$.graphs[0].axes[0]", put("graphs", 0, "axes", 0, "minimum", value=9)),
    ("$.graphs[0].axes[0].maximum", put("graphs", 0, "axes", 0, "maximum", value=BIG)),
    ("$.graphs[0].axes[1]", lambda c: c["graphs"][0]["axes"].append({"name": "more", "minimum": 1, "maximum": 2})),
    ("$.graphs[1].axes[2]", again("graphs", 1, "axes")),
    ("$.graphs[1].inputs[0].shape", drop("graphs", 1, "axes", 1)),
    ("$.graphs[0].inputs[0].shape", put("graphs", 0, "inputs", 0, "shape", 0, value=8)),
    ("$.graphs[0].inputs[0].shape[1]", put("graphs", 0, "inputs", 0, "shape", 1, value=0)),
    ("$.graphs[0].inputs[0].shape", put("graphs", 0, "inputs", 0, "shape", value=["batch"] + [2] * 8)),
    ("$.graphs[0].outputs[0].shape", put("graphs", 0, "outputs", 0, "shape", value=["batch", 2**20, 2**20])),
    ("$.graphs[0].inputs[0].dtype", put("graphs", 0, "inputs", 0, "dtype", value="object")),
    ("$.graphs[0].inputs[0]", put("graphs", 0, "inputs", 0, "dtype", value="float32")),
    ("$.graphs[0].inputs[0].name", put("graphs", 0, "inputs", 0, "name", value="../pixels")),
    ("$.graphs[0].inputs", put("graphs", 0, "inputs", 0, "name", value="frames")),
    ("$.graphs[1].inputs[2]", again("graphs", 1, "inputs")),
    ("$.graphs[1].outputs[2]", again("graphs", 1, "outputs")),
    ("$.graphs[1].outputs", drop("graphs", 1, "outputs", 1)),
    ("$.graphs[3].inputs[0]", put("graphs", 3, "inputs", 0, "shape", 2, value=97)),
    ("$.graphs[3].outputs[1]", put("graphs", 3, "outputs", 1, "shape", 2, value=15)),
    ("$.graphs[5].outputs[0]", put("graphs", 5, "outputs", 0, "shape", value=["batch", 2, 2])),
    ("$.labels.vqa", put("graphs", 5, "outputs", 0, "shape", 1, value=23)),
    ("$.graphs[10]", again("graphs")),
    ("$.graphs", drop("graphs", 3)),
    ("$.graphs", put("graphs", value=[{}] * 1000)),
    ("$.graphs[0].name", put("graphs", 0, "name", value="..")),
    ("$.graphs[0].name", put("graphs", 0, "name", value="image_encoder\n")),
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
    ("$.artifacts[0].built_for[...]", put("artifacts", 0, "built_for", value={"needs": 1})),
    ("$.files", drop("files", "golden.npz")),
    ("$.files.../secret", put("files", "../secret", value="0" * 64)),
    ("$.files.manifest.json", put("files", "manifest.json", value="0" * 64)),
    ("$.files[...]", put("files", "x", value="0")),
    ("$.embedding.dim", put("embedding", "dim", value=1e30)),
    ("$.embedding.dim", put("embedding", "dim", value=64.0)),
    ("$.graphs[0].outputs[1]", put("embedding", "dim", value=65)),
    ("$.embedding.digest", put("embedding", "digest", value="space")),
    ("$.model", put("model", value={})),
    ("$.model.preset", put("model", "preset", value=7)),
    ("$.provenance", put("provenance", value={})),
    ("$.provenance.planning", put("provenance", "planning", value="ort")),
    ("$.plans.ort", put("plans", "ort", value="int4")),
    ("$.plans.ort", put("plans", "ort", value="other=int8")),
    ("$.plans", put("plans", "Not an engine", value="fp32")),
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
    ("$.schema", put("schema", value=0)),
    ("$.schema", put("schema", value=True)),
]


@pytest.mark.parametrize(("place", "edit"), BAD, ids=[f"{i}-{place}" for i, (place, _) in enumerate(BAD)])
def test_a_bad_field_is_refused_by_its_place(content: dict[str, Any], place: str, edit) -> None:
    changed = copy.deepcopy(content)
    edit(changed)
    with pytest.raises(BundleError) as caught:
        parse_manifest(dumped(changed), "the file")
    assert caught.value.exit_code == 5 and caught.value.fix and caught.value.where == "the file"
    # Other places may be wrong because of it.
    places = [line.split(": ")[0].split()[-1] for line in caught.value.what.splitlines() if ": " in line]
    assert place in places, caught.value.what


def test_a_control_that_is_not_measurable_is_kept(tiny_bundle: Path) -> None:
    content = json.loads((tiny_bundle / "manifest.json").read_text(encoding="utf-8"))
    figure = {"accuracy": 0.5, "n": 4, "interval": [0.1, 0.9]}
    for control, accepted in (
        ({"accuracy": 0.5}, True),
        ({"not_measurable": "4 of 4: their batch asks nothing else", "is": "the image with another question"}, True),
        ({}, False),
        ({"accuracy": 0.5, "not_measurable": "why"}, False),
    ):
        content["metrics"] = {"vqa": figure | {"controls": {"image_only": control}}}
        text = json.dumps(content | {"digest": digest_of(content)})
        if accepted:
            assert parse_manifest(text, "here").metrics["vqa"]["controls"]["image_only"] == control
        else:
            with pytest.raises(BundleError, match=r"metrics\.vqa\.controls"):
                parse_manifest(text, "here")


def test_everything_wrong_is_said_at_once(content: dict[str, Any]) -> None:
    changed = copy.deepcopy(content)
    changed["graphs"][0]["axes"][0]["minimum"] = 9
    changed["plans"]["ort"] = "int4"
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
    ],
    ids=lambda pair: pair[1][:40],
)
def test_json_that_readers_understand_differently_is_refused(
    content: dict[str, Any], replaced: tuple[str, str]
) -> None:
    text = dumped(content)
    assert replaced[0] in text
    with pytest.raises(BundleError):
        parse_manifest(text.replace(*replaced, 1), "here")


@pytest.mark.parametrize("levels", [MAX_DEPTH, 500, 990, 5000])
@pytest.mark.parametrize("key", ["model", "provenance", "metrics"])
def test_deep_nesting_is_refused(content: dict[str, Any], key: str, levels: int) -> None:
    text = dumped(content).replace(
        f'"{key}": {{', f'"{key}": {{"deep": ' + '{"a": [' * levels + "]}" * levels + ", ", 1
    )
    with pytest.raises(BundleError):
        parse_manifest(text, "here")


def test_a_long_history_is_not_too_deep(content: dict[str, Any]) -> None:
    changed, history = copy.deepcopy(content), {"seed": 0}
    for _ in range(40):
        history = {"parent": {"provenance": history}}
    changed["provenance"]["training"] = history
    use(parse_manifest(dumped(changed), "here"))


def test_two_classes_may_have_one_label(content: dict[str, Any]) -> None:
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
    st.sampled_from(
        ["", "batch", "sequence", "fp32", "int8", "logits", "head.vqa", "fused", "pixels", "x" * 5000, "\ud800"]
    ),
    st.sampled_from(["*=int8", "image_encoder", "graphs/fusion.fp32.onnx", "../x", "\0", "\x1b[31m", "0" * 64]),
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
def test_any_change_is_refused_or_harmless(content: dict[str, Any], data: st.DataObject) -> None:
    changed = copy.deepcopy(content)
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
        assert str(error).isascii() or str(error)
        return
    use(manifest)


# -- size --------------------------------------------------------------------------------------------------------------

# Opens a bundle in a process that may take 400 MB more than it starts with, and 10 seconds of a processor.
LIMITED = """
import resource, sys
from simmim_export.bundle import Bundle
from simmim_export.errors import BundleError
start = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (start + 400 * 2**20,) * 2)
resource.setrlimit(resource.RLIMIT_CPU, (10, 10))
try:
    Bundle.open(sys.argv[1])
except BundleError as error:
    sys.exit(error.exit_code)
"""


def _names(content: dict[str, Any]) -> str:
    content["pipelines"][3]["graphs"] = ["image_encoder"] * 100_000
    return dumped(content)


def _graphs(content: dict[str, Any]) -> str:
    content["graphs"] = [{}] * 10**6
    return dumped(content)


def _empty_objects(content: dict[str, Any]) -> str:
    return "[" + "{}," * ((MAX_BYTES - 10) // 3) + "{}]"


def _labels(content: dict[str, Any]) -> str:
    content["labels"]["vqa"] = ["x"] * 500_000
    return dumped(content)


def _keys(content: dict[str, Any]) -> str:
    content["files"] = {str(n): "0" for n in range(300_000)}
    return dumped(content)


@pytest.mark.parametrize("make", [_names, _graphs, _empty_objects, _labels, _keys])
def test_too_many_of_anything_are_refused_in_little_memory(content: dict[str, Any], tmp_path: Path, make) -> None:
    (tmp_path / "manifest.json").write_text(make(copy.deepcopy(content)))
    done = subprocess.run([sys.executable, "-P", "-c", LIMITED, tmp_path], capture_output=True, text=True, timeout=120)
    assert done.returncode == 5, done.stderr


def test_a_manifest_of_500_mb_is_refused_in_little_memory(tmp_path: Path) -> None:
    with (tmp_path / "manifest.json").open("wb") as stream:
        stream.truncate(500 * 10**6)
    started = time.process_time()
    done = subprocess.run([sys.executable, "-P", "-c", LIMITED, tmp_path], capture_output=True, text=True, timeout=120)
    assert done.returncode == 5, done.stderr
    assert time.process_time() - started < 5 and resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss > 0
