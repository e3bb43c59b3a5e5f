"""Clips from folders and animations, classes and attention maps, on a real bundle."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image
from support import change_graph

import simmim_export
from simmim_export.errors import BundleError, ImageError, UsageError
from simmim_export.runtime import picture_files
from simmim_export.runtime.clips import SampledFrames, choose_frames, is_animation, natural, read_clip
from simmim_export.runtime.explain import MARGIN, SIDE, Panel, overlay, sheet
from simmim_export.runtime.model import Answer


def frames(count: int) -> list[Image.Image]:
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 256, (64, 64, 3), dtype=np.uint8)) for _ in range(count)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve frames whose names sort wrongly as text."""
    (tmp_path / "clip").mkdir()
    for number, frame in enumerate(frames(12)):
        frame.save(tmp_path / "clip" / f"frame{number}.png")
    return tmp_path / "clip"


@pytest.fixture(scope="module")
def model(every_bundle: Path):
    with simmim_export.load(every_bundle) as opened:
        yield opened


def test_names_sort_by_their_numbers() -> None:
    assert sorted(["f10", "f2", "F1", "f2b"], key=natural) == ["F1", "f2", "f2b", "f10"]
    assert sorted(["f²", "f1"], key=natural) == ["f1", "f²"]  # str.isdigit says yes, int() says no


def test_a_folder_and_an_animation_give_the_same_clip(model, tmp_path: Path) -> None:
    eight = frames(8)
    eight[0].save(tmp_path / "clip.webp", save_all=True, append_images=eight[1:], lossless=True, duration=100)
    (tmp_path / "eight").mkdir()
    for number, frame in enumerate(eight):
        frame.save(tmp_path / "eight" / f"{number}.png")
    sources = (eight, read_clip(tmp_path / "eight"), read_clip(tmp_path / "clip.webp"), eight[::-1])
    listed, folder, animated, backwards = (model.encode_clip(source).tensors["image_tokens"] for source in sources)
    assert listed.shape == (1, 16, 96)
    np.testing.assert_array_equal(folder, listed)
    np.testing.assert_array_equal(animated, listed)
    assert np.abs(backwards - listed).max() > 1e-2


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_an_animation_is_recognized_by_its_frames_and_not_by_its_name(tmp_path: Path, kind: str) -> None:
    still, moving = tmp_path / "still.gif", tmp_path / "moving.jpg"
    two = frames(2)
    two[0].save(still, format=kind)
    two[0].save(moving, format=kind, save_all=True, append_images=two[1:], duration=100)
    assert not is_animation(still) and is_animation(moving)


def test_an_mpo_with_two_pictures_is_not_an_animation(tmp_path: Path) -> None:
    two = frames(2)
    two[0].save(tmp_path / "photo.jpg", format="MPO", save_all=True, append_images=two[1:])
    with Image.open(tmp_path / "photo.jpg") as opened:
        assert opened.n_frames == 2
    assert not is_animation(tmp_path / "photo.jpg") and not is_animation(tmp_path / "none.gif")


