"""BLIP from a folder of transformers to a bundle, compared with transformers itself."""

from pathlib import Path

import numpy as np
import pytest
import torch
from model_folders import BEGIN, LONGEST
from model_folders import BLIP_ANSWERS as ANSWERS
from PIL import Image
from pretrained import changed, wordpiece_tokenizer
from tokenizers import Tokenizer

import simmim_export
from simmim_export.errors import CheckpointError, TextError, UsageError
from simmim_export.models.blip.prefixes import Prefixes, check_size
from simmim_export.models.family import LoadOptions, family_of

TEXTS = ("a red dog", "two cats on the square , a small cat .", "the dog is blue")


@pytest.fixture(scope="session")
def retrieval(family_model) -> Path:
    return family_model("blip_itm")


@pytest.fixture(scope="session")
def answering(family_model) -> Path:
    return family_model("blip_vqa")


@pytest.fixture(scope="session")
def matcher(family_bundle):
    with simmim_export.load(family_bundle("blip_itm"), engine="ort") as model:
        yield model


@pytest.fixture(scope="session")
def answerer(family_bundle):
    with simmim_export.load(family_bundle("blip_vqa"), engine="ort") as model:
        yield model


@pytest.fixture(scope="session")
def photograph():
    from simmim_export.export.bundled_samples import FOLDER

    with Image.open(FOLDER / "flower.jpg") as image:
        return image.convert("RGB").resize((70, 50))


def _theirs(name, folder, picture):
    """The model of transformers, and the pixels that its processor makes of ``picture``."""
    import transformers

    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    pixels = processor(picture, return_tensors="pt").pixel_values
    return getattr(transformers, name).from_pretrained(folder).eval(), pixels


def _ids(text):
    return torch.tensor([Tokenizer.from_str(wordpiece_tokenizer()).encode(text).ids])


def test_match_and_embeddings_are_those_of_transformers(retrieval, matcher, photograph):
    model, pixels = _theirs("BlipForImageTextRetrieval", retrieval, photograph)
    with torch.no_grad():
        wanted = [model(_ids(text), pixels).itm_score.softmax(-1)[0, 1].item() for text in TEXTS]
        cosines = [model(_ids(text), pixels, use_itm_head=False).itm_score.item() for text in TEXTS]
    assert np.ptp(wanted) > 0.02 and np.ptp(cosines) > 0.02
    np.testing.assert_allclose(matcher.match(photograph, TEXTS), wanted, atol=1e-5)
    ours = matcher.embed_text(TEXTS) @ matcher.embed_image([photograph])[0]
    np.testing.assert_allclose(ours, cosines, atol=1e-5)


def test_an_encoded_image_serves_several_texts(matcher, photograph):
    encoded = matcher.encode_image(photograph)
    assert set(encoded.tensors) == {"image_tokens", "image_embed"}
    alone = [matcher.match(photograph, [text])[0] for text in TEXTS]
    np.testing.assert_allclose(matcher.match(encoded, TEXTS), alone, atol=1e-6)


def _their_scores(model, pixels, question):
    """The log-probability of each answer: one at a time, and for one question without padding, where transformers is right."""
    image = model.vision_model(pixels).last_hidden_state
    states = model.text_encoder(_ids(question), encoder_hidden_states=image).last_hidden_state
    scores = []
    for answer in ANSWERS:
        ids = _ids(answer)
        ids[0, 0] = BEGIN
        decoded = model.text_decoder(ids, encoder_hidden_states=states, labels=ids, reduction="none")
        scores.append(-decoded.loss)
    return torch.cat(scores)


def test_answers_are_ranked_by_their_probability_in_transformers(answering, answerer, photograph):
    model, pixels = _theirs("BlipForQuestionAnswering", answering, photograph)
    questions = ("what color is the dog ?", "is there a cat")
    with torch.no_grad():
        wanted = torch.stack([_their_scores(model, pixels, question) for question in questions])
    for question, scores in zip(questions, wanted.softmax(-1).numpy(), strict=True):
        answers = answerer.answer(photograph, question, top_k=len(ANSWERS))
        assert [answer.label for answer in answers] == [ANSWERS[index] for index in np.argsort(-scores)]
        np.testing.assert_allclose([answer.score for answer in answers], -np.sort(-scores), atol=1e-5)
    # Both in one batch, where the shorter question is padded.
    encoded = answerer.encode_image(photograph).tensors
    logits = answerer.run("answer", encoded | answerer.tokens(questions))["logits"]
    np.testing.assert_allclose(logits, wanted, atol=1e-4)


