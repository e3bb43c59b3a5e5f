"""The examiner with graphs that are one line of NumPy each, so that every figure is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from simmim_export.bundle import Manifest
from simmim_export.errors import GateFailed
from simmim_export.proof.budget import Budget
from simmim_export.proof.evidence import Evidence, Task
from simmim_export.proof.examine import Examiner, Tensors, reproduction
from simmim_export.spec import Axis, GraphSpec, Pipeline, TensorSpec

BATCH, FRAMES = Axis("batch", 1, 4), Axis("frames", 2, 8)
PIXELS = TensorSpec("pixels", "uint8", ("batch", 4, 4, 3))
TOKENS = TensorSpec("image_tokens", "float32", ("batch", 1, 2))
EMBED = TensorSpec("image_embed", "float32", ("batch", 2))
FRAME_TOKENS = TensorSpec("frame_tokens", "float32", ("batch", "frames", 1, 2))
MASK = TensorSpec("frame_mask", "int64", ("batch", "frames"))
LOGITS = TensorSpec("logits", "float32", ("batch", 2))
GRAPHS = (
    GraphSpec("image_encoder", (PIXELS,), (TOKENS, EMBED), (BATCH,)),
    GraphSpec("video_encoder", (FRAME_TOKENS, MASK), (TOKENS,), (BATCH, FRAMES)),
    GraphSpec("head.image_class", (TOKENS,), (LOGITS,), (BATCH,)),
    GraphSpec("head.video_class", (TOKENS,), (LOGITS,), (BATCH,)),
)
# As models.graphs writes them: a clip's frames are encoded before its pipeline begins.
PIPELINES = (
    Pipeline("embed_image", ("image_encoder",), ("image_embed",)),
    Pipeline("classify", ("image_encoder", "head.image_class"), ("logits",)),
    Pipeline("classify_video", ("video_encoder", "head.video_class"), ("logits",)),
)
MANIFEST = Manifest({}, GRAPHS, PIPELINES, {}, {}, {}, {}, (), {}, {})


class Session:
    def __init__(self, compute: Callable[[Mapping[str, np.ndarray]], Tensors]) -> None:
        self.run = compute


def bright(pixels: np.ndarray) -> np.ndarray:
    mean = pixels.mean(axis=(1, 2, 3), dtype=np.float32) / 255
    return np.stack([1 - mean, mean], axis=1)


def encode(feeds: Mapping[str, np.ndarray]) -> Tensors:
    values = bright(feeds["pixels"])
    return {"image_tokens": values[:, None], "image_embed": values / np.linalg.norm(values, axis=1, keepdims=True)}


def turned(feeds: Mapping[str, np.ndarray]) -> Tensors:
    return {name: values[..., ::-1] for name, values in encode(feeds).items()}


def broken(feeds: Mapping[str, np.ndarray]) -> Tensors:
    return encode(feeds) | {"image_embed": np.full((len(feeds["pixels"]), 2), np.nan, np.float32)}


SESSIONS: dict[str, Callable[[Mapping[str, np.ndarray]], Tensors]] = {
    "image_encoder": encode,
    "video_encoder": lambda feeds: {"image_tokens": feeds["frame_tokens"].mean(axis=1)},
    "head.image_class": lambda feeds: {"logits": feeds["image_tokens"][:, 0]},
    "head.video_class": lambda feeds: {"logits": feeds["image_tokens"][:, 0]},
}


def examiner() -> Examiner:
    levels = np.array([10, 240, 30, 200, 90, 180], np.uint8)
    images = np.broadcast_to(levels[:, None, None, None], (6, 4, 4, 3)).copy()
    clips = np.broadcast_to(images[:, None], (6, 3, 4, 4, 3)).copy()
    labels = (levels > 128).astype(np.int64)[:, None]
    tasks = {"image_class": Task("still", (), labels), "video_class": Task("moving", (), labels)}
    evidence = Evidence({"still": images, "moving": clips}, tasks, {"name": "levels"})
    reference = Examiner(MANIFEST, evidence, lambda texts: {}).outputs(lambda name: Session(SESSIONS[name]))
    return Examiner(MANIFEST, evidence.with_reference(reference), lambda texts: {})


def figures(examined: Examiner, **changes: Callable) -> dict[str, Any]:
    made = SESSIONS | changes
    names = {name: f"{name} {getattr(compute, '__name__', '')}" for name, compute in made.items()}
    return examined.figures(examined.outputs(lambda name: Session(made[name]), names.__getitem__))


def test_the_same_graphs_lose_nothing() -> None:
    found = figures(examiner())
    assert {name: row["value"] for name, row in found["tasks"].items()} == {"image_class": 1.0, "video_class": 1.0}
    assert all(row["loss"] == 0 and row["top1"] == 1 for row in found["tasks"].values())
    assert found["embeddings"]["image_embed"]["cosine_min"] == 1.0


def test_another_image_tower_is_another_answer_to_clips_as_well() -> None:
    """What is remembered of a graph must go with every graph before it, those that the host runs between two included."""
    examined = examiner()
    assert figures(examined)["tasks"]["video_class"]["value"] == 1.0
    found = figures(examined, image_encoder=turned)["tasks"]
    assert found["image_class"]["value"] == found["video_class"]["value"] == 0.0
    assert figures(examined)["tasks"]["video_class"]["value"] == 1.0


def test_a_tower_that_gives_nothing_finite_exceeds_every_budget() -> None:
    found = figures(examiner(), image_encoder=broken)
    assert found["embeddings"]["image_embed"]["cosine_mean"] == -1.0
    assert [line.kept for line in Budget.parse("cosine=0.01").lines(found)] == [False]


def test_one_output_that_is_not_finite_exceeds_every_budget() -> None:
    """A single one of six images: its mean is still fine, and the model is not."""

    def one(feeds: Mapping[str, np.ndarray]) -> Tensors:
        made = encode(feeds)
        broken_rows = (feeds["pixels"][:, 0, 0, 0] == 10)[:, None]
        return made | {"image_embed": np.where(broken_rows, np.nan, made["image_embed"]).astype(np.float32)}

    def head(feeds: Mapping[str, np.ndarray]) -> Tensors:
        logits = feeds["image_tokens"][:, 0].copy()
        logits[0, 0] = np.inf
        return {"logits": logits}

    found = figures(examiner(), **{"image_encoder": one, "head.image_class": head})
    assert found["embeddings"]["image_embed"]["not_finite"] == 1 and found["tasks"]["image_class"]["not_finite"] == 2
    assert found["tasks"]["image_class"]["value"] < 1.0 and found["tasks"]["video_class"]["not_finite"] == 0
    lines = {line.name: line for line in Budget.parse("cosine=0.01,answers=100pt,agreement=1%").lines(found)}
    kept = {name for name, line in lines.items() if line.kept}
    assert kept == {"answers video_class", "agreement video_class"} and lines["cosine image_embed"].reason
    assert found["references"]["images/still"]["scaled_error"] == np.inf


def test_an_answer_that_is_not_finite_is_a_wrong_one() -> None:
    found = figures(
        examiner(), **{"head.image_class": lambda f: {"logits": np.full((len(f["image_tokens"]), 2), np.nan)}}
    )
    row = found["tasks"]["image_class"]
    assert (row["value"], row["top1"], row["loss"], row["not_finite"]) == (0.0, 0.0, 100.0, 6)


@pytest.mark.parametrize("rows", [1, 3])
def test_outputs_for_other_rows_are_not_taken(rows: int) -> None:
    with pytest.raises(GateFailed) as caught:
        figures(examiner(), **{"head.image_class": lambda f: {"logits": f["image_tokens"][:rows, 0]}})
    assert caught.value.exit_code == 4 and "head.image_class" in caught.value.what


def test_an_output_of_another_shape_is_not_judged() -> None:
    for wrong in (np.zeros((4, 3), np.float32), np.zeros((4, 2), np.complex64)):
        with pytest.raises(GateFailed) as caught:
            figures(
                examiner(), **{"head.image_class": lambda f, wrong=wrong: {"logits": wrong[: len(f["image_tokens"])]}}
            )
        assert "logits/image_class" in caught.value.what


def test_two_wrong_images_are_two_answers() -> None:
    """A caption that led to one wrong image and now leads to another is not answered as before."""
    corners = np.eye(3, dtype=np.float32)
    task = Task("still", (("a",), ("b",), ("c",)), np.zeros((3, 1), np.int64))
    evidence = Evidence({"still": np.zeros((3, 4, 4, 3), np.uint8)}, {"retrieval": task}, {})
    evidence = evidence.with_reference({"images/still": corners, "text_embed": corners[[1, 1, 2]]})
    examined = Examiner(MANIFEST, evidence, lambda texts: {})
    row = examined.figures({"images/still": corners, "text_embed": corners[[2, 1, 2]]})["tasks"]["retrieval"]
    assert row["loss"] == 0 and row["value"] == 2 / 3 and row["top1"] == 2 / 3


def test_every_graph_of_a_pipeline_runs_in_its_order() -> None:
    """A graph that no runtime knows by name stands between the tower and its head."""
    polish = GraphSpec("polish", (TOKENS,), (TensorSpec("polished", "float32", ("batch", 1, 2)),), (BATCH,))
    head = GraphSpec("head.image_class", polish.outputs, (LOGITS,), (BATCH,))
    pipelines = (Pipeline("classify", ("image_encoder", "polish", "head.image_class"), ("logits",)),)
    manifest = Manifest({}, (GRAPHS[0], polish, head), pipelines, {}, {}, {}, {}, (), {}, {})
    whole = examiner().evidence
    task = {"image_class": whole.tasks["image_class"]}
    evidence = Evidence({"still": whole.images["still"]}, task, {}, reference=whole.reference)
    ran = []

    def run(name: str) -> Tensors:
        def compute(feeds: Mapping[str, np.ndarray]) -> Tensors:
            ran.append(name)
            if name == "polish":
                return {"polished": feeds["image_tokens"][..., ::-1]}
            return encode(feeds) if name == "image_encoder" else {"logits": feeds["polished"][:, 0]}

        return Session(compute)

    found = Examiner(manifest, evidence, lambda texts: {}, batch=6).outputs(run)
    assert ran == ["image_encoder", "polish", "head.image_class"]
    assert (found["logits/image_class"] == whole.reference["logits/image_class"][..., ::-1]).all()


@pytest.mark.parametrize(("scale", "offset"), [(1.0, 0.0), (1e-6, 0.0), (1e-2, 1000.0), (1e-2, -1e5), (1e-12, 1e-6)])
def test_other_answers_are_not_the_references(scale: float, offset: float) -> None:
    """However small the logits are, or how far from zero: the answers are what counts."""

    def moved(values: np.ndarray) -> np.ndarray:
        return (values * np.float32(scale) + np.float32(offset)).astype(np.float32)

    exact, whole = examiner(), examiner().evidence.reference
    names = [graph.name for graph in GRAPHS]
    name = "logits/image_class"
    honest = dict(whole) | {name: moved(whole[name])}
    examined = Examiner(MANIFEST, exact.evidence.with_reference(honest), lambda texts: {})
    line = reproduction(MANIFEST, examined.figures(honest), names)
    assert line is not None and line["kept"] and line["found"] == 0
    line = reproduction(MANIFEST, examined.figures(honest | {name: honest[name][..., ::-1].copy()}), names)
    assert line is not None and not line["kept"] and line["reason"]
