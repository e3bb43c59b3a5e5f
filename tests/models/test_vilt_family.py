"""ViLT from a folder of transformers to a bundle, compared with transformers itself."""

from pathlib import Path

import numpy as np
import pytest
import torch
from model_folders import LONGEST, VILT_SIZE, VILT_SQUARE
from model_folders import VILT_LABELS as LABELS
from PIL import Image
from pretrained import changed, wordpiece_tokenizer
from tokenizers import Tokenizer

import simmim_export
from simmim_export.errors import CheckpointError, UsageError
from simmim_export.models.family import LoadOptions, family_of

TEXTS = ("is the dog red", "what color is the small square , a cat ?", "two cats")


@pytest.fixture(scope="session")
def answering(family_model) -> Path:
    return family_model("vilt_vqa")


@pytest.fixture(scope="session")
def retrieval(family_model) -> Path:
    return family_model("vilt_itr")


@pytest.fixture(scope="session")
def answerer(family_bundle):
    with simmim_export.load(family_bundle("vilt_vqa"), engine="ort") as model:
        yield model


@pytest.fixture(scope="session")
def matcher(family_bundle):
    with simmim_export.load(family_bundle("vilt_itr"), engine="ort") as model:
        yield model


def _photograph(height, width):
    from simmim_export.export.bundled_samples import FOLDER

    with Image.open(FOLDER / "temple.jpg") as image:
        return image.convert("RGB").resize((width, height))


def _their_logits(name, folder, picture, size):
    """Those of transformers for each of TEXTS, with the pixels and the full mask that its processor makes of ``picture``."""
    import transformers

    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    inputs = processor(picture, return_tensors="pt")
    assert inputs.pixel_values.shape[2:] == size and inputs.pixel_mask.all()
    model, tokenizer = (
        getattr(transformers, name).from_pretrained(folder).eval(),
        Tokenizer.from_str(wordpiece_tokenizer()),
    )
    with torch.no_grad():
        rows = [model(torch.tensor([tokenizer.encode(text).ids]), **inputs).logits[0] for text in TEXTS]
    return torch.stack(rows)


def test_answers_are_those_of_transformers(answering, answerer):
    picture = _photograph(192, 256)
    wanted = _their_logits("ViltForQuestionAnswering", answering, picture, VILT_SIZE).softmax(-1).numpy()
    assert np.ptp(wanted, axis=0).max() > 0.02
    # In one batch, where the shorter questions are padded.
    for answers, scores in zip(answerer.answers(picture, TEXTS, top_k=len(LABELS)), wanted, strict=True):
        assert [answer.label for answer in answers] == [LABELS[index] for index in np.argsort(-scores)]
        np.testing.assert_allclose([answer.score for answer in answers], -np.sort(-scores), atol=1e-5)


def test_the_score_of_a_match_is_the_sigmoid_of_transformers_logit(retrieval, matcher):
    picture = _photograph(150, 150)
    wanted = _their_logits("ViltForImageAndTextRetrieval", retrieval, picture, VILT_SQUARE).sigmoid()[:, 0].numpy()
    assert np.ptp(wanted) > 0.02
    np.testing.assert_allclose(matcher.match(picture, TEXTS), wanted, atol=1e-5)


def test_padding_a_question_does_not_change_its_answer(answerer):
    pixels, tokens = answerer.pixels([_photograph(60, 90)]), answerer.tokens(["what is red"])
    padded = {name: np.pad(array, ((0, 0), (0, LONGEST - array.shape[1]))) for name, array in tokens.items()}
    unmasked = padded | {"attention_mask": np.ones((1, LONGEST), np.int64)}
    plain, same, other = (
        answerer.run("answer", {"pixels": pixels} | feeds)["logits"] for feeds in (tokens, padded, unmasked)
    )
    np.testing.assert_allclose(same, plain, atol=1e-5)
    # The test would see padding that is read.
    assert np.abs(other - plain).max() > 1e-2


def _load(folder, **options):
    return family_of(folder).load(folder, LoadOptions(max_batch=2, **options))


def test_images_have_the_size_of_the_training_unless_another_is_asked_for(answering):
    assert _load(answering).preprocessing["image"] == {
        "height": 64, "width": 64, "resize": "squash", "interpolation": "bicubic",
    }  # fmt: skip


@pytest.mark.parametrize("size", [(100, 128), (96, 16), (0, 96), (-32, -32), (1056, 1056), (32, 1 << 30)], ids=str)
def test_a_size_that_a_model_cannot_use_is_an_error(answering, size):
    with pytest.raises(UsageError) as caught:
        _load(answering, image_size=size)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("config.json", {"architectures": ["ViltForMaskedLM"]}),
        ("config.json", {"architectures": ["ViltForImagesAndTextClassification"]}),
        ("config.json", {"id2label": {"0": "a", "1": "b", "2": "c", "3": "d"}}),
        ("config.json", {"id2label": {"0": "a", "1": "b", "2": "c", "3": "d", "5": "e"}}),
        ("config.json", {"id2label": {"0": "a", "1": "b", "2": "c", "3": "d", "4": ""}}),
        ("config.json", {"id2label": {"0": "a", "1": "b", "2": "c", "3": "d", "4": 5}}),
        ("config.json", {"id2label": None}),
        ("config.json", {"image_size": [64, 64]}),
        ("config.json", {"modality_type_vocab_size": 1}),
        ("config.json", {"max_position_embeddings": 40}),
        ("preprocessor_config.json", {"size": {"height": 64, "width": 64}}),
        ("preprocessor_config.json", {"do_normalize": False}),
        ("preprocessor_config.json", {"image_std": [0.5, 0.5]}),
    ],
    ids=lambda value: value if isinstance(value, str) else str(*value.items()),
)
def test_a_folder_whose_parts_do_not_fit_is_an_error(answering, tmp_path, file, change):
    folder = changed(answering, tmp_path / "changed", file, **change)
    with pytest.raises(CheckpointError) as caught:
        _load(folder)
    assert caught.value.exit_code == 5
