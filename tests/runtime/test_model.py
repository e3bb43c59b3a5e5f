"""The verbs on a real bundle and real photographs: equal vectors for every source, batch and engine."""

from __future__ import annotations

import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier

import numpy as np
import onnx
import pytest
from PIL import Image

import simmim_export
from simmim_export.bundle import Bundle
from simmim_export.errors import BundleError, CheckpointError, EngineUnavailable, TextError, UnknownWords, UsageError
from simmim_export.system.files import digest


def photographs() -> list[Path]:
    import sklearn.datasets

    folder = Path(sklearn.datasets.__file__).parent / "images"
    return [folder / "china.jpg", folder / "flower.jpg"]


@pytest.fixture(scope="module")
def model(tiny_bundle: Path):
    with simmim_export.load(tiny_bundle) as opened:
        yield opened


@pytest.mark.parametrize("path", photographs(), ids=lambda p: p.stem)
def test_a_photograph_embeds_the_same_from_every_source_and_in_every_batch(model, path: Path) -> None:
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


def test_more_images_than_the_largest_batch_are_embedded(model) -> None:
    many = model.embed_image(photographs() * 10)
    assert many.shape == (20, 64)
    np.testing.assert_allclose(many[::2], np.repeat(many[:1], 10, axis=0), atol=1e-6)


def test_a_text_embeds_the_same_beside_longer_ones(model) -> None:
    alone = model.embed_text(["red circle"])
    among = model.embed_text(["red circle", "what colour is the green square right of the circle ?", "square"])
    np.testing.assert_allclose(among[0], alone[0], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(among, axis=1), 1, atol=1e-6)


def test_an_encoded_image_answers_as_the_image_itself(model) -> None:
    path = photographs()[0]
    encoded = model.encode_image(path)
    questions = ["what colour is the circle?", "how many?"] * 6
    from_image, from_tokens = (model.answers(image, questions, top_k=4) for image in (path, encoded))
    assert len(from_image) == 12 and from_image == from_tokens
    for row in from_image:
        assert sum(answer.score for answer in row) == pytest.approx(1, abs=1e-5)
        assert {answer.label for answer in row} == set(model.bundle.manifest.labels["vqa"])
    assert model.answer(path, questions[0], top_k=1) == from_image[0][:1]


def test_an_image_is_encoded_once_for_many_questions(tiny_bundle: Path) -> None:
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
        for row, expected in zip(model.answers(path, texts), reference.answers(path, texts), strict=True):
            assert dict(row) == pytest.approx(dict(expected), abs=1e-5)


def test_a_checkpoint_may_be_a_folder(tiny_checkpoint: Path, tmp_path: Path) -> None:
    from simmim_export.export.exporter import export_bundle
    from simmim_export.models.simmim.checkpoint import load, save

    save(load(tiny_checkpoint), tmp_path / "folder")
    export_bundle(tmp_path / "folder", tmp_path / "bundle", max_batch=2)
    with simmim_export.load(tmp_path / "bundle", engine="torch", checkpoint=tmp_path / "folder") as reference:
        assert reference.embed_text(["red circle"]).shape == (1, 64)
    with pytest.raises(CheckpointError) as caught:
        simmim_export.load(tmp_path / "bundle", engine="torch", checkpoint=tiny_checkpoint)
    assert caught.value.where == str(tiny_checkpoint)


def test_a_verb_opens_only_the_graphs_that_it_needs(tiny_bundle: Path, tmp_path: Path) -> None:
    """The others may even be damaged."""
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    for path in bundle.glob("graphs/*.fp32.onnx"):
        if "text_encoder" not in path.name:
            path.write_bytes(b"x" * path.stat().st_size)
    with simmim_export.load(bundle) as model:
        model.embed_text(["red"])
        with pytest.raises(BundleError):
            model.match(photographs()[0], ["red"])


def test_a_single_image_or_text_in_place_of_a_list_is_an_error(model) -> None:
    one = np.zeros((48, 64, 3), np.uint8)
    for alone in ("a.jpg", Path("a.jpg"), b"", one, one[0], Image.fromarray(one), 3):
        with pytest.raises(UsageError) as caught:
            model.embed_image(alone)
        assert "[image]" in str(caught.value.fix)
    for call in (model.embed_text, lambda texts: model.match(one, texts), lambda texts: model.answers(one, texts)):
        for alone in ("red", b"red", np.array("red"), 3):
            with pytest.raises(UsageError) as caught:
                call(alone)
            assert "[text]" in str(caught.value.fix)


def test_an_empty_list_is_an_error(model) -> None:
    one = np.zeros((48, 64, 3), np.uint8)
    for call in (model.embed_text, lambda texts: model.match(one, texts), lambda texts: model.answers(one, texts)):
        for nothing in ([], (), np.array([]), iter(())):
            with pytest.raises(UsageError):
                call(nothing)
    with pytest.raises(UsageError):
        model.embed_image([])


