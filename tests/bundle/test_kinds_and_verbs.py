"""Whatever a family calls its graphs and tensors, their kinds and verbs must agree; if not, the error names the place."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from edits import Edit, again, both, drop, dumped, every, put, refused_places
from small_manifest import LONGEST, PIPELINES, content_of, small_manifest

from simmim_export.bundle import parse_manifest
from simmim_export.spec import Kind, Verb


@pytest.fixture(scope="module")
def content() -> dict[str, Any]:
    return dict(json.loads(small_manifest().dumps()))


def test_a_family_with_other_names_opens_and_comes_back_as_it_was() -> None:
    manifest = small_manifest()
    assert parse_manifest(manifest.dumps(), "here") == manifest
    assert manifest.image_graphs() == ("eye",)
    served = {(p.verb, clip): p for p in PIPELINES for clip in (p.name == "watch",)}
    for verb in Verb:
        for clip in (False, True):
            assert manifest.pipeline_for(verb, clip=clip) == served.get((verb, clip))
    takes = manifest.takes(manifest.pipeline("watch"))
    assert {kind: tensor.name for kind, tensor in takes.items()} == {
        Kind.FRAMES: "shots",
        Kind.FRAME_MASK: "shown",
        Kind.TOKEN_IDS: "words",
        Kind.TEXT_MASK: "real",
    }


@pytest.mark.parametrize(
    "pipelines", [("see", "hear"), ("see", "hear", "decide"), ("see",), ("hear",), ("see", "name"), ("see", "watch")]
)
def test_a_model_need_not_have_every_verb(pipelines: tuple[str, ...]) -> None:
    changed = content_of(*pipelines)
    manifest = parse_manifest(dumped(changed), "here")
    assert [pipeline.name for pipeline in manifest.pipelines] == list(pipelines)


def test_a_model_without_embeddings_opens() -> None:
    manifest = parse_manifest(dumped(content_of("decide", channels=0)), "here")
    assert manifest.image_graphs() == () and manifest.embedding["dim"] == 0


def test_a_fixed_text_length_opens() -> None:
    changed = content_of("see", "hear")
    every("words", shape=["batch", LONGEST])(changed)
    every("real", shape=["batch", LONGEST])(changed)
    every("tokens", shape=["batch", LONGEST, 8])(changed)
    drop("graphs", 1, "axes", 1)(changed)
    parse_manifest(dumped(changed), "here")


def test_an_input_that_another_graph_gives_may_be_shared(content: dict[str, Any]) -> None:
    put("graphs", 3, "inputs", 0, "shared", value=True)(content)
    manifest = parse_manifest(dumped(content), "here")
    assert [tensor.shared for tensor in manifest.graph("mix").inputs] == [True, False, False]


def test_masks_are_optional() -> None:
    changed = content_of("see", "hear", "watch")
    for graph in changed["graphs"]:
        graph["inputs"] = [tensor for tensor in graph["inputs"] if "mask" not in tensor["kind"]]
    parse_manifest(dumped(changed), "here")


def give(graph: int, **tensor: Any) -> Edit:
    """One more output of a graph."""
    return lambda content: content["graphs"][graph]["outputs"].append(tensor)


def take(graph: int, **tensor: Any) -> Edit:
    """One more input of a graph."""
    return lambda content: content["graphs"][graph]["inputs"].append(tensor)


def add_graph(source: int, **fields: Any) -> Edit:
    """One more graph, like another but for ``fields``."""
    return lambda content: content["graphs"].append(copy.deepcopy(content["graphs"][source]) | fields)


def add_pipeline(source: int, **fields: Any) -> Edit:
    """One more pipeline, like another but for ``fields``."""
    return lambda content: content["pipelines"].append(copy.deepcopy(content["pipelines"][source]) | fields)


HIDDEN = {"dtype": "float32", "kind": "hidden", "shape": ["batch", 8]}
LOGITS = {"dtype": "float32", "kind": "logits", "shape": ["batch", 2]}
GAZE = {"dtype": "float32", "kind": "attention", "shape": ["batch", "length", 9]}
# Graphs: 0 eye, 1 ear, 2 film, 3 mix, 4 pair, 5 judge, 6 namer, 7 critic.
# Pipelines: 0 see, 1 hear, 2 fit (match), 3 decide (answer), 4 name (classify), 5 watch (answer, of clips).
GRAPHS: list[tuple[str, Edit]] = [
    ("$.graphs", put("graphs", value=[])),
    ("$.graphs", put("graphs", value=[{}] * 1000)),
    ("$.graphs[8]", again("graphs")),
    ("$.graphs[0].name", put("graphs", 0, "name", value="..")),
    ("$.graphs[0].name", put("graphs", 0, "name", value="eye\n")),
    ("$.graphs[0].inputs[0].name", put("graphs", 0, "inputs", 0, "name", value="../photo")),
    ("$.graphs[0].inputs[0].dtype", put("graphs", 0, "inputs", 0, "dtype", value="object")),
    ("$.graphs[0].inputs[0].kind", put("graphs", 0, "inputs", 0, "kind", value="picture")),
    ("$.graphs[0].inputs[0]", drop("graphs", 0, "inputs", 0, "kind")),
    ("$.graphs[1].inputs[2]", again("graphs", 1, "inputs")),
    ("$.graphs[1].outputs[2]", again("graphs", 1, "outputs")),
    ("$.graphs[0].outputs[2]", give(0, name="photo", **HIDDEN)),
    ("$.graphs[4].outputs[1]", give(4, name="more", **LOGITS)),
    ("$.graphs[0].inputs[0].shared", put("graphs", 0, "inputs", 0, "shared", value=True)),
    ("$.graphs[0].outputs[0].shared", put("graphs", 0, "outputs", 0, "shared", value=True)),
    ("$.graphs[6].inputs[0].shared", put("graphs", 6, "inputs", 0, "shared", value=True)),
    ("$.graphs[0].axes[0]", put("graphs", 0, "axes", 0, "minimum", value=9)),
    ("$.graphs[0].axes[0]", put("graphs", 0, "axes", 0, "minimum", value=2)),
    ("$.graphs[2].axes[1]", put("graphs", 2, "axes", 1, "minimum", value=5)),
    ("$.graphs[0].axes[0].maximum", put("graphs", 0, "axes", 0, "maximum", value=10**9)),
    ("$.graphs[0].axes[1]", lambda c: c["graphs"][0]["axes"].append({"name": "more", "minimum": 1, "maximum": 2})),
    ("$.graphs[1].axes[2]", again("graphs", 1, "axes")),
    ("$.graphs[1].inputs[0].shape", drop("graphs", 1, "axes", 1)),
    ("$.graphs[0].inputs[0].shape", put("graphs", 0, "inputs", 0, "shape", 0, value=8)),
    ("$.graphs[0].inputs[0].shape[1]", put("graphs", 0, "inputs", 0, "shape", 1, value=0)),
    ("$.graphs[0].inputs[0].shape", put("graphs", 0, "inputs", 0, "shape", value=["batch"] + [2] * 8)),
    ("$.graphs[0].outputs[0].shape", put("graphs", 0, "outputs", 0, "shape", 1, value="batch")),
    ("$.graphs[0].outputs[0].shape", put("graphs", 0, "outputs", 0, "shape", value=["batch", 2**20, 2**20])),
]
KINDS: list[tuple[str, Edit]] = [
    # The form of each kind.
    ("$.graphs[0].inputs[0]", every("photo", dtype="float32")),
    ("$.graphs[0].inputs[0]", every("photo", shape=["batch", 6, 5, 3])),
    ("$.graphs[0].inputs[0]", every("photo", shape=["batch", 3, 6, 6])),
    ("$.graphs[0].inputs[0]", every("photo", shape=["batch", 108])),
    ("$.graphs[0].inputs[0]", put("preprocessing", "image", "width", value=65)),
    ("$.graphs[1].inputs[0]", every("words", dtype="float32")),
    ("$.graphs[1].inputs[0]", every("words", shape=["batch"])),
    ("$.graphs[1].inputs[0]", every("words", shape=["batch", "length", 1])),
    ("$.graphs[1].inputs[1]", every("real", dtype="uint8")),
    ("$.graphs[1].inputs[1]", every("real", shape=["batch", LONGEST])),
    ("$.graphs[1].inputs[1]", every("words", kind="hidden")),
    ("$.preprocessing.text.max_length", every("words", shape=["batch", LONGEST - 1])),
    ("$.graphs[1].axes[1]", put("preprocessing", "text", "max_length", value=LONGEST + 1)),
    ("$.graphs[3].axes[1]", put("graphs", 3, "axes", 1, "maximum", value=LONGEST - 1)),
    ("$.graphs[0].outputs[1]", every("look", dtype="int64")),
    ("$.graphs[0].outputs[1]", every("look", shape=["batch", 1, 8])),
    ("$.graphs[1].outputs[1]", every("sense", shape=["batch", "length"])),
    ("$.graphs[1].outputs[1]", every("sense", shape=["batch", 7])),
    ("$.graphs[0].outputs[1]", put("embedding", "dim", value=65)),
    ("$.graphs[0].outputs[1]", put("embedding", "dim", value=0)),
    ("$.embedding.dim", both(every("look", kind="hidden"), every("sense", kind="hidden"))),
    ("$.graphs[4].outputs[0]", put("graphs", 4, "outputs", 0, "dtype", value="int64")),
    ("$.graphs[4].outputs[0]", put("graphs", 4, "outputs", 0, "shape", value=["batch", 2, 2])),
    ("$.graphs[5].outputs[0]", put("graphs", 5, "outputs", 0, "shape", value=["batch", "length"])),
    ("$.graphs[3].outputs[1]", every("gaze", dtype="int64")),
    ("$.graphs[3].outputs[1]", every("gaze", shape=["batch", "length", 8])),
    ("$.graphs[3].outputs[1]", every("gaze", shape=["batch", "length", "length"])),
    ("$.graphs[3].outputs[1]", every("gaze", shape=["batch", 9])),
    ("$.graphs[3].outputs[1]", every("gaze", shape=["batch", 5, 9])),
    ("$.graphs[3].outputs[1]", every("words", kind="hidden")),
    ("$.graphs[2].inputs[0]", every("shots", dtype="uint8")),
    ("$.graphs[2].inputs[0]", every("shots", shape=["batch", "moments", 9, 7])),
    ("$.graphs[2].inputs[0]", every("shots", shape=["batch", "moments"])),
    ("$.graphs[2].inputs[0].shape[1]", every("shots", shape=["batch", 4, 9, 8])),
    ("$.graphs[8].axes[1]", both(add_graph(2, name="film_2"), put("graphs", 8, "axes", 1, "maximum", value=3))),
    ("$.graphs[2].inputs[1]", every("shown", dtype="uint8")),
    ("$.graphs[2].inputs[1]", every("shown", shape=["batch", 4])),
    ("$.graphs[2].inputs[1]", every("shots", kind="hidden")),
    ("$.preprocessing.clip", every("shots", kind="hidden")),
    ("$.graphs[2].inputs[0]", drop("preprocessing", "clip")),
    ("$.graphs[2].inputs[0]", put("preprocessing", "clip", value=None)),
    ("$.preprocessing.clip.stacked", put("preprocessing", "clip", "stacked", value="nothing")),
    ("$.preprocessing.clip.stacked", put("preprocessing", "clip", "stacked", value="tokens")),
    ("$.preprocessing.clip.stacked", put("preprocessing", "clip", "stacked", value="joint")),
    ("$.preprocessing.clip.stacked", put("preprocessing", "clip", "stacked", value="says")),
    ("$.preprocessing.clip.stacked", lambda c: take(0, **c["graphs"][1]["inputs"][0])(c)),
    # One name is one tensor, and one fed kind is one name.
    ("$.graphs[3].inputs[0]", put("graphs", 3, "inputs", 0, "kind", value="embedding")),
    ("$.graphs[3].inputs[0]", put("graphs", 3, "inputs", 0, "shape", 2, value=7)),
    ("$.graphs[3].inputs[0]", put("graphs", 3, "inputs", 0, "dtype", value="int64")),
    ("$.graphs[6].outputs[0]", put("graphs", 6, "outputs", 0, "kind", value="hidden")),
    ("$.graphs[5].inputs[0]", put("graphs", 5, "inputs", 0, "name", value="picture")),
    ("$.graphs[5].inputs[1]", put("graphs", 5, "inputs", 1, "name", value="text")),
    # Who gives a tensor.
    ("$.graphs[0].outputs[2]", lambda c: give(0, **c["graphs"][1]["inputs"][0])(c)),
    ("$.graphs[3].inputs[0]", every("patches", kind="image")),
    ("$.graphs[5].inputs[3]", lambda c: take(5, **c["graphs"][4]["outputs"][0])(c)),
    ("$.graphs[5].inputs[3]", take(5, name="nothing", **HIDDEN)),
    ("$.graphs[0].inputs[1]", take(0, name="joint", **HIDDEN)),
    ("$.graphs[3].outputs[2]", give(3, name="look", **HIDDEN | {"kind": "embedding"})),
    ("$.graphs[1].outputs[2]", lambda c: give(1, **c["graphs"][0]["outputs"][0])(c)),
    ("$.graphs[8].outputs[0]", add_graph(2, name="film_2")),
    ("$.graphs[2].outputs[1]", give(2, name="look", **HIDDEN | {"kind": "embedding"})),
]
VERBS: list[tuple[str, Edit]] = [
    ("$.pipelines", put("pipelines", value=[])),
    ("$.pipelines[6]", again("pipelines")),
    ("$.pipelines[0].verb", put("pipelines", 0, "verb", value="look")),
    ("$.pipelines[0]", drop("pipelines", 0, "verb")),
    ("$.pipelines[2].graphs", put("pipelines", 2, "graphs", value=[])),
    ("$.pipelines[2].graphs", put("pipelines", 2, "graphs", value=["eye"] * 100_000)),
    ("$.pipelines[2].graphs[1]", put("pipelines", 2, "graphs", 1, value="other")),
    ("$.pipelines[2].graphs[0]", lambda c: c["pipelines"][2]["graphs"].reverse()),
    ("$.pipelines[2].graphs[0]", put("pipelines", 2, "graphs", value=["mix", "eye", "ear", "pair"])),
    ("$.pipelines[2].graphs[4]", again("pipelines", 2, "graphs")),
    ("$.pipelines[0].graphs[1]", again("pipelines", 0, "graphs")),
    ("$.pipelines[5].graphs[1]", lambda c: c["pipelines"][5]["graphs"].insert(0, "eye")),
    ("$.pipelines[2].outputs[1]", again("pipelines", 2, "outputs")),
    ("$.pipelines[2].outputs[1]", put("pipelines", 2, "outputs", value=["says", "verdict"])),
    # What a verb feeds.
    ("$.pipelines[0].graphs[0]", put("pipelines", 0, "verb", value="embed_text")),
    ("$.pipelines[1].graphs[0]", put("pipelines", 1, "verb", value="embed_image")),
    ("$.pipelines[0].graphs[1]", put("pipelines", 0, "graphs", value=["eye", "ear"])),
    ("$.pipelines[1].graphs[1]", put("pipelines", 1, "graphs", value=["ear", "eye"])),
    ("$.pipelines[2].graphs[1]", put("pipelines", 2, "verb", value="classify")),
    ("$.pipelines[4].graphs", put("pipelines", 4, "verb", value="classify_text")),
    ("$.pipelines[4].graphs", put("pipelines", 4, "verb", value="match")),
    ("$.pipelines[5].graphs", lambda c: c["pipelines"][5]["graphs"].insert(0, "eye")),
    ("$.pipelines[3].graphs[0]", drop("graphs", 5, "inputs", 1)),
    ("$.pipelines[5].graphs", drop("graphs", 2, "inputs", 0)),
    ("$.pipelines[4].graphs[1]", lambda c: take(6, **c["graphs"][2]["inputs"][1])(c)),
    # What a verb reads.
    ("$.pipelines[0].outputs[0]", put("pipelines", 0, "outputs", value=["patches", "look"])),
    ("$.pipelines[2].outputs[0]", put("pipelines", 2, "outputs", value=["joint", "says"])),
    ("$.pipelines[2].outputs[0]", put("pipelines", 2, "graphs", value=["eye", "ear", "mix"])),
    ("$.pipelines[2].outputs[0]", put("pipelines", 2, "graphs", 3, value="critic")),
    ("$.pipelines[2].outputs[0]", both(put("graphs", 4, "outputs", 0, "shape", 1, value=3), again("labels", "fit"))),
    ("$.pipelines[4]", put("pipelines", 4, "verb", value="answer")),
    ("$.pipelines[6]", add_pipeline(0, name="see_more")),
    ("$.pipelines[2].graphs[2]", lambda c: c["pipelines"][2]["graphs"].insert(2, "namer")),
    ("$.pipelines[0].graphs[1]", put("pipelines", 0, "graphs", value=["eye", "namer"])),
    ("$.pipelines[6].graphs[3]", add_pipeline(2, name="other", verb="classify_text")),
    ("$.graphs[6]", drop("pipelines", 4)),
    ("$.pipelines[2].graphs[1]", lambda c: (give(0, name="gaze_2", **GAZE)(c), give(1, name="gaze_3", **GAZE)(c))),
    # Labels.
    ("$.pipelines[3].labels", drop("labels", "decision")),
    ("$.pipelines[3].labels", put("pipelines", 3, "labels", value="")),
    ("$.pipelines[3].labels", put("pipelines", 3, "labels", value="../x")),
    ("$.pipelines[0].labels", put("pipelines", 0, "labels", value="fit")),
    ("$.pipelines[3].labels", put("pipelines", 3, "labels", value="fit")),
    ("$.labels.decision", put("pipelines", 3, "labels", value="fit")),
    ("$.labels.decision", put("labels", "decision", value=["one"])),
    ("$.labels.other", put("labels", "other", value=["one"])),
    ("$.labels[...]", put("labels", "decision", value=[])),
    ("$.labels[...][1]", put("labels", "decision", value=["a", 1])),
    ("$.labels", put("labels", value=[])),
    (
        "$.pipelines[3].labels",
        both(put("pipelines", 3, "labels", value="retrieval"), put("labels", "retrieval", value=["a", "b"])),
    ),
]
CASES = [*GRAPHS, *KINDS, *VERBS]


@pytest.mark.parametrize(("place", "edit"), CASES, ids=[f"{i}-{place}" for i, (place, _) in enumerate(CASES)])
def test_a_contradiction_is_refused_by_its_place(content: dict[str, Any], place: str, edit: Edit) -> None:
    changed = copy.deepcopy(content)
    edit(changed)
    # Other places may be wrong because of it.
    assert place in refused_places(changed)
