"""Any value that a caller hands to a public function or verb gives an answer or a SimmimError."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import simmim_export
from simmim_export.errors import ImageError, SimmimError, TextError, UsageError

IMAGE = np.zeros((64, 64, 3), np.uint8)


@pytest.fixture(scope="module")
def model(every_bundle: Path) -> Iterator[simmim_export.Model]:
    with simmim_export.load(every_bundle) as opened:
        yield opened


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        *[("bundle", value) for value in (None, 3, b"x", ["x"], object())],
        *[("engine", value) for value in (None, 3, b"ort", ["ort"])],
        *[("precision", value) for value in (8, 8.0, True, b"int8", ["int8"], {"fusion": "int8"})],
        *[("device", value) for value in (1, True, b"cuda")],
        *[("checkpoint", value) for value in (5, b"ckpt.pt", ["ckpt.pt"])],
        *[("threads", value) for value in ("2", True, 2.5, 2.0, np.float32(2), np.bool_(True), [2], 0, -1, 10**11)],
        *[("hint", value) for value in (3, None, b"latency")],
    ],
)
def test_a_wrong_type_of_an_argument_of_load_is_an_error_that_names_it(
    tiny_bundle: Path, argument: str, value: object
) -> None:
    with pytest.raises(UsageError, match=argument) as caught:
        simmim_export.load(**{"bundle": tiny_bundle, argument: value})  # type: ignore[arg-type]
    assert caught.value.fix


def test_numpy_integers_are_accepted(tiny_bundle: Path) -> None:
    with simmim_export.load(str(tiny_bundle), threads=np.int64(1)) as model:  # type: ignore[arg-type]
        assert len(model.answer(IMAGE, "red", top_k=np.uint8(2))) == 2  # type: ignore[arg-type]


@pytest.mark.parametrize("top_k", [1.5, 1.0, True, "1", None, [1], np.bool_(True), np.float64(1), 0, -1])
def test_top_k_must_be_a_whole_number_from_one(model: simmim_export.Model, top_k: Any) -> None:
    encoded = model.encode_image(IMAGE)
    for call in (
        lambda: model.answer(encoded, "red", top_k=top_k),
        lambda: model.answers(encoded, ["red"], top_k=top_k),
        lambda: model.classify(encoded, top_k=top_k),
        lambda: model.classify(encoded, ["red"], top_k=top_k),
        lambda: model.classify_text(encoded, ["red"], top_k=top_k),
        lambda: model.explain(encoded, "red", top_k=top_k),
    ):
        with pytest.raises(UsageError, match="top_k"):
            call()


@pytest.mark.parametrize("text", [3, None, 2.5, ["red"], object(), np.zeros(3)])
def test_a_text_that_is_not_a_str_is_an_error(model: simmim_export.Model, text: Any) -> None:
    for call in (
        lambda: model.embed_text([text]),
        lambda: model.answer(IMAGE, text),
        lambda: model.match(IMAGE, [text]),
    ):
        with pytest.raises(TextError):
            call()
    with pytest.raises(ImageError):
        model.embed_image([3])  # type: ignore[list-item]


def test_an_unknown_name_is_an_error_that_lists_the_known_ones(model: simmim_export.Model) -> None:
    with pytest.raises(UsageError, match="image_encoder"):
        model.session("image_encodr")
    with pytest.raises(UsageError, match="embed_image"):
        model.run("embed_imag", {})
    with pytest.raises(UsageError, match="pixels"):
        model.run("embed_image", {"pixels": [[[1]]]})  # type: ignore[dict-item]


VERBS: dict[str, Callable[[simmim_export.Model, Any], object]] = {
    "session": lambda model, value: model.session(value),
    "run, pipeline": lambda model, value: model.run(value, {}),
    "run, feeds": lambda model, value: model.run("embed_text", value),
    "run, a tensor": lambda model, value: model.run("embed_text", {"input_ids": value, "attention_mask": value}),
    "run, an output": lambda model, value: model.run("embed_text", {"text_tokens": value, "text_embed": value}),
    "pixels": lambda model, value: model.pixels(value),
    "tokens": lambda model, value: model.tokens(value),
    "tokens, first": lambda model, value: model.tokens(["red"], first=value),
    "embed_image": lambda model, value: model.embed_image(value),
    "embed_image of one": lambda model, value: model.embed_image([value]),
    "embed_text": lambda model, value: model.embed_text(value),
    "encode_image": lambda model, value: model.encode_image(value),
    "encode_clip": lambda model, value: model.encode_clip(value),
    "match, image": lambda model, value: model.match(value, ["red"]),
    "match, texts": lambda model, value: model.match(IMAGE, value),
    "answer, image": lambda model, value: model.answer(value, "red"),
    "answer, question": lambda model, value: model.answer(IMAGE, value),
    "answers": lambda model, value: model.answers(IMAGE, value),
    "classify": lambda model, value: model.classify(value),
    "classify, labels": lambda model, value: model.classify(IMAGE, value),
    "classify, template": lambda model, value: model.classify(IMAGE, ["red"], template=value),
    "classify, only a template": lambda model, value: model.classify(IMAGE, template=value),
    "classify_text": lambda model, value: model.classify_text(IMAGE, value),
    "explain, image": lambda model, value: model.explain(value, "red"),
    "explain, question": lambda model, value: model.explain(IMAGE, value),
    "Bundle.open": lambda model, value: simmim_export.Bundle.open(value),
}
ONE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.complex_numbers(),
    st.text(max_size=8),
    st.binary(max_size=8),
    st.just(object()),
    st.just(int),
    st.sampled_from([np.zeros(3), np.array("red"), np.array(3), np.zeros((2, 4, 4, 3), np.uint8), np.array([None])]),
    st.sampled_from([np.int64(3), np.float32(0.5), np.bool_(True), Path("x"), memoryview(b"abc"), bytearray(b"abc")]),
)
ANY = st.one_of(ONE, st.lists(ONE, max_size=3), st.dictionaries(st.text(max_size=3), ONE, max_size=2), st.tuples(ONE))


@pytest.mark.parametrize("verb", sorted(VERBS))
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(value=ANY)
@pytest.mark.filterwarnings("ignore")
def test_any_value_gives_an_answer_or_a_simmim_error(model: simmim_export.Model, verb: str, value: object) -> None:
    try:
        VERBS[verb](model, value)
    except SimmimError as error:
        assert error.exit_code in (2, 5)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    argument=st.sampled_from(["bundle", "engine", "precision", "device", "checkpoint", "threads", "hint"]), value=ANY
)
def test_any_argument_of_load_gives_a_model_or_a_simmim_error(tiny_bundle: Path, argument: str, value: object) -> None:
    try:
        simmim_export.load(**{"bundle": tiny_bundle, argument: value}).close()  # type: ignore[arg-type]
    except SimmimError as error:
        assert error.exit_code in (2, 3, 5)


def test_an_image_that_another_bundle_encoded_is_an_error(model: simmim_export.Model, tiny_bundle: Path) -> None:
    with simmim_export.load(tiny_bundle) as other:
        encoded = other.encode_image(IMAGE)
        assert other.match(encoded, ["red"]).shape == (1,)
    for call in (
        lambda: model.match(encoded, ["red"]),
        lambda: model.answer(encoded, "red"),
        lambda: model.answers(encoded, ["red"]),
        lambda: model.classify(encoded),
        lambda: model.classify(encoded, ["red"]),
        lambda: model.classify_text(encoded, ["red"]),
        lambda: model.explain(encoded, "red"),
    ):
        with pytest.raises(UsageError) as caught:
            call()
        assert caught.value.where == str(model.bundle.root)


def test_an_encoded_image_works_in_other_precisions_of_its_checkpoint(tiny_bundle: Path) -> None:
    with simmim_export.load(tiny_bundle) as first, simmim_export.load(tiny_bundle, precision="int8") as second:
        encoded = first.encode_image(IMAGE)
        assert second.match(encoded, ["red"]) == pytest.approx(first.match(encoded, ["red"]), abs=0.2)


def test_an_encoded_clip_works_in_other_engines_and_only_with_verbs_for_clips(
    model: simmim_export.Model, every_bundle: Path
) -> None:
    with simmim_export.load(every_bundle, "openvino") as other:
        clip = other.encode_clip([IMAGE, IMAGE])
    assert model.answer(clip, "red") and model.classify(clip)
    for verb in (model.match, model.classify_text):
        with pytest.raises(UsageError) as caught:
            verb(clip, ["red"])
        assert verb.__name__ in caught.value.what and "answer" in str(caught.value.fix)


@pytest.mark.parametrize("path", ["bundle\0", "\0"])
def test_a_path_with_a_null_character_is_an_error(path: str) -> None:
    with pytest.raises(UsageError):
        simmim_export.load(path)


def test_a_verb_is_found_by_its_name(tiny_bundle: Path) -> None:
    with simmim_export.load(tiny_bundle) as model:
        assert model.pipeline("answer").labels == "vqa"  # type: ignore[arg-type]
        with pytest.raises(UsageError):
            model.pipeline("reply")  # type: ignore[arg-type]


def test_no_texts_at_all_are_an_error(tiny_bundle: Path, picture: Path) -> None:
    with simmim_export.load(tiny_bundle) as model:
        for verb in (model.match, model.answers):
            with pytest.raises(UsageError) as caught:
                verb(picture, None)  # type: ignore[arg-type]
            assert "list of texts" in caught.value.what
