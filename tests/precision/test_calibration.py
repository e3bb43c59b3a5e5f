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


def of(images: np.ndarray, texts: tuple[str, ...] = WORDS, source: str = "noise") -> Calibration:
    return Calibration(images=images, texts=texts, source=source)


def folder(path: Path, count: int, texts: str | None = None) -> Path:
    path.mkdir()
    for index, pixels in enumerate(noise(count, 1)):
        Image.fromarray(pixels).save(path / f"{index}.png")
    (path / "notes.md").write_text("no picture")
    if texts is not None:
        (path / "texts.txt").write_text(texts, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("images", "texts", "named"),
    [
        (noise(7), WORDS, "7 images"),
        (noise(0), WORDS, "0 images"),
        (noise(32), WORDS[:3], "3 texts"),
        (noise(32).astype(np.float32), WORDS, "float32"),
        (noise(32)[..., :1], WORDS, "[32, 64, 64, 1]"),
        (np.concatenate([noise(40), noise(1)]), WORDS, "images 0 and 40"),
        (noise(32), (*WORDS, "text 5"), "texts 5 and 40"),
    ],
)
def test_samples_that_cannot_calibrate_are_an_error(images: np.ndarray, texts: tuple[str, ...], named: str) -> None:
    with pytest.raises(DataError) as caught:
        of(images, texts)
    assert caught.value.exit_code == 5 and caught.value.where == "noise" and caught.value.fix
    assert named in caught.value.what


def test_few_samples_are_a_warning() -> None:
    with pytest.warns(FewSamples, match="9 images of noise"):
        of(noise(9))
    with pytest.warns(FewSamples, match="31 texts of noise"):
        of(noise(32), WORDS[:31])


@settings(deadline=None)
@given(texts=st.lists(st.text(min_size=1), min_size=LEAST, max_size=12, unique=True), again=st.integers(0, 100))
@pytest.mark.filterwarnings("ignore::simmim_export.errors.FewSamples")
def test_the_same_sample_twice_is_an_error(texts: list[str], again: int) -> None:
    of(noise(8), tuple(texts))
    with pytest.raises(DataError):
        of(noise(8), (*texts, texts[again % len(texts)]))


def test_the_digest_is_of_the_samples_alone() -> None:
    first = of(noise(32), source="a").digest
    assert first == of(noise(32), source="b").digest
    assert first not in (of(noise(33)).digest, of(noise(32), WORDS[:39]).digest)


def test_a_checkpoint_that_repeats_itself_gives_each_sample_once() -> None:
    """A clip of a still scene repeats its frame, and a user cannot remove it from a checkpoint."""
    images = noise(40)
    repeated = np.concatenate([images[:30], images[:5], images])
    samples = calibrate(repeated, (*WORDS, *WORDS), folder=None, preprocessing={})
    assert np.array_equal(samples.images, images) and samples.texts == WORDS


def test_a_folder_is_prepared_as_the_runtime_prepares_it(tiny_bundle: Path, tmp_path: Path) -> None:
    image = Bundle.open(tiny_bundle).manifest.preprocessing["image"]
    own = noise(40, 2)

    def calibrated(place: Path | None) -> Calibration:
        return calibrate(own, WORDS, folder=place, preprocessing=image)

    lines = "\n".join(f"línea {number}" for number in range(33)) + "\n\n"
    samples = calibrated(folder(tmp_path / "both", 33, lines))
    assert np.array_equal(samples.images, noise(33, 1)) and samples.source.endswith("both")
    assert samples.texts[32] == "línea 32" and len(samples.texts) == 33
    with pytest.warns(FewSamples, match="texts.txt"):
        samples = calibrated(folder(tmp_path / "pictures", 33))
    assert samples.texts == WORDS
    with pytest.warns(FewSamples, match=f"150 texts: the first {MOST}"):
        samples = calibrated(folder(tmp_path / "many", 33, "\n".join(map(str, range(150)))))
    assert len(samples.texts) == MOST
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/texts.txt").write_text("\n".join(WORDS[:35]))
    with pytest.warns(FewSamples, match="pictures"):
        samples = calibrated(tmp_path / "texts")
    assert np.array_equal(samples.images, own) and samples.texts == WORDS[:35]
    samples = calibrated(None)
    assert np.array_equal(samples.images, own) and samples.source == "the checkpoint's samples"


def test_a_folder_without_samples_is_an_error(tiny_bundle: Path, tmp_path: Path) -> None:
    image = Bundle.open(tiny_bundle).manifest.preprocessing["image"]
    for place in (tmp_path / "none", tiny_bundle / "graphs"):
        with pytest.raises(DataError) as caught:
            calibrate(noise(40), WORDS, folder=place, preprocessing=image)
        assert caught.value.where == str(place)
    path = folder(tmp_path / "latin", 33)
    (path / "texts.txt").write_bytes(b"\n".join(b"caf\xe9 %d" % n for n in range(33)))
    with pytest.raises(TextError) as text_error:
        calibrate(noise(40), WORDS, folder=path, preprocessing=image)
    assert "texts.txt, line 1" in str(text_error.value.where)


@pytest.mark.parametrize(
    ("options", "code", "named"),
    [
        (("--precision", "int8", "--calibration", "{pictures}"), 5, "7 images"),
        (("--precision", "int8", "--calibration", "{none}"), 5, "{none}"),
        (("--calibration", "{pictures}"), 2, "--calibration"),
        (("--reduce-range", "--precision", "fp16"), 2, "--reduce-range"),
        (("--budget", "cosine=0.9"), 2, "--budget"),
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