def test_too_many_frames_are_sampled_with_a_warning(model, folder: Path) -> None:
    with pytest.warns(SampledFrames, match="8 .* 12"):
        model.encode_clip(read_clip(folder))
    with pytest.warns(SampledFrames):
        assert choose_frames(list(range(12)), least=2, most=4) == [0, 4, 7, 11]  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_only_the_used_frames_of_a_long_animation_are_in_memory(
    model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    twelve, path = frames(12), tmp_path / "clip"
    options = {"lossless": True} if kind == "WEBP" else {}
    twelve[0].save(path, format=kind, save_all=True, append_images=twelve[1:], duration=100, **options)
    monkeypatch.setattr(picture_files, "MAX_PIXELS", 64 * 64 * 8)
    clip = read_clip(path)
    assert len(clip) == 12 and clip[-1].size == clip[11].size == (64, 64)  # type: ignore[union-attr]
    with pytest.warns(SampledFrames):
        sampled = model.encode_clip(clip).tensors["image_tokens"]
    if kind != "GIF":  # A GIF has only 256 colors.
        with pytest.warns(SampledFrames):
            np.testing.assert_array_equal(sampled, model.encode_clip(twelve).tensors["image_tokens"])
    with pytest.raises(ImageError, match="32,768") as caught:
        list(clip)
    assert caught.value.where == str(path)
    monkeypatch.setattr(picture_files, "MAX_ANIMATED", 64 * 64 * 11)
    with pytest.raises(ImageError, match="45,056") as caught:
        read_clip(path)
    assert caught.value.where == str(path)


@pytest.mark.parametrize("alone", ["img", Path("img"), b"img", *frames(1), np.zeros((48, 64, 3), np.uint8)])
def test_a_single_picture_is_not_a_list_of_frames(model, alone) -> None:
    with pytest.raises(UsageError, match="encode_clip"):
        model.encode_clip(alone)


def test_too_few_frames_are_an_error(model, tmp_path: Path) -> None:
    for count in (0, 1):
        with pytest.raises(ImageError) as caught:
            model.encode_clip(frames(count))
        assert caught.value.where == "clip"
    frames(1)[0].save(tmp_path / "one.png")
    for path in (tmp_path / "one.png", tmp_path, tmp_path / "none.gif"):
        with pytest.raises(ImageError) as caught:
            read_clip(path)
        assert caught.value.where == str(path) and caught.value.fix


def test_verbs_answer_as_pytorch_does_on_images_and_clips(model, every_bundle: Path) -> None:
    eight, image = frames(8), frames(1)[0]
    with simmim_export.load(every_bundle, "torch", checkpoint=every_bundle.parent / "every.pt") as reference:
        for ask in (
            lambda m: m.answers(m.encode_clip(eight), ["what colour ?", "how many ?"]),
            lambda m: [m.classify(m.encode_clip(eight)), m.classify(image)],
            lambda m: m.classify_text(image, ["a red circle"]),
        ):
            for row, expected in zip(ask(model), ask(reference), strict=True):
                assert [a.label for a in row] == [a.label for a in expected]
                np.testing.assert_allclose([a.score for a in row], [a.score for a in expected], atol=1e-5)
    labels = model.bundle.manifest.labels
    assert {a.label for a in model.classify(image)} == set(labels["image_class"])
    assert {a.label for a in model.classify(model.encode_clip(eight))} == set(labels["video_class"])
    assert {a.label for a in model.classify_text(image, ["a"])[0]} == set(labels["text_class"])


def test_explain_gives_answers_and_an_attention_map(model) -> None:
    explanation = model.explain(frames(1)[0], "what colour is the circle ?")
    assert explanation.attention.shape == (4, 4) and explanation.attention.sum() == pytest.approx(1, abs=1e-5)
    assert explanation.answers == model.answer(frames(1)[0], "what colour is the circle ?")


def test_a_verb_that_the_bundle_lacks_is_an_error(tiny_bundle: Path) -> None:
    image = frames(1)[0]
    with simmim_export.load(tiny_bundle) as plain:
        for call, named in (
            (lambda: plain.explain(image, "how many?"), "--attention"),
            (lambda: plain.encode_clip([image, image]), "clips"),
            (lambda: plain.classify(image), "embed_image, embed_text, match, answer"),
            (lambda: plain.classify_text(image, ["a circle"]), "embed_image, embed_text, match, answer"),
        ):
            with pytest.raises(UsageError) as caught:
                call()
            assert caught.value.exit_code == 2 and named in str(caught.value.fix)


@pytest.mark.parametrize("factor", [0.0, float("nan"), float("inf"), -1.0])
def test_attention_that_points_nowhere_is_an_error(every_bundle: Path, tmp_path: Path, factor: float) -> None:
    def scale(model: onnx.ModelProto, path: Path) -> None:
        for node in model.graph.node:
            node.output[:] = ["before" if name == "attention" else name for name in node.output]
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(factor), "factor"))
        model.graph.node.append(onnx.helper.make_node("Mul", ["before", "factor"], ["attention"]))

    changed = change_graph(every_bundle, tmp_path / "bundle", "fusion", scale)
    with simmim_export.load(changed) as opened, pytest.raises(BundleError) as caught:
        opened.explain(frames(1)[0], "what colour is the circle ?")
    assert caught.value.exit_code == 5 and caught.value.fix


