"""The runtime on a real bundle and real photographs: the same vectors whatever the source, the batch or the engine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import simmim_export
from simmim_export.bundle import Bundle
from simmim_export.errors import CheckpointError, EngineUnavailable, UsageError
from simmim_export.runtime.runtime import softmax


def photographs() -> list[Path]:
    import sklearn.datasets

    folder = Path(sklearn.datasets.__file__).parent / "images"
    return [folder / "china.jpg", folder / "flower.jpg"]


@pytest.fixture(scope="module")
def model(tiny_bundle: Path):
    with simmim_export.load(tiny_bundle) as opened:
        yield opened


@pytest.mark.parametrize("path", photographs(), ids=lambda p: p.stem)
def test_two_photographs_from_every_source_alone_and_among_seven(model, path: Path) -> None:
    with Image.open(path) as opened:
        loaded = opened.copy()
    alone = model.embed_image([path])
    assert alone.dtype == np.float32 and alone.shape == (1, 64)
    np.testing.assert_allclose(np.linalg.norm(alone, axis=1), 1, atol=1e-6)
    for source in (str(path), path.read_bytes(), loaded, np.asarray(loaded)):
        np.testing.assert_array_equal(model.embed_image([source]), alone)
    other = photographs()[path.stem == "china"]
    batch = model.embed_image([other, path, other, path, loaded, other, np.asarray(loaded)])
    assert batch.shape == (7, 64)
    for row in (1, 3, 4, 6):
        np.testing.assert_allclose(batch[row], alone[0], atol=1e-6)
    assert not np.allclose(batch[0], alone[0], atol=1e-4)


def test_more_images_than_the_largest_batch(model) -> None:
    many = model.embed_image(photographs() * 10)
    assert many.shape == (20, 64)
    np.testing.assert_allclose(many[::2], np.repeat(many[:1], 10, axis=0), atol=1e-6)


def test_a_text_embeds_the_same_beside_longer_ones(model) -> None:
    alone = model.embed_text(["red circle"])
    among = model.embed_text(["red circle", "what colour is the small green square right of the circle ?", "square"])
    np.testing.assert_allclose(among[0], alone[0], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(among, axis=1), 1, atol=1e-6)


def test_an_encoded_image_answers_as_the_image_does(model) -> None:
    path = photographs()[0]
    encoded = model.encode_image(path)
    questions = ["what colour is the circle?", "how many?"] * 6
    from_image, from_tokens = model.answers(path, questions, 4), model.answers(encoded, questions, 4)
    assert len(from_image) == 12 and from_image == from_tokens
    for row in from_image:
        assert sum(answer.score for answer in row) == pytest.approx(1, abs=1e-5)
        assert {answer.label for answer in row} == set(model.bundle.manifest.labels["vqa"])
    assert model.answer(path, questions[0], top_k=1) == from_image[0][:1]


def test_the_image_tower_runs_once_for_many_questions(tiny_bundle: Path) -> None:
    with simmim_export.load(tiny_bundle) as model:
        session, calls = model.session("image_encoder"), []
        run = session.run
        session.run = lambda feeds: calls.append(1) or run(feeds)
        model.answers(photographs()[0], ["how many?"] * 20)
        assert len(calls) == 1


def test_match_is_a_probability(model) -> None:
    scores = model.match(photographs()[0], ["a red circle", "a square"])
    assert scores.shape == (2,) and ((scores >= 0) & (scores <= 1)).all()


def test_torch_and_ort_agree_on_every_verb(tiny_bundle: Path, tiny_checkpoint: Path, model) -> None:
    path, texts = photographs()[1], ["what colour is the circle?", "red"]
    with simmim_export.load(tiny_bundle, engine="torch", checkpoint=tiny_checkpoint) as reference:
        np.testing.assert_allclose(model.embed_image([path]), reference.embed_image([path]), atol=1e-5)
        np.testing.assert_allclose(model.embed_text(texts), reference.embed_text(texts), atol=1e-5)
        np.testing.assert_allclose(model.match(path, texts), reference.match(path, texts), atol=1e-5)
        found, wanted = (m._scores("answer", m.encode_image(path), texts) for m in (model, reference))
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_a_checkpoint_in_folder_form_is_the_bundles_own_too(tiny_checkpoint: Path, tmp_path: Path) -> None:
    from simmim_export.export.exporter import export_bundle
    from simmim_export.models.checkpoint import load, save

    save(load(tiny_checkpoint), tmp_path / "folder")
    export_bundle(tmp_path / "folder", tmp_path / "bundle", max_batch=2)
    with simmim_export.load(tmp_path / "bundle", engine="torch", checkpoint=tmp_path / "folder") as reference:
        assert reference.embed_text(["red circle"]).shape == (1, 64)
    with pytest.raises(CheckpointError, match="another checkpoint"):
        simmim_export.load(tmp_path / "bundle", engine="torch", checkpoint=tiny_checkpoint)


def test_only_what_is_needed_is_opened(tiny_bundle: Path) -> None:
    with simmim_export.load(tiny_bundle) as model:
        model.embed_text(["red"])
        assert set(model._sessions) == {"text_encoder"}


def test_requests_that_make_no_sense(model, tiny_bundle: Path) -> None:
    with pytest.raises(UsageError, match="embed_text takes a list"):
        model.embed_text("red")
    with pytest.raises(UsageError, match="embed_image takes a list"):
        model.embed_image("a.jpg")
    with pytest.raises(UsageError, match="at least one"):
        model.embed_image([])
    with pytest.raises(UsageError, match="list of one or more"):
        model.match(photographs()[0], [])
    with pytest.raises(UsageError, match="top_k is 0"):
        model.answer(photographs()[0], "how many?", top_k=0)
    with pytest.raises(UsageError, match="no pipeline 'dance'"):
        model.run("dance", {})
    with pytest.raises(EngineUnavailable, match="has no bf16"):
        simmim_export.load(tiny_bundle, precision="bf16")


def test_public_names() -> None:
    assert sorted(simmim_export.__all__) == ["Bundle", "Runtime", "__version__", "load"]
    assert simmim_export.Bundle is Bundle and simmim_export.load and simmim_export.Runtime
    with pytest.raises(AttributeError):
        simmim_export.nothing  # noqa: B018


def test_softmax_of_large_logits() -> None:
    np.testing.assert_allclose(softmax(np.array([[1e4, 1e4 - np.log(3)]])), [[0.75, 0.25]], rtol=1e-6)
