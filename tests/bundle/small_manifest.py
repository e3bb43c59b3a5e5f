"""The manifest of a family that shares no name with SimMIM: images, texts, clips, attention, and every kind of pipeline."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from simmim_export.bundle import Artifact, Manifest
from simmim_export.spec import Axis, GraphSpec, Kind, Pipeline, Precision, TensorSpec, Variant, Verb

SIDE, WIDTH, PATCHES, LONGEST = 6, 8, 9, 12

PHOTO = TensorSpec("photo", "uint8", ("batch", SIDE, SIDE, 3), Kind.IMAGE)
WORDS = TensorSpec("words", "int64", ("batch", "length"), Kind.TOKEN_IDS)
REAL = TensorSpec("real", "int64", ("batch", "length"), Kind.TEXT_MASK)
LOOK, SENSE = (TensorSpec(name, "float32", ("batch", WIDTH), Kind.EMBEDDING) for name in ("look", "sense"))
PATCH = TensorSpec("patches", "float32", ("batch", PATCHES, WIDTH))
TOKENS = TensorSpec("tokens", "float32", ("batch", "length", WIDTH))
SHOTS = TensorSpec("shots", "float32", ("batch", "moments", PATCHES, WIDTH), Kind.FRAMES)
SHOWN = TensorSpec("shown", "int64", ("batch", "moments"), Kind.FRAME_MASK)
JOINT = TensorSpec("joint", "float32", ("batch", WIDTH))
GAZE = TensorSpec("gaze", "float32", ("batch", "length", PATCHES), Kind.ATTENTION)
BATCH, LENGTH, MOMENTS = Axis("batch", 1, 8), Axis("length", 3, LONGEST), Axis("moments", 2, 4)


def logits(name: str, classes: int) -> TensorSpec:
    return TensorSpec(name, "float32", ("batch", classes), Kind.LOGITS)


GRAPHS = (
    GraphSpec("eye", (PHOTO,), (PATCH, LOOK), (BATCH,)),
    GraphSpec("ear", (WORDS, REAL), (TOKENS, SENSE), (BATCH, LENGTH)),
    GraphSpec("film", (SHOTS, SHOWN), (PATCH,), (BATCH, MOMENTS)),
    GraphSpec("mix", (PATCH, TOKENS, REAL), (JOINT, GAZE), (BATCH, LENGTH)),
    GraphSpec("pair", (JOINT,), (logits("says", 2),), (BATCH,)),
    GraphSpec("judge", (PHOTO, WORDS, REAL), (logits("verdict", 2),), (BATCH, LENGTH)),
    GraphSpec("namer", (PATCH,), (logits("says", 3),), (BATCH,)),
    GraphSpec("critic", (JOINT,), (logits("reply", 4),), (BATCH,)),
)
PIPELINES = (
    Pipeline("see", ("eye",), ("look",), Verb.EMBED_IMAGE),
    Pipeline("hear", ("ear",), ("sense",), Verb.EMBED_TEXT),
    Pipeline("fit", ("eye", "ear", "mix", "pair"), ("says",), Verb.MATCH, "fit"),
    Pipeline("decide", ("judge",), ("verdict",), Verb.ANSWER, "decision"),
    Pipeline("name", ("eye", "namer"), ("says",), Verb.CLASSIFY, "things"),
    Pipeline("watch", ("film", "ear", "mix", "critic"), ("reply",), Verb.ANSWER, "replies"),
)
LABELS = {"fit": 2, "decision": 2, "things": 3, "replies": 4}
DIGEST = "0" * 64


def small_manifest() -> Manifest:
    """All of it."""
    return Manifest(
        family="second",
        model={"preset": "small"},
        graphs=GRAPHS,
        pipelines=PIPELINES,
        preprocessing={
            "image": {"height": SIDE, "width": SIDE, "resize": "squash", "interpolation": "bilinear"},
            "text": {"max_length": LONGEST},
            "clip": {"stacked": "patches"},
        },
        labels={name: tuple(map(str, range(classes))) for name, classes in LABELS.items()},
        embedding={"dim": WIDTH, "digest": DIGEST},
        files={"tokenizer.json": DIGEST, "golden.npz": DIGEST},
        artifacts=tuple(map(artifact, GRAPHS)),
        metrics={},
        provenance={"checkpoint_sha256": DIGEST},
    )


def artifact(graph: GraphSpec) -> Artifact:
    return Artifact(
        graph=graph.name,
        variant=Variant.FP32,
        path=f"graphs/{graph.name}.fp32.onnx",
        sha256=DIGEST,
        bytes=1,
        engine=None,
        precision=Precision.FP32,
        parity={"passed": True, "checks": 1, "scaled_error": 0.0, "cosine": 1.0},
    )


def content_of(*pipelines: str, channels: int = WIDTH) -> dict[str, Any]:
    """The content of a manifest that has only these pipelines, and what they need."""
    whole = small_manifest()
    kept = tuple(pipeline for pipeline in whole.pipelines if pipeline.name in pipelines)
    names = {graph for pipeline in kept for graph in pipeline.graphs}
    used = {name: whole.labels[name] for name in LABELS if name in {pipeline.labels for pipeline in kept}}
    clips = "watch" in pipelines
    small = replace(
        whole,
        graphs=tuple(graph for graph in GRAPHS if graph.name in names),
        pipelines=kept,
        labels=used,
        artifacts=tuple(artifact for artifact in whole.artifacts if artifact.graph in names),
        embedding={"dim": channels, "digest": DIGEST},
        preprocessing={key: row for key, row in whole.preprocessing.items() if clips or key != "clip"},
    )
    return dict(json.loads(small.dumps()))
