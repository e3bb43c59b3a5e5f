"""Clips, classes and maps through a real bundle: the same from a folder, an animation and the engine that trained it."""

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
from simmim_export.runtime import images
from simmim_export.runtime.clips import SampledFrames, choose_frames, is_animation, natural, read_clip
from simmim_export.runtime.explain import SIDE, overlay, sheet


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


def test_a_folder_and_an_animation_are_the_same_clip(model, folder: Path, tmp_path: Path) -> None:
    eight = frames(8)
    eight[0].save(tmp_path / "clip.webp", save_all=True, append_images=eight[1:], lossless=True, duration=100)
    (tmp_path / "eight").mkdir()
    for number, frame in enumerate(eight):
        frame.save(tmp_path / "eight" / f"{number}.png")
    found = [model.encode_clip(source).tensors["image_tokens"] for source in
             (eight, read_clip(tmp_path / "eight"), read_clip(tmp_path / "clip.webp"))]  # fmt: skip
    assert found[0].shape == (1, 16, 96)
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])
    backwards = model.encode_clip(eight[::-1]).tensors["image_tokens"]
    assert np.abs(backwards - found[0]).max() > 1e-2


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_what_moves_is_told_by_its_frames_and_not_by_its_name(tmp_path: Path, kind: str) -> None:
    still, moving = tmp_path / "still.gif", tmp_path / "moving.jpg"
    two = frames(2)
    two[0].save(still, format=kind)
    two[0].save(moving, format=kind, save_all=True, append_images=two[1:], duration=100)
    assert not is_animation(still) and is_animation(moving)


def test_two_views_at_once_do_not_move(tmp_path: Path) -> None:
    two = frames(2)
    two[0].save(tmp_path / "photo.jpg", format="MPO", save_all=True, append_images=two[1:])
    with Image.open(tmp_path / "photo.jpg") as opened:
        assert opened.n_frames == 2
    assert not is_animation(tmp_path / "photo.jpg") and not is_animation(tmp_path / "none.gif")


def test_too_many_frames_are_sampled_with_a_word(model, folder: Path) -> None:
    with pytest.warns(SampledFrames, match="8 of the clip's 12 frames"):
        model.encode_clip(read_clip(folder))
    with pytest.warns(SampledFrames):
        assert choose_frames(list(range(12)), 2, 4) == [0, 4, 7, 11]  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_of_a_long_animation_only_what_is_used_is_kept(
    model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    twelve, path = frames(12), tmp_path / "clip"
    options = {"lossless": True} if kind == "WEBP" else {}
    twelve[0].save(path, format=kind, save_all=True, append_images=twelve[1:], duration=100, **options)
    monkeypatch.setattr(images, "MAX_PIXELS", 64 * 64 * 8)
    clip = read_clip(path)
    assert len(clip) == 12 and clip[-1].size == clip[11].size == (64, 64)  # type: ignore[union-attr]
    with pytest.warns(SampledFrames):
        found = model.encode_clip(clip).tensors["image_tokens"]
    if kind != "GIF":  # which has 256 colours
        with pytest.warns(SampledFrames):
            np.testing.assert_array_equal(found, model.encode_clip(twelve).tensors["image_tokens"])
    with pytest.raises(ImageError, match="12 frames, 12 of them at once; the limit is 32,768"):
        list(clip)
    monkeypatch.setattr(images, "MAX_ANIMATED", 64 * 64 * 11)
    with pytest.raises(ImageError, match="64 x 64 pixels, 12 frames; the limit is 45,056"):
        read_clip(path)


@pytest.mark.parametrize("alone", ["img", Path("img"), b"img", *frames(1), np.zeros((48, 64, 3), np.uint8)])
def test_one_picture_is_no_list_of_frames(model, alone) -> None:
    with pytest.raises(UsageError, match=r"encode_clip takes a list of frames.*\n.*\[frame\]"):
        model.encode_clip(alone)


def test_what_is_for_images_says_so_of_a_clip(model) -> None:
    clip = model.encode_clip(np.zeros((4, 64, 64, 3), np.uint8))
    for verb in (model.match, model.classify_text):
        with pytest.raises(UsageError, match="is for images, and this is a clip") as caught:
            verb(clip, ["a circle"])
        assert "one of its frames" in str(caught.value)


def test_too_few_frames_are_refused(model, tmp_path: Path) -> None:
    for count in (0, 1):
        with pytest.raises(ImageError, match=f"a clip of {count} frames"):
            model.encode_clip(frames(count))
    frames(1)[0].save(tmp_path / "one.png")
    with pytest.raises(ImageError, match="1 frame is no clip"):
        read_clip(tmp_path / "one.png")
    with pytest.raises(ImageError, match="1 pictures is no clip"):
        read_clip(tmp_path)
    with pytest.raises(ImageError, match="no such image"):
        read_clip(tmp_path / "none.gif")


def test_every_verb_on_images_and_clips(model, every_bundle: Path) -> None:
    eight, image = frames(8), frames(1)[0]
    with simmim_export.load(every_bundle, "torch", checkpoint=every_bundle.parent / "every.pt") as reference:
        for runs in (lambda m: m.answers(m.encode_clip(eight), ["what colour ?", "how many ?"]),
                     lambda m: [m.classify(m.encode_clip(eight)), m.classify(image)],
                     lambda m: m.classify_text(image, ["a red circle"])):  # fmt: skip
            found, wanted = runs(model), runs(reference)
            for row, expected in zip(found, wanted, strict=True):
                assert [a.label for a in row] == [a.label for a in expected]
                np.testing.assert_allclose([a.score for a in row], [a.score for a in expected], atol=1e-5)
    labels = model.bundle.manifest.labels
    assert {a.label for a in model.classify(image)} == set(labels["image_class"])
    assert {a.label for a in model.classify(model.encode_clip(eight))} == set(labels["video_class"])
    assert {a.label for a in model.classify_text(image, ["a"])[0]} == set(labels["text_class"])


def test_where_the_model_looked(model, tiny_bundle: Path) -> None:
    found = model.explain(frames(1)[0], "what colour is the circle ?")
    assert found.attention.shape == (4, 4) and found.attention.sum() == pytest.approx(1, abs=1e-5)
    assert found.answers == model.answer(frames(1)[0], "what colour is the circle ?")
    with simmim_export.load(tiny_bundle) as plain:
        with pytest.raises(UsageError, match="no attention maps") as caught:
            plain.explain(frames(1)[0], "how many?")
        assert "--attention" in caught.value.fix
        with pytest.raises(UsageError, match="made for images"):
            plain.encode_clip(frames(2))
        with pytest.raises(UsageError, match="no pipeline 'classify_image'"):
            plain.classify(frames(1)[0])


@pytest.mark.parametrize("factor", [0.0, float("nan"), float("inf"), -1.0])
def test_attention_that_shows_no_place_is_an_error(every_bundle: Path, tmp_path: Path, factor: float) -> None:
    def scale(model: onnx.ModelProto, path: Path) -> None:
        for node in model.graph.node:
            node.output[:] = ["before" if name == "attention" else name for name in node.output]
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(factor), "factor"))
        model.graph.node.append(onnx.helper.make_node("Mul", ["before", "factor"], ["attention"]))

    changed = change_graph(every_bundle, tmp_path / "bundle", "fusion", scale)
    with simmim_export.load(changed) as opened, pytest.raises(BundleError) as caught:
        opened.explain(frames(1)[0], "what colour is the circle ?")
    assert caught.value.exit_code == 5 and caught.value.fix


