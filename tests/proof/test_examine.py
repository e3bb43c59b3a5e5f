"""The examiner with graphs that are one line of NumPy each, so that every figure is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from simmim_export.bundle import Manifest
from simmim_export.errors import GateFailed
from simmim_export.proof.budget import Budget
from simmim_export.proof.evidence import Evidence, Task
from simmim_export.proof.examine import Examiner, reproduction
from simmim_export.spec import Axis, GraphSpec, Kind, Pipeline, TensorSpec, Verb

Tensors = dict[str, np.ndarray]
Compute = Callable[[Mapping[str, np.ndarray]], Tensors]
BATCH, FRAMES = Axis("batch", 1, 4), Axis("frames", 2, 8)
PHOTO = TensorSpec("photo", "uint8", ("batch", 4, 4, 3), Kind.IMAGE)
TOKENS = TensorSpec("tokens", "float32", ("batch", 1, 2))
LOOK = TensorSpec("look", "float32", ("batch", 2), Kind.EMBEDDING)
FILM = TensorSpec("film", "float32", ("batch", "frames", 1, 2), Kind.FRAMES)
SHOWN = TensorSpec("shown", "int64", ("batch", "frames"), Kind.FRAME_MASK)
LOGITS = TensorSpec("logits", "float32", ("batch", 2), Kind.LOGITS)
GRAPHS = (
    GraphSpec("eye", (PHOTO,), (TOKENS, LOOK), (BATCH,)),
    GraphSpec("projector", (FILM, SHOWN), (TOKENS,), (BATCH, FRAMES)),
    GraphSpec("still", (TOKENS,), (LOGITS,), (BATCH,)),
    GraphSpec("moving", (TOKENS,), (LOGITS,), (BATCH,)),
)
# The frames of a clip go through the eye before its pipeline begins.
PIPELINES = (
    Pipeline("see", ("eye",), ("look",), Verb.EMBED_IMAGE),
    Pipeline("sort", ("eye", "still"), ("logits",), Verb.CLASSIFY, "photos"),
    Pipeline("sort_films", ("projector", "moving"), ("logits",), Verb.CLASSIFY, "films"),
)


def manifest_of(graphs: Sequence[GraphSpec], pipelines: Sequence[Pipeline]) -> Manifest:
    return Manifest(
        family="levels",
        model={},
        graphs=tuple(graphs),
        pipelines=tuple(pipelines),
        preprocessing={"clip": {"stacked": "tokens"}},
        labels={},
        embedding={},
        files={},
        artifacts=(),
        metrics={},
        provenance={},
    )


MANIFEST = manifest_of(GRAPHS, PIPELINES)


class Session:
    def __init__(self, compute: Compute) -> None:
        self.run = compute


def encode(feeds: Mapping[str, np.ndarray]) -> Tensors:
    mean = feeds["photo"].mean(axis=(1, 2, 3), dtype=np.float32) / 255
    values = np.stack([1 - mean, mean], axis=1)
    return {"tokens": values[:, None], "look": values / np.linalg.norm(values, axis=1, keepdims=True)}


def turned(feeds: Mapping[str, np.ndarray]) -> Tensors:
    return {name: values[..., ::-1] for name, values in encode(feeds).items()}


def broken(feeds: Mapping[str, np.ndarray]) -> Tensors:
    return encode(feeds) | {"look": np.full((len(feeds["photo"]), 2), np.nan, np.float32)}


SESSIONS: dict[str, Compute] = {
    "eye": encode,
    "projector": lambda feeds: {"tokens": feeds["film"].mean(axis=1)},
    "still": lambda feeds: {"logits": feeds["tokens"][:, 0]},
    "moving": lambda feeds: {"logits": feeds["tokens"][:, 0]},
}


def examiner_of(evidence: Evidence, manifest: Manifest = MANIFEST, **options: Any) -> Examiner:
    return Examiner(manifest, evidence, tokens=lambda texts: {}, **options)


def examiner() -> Examiner:
    levels = np.array([10, 240, 30, 200, 90, 180], np.uint8)
    images = np.broadcast_to(levels[:, None, None, None], (6, 4, 4, 3)).copy()
    clips = np.broadcast_to(images[:, None], (6, 3, 4, 4, 3)).copy()
    labels = (levels > 128).astype(np.int64)[:, None]
    tasks = {
        "photos": Task(images="images", texts=(), labels=labels),
        "films": Task(images="clips", texts=(), labels=labels),
    }
    evidence = Evidence(images={"images": images, "clips": clips}, tasks=tasks, source={"name": "levels"})
    reference = examiner_of(evidence).outputs(lambda name: Session(SESSIONS[name]))
    return examiner_of(evidence.with_reference(reference))


def figures(examined: Examiner, **changes: Compute) -> dict[str, Any]:
    graphs = SESSIONS | changes
    names = {name: f"{name} {getattr(compute, '__name__', '')}" for name, compute in graphs.items()}
    return examined.figures(examined.outputs(lambda name: Session(graphs[name]), names.__getitem__))


def test_the_same_graphs_lose_nothing() -> None:
    given = figures(examiner())
    assert {name: row["value"] for name, row in given["tasks"].items()} == {"photos": 1.0, "films": 1.0}
    assert all(row["loss"] == 0 and row["top1"] == 1 for row in given["tasks"].values())
    assert given["embeddings"].keys() == {"images"} and given["embeddings"]["images"]["cosine_min"] == 1.0


def test_a_changed_image_graph_changes_the_answers_to_clips() -> None:
    """What is kept of a graph depends on every graph before it, also on those that the host runs on frames."""
    examined = examiner()
    assert figures(examined)["tasks"]["films"]["value"] == 1.0
    tasks = figures(examined, eye=turned)["tasks"]
    assert tasks["photos"]["value"] == tasks["films"]["value"] == 0.0
    assert figures(examined)["tasks"]["films"]["value"] == 1.0


def test_only_changed_graphs_and_those_behind_them_run_again() -> None:
    examined, ran = examiner(), list[str]()

    def run(**versions: str) -> set[str]:
        ran.clear()

        def session(name: str) -> Session:
            ran.append(name)
            return Session(SESSIONS[name])

        examined.outputs(session, lambda name: versions.get(name, "first"))
        return set(ran)

    assert run() == {"eye", "projector", "still", "moving"}
    assert run() == set()
    assert run(moving="second") == {"moving"}
    assert run(projector="second") == {"projector", "moving"} | {"eye"}
    assert run(eye="second", still="second") == {"eye", "projector", "still", "moving"}
    assert run() == set()


def test_embeddings_that_are_not_finite_exceed_every_budget() -> None:
    given = figures(examiner(), eye=broken)
    assert given["embeddings"]["images"]["cosine_mean"] == -1.0
    assert [line.kept for line in Budget.parse("cosine=0.01").lines(given)] == [False]


def test_one_output_that_is_not_finite_exceeds_every_budget() -> None:
    """Only one of six images: the mean is still fine, but the model is not."""

    def one(feeds: Mapping[str, np.ndarray]) -> Tensors:
        outputs = encode(feeds)
        dark = (feeds["photo"][:, 0, 0, 0] == 10)[:, None]
        return outputs | {"look": np.where(dark, np.nan, outputs["look"]).astype(np.float32)}

    def head(feeds: Mapping[str, np.ndarray]) -> Tensors:
        logits = feeds["tokens"][:, 0].copy()
        logits[0, 0] = np.inf
        return {"logits": logits}

    given = figures(examiner(), eye=one, still=head)
    assert given["embeddings"]["images"]["not_finite"] == 1 and given["tasks"]["photos"]["not_finite"] == 2
    assert given["tasks"]["photos"]["value"] < 1.0 and given["tasks"]["films"]["not_finite"] == 0
    lines = {line.name: line for line in Budget.parse("cosine=0.01,answers=100pt,agreement=1%").lines(given)}
    kept = {name for name, line in lines.items() if line.kept}
    assert kept == {"answers films", "agreement films"} and lines["cosine images"].reason
    assert given["references"]["images/images"]["scaled_error"] == np.inf


def test_an_answer_that_is_not_finite_is_wrong() -> None:
    given = figures(examiner(), still=lambda feeds: {"logits": np.full((len(feeds["tokens"]), 2), np.nan)})
    row = given["tasks"]["photos"]
    assert (row["value"], row["top1"], row["loss"], row["not_finite"]) == (0.0, 0.0, 100.0, 6)


@pytest.mark.parametrize("rows", [1, 3])
def test_another_number_of_rows_is_an_error(rows: int) -> None:
    with pytest.raises(GateFailed) as caught:
        figures(examiner(), still=lambda feeds: {"logits": feeds["tokens"][:rows, 0]})
    assert caught.value.exit_code == 4 and "still" in caught.value.what


@pytest.mark.parametrize("wrong", [np.zeros((4, 3), np.float32), np.zeros((4, 2), np.complex64)])
def test_an_output_of_another_shape_or_type_is_an_error(wrong: np.ndarray) -> None:
    with pytest.raises(GateFailed) as caught:
        figures(examiner(), still=lambda feeds: {"logits": wrong[: len(feeds["tokens"])]})
    assert "logits/photos" in caught.value.what


def test_two_wrong_images_are_two_answers() -> None:
    """A caption that led to one wrong image and now leads to another is not answered as before."""
    corners = np.eye(3, dtype=np.float32)
    task = Task(images="still", texts=(("a",), ("b",), ("c",)), labels=np.zeros((3, 1), np.int64))
    evidence = Evidence(images={"still": np.zeros((3, 4, 4, 3), np.uint8)}, tasks={"retrieval": task}, source={})
    evidence = evidence.with_reference({"images/still": corners, "texts": corners[[1, 1, 2]]})
    outputs = {"images/still": corners, "texts": corners[[2, 1, 2]]}
    row = examiner_of(evidence).figures(outputs)["tasks"]["retrieval"]
    assert row["loss"] == 0 and row["value"] == 2 / 3 and row["top1"] == 2 / 3


def test_every_graph_of_a_pipeline_runs_in_its_order() -> None:
    polish = GraphSpec("polish", (TOKENS,), (TensorSpec("polished", "float32", ("batch", 1, 2)),), (BATCH,))
    head = GraphSpec("still", polish.outputs, (LOGITS,), (BATCH,))
    pipelines = (Pipeline("sort", ("eye", "polish", "still"), ("logits",), Verb.CLASSIFY, "photos"),)
    whole = examiner().evidence
    evidence = Evidence(
        images={"images": whole.images["images"]},
        tasks={"photos": whole.tasks["photos"]},
        source={},
        reference=whole.reference,
    )
    ran = []

    def session(name: str) -> Session:
        def compute(feeds: Mapping[str, np.ndarray]) -> Tensors:
            ran.append(name)
            if name == "polish":
                return {"polished": feeds["tokens"][..., ::-1]}
            return encode(feeds) if name == "eye" else {"logits": feeds["polished"][:, 0]}

        return Session(compute)

    manifest = manifest_of((GRAPHS[0], polish, head), pipelines)
    outputs = examiner_of(evidence, manifest, batch=6).outputs(session)
    assert ran == ["eye", "polish", "still"] and outputs.keys() == {"logits/photos"}
    assert (outputs["logits/photos"] == whole.reference["logits/photos"][..., ::-1]).all()


@pytest.mark.parametrize(("scale", "offset"), [(1.0, 0.0), (1e-6, 0.0), (1e-2, 1000.0), (1e-2, -1e5), (1e-12, 1e-6)])
def test_other_answers_are_not_the_references_at_any_scale(scale: float, offset: float) -> None:
    def moved(values: np.ndarray) -> np.ndarray:
        return (values * np.float32(scale) + np.float32(offset)).astype(np.float32)

    evidence = examiner().evidence
    names, name = [graph.name for graph in GRAPHS], "logits/photos"
    honest = dict(evidence.reference) | {name: moved(evidence.reference[name])}
    examined = examiner_of(evidence.with_reference(honest))
    line = reproduction(MANIFEST, examined.figures(honest), exact=names)
    assert line is not None and line.kept and line.measured == 0
    line = reproduction(MANIFEST, examined.figures(honest | {name: honest[name][..., ::-1].copy()}), exact=names)
    assert line is not None and not line.kept and line.reason


def test_references_are_checked_only_if_every_graph_behind_them_ran_at_fp32() -> None:
    given = figures(examiner())
    assert reproduction(MANIFEST, given, exact=["projector", "moving"]) is None
    assert reproduction(MANIFEST, given, exact=["eye"]) is not None
    wrong = given | {"references": {"logits/films": {"scaled_error": 1.0, "cosine": 0.0}}}
    assert reproduction(MANIFEST, wrong, exact=["eye", "projector"]) is None
    line = reproduction(MANIFEST, wrong, exact=["eye", "projector", "moving"])
    assert line is not None and not line.kept and line.measured == pytest.approx(1 / 3)
