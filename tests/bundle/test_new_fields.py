"""The fields of a manifest for models of other makers: how pictures are cropped, and how a similarity becomes a score."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edits import dumped, refused_places
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from small_manifest import SIDE, small_manifest

from simmim_export.bundle import Bundle, parse_manifest
from simmim_export.runtime.images import ImagePreprocessing, load_pixels
from simmim_export.spec import Score, Similarity

INTERPOLATIONS = st.sampled_from(["bilinear", "bicubic"])


def with_image(**fields: Any) -> dict[str, Any]:
    """The content of a small manifest with other fields of preprocessing.image."""
    content = json.loads(small_manifest().dumps())
    content["preprocessing"]["image"] |= fields
    return dict(content)


def with_similarity(value: Any) -> dict[str, Any]:
    return json.loads(small_manifest().dumps()) | {"similarity": value}


@given(st.integers(-3, 5000), st.sampled_from(["squash", "crop"]), INTERPOLATIONS)
@settings(max_examples=60, deadline=None)
def test_a_crop_has_a_shortest_side_and_a_squash_has_none(shortest: int, resize: str, interpolation: str) -> None:
    content = with_image(resize=resize, interpolation=interpolation, shortest=shortest)
    if (SIDE <= shortest <= 4096) if resize == "crop" else shortest == 0:
        image = parse_manifest(dumped(content), "here").preprocessing["image"]
        assert ImagePreprocessing.from_json(image).shortest == shortest
    else:
        (place,) = refused_places(content)
        assert place.startswith("$.preprocessing.image")


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("$.similarity", []),
        ("$.similarity", {"scale": 1.0, "score": "softmax"}),
        ("$.similarity", {"scale": 1.0, "bias": 0.0, "score": "softmax", "margin": 1}),
        ("$.similarity.scale", {"scale": 0, "bias": 0.0, "score": "softmax"}),
        ("$.similarity.scale", {"scale": -5, "bias": 0.0, "score": "softmax"}),
        ("$.similarity.scale", {"scale": 1e5, "bias": 0.0, "score": "softmax"}),
        ("$.similarity.bias", {"scale": 1.0, "bias": "0", "score": "softmax"}),
        ("$.similarity.bias", {"scale": 1.0, "bias": -1e5, "score": "softmax"}),
        ("$.similarity.score", {"scale": 1.0, "bias": 0.0, "score": "max"}),
    ],
)
def test_a_bad_similarity_is_an_error(place: str, value: Any) -> None:
    assert refused_places(with_similarity(value)) == [place]


@given(st.floats(1e-6, 1e4), st.floats(-1e4, 1e4), st.sampled_from(Score))
@settings(max_examples=30, deadline=None)
def test_a_similarity_comes_back_as_it_was_written(scale: float, bias: float, score: Score) -> None:
    content = with_similarity({"scale": scale, "bias": bias, "score": score})
    manifest = parse_manifest(dumped(content), "here")
    assert manifest.similarity == Similarity(scale=scale, bias=bias, score=score)
    assert parse_manifest(manifest.dumps(), "here") == manifest


def test_a_manifest_from_before_these_fields_opens(tiny_bundle: Path) -> None:
    content = json.loads((tiny_bundle / "manifest.json").read_text(encoding="utf-8"))
    assert content["similarity"]["score"] == "softmax" and "shortest" not in content["preprocessing"]["image"]
    del content["similarity"]
    manifest = parse_manifest(dumped(content), "here")
    assert manifest.similarity is None
    assert manifest.graphs == Bundle.open(tiny_bundle).manifest.graphs


# -- what these fields make of a picture -------------------------------------------------------------------------------

SIDES = st.integers(1, 3000)


@given(SIDES, SIDES, st.integers(1, 400), st.data())
def test_a_crop_lies_in_the_middle_of_the_scaled_picture(width: int, height: int, shortest: int, data: Any) -> None:
    sides = {side: data.draw(st.integers(1, shortest)) for side in ("width", "height")}
    preprocessing = ImagePreprocessing(**sides, resize="crop", shortest=shortest)
    scaled = preprocessing.scaled(width, height)
    assert min(scaled) == shortest and (scaled[0] <= scaled[1]) == (width <= height or scaled[0] == scaled[1])
    # The longer side is rounded down, so the aspect ratio is off by less than a pixel.
    exact = shortest * max(width, height) / min(width, height)
    assert exact - 1 < max(scaled) <= exact
    left, upper, right, lower = preprocessing.cut(*scaled)
    assert (right - left, lower - upper) == (sides["width"], sides["height"])
    for before, after in ((left, scaled[0] - right), (upper, scaled[1] - lower)):
        assert before >= 0 and after - before in (0, 1)


@given(SIDES, SIDES, SIDES, SIDES)
def test_a_squash_cuts_nothing_off(width: int, height: int, wide: int, high: int) -> None:
    preprocessing = ImagePreprocessing(height=high, width=wide)
    assert preprocessing.scaled(width, height) == (wide, high)
    assert preprocessing.cut(wide, high) == (0, 0, wide, high)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(8, 40), INTERPOLATIONS, st.integers(0, 2**32 - 1))
def test_pixels_are_those_of_pillow(width: int, height: int, shortest: int, interpolation: str, seed: int) -> None:
    rgb = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    short, long = min(width, height), max(width, height)
    # As transformers scales and crops with its "pil" backend.
    size = (shortest, int(shortest * long / short)) if width <= height else (int(shortest * long / short), shortest)
    filters = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    scaled = Image.fromarray(rgb).resize(size, filters[interpolation])
    left, upper = (size[0] - 8) // 2, (size[1] - 8) // 2
    preprocessing = ImagePreprocessing(height=8, width=8, resize="crop", shortest=shortest, interpolation=interpolation)
    if (width, height) != (8, 8):
        expected = np.asarray(scaled)[upper : upper + 8, left : left + 8]
        np.testing.assert_array_equal(load_pixels([rgb], preprocessing)[0], expected)
