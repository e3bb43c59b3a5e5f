"""Calibration: real samples, all different, enough of them, and prepared as the runtime prepares them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from simmim_export.bundle import Bundle
from simmim_export.errors import DataError, FewSamples, TextError, UsageError
from simmim_export.export.lower import Lower
from simmim_export.precision.calibration import LEAST, MOST, Calibration, calibrate
from simmim_export.spec import Precision

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
    ("pixels", "texts", "named"),
    [
        (noise(7), WORDS, "7 images"),
        (noise(0), WORDS, "0 images"),
        (noise(32), WORDS[:3], "3 texts"),
        (noise(32).astype(np.float32), WORDS, "float32"),
        (noise(32)[..., :1], WORDS, r"\[32, 64, 64, 1\]"),
        (np.concatenate([noise(40), noise(1)]), WORDS, "images 0 and 40"),
        (noise(32), (*WORDS, "text 5"), "texts 5 and 40"),
    ],
)
def test_unsuitable_samples_are_refused(pixels: np.ndarray, texts: tuple[str, ...], named: str) -> None:
    with pytest.raises(DataError, match=named) as caught:
        Calibration(pixels, texts, "noise")
    assert caught.value.exit_code == 5 and caught.value.where == "noise" and caught.value.fix


def test_few_samples_are_a_warning() -> None:
    with pytest.warns(FewSamples, match="9 images of noise"):
        Calibration(noise(9), WORDS, "noise")
    with pytest.warns(FewSamples, match="31 texts of noise"):
        Calibration(noise(32), WORDS[:31], "noise")


@settings(deadline=None)
@given(texts=st.lists(st.text(min_size=1), min_size=LEAST, max_size=12, unique=True), again=st.integers(0, 100))
@pytest.mark.filterwarnings("ignore::simmim_export.errors.FewSamples")
def test_a_repeated_sample_is_always_refused(texts: list[str], again: int) -> None:
    small = noise(8)[:, :2, :2]
    Calibration(small, tuple(texts), "noise")
    with pytest.raises(DataError):
        Calibration(small, (*texts, texts[again % len(texts)]), "noise")


def test_the_digest_depends_only_on_the_samples() -> None:
    first = Calibration(noise(32), WORDS, "a").digest
    assert first == Calibration(noise(32), WORDS, "b").digest
    assert first not in (Calibration(noise(33), WORDS, "a").digest, Calibration(noise(32), WORDS[:39], "a").digest)


def test_repeated_samples_of_a_checkpoint_are_taken_once() -> None:
    """A clip of a still scene repeats one frame, and nobody could remove it from a checkpoint."""
    pixels = noise(40)
    samples = calibrate(np.concatenate([pixels[:30], pixels[:5], pixels]), (*WORDS, *WORDS), None, {})
    assert np.array_equal(samples.pixels, pixels) and samples.texts == WORDS


def test_a_folder_is_prepared_as_the_runtime_prepares_it(tiny_bundle: Path, tmp_path: Path) -> None:
    image = Bundle.open(tiny_bundle).manifest.preprocessing["image"]
    own = noise(40, 2), WORDS
    lines = "\n".join(f"línea {number}" for number in range(33)) + "\n\n"
    samples = calibrate(*own, folder(tmp_path / "both", 33, lines), image)
    assert np.array_equal(samples.pixels, noise(33, 1)) and samples.source.endswith("both")
    assert samples.texts[32] == "línea 32" and len(samples.texts) == 33
    with pytest.warns(FewSamples, match=r"texts\.txt"):
        samples = calibrate(*own, folder(tmp_path / "pictures", 33), image)
    assert samples.texts == WORDS
    with pytest.warns(FewSamples, match=f"150 texts.* {MOST} "):
        samples = calibrate(*own, folder(tmp_path / "many", 33, "\n".join(map(str, range(150)))), image)
    assert len(samples.texts) == MOST
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/texts.txt").write_text("\n".join(WORDS[:35]))
    with pytest.warns(FewSamples, match="pictures"):
        samples = calibrate(*own, tmp_path / "texts", image)
    assert np.array_equal(samples.pixels, own[0]) and samples.texts == WORDS[:35]
    samples = calibrate(*own, None, image)
    assert np.array_equal(samples.pixels, own[0]) and samples.texts == WORDS


def test_an_unsuitable_folder_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    image = Bundle.open(tiny_bundle).manifest.preprocessing["image"]
    for place in (tmp_path / "none", tiny_bundle / "graphs"):
        with pytest.raises(DataError) as missing:
            calibrate(noise(40), WORDS, place, image)
        assert missing.value.where == str(place) and missing.value.fix
    path = folder(tmp_path / "latin", 33)
    (path / "texts.txt").write_bytes(b"\n".join(b"caf\xe9 %d" % n for n in range(33)))
    with pytest.raises(TextError) as caught:
        calibrate(noise(40), WORDS, path, image)
    assert "texts.txt, line 1" in str(caught.value.where)


@pytest.mark.parametrize(
    ("options", "code", "named"),
    [
        (("--precision", "int8", "--calibration", "{pictures}"), 5, "7 images"),
        (("--precision", "int8", "--calibration", "{none}"), 5, "{none}"),
        (("--calibration", "{pictures}"), 2, "--calibration "),
        (("--reduce-range", "--precision", "fp16"), 2, "--reduce-range"),
        (("--budget", "cosine=0.9"), 2, "--budget "),
        (("--precision", "int8", "--budget", "cosine=high"), 2, "'cosine=high'"),
        (("--precision", "int4"), 2, "'int4'"),
        (("--precision", "bf16"), 2, "bf16"),
    ],
)
def test_bad_options_end_the_export(
    tiny_checkpoint: Path, tmp_path: Path, run_cli, options: tuple[str, ...], code: int, named: str
) -> None:
    places = {"pictures": folder(tmp_path / "pictures", 7), "none": tmp_path / "none"}
    words = [word.format(**places) for word in options]
    done = run_cli("export", "onnx", tiny_checkpoint, "-o", tmp_path / "bundle", *words)
    assert done.returncode == code and named.format(**places) in done.stderr.replace("\n", ""), done.stderr
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("precision", [Precision.BF16, Precision.FP32])
def test_a_precision_without_files_is_an_error(precision: Precision) -> None:
    with pytest.raises(UsageError, match=str(precision)) as caught:
        Lower((precision,))
    assert caught.value.exit_code == 2 and caught.value.fix