def test_the_hottest_cell_is_framed_and_bright() -> None:
    heat = np.full((4, 4), 0.01)
    heat[1, 2] = 0.5
    drawn = np.asarray(overlay(Image.new("RGB", (64, 64), "white"), heat)).astype(int)
    assert drawn.shape == (SIDE, SIDE, 3)
    cell = SIDE // 4
    assert drawn[cell + cell // 2, 2 * cell + cell // 2].min() > 200
    assert drawn[3 * cell + cell // 2, cell // 2].max() < 100
    assert tuple(drawn[cell, 2 * cell + 5]) == (255, 220, 0)
    assert sheet(Image.new("RGB", (64, 64)), [heat, heat], ["a", "b"]).size == (3 * SIDE + 16, SIDE + 28)


def test_commands(run_cli, every_bundle: Path, folder: Path, picture: Path, tmp_path: Path) -> None:
    done = run_cli("export", "ask", every_bundle, folder, "what colour ?", "--json")
    assert done.returncode == 0, done.stderr
    assert "8 of the clip's 12 frames" in done.stderr
    assert json.loads(done.stdout)[0]["question"] == "what colour ?"
    done = run_cli("export", "ask", every_bundle, picture, "what ?", "how many ?", "--explain", tmp_path / "out.png")
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "out.png") as drawn:
        assert drawn.size == (3 * SIDE + 16, SIDE + 28)
    done = run_cli("export", "ask", every_bundle, picture, "what ?", "--explain", tmp_path / "out.png")
    assert done.returncode == 2 and "already exists" in done.stderr
    assert not list(tmp_path.glob(".*"))
    for arguments in ((picture,), (folder,), (picture, "a red circle", "a square")):
        done = run_cli("export", "classify", every_bundle, *arguments, "--json")
        assert done.returncode == 0, done.stderr
        assert len(json.loads(done.stdout)) == max(1, len(arguments) - 1)


def test_a_still_picture_is_no_clip_whatever_its_name(run_cli, every_bundle: Path, tmp_path: Path) -> None:
    from simmim_export.bundle import Bundle

    labels, eight = Bundle.open(every_bundle).manifest.labels, frames(8)
    paths = {"still.webp": "image_class", "still.gif": "image_class", "moving.png": "video_class"}
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
        assert drawn.size == (2 * SIDE + 8, SIDE + 28)
