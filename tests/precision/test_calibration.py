"""Calibration: real samples, all distinct, enough of them, and prepared as the runtime prepares them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from simmim_export.bundle import Bundle
from simmim_export.errors import DataError, FewSamples, TextError
from simmim_export.precision.calibration import LEAST, MOST, Calibration, calibrate

WORDS = tuple(f"text {number}" for number in range(40))


def noise(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)


def folder(path: Path, count: int, texts: str | None = None) -> Path:
    path.mkdir()
    for index, pixels in enumerate(noise(count, 1)):
        Image.fromarray(pixels).save(path / f"{index}.png")
    (path / "notes.md").write_text("no picture")
    if texts is not None:
        (path / "texts.txt").write_text(texts, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("pixels", "texts", "said"),
    [
        (noise(7), WORDS, "7 images are too few"),
        (noise(0), WORDS, "0 images are too few"),
        (noise(32), WORDS[:3], "3 texts are too few"),
        (noise(32).astype(np.float32), WORDS, "float32"),
        (noise(32)[..., :1], WORDS, r"\[32, 64, 64, 1\]"),
        (np.concatenate([noise(40), noise(1)]), WORDS, "images 0 and 40 are the same picture"),
        (noise(32), (*WORDS, "text 5"), "texts 5 and 40 are the same text"),
    ],
)
def test_samples_that_fit_nothing_are_refused(pixels: np.ndarray, texts: tuple[str, ...], said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        Calibration(pixels, texts, "noise")
    assert caught.value.exit_code == 5 and caught.value.fix


def test_few_samples_are_said() -> None:
    with pytest.warns(FewSamples, match="calibrated on 9 images of noise"):
        Calibration(noise(9), WORDS, "noise")
    with pytest.warns(FewSamples, match="calibrated on 31 texts of noise"):
        Calibration(noise(32), WORDS[:31], "noise")


@settings(deadline=None)
@given(texts=st.lists(st.text(min_size=1), min_size=LEAST, max_size=12, unique=True), again=st.integers(0, 100))
@pytest.mark.filterwarnings("ignore::simmim_export.errors.FewSamples")
def test_one_sample_twice_is_always_found(texts: list[str], again: int) -> None:
    Calibration(noise(8), tuple(texts), "noise")
    with pytest.raises(DataError, match="are the same text"):
        Calibration(noise(8), (*texts, texts[again % len(texts)]), "noise")


def test_the_digest_is_of_the_samples_alone() -> None:
    first = Calibration(noise(32), WORDS, "a").digest
    assert first == Calibration(noise(32), WORDS, "b").digest
    assert first not in (Calibration(noise(33), WORDS, "a").digest, Calibration(noise(32), WORDS[:39], "a").digest)


def test_a_checkpoint_that_repeats_itself_gives_each_sample_once() -> None:
    """A clip of a still scene has the same frame again and again, and nobody could remove it from a checkpoint."""
    pixels = noise(40)
    found = calibrate(np.concatenate([pixels[:30], pixels[:5], pixels]), (*WORDS, *WORDS), None, {})
    assert np.array_equal(found.pixels, pixels) and found.texts == WORDS


def test_a_folder_is_prepared_as_the_runtime_prepares_it(tiny_bundle: Path, tmp_path: Path) -> None:
    image = Bundle.open(tiny_bundle).manifest.preprocessing["image"]
    own = noise(40, 2), WORDS
    lines = "\n".join(f"línea {number}" for number in range(33)) + "\n\n"
    found = calibrate(*own, folder(tmp_path / "both", 33, lines), image)
    assert np.array_equal(found.pixels, noise(33, 1)) and found.source.endswith("both")
    assert found.texts[32] == "línea 32" and len(found.texts) == 33
    with pytest.warns(FewSamples, match=r"has no texts.txt: the checkpoint's own texts are used"):
        found = calibrate(*own, folder(tmp_path / "pictures", 33), image)
    assert found.texts == WORDS
    with pytest.warns(FewSamples, match=f"150 texts: the first {MOST} are used"):
        found = calibrate(*own, folder(tmp_path / "many", 33, "\n".join(map(str, range(150)))), image)
    assert len(found.texts) == MOST
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/texts.txt").write_text("\n".join(WORDS[:35]))
    with pytest.warns(FewSamples, match="has no pictures: the checkpoint's own are used"):
        found = calibrate(*own, tmp_path / "texts", image)
    assert np.array_equal(found.pixels, own[0]) and found.texts == WORDS[:35]
    found = calibrate(*own, None, image)
    assert np.array_equal(found.pixels, own[0]) and found.source == "the checkpoint's samples"


def test_a_folder_that_is_none_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    image = Bundle.open(tiny_bundle).manifest.preprocessing["image"]
    for place in (tmp_path / "none", tiny_bundle / "graphs"):
        with pytest.raises(DataError, match=r"no such folder|no calibration images"):
            calibrate(noise(40), WORDS, place, image)
    path = folder(tmp_path / "latin", 33)
    (path / "texts.txt").write_bytes(b"\n".join(b"caf\xe9 %d" % n for n in range(33)))
    with pytest.raises(TextError, match="UTF-8") as caught:
        calibrate(noise(40), WORDS, path, image)
    assert "texts.txt, line 1" in str(caught.value.where)


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--precision", "int8", "--calibration", "{pictures}"), 5, "7 images are too few to calibrate on"),
        (("--precision", "int8", "--calibration", "{none}"), 5, "no such folder of calibration samples"),
        (("--calibration", "{pictures}"), 2, "--calibration without a precision that needs it"),
        (("--reduce-range", "--precision", "fp16"), 2, "--budget, --reduce-range and --full-range are for INT8"),
        (("--budget", "cosine=0.9"), 2, "--budget without a precision that needs it"),
        (("--precision", "int8", "--budget", "cosine=high"), 2, "'cosine=high' is no part of a budget"),
        (("--precision", "int4"), 2, "unknown precision 'int4'"),
        (("--precision", "bf16"), 2, "no graph is written in bf16"),
    ],
)
def test_bad_options_end_the_export(
    tiny_checkpoint: Path, tmp_path: Path, run_cli, options: tuple[str, ...], code: int, said: str
) -> None:
    places = {"pictures": folder(tmp_path / "pictures", 7), "none": tmp_path / "none"}
    words = [word.format(**places) for word in options]
    done = run_cli("export", "onnx", tiny_checkpoint, "-o", tmp_path / "bundle", *words)
    assert done.returncode == code and said in done.stderr, done.stderr
    assert not (tmp_path / "bundle").exists()