def test_a_precision_that_the_engine_lacks_is_an_error(tiny_bundle: Path) -> None:
    with pytest.raises(EngineUnavailable, match="bf16"):
        simmim_export.load(tiny_bundle, precision="bf16")
    with pytest.raises(UsageError):
        simmim_export.load(tiny_bundle, precision="")


@pytest.mark.parametrize("engine", ["ort", "openvino", "auto"])
def test_fewer_than_one_thread_is_an_error(tiny_bundle: Path, engine: str) -> None:
    for threads in (0, -1):
        with pytest.raises(UsageError, match="threads"):
            simmim_export.load(tiny_bundle, engine, threads=threads)


def test_arrays_tuples_and_generators_are_lists(model) -> None:
    one, texts = np.zeros((48, 64, 3), np.uint8), ["a red circle", "a square"]
    np.testing.assert_array_equal(model.embed_image(np.stack([one, one])), model.embed_image(one for _ in range(2)))
    scores = model.match(one, texts)
    np.testing.assert_array_equal(model.match(one, np.array(texts)), scores)
    np.testing.assert_array_equal(model.match(one, (text for text in texts)), scores)
    assert model.answers(one, iter(texts)) == model.answers(one, tuple(texts))


def test_an_empty_text_is_named_before_anything_runs(tiny_bundle: Path) -> None:
    texts = ["red circle"] * 20
    texts[17] = " "
    with simmim_export.load(tiny_bundle) as model:
        model.engine.open = lambda *_, **__: pytest.fail("a graph was opened")  # type: ignore[method-assign]
        with pytest.raises(TextError) as caught:
            model.embed_text(texts)
    assert caught.value.where == "texts[17]" and caught.value.exit_code == 5


def test_unknown_words_are_answered_with_a_warning_that_names_them(model) -> None:
    image = photographs()[0]
    for call in (
        model.embed_text,
        lambda texts: model.match(image, texts),
        lambda texts: model.answers(image, texts),
        lambda texts: model.tokens(texts, warn=True)["input_ids"],
    ):
        with pytest.warns(UnknownWords) as caught:
            assert len(call(["red circle", "zebra", "red zebra"])) == 3
        assert [str(warning.message)[:8] for warning in caught] == ["texts[1]", "texts[2]"]
        assert all("zebra" in str(warning.message) for warning in caught)


def test_threads_that_start_together_open_a_graph_once(tiny_bundle: Path) -> None:
    with simmim_export.load(tiny_bundle) as model:
        opened, open_graph, start = [], model.engine.open, Barrier(8)

        def open_slowly(path, spec, **options):
            opened.append(spec.name)
            time.sleep(0.1)
            return open_graph(path, spec, **options)

        def ask(_: int) -> np.ndarray:
            start.wait()
            return model.embed_text(["red circle"])

        model.engine.open = open_slowly
        with ThreadPoolExecutor(8) as pool:
            rows = list(pool.map(ask, range(8)))
        assert opened == ["text_encoder"] and all(np.array_equal(row, rows[0]) for row in rows)


def test_a_closed_model_stays_closed(tiny_bundle: Path) -> None:
    model = simmim_export.load(tiny_bundle)
    model.embed_text(["red"])
    for _ in range(2):
        model.close()
    for call in (lambda: model.embed_text(["red"]), model.verify, lambda: model.session("fusion")):
        with pytest.raises(UsageError) as caught:
            call()
        assert caught.value.where == str(tiny_bundle) and "load" in str(caught.value.fix)


def test_an_answer_that_is_not_finite_is_an_error(tiny_bundle: Path, tmp_path: Path, run_cli, picture: Path) -> None:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    manifest, artifacts = Bundle.open(bundle).manifest, []
    for artifact in manifest.artifacts:
        path = bundle / artifact.path
        if artifact.graph == "head.vqa":
            graph = onnx.load(path)
            for weight in graph.graph.initializer:
                values = onnx.numpy_helper.to_array(weight)
                if values.dtype == np.float32:
                    weight.CopyFrom(onnx.numpy_helper.from_array(np.full_like(values, np.nan), weight.name))
            onnx.save(graph, path)
        artifacts.append(replace(artifact, sha256=digest(path), bytes=path.stat().st_size))
    (bundle / "manifest.json").write_text(replace(manifest, artifacts=tuple(artifacts)).dumps(), encoding="utf-8")
    with simmim_export.load(bundle) as model:
        model.match(picture, ["a circle"])
        with pytest.raises(BundleError, match=r"head\.vqa"):
            model.answer(picture, "what colour ?")
    done = run_cli("export", "ask", bundle, picture, "what colour ?", "--json")
    assert done.returncode == 5 and not done.stdout
    assert f"simmim-export verify {bundle} --engine ort --precision fp32" in done.stderr


def test_a_checkpoint_that_cannot_be_read_is_an_error(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "loop.pt").symlink_to("loop.pt")
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "loop.pt", tmp_path / "file" / "ckpt.pt", tmp_path / "none.pt"):
        with pytest.raises(CheckpointError) as caught:
            simmim_export.load(tiny_bundle, "torch", checkpoint=path)
        assert caught.value.where == str(path) and caught.value.fix