def test_padding_a_question_does_not_change_its_answer(answerer, photograph):
    encoded, tokens = answerer.encode_image(photograph).tensors, answerer.tokens(["what is red"])
    padded = {name: np.pad(array, ((0, 0), (0, LONGEST - array.shape[1]))) for name, array in tokens.items()}
    unmasked = padded | {"attention_mask": np.ones((1, LONGEST), np.int64)}
    plain, same, other = (answerer.run("answer", encoded | feeds)["logits"] for feeds in (tokens, padded, unmasked))
    np.testing.assert_allclose(same, plain, atol=1e-5)
    # The test would see padding that is read.
    assert np.abs(other - plain).max() > 1e-2


def test_a_prefix_sees_only_those_it_extends():
    prefixes = Prefixes.of([[7, 8], [7], [9, 8]], begin=1, end=2)
    assert prefixes.ids.tolist() == [1, 7, 8, 9, 8]
    assert prefixes.positions.tolist() == [0, 1, 2, 1, 2]
    assert [np.flatnonzero(row).tolist() for row in prefixes.sees] == [[0], [0, 1], [0, 1, 2], [0, 3], [0, 3, 4]]
    assert prefixes.token.tolist() == [[7, 8, 2], [7, 2, 0], [9, 8, 2]]
    assert prefixes.mask.tolist() == [[1, 1, 1], [1, 1, 0], [1, 1, 1]]


def _load(folder, **options):
    return family_of(folder).load(folder, LoadOptions(max_batch=2, **options))


@pytest.mark.parametrize(
    ("answers", "place"),
    [
        (("red", " "), "answer 2"),
        (("red", "blue", "Red"), "answer 3"),
        (("red", "purple"), "answer 2"),
        (("red " * LONGEST,), "answer 1"),
        (("red", "a" * 2000), "answer 2"),
        (("red\ud800",), "answer 1"),
    ],
    ids=["empty", "twice", "unknown word", "too many tokens", "too many characters", "not UTF-8"],
)
def test_an_answer_that_cannot_be_ranked_is_an_error(answering, answers, place):
    with pytest.raises(TextError) as caught:
        _load(answering, answers=answers)
    assert caught.value.exit_code == 5 and caught.value.where.startswith(place)


def test_answering_without_answers_is_an_error(answering):
    with pytest.raises(UsageError) as caught:
        _load(answering)
    assert caught.value.exit_code == 2


def test_too_many_answers_are_an_error():
    answers = [[first, second] for first in range(100) for second in range(100)]
    prefixes = Prefixes.of(answers[:1500], begin=100, end=101)
    check_size(prefixes, max_batch=8, vocabulary=30524, heads=12)
    with pytest.raises(UsageError):
        check_size(prefixes, max_batch=16, vocabulary=30524, heads=12)


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("config.json", {"architectures": ["BlipModel"]}),
        ("config.json", {"architectures": ["BlipForConditionalGeneration"]}),
        ("config.json", {"architectures": None}),
        ("config.json", {"text_config__is_decoder": False}),
        ("config.json", {"text_config__bos_token_id": 4000}),
        ("config.json", {"text_config__vocab_size": 9}),
        ("config.json", {"vision_config__image_size": 64}),
        ("preprocessor_config.json", {"size": {"height": 48, "width": 48}}),
        ("preprocessor_config.json", {"size": {"shortest_edge": 32}}),
    ],
    ids=lambda value: value if isinstance(value, str) else str(*value.items()),
)
def test_a_folder_whose_parts_do_not_fit_is_an_error(answering, tmp_path, file, change):
    folder = changed(answering, tmp_path / "changed", file, **change)
    with pytest.raises(CheckpointError) as caught:
        _load(folder, answers=("red", "blue"))
    assert caught.value.exit_code == 5