def test_an_overlay_frames_the_hottest_cell_and_keeps_it_bright() -> None:
    heat = np.full((4, 4), 0.01)
    heat[1, 2] = 0.5
    drawn = np.asarray(overlay(Image.new("RGB", (64, 64), "white"), heat)).astype(int)
    assert drawn.shape == (SIDE, SIDE, 3)
    cell = SIDE // 4
    assert drawn[cell + cell // 2, 2 * cell + cell // 2].min() > 200
    assert drawn[3 * cell + cell // 2, cell // 2].max() < 100
    assert tuple(drawn[cell, 2 * cell + 5]) == (255, 220, 0)
    assert overlay(Image.new("RGB", (100, 50)), heat).size == (SIDE, SIDE // 2)


@pytest.mark.parametrize("count", [1, 3, 9])
@pytest.mark.parametrize("question", ["what ?", "is it " + "far " * 12 + "left ?", "w" * 50_000])
def test_a_drawing_is_at_most_1600_pixels_wide_and_has_margins(count: int, question: str) -> None:
    panel = Panel(question, Answer("red", 0.97), np.full((4, 4), 0.25))
    drawn = np.asarray(sheet(Image.new("RGB", (64, 64)), [panel] * count))
    step = SIDE + MARGIN
    assert drawn.shape[1] == min(count + 1, 4) * step + MARGIN <= 1600
    assert drawn.shape[0] < -(-(count + 1) // 4) * 2 * step
    gaps = [left + x for left in range(0, drawn.shape[1], step) for x in range(MARGIN)]
    assert drawn[:, gaps].min() == 255 and drawn[-MARGIN:].min() == 255
    assert drawn[MARGIN + SIDE :, step + MARGIN : 2 * step].min() < 100, "the text below the picture"
    assert drawn[MARGIN + SIDE : step + MARGIN, :step].min() == 255, "no text below the plain picture"


def test_ask_and_classify_take_folders_and_draw_explanations(
    run_cli, every_bundle: Path, folder: Path, picture: Path, tmp_path: Path
) -> None:
    done = run_cli("export", "ask", every_bundle, folder, "what colour ?", "--json")
    assert done.returncode == 0, done.stderr
    assert "8 of the clip's 12 frames" in done.stderr
    assert json.loads(done.stdout)[0]["question"] == "what colour ?"
    done = run_cli("export", "ask", every_bundle, picture, "what ?", "how many ?", "--explain", tmp_path / "out.png")
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "out.png") as drawn:
        assert drawn.width == 3 * (SIDE + MARGIN) + MARGIN
    done = run_cli("export", "ask", every_bundle, picture, "what ?", "--explain", tmp_path / "out.png")
    assert done.returncode == 2 and str(tmp_path / "out.png") in done.stderr
    assert not list(tmp_path.glob(".*"))
    done = run_cli("export", "classify", every_bundle, picture, "a red circle", "a square", "--json")
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)) == 2


def test_the_command_takes_a_still_picture_for_an_image_whatever_its_name(
    run_cli, every_bundle: Path, tmp_path: Path
) -> None:
    from simmim_export.bundle import Bundle

    labels, eight = Bundle.open(every_bundle).manifest.labels, frames(8)
    paths = {"still.gif": "image_class", "moving.png": "video_class"}
    for name, head in paths.items():
        more = {"save_all": True, "append_images": eight[1:]} if head == "video_class" else {}
        eight[0].save(tmp_path / name, **more)
        done = run_cli("export", "classify", every_bundle, tmp_path / name, "--json")
        assert done.returncode == 0, done.stderr
        assert {row["label"] for row in json.loads(done.stdout)[0]["classes"]} == set(labels[head])
    words = ("what ?", "--explain", tmp_path / "out.png")
    done = run_cli("export", "ask", every_bundle, tmp_path / "moving.png", *words)
    assert done.returncode == 0 and "frames is used" not in done.stderr, done.stderr
    with Image.open(tmp_path / "out.png") as drawn:
        assert drawn.width == 2 * (SIDE + MARGIN) + MARGIN
