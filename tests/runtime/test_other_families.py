"""A model of another family: other names, a graph that reads image and text together, texts of fixed length, clips of embeddings.

Its graphs are written by hand, so that NumPy says what they must give.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import parser
from support import word_tokenizer

from simmim_export import Model, load
from simmim_export.bundle import Artifact, Manifest
from simmim_export.bundle.golden import Golden
from simmim_export.errors import UsageError
from simmim_export.runtime.clips import SampledFrames
from simmim_export.spec import Axis, GraphSpec, Kind, Pipeline, Precision, TensorSpec, Variant, Verb
from simmim_export.system.files import digest

LENGTH = 6
GRAPHS = {
    "eye": """eye (uint8[batch,4,4,3] photo) => (float[batch,3] look, float[batch,16,3] patches)
        <int64[2] sides = {1, 2}, int64[3] rows = {0, 16, 3}> {
            bright = Cast<to = 1>(photo)
            look = ReduceMean<keepdims = 0>(bright, sides)
            patches = Reshape(bright, rows)
        }""",
    "ear": """ear (int64[batch,6] words, int64[batch,6] real) => (float[batch,3] sense)
        <int64[1] one = {1}, float[1,3] channels = {1, 2, 3}> {
            kept = Mul(words, real)
            numbers = Cast<to = 1>(kept)
            total = ReduceSum(numbers, one)
            sense = MatMul(total, channels)
        }""",
    # The verdict is the brightness of the photo and the number of words; padding looks at the first patch alone.
    "judge": """judge (uint8[batch,4,4,3] photo, int64[batch,6] words, int64[batch,6] real)
        => (float[batch,2] verdict, float[batch,6,16] gaze)
        <int64[1] one = {1}, int64[1] two = {2}, int64[1] three = {3}, int64[2] flat = {0, 16}, float[1] unit = {1},
         float[1,1,16] first = {900, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, float[1] scale = {0.01}> {
            bright = Cast<to = 1>(photo)
            gray = ReduceMean<keepdims = 0>(bright, three)
            row = Reshape(gray, flat)
            level = ReduceMean(row, one)
            shown = Mul(level, scale)
            is_word = Cast<to = 1>(real)
            count = ReduceSum(is_word, one)
            verdict = Concat<axis = 1>(shown, count)
            column = Unsqueeze(is_word, two)
            across = Unsqueeze(row, one)
            seen = Mul(column, across)
            padding = Sub(unit, column)
            elsewhere = Mul(padding, first)
            gaze = Add(seen, elsewhere)
        }""",
    "reel": """reel (float[batch,moments,3] stills, int64[batch,moments] shown) => (float[batch,3] motion)
        <int64[1] one = {1}, int64[1] two = {2}> {
            number = Cast<to = 1>(shown)
            column = Unsqueeze(number, two)
            kept = Mul(stills, column)
            motion = ReduceSum<keepdims = 0>(kept, one)
        }""",
    "tell": """tell (float[batch,3] motion) => (float[batch,3] color) <float[1] scale = {0.01}> {
            color = Mul(motion, scale)
        }""",
}


def specs() -> tuple[GraphSpec, ...]:
    """The graphs as a manifest describes them."""
    photo = TensorSpec("photo", "uint8", ("batch", 4, 4, 3), Kind.IMAGE)
    words = TensorSpec("words", "int64", ("batch", LENGTH), Kind.TOKEN_IDS)
    real = TensorSpec("real", "int64", ("batch", LENGTH), Kind.TEXT_MASK)
    look = TensorSpec("look", "float32", ("batch", 3), Kind.EMBEDDING)
    patches = TensorSpec("patches", "float32", ("batch", 16, 3))
    sense = TensorSpec("sense", "float32", ("batch", 3), Kind.EMBEDDING)
    verdict = TensorSpec("verdict", "float32", ("batch", 2), Kind.LOGITS)
    gaze = TensorSpec("gaze", "float32", ("batch", LENGTH, 16), Kind.ATTENTION)
    stills = TensorSpec("stills", "float32", ("batch", "moments", 3), Kind.FRAMES)
    shown = TensorSpec("shown", "int64", ("batch", "moments"), Kind.FRAME_MASK)
    motion = TensorSpec("motion", "float32", ("batch", 3))
    color = TensorSpec("color", "float32", ("batch", 3), Kind.LOGITS)
    batch = Axis("batch", 1, 4)
    return (
        GraphSpec("eye", (photo,), (look, patches), (batch,)),
        GraphSpec("ear", (words, real), (sense,), (batch,)),
        GraphSpec("judge", (photo, words, real), (verdict, gaze), (batch,)),
        GraphSpec("reel", (stills, shown), (motion,), (batch, Axis("moments", 2, 3))),
        GraphSpec("tell", (motion,), (color,), (batch,)),
    )


def write_bundle(root: Path) -> None:
    """Write a bundle to ``root``. Its golden tensors are empty, so it cannot be verified."""
    artifacts = []
    parity = {"passed": True, "checks": 1, "scaled_error": 0.0, "cosine": 1.0}
    for name, text in GRAPHS.items():
        path = root / f"{name}.onnx"
        onnx.save(parser.parse_model(f'<ir_version: 10, opset_import: ["" : 18]> {text}'), path)
        artifacts.append(
            Artifact(
                graph=name,
                variant=Variant.FP32,
                path=path.name,
                sha256=digest(path),
                bytes=path.stat().st_size,
                engine=None,
                precision=Precision.FP32,
                parity=parity,
            )
        )
    (root / "tokenizer.json").write_text(word_tokenizer(), encoding="utf-8")
    (root / "golden.npz").write_bytes(Golden({}).save())
    manifest = Manifest(
        family="second",
        model={"preset": "second"},
        graphs=specs(),
        pipelines=(
            Pipeline("see", ("eye",), ("look",), Verb.EMBED_IMAGE),
            Pipeline("hear", ("ear",), ("sense",), Verb.EMBED_TEXT),
            Pipeline("decide", ("judge",), ("verdict",), Verb.ANSWER, "decision"),
            Pipeline("watch", ("reel", "tell"), ("color",), Verb.CLASSIFY, "colors"),
        ),
        preprocessing={
            "image": {"height": 4, "width": 4, "resize": "squash", "interpolation": "bilinear"},
            "text": {"max_length": LENGTH},
            "clip": {"stacked": "look"},
        },
        labels={"decision": ("bright", "wordy"), "colors": ("red", "green", "blue")},
        embedding={"dim": 3, "digest": "0" * 64},
        files={name: digest(root / name) for name in ("tokenizer.json", "golden.npz")},
        artifacts=tuple(artifacts),
        metrics={},
        provenance={"checkpoint_sha256": "0" * 64},
    )
    (root / "manifest.json").write_text(manifest.dumps(), encoding="utf-8")


@pytest.fixture
def model(tmp_path: Path) -> Iterator[Model]:
    write_bundle(tmp_path)
    with load(tmp_path, threads=1) as opened, warnings.catch_warnings():
        warnings.simplefilter("error")
        yield opened


IMAGES = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), dtype=np.uint8)


def scores(logits: list[float]) -> dict[str, float]:
    shares = np.exp(np.array(logits) - max(logits))
    return dict(zip(("bright", "wordy"), (shares / shares.sum()).tolist(), strict=True))


def test_embeddings_are_the_first_outputs_of_their_pipelines(model: Model) -> None:
    np.testing.assert_allclose(model.embed_image(IMAGES), IMAGES.mean((1, 2)), rtol=1e-5)
    tokens = model.tokens(["red", "blue circle"])
    assert tokens["words"].shape == (2, LENGTH)
    total = (tokens["words"] * tokens["real"]).sum(1)
    np.testing.assert_allclose(model.embed_text(["red", "blue circle"]), total[:, None] * [1, 2, 3])


def test_a_graph_that_reads_image_and_text_gets_both(model: Model) -> None:
    rows = model.answers(IMAGES[0], ["red", "blue circle ?"] * 3)
    for row, words in zip(rows, [3, 5] * 3, strict=True):
        assert dict(row) == pytest.approx(scores([IMAGES[0].mean() / 100, words]), abs=1e-5)


def test_an_encoded_image_keeps_what_such_a_graph_reads(model: Model) -> None:
    encoded = model.encode_image(IMAGES[0])
    assert sorted(encoded.tensors) == ["look", "patches", "photo"]
    assert model.answers(encoded, ["red", "blue"]) == model.answers(IMAGES[0], ["red", "blue"])


def test_an_answer_runs_only_the_graphs_of_its_pipeline(model: Model) -> None:
    (model.bundle.root / "eye.onnx").unlink()
    assert model.answer(IMAGES[0], "red")


def test_the_attention_of_padding_does_not_count(model: Model) -> None:
    answers, attention = model.explain(IMAGES[0], "red", top_k=1)
    gray = IMAGES[0].mean(2)
    np.testing.assert_allclose(attention, gray / gray.sum(), rtol=1e-4)
    assert answers == model.answer(IMAGES[0], "red", top_k=1)


def test_a_clip_stacks_the_tensor_that_the_manifest_names(model: Model) -> None:
    encoded = model.encode_clip(IMAGES[:3])
    assert encoded.clip and list(encoded.tensors) == ["motion"]
    total = IMAGES[:3].mean((1, 2)).sum(0)
    np.testing.assert_allclose(encoded.tensors["motion"][0], total, rtol=1e-5)
    assert model.classify(encoded, top_k=1)[0].label == ("red", "green", "blue")[int(total.argmax())]
    with pytest.warns(SampledFrames):
        sampled = model.encode_clip(IMAGES).tensors["motion"]
    np.testing.assert_allclose(sampled[0], IMAGES[[0, 2, 4]].mean((1, 2)).sum(0), rtol=1e-5)


def test_a_verb_without_a_pipeline_is_an_error_that_names_the_others(model: Model) -> None:
    clip = model.encode_clip(IMAGES[:2])
    for call, others in (
        (lambda: model.match(IMAGES[0], ["red"]), "embed_image, embed_text, answer"),
        (lambda: model.classify_text(IMAGES[0], ["red"]), "embed_image, embed_text, answer"),
        (lambda: model.classify(IMAGES[0]), "encode_clip"),
        (lambda: model.answer(clip, "red"), "classify"),
    ):
        with pytest.raises(UsageError) as caught:
            call()
        assert others in str(caught.value.fix)
