"""Dual encoders from a folder of transformers, compared with transformers itself. The weights are random."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from model_folders import DUAL_LENGTH, DUAL_TEXT
from PIL import Image
from pretrained import changed
from support import WORDS, word_tokenizer
from tokenizers import Tokenizer as Library
from torch.nn.functional import normalize

import simmim_export
from simmim_export.errors import CheckpointError
from simmim_export.export.bundled_samples import sample_images
from simmim_export.models.dual_encoder.family import TEXT_TYPES, WITHOUT_POOLER, DualEncoderFamily
from simmim_export.models.dual_encoder.towers import TextTower
from simmim_export.models.family import LoadOptions
from simmim_export.models.huggingface.masks import padding_mask
from simmim_export.runtime.images import ImagePreprocessing, load_pixels
from simmim_export.spec import Score

LENGTH, OPTIONS = DUAL_LENGTH, LoadOptions(max_batch=2)
# What differs from BERT's configuration.
OTHER: dict[str, dict[str, Any]] = {name: {} for name in TEXT_TYPES}
OTHER |= {name: {"pad_token_id": 1} for name in TEXT_TYPES if "roberta" in name or name in ("camembert", "mpnet")}
OTHER["data2vec-text"] = OTHER["jina_embeddings_v3"] = {"pad_token_id": 1}
OTHER["albert"] = {"embedding_size": 8}
OTHER["rembert"] = {"input_embedding_size": 8, "output_embedding_size": 8}
OTHER["mobilebert"] = {
    "embedding_size": 16, "true_hidden_size": 32, "intra_bottleneck_size": 16, "use_bottleneck": False
}  # fmt: skip
CASES = ("vit_bert", "clip_roberta", "chinese_clip")


@pytest.fixture(scope="session")
def folders(family_model: Callable[[str], Path]) -> dict[str, Path]:
    return {case: family_model(case) for case in CASES}


@pytest.fixture(scope="session")
def bundle(family_bundle: Callable[[str], Path]) -> Path:
    return family_bundle("vit_bert")


def original_of(case: str, folder: Path) -> Any:
    import transformers as hf

    name = "ChineseCLIPModel" if case == "chinese_clip" else "VisionTextDualEncoderModel"
    return getattr(hf, name).from_pretrained(folder).eval()


def pictures() -> list[Image.Image]:
    generator = np.random.default_rng(0)
    noise = [generator.integers(0, 256, (*shape, 3), np.uint8) for shape in ((50, 31), (9, 90), (32, 32))]
    squash = {"height": 300, "width": 200, "resize": "squash", "interpolation": "bicubic"}
    return [Image.fromarray(array) for array in [*noise, *sample_images(squash)[:6]]]


def batch(texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    library = Library.from_str(word_tokenizer())
    library.enable_truncation(LENGTH)
    rows = library.encode_batch(texts)
    return torch.tensor([row.ids for row in rows]), torch.tensor([row.attention_mask for row in rows])


CAPTIONS = ["red", "the blue circle", " ".join(WORDS[:16]), "what is left of the green square ?"]


@pytest.mark.parametrize("case", CASES)
def test_embeddings_are_those_of_transformers_and_padding_does_not_change_them(
    folders: dict[str, Path], case: str
) -> None:
    from transformers import AutoImageProcessor

    model, original = DualEncoderFamily().load(folders[case], OPTIONS), original_of(case, folders[case])
    processor = AutoImageProcessor.from_pretrained(folders[case], backend="pil")
    raw = processor(pictures(), do_rescale=False, do_normalize=False, return_tensors="np").pixel_values
    pixels = load_pixels(pictures(), ImagePreprocessing.from_json(model.preprocessing["image"]))
    assert np.array_equal(pixels, raw.transpose(0, 2, 3, 1))
    ids, mask = batch(CAPTIONS)
    image, text = model.graphs["image_encoder"].module, model.graphs["text_encoder"].module
    with torch.no_grad():
        values = processor(pictures(), return_tensors="pt").pixel_values
        wanted = normalize(original.get_image_features(values).pooler_output, dim=-1)
        assert (image(torch.tensor(pixels)) - wanted).abs().max() < 2e-6
        wanted = normalize(original.get_text_features(ids, attention_mask=mask).pooler_output, dim=-1)
        together = text(ids, mask)
        assert (together - wanted).abs().max() < 2e-6
        for row, length in enumerate(mask.sum(1)):
            alone = text(ids[row : row + 1, :length], mask[row : row + 1, :length])
            assert (alone - together[row]).abs().max() < 2e-6
    assert model.similarity is not None and model.similarity.score is Score.SOFTMAX
    assert model.similarity.scale == pytest.approx(float(original.logit_scale.detach().exp()))


@pytest.mark.parametrize("family", TEXT_TYPES)
def test_every_text_encoder_agrees_with_transformers_on_padded_texts(family: str) -> None:
    from transformers import AutoConfig, AutoModel

    torch.manual_seed(0)
    encoder = AutoModel.from_config(AutoConfig.for_model(family, **DUAL_TEXT | OTHER[family])).eval()
    ids, mask = batch(CAPTIONS)
    ids = ids.masked_fill(mask == 0, encoder.config.pad_token_id or 0)
    with torch.no_grad():
        wanted = normalize(encoder(input_ids=ids, attention_mask=mask).pooler_output, dim=-1)
        tower = TextTower(encoder, torch.nn.Identity(), pools_first=False).eval()
        assert (tower(ids, mask) - wanted).abs().max() < 1e-5
    assert padding_mask(mask).shape == (len(CAPTIONS), 1, 1, ids.shape[1])


def test_a_bundle_gives_the_embeddings_of_transformers(folders: dict[str, Path], bundle: Path) -> None:
    from transformers import AutoImageProcessor

    original, model = original_of("vit_bert", folders["vit_bert"]), simmim_export.load(bundle)
    processor = AutoImageProcessor.from_pretrained(folders["vit_bert"], backend="pil")
    ids, mask = batch(CAPTIONS)
    with torch.no_grad():
        values = processor(pictures(), return_tensors="pt").pixel_values
        image = normalize(original.get_image_features(values).pooler_output, dim=-1)
        text = normalize(original.get_text_features(ids, attention_mask=mask).pooler_output, dim=-1)
    assert np.abs(model.embed_image(pictures()) - image.numpy()).max() < 2e-6
    assert np.abs(model.embed_text(CAPTIONS) - text.numpy()).max() < 2e-6


@pytest.mark.parametrize(
    ("part", "kind"), [("vision_config", "resnet"), ("vision_config", 3), *(("text_config", n) for n in WITHOUT_POOLER)]
)
def test_an_encoder_of_another_type_is_bad_input(
    folders: dict[str, Path], tmp_path: Path, part: str, kind: object
) -> None:
    folder = changed(folders["vit_bert"], tmp_path / "changed", **{f"{part}__model_type": kind})
    with pytest.raises(CheckpointError) as caught:
        DualEncoderFamily().load(folder, OPTIONS)
    assert caught.value.exit_code == 5 and str(folder) in str(caught.value.where)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("preprocessor_config.json", {"image_processor_type": "BlipImageProcessor"}),
        ("preprocessor_config.json", {"image_processor_type": "ViTImageProcessor", "do_center_crop": False}),
        ("preprocessor_config.json", {"image_processor_type": ["CLIPImageProcessor"]}),
        ("tokenizer_config.json", {"model_max_length": 2}),
    ],
)
def test_a_folder_whose_parts_do_not_fit_is_bad_input(
    folders: dict[str, Path], tmp_path: Path, name: str, content: dict[str, Any]
) -> None:
    with pytest.raises(CheckpointError):
        DualEncoderFamily().load(changed(folders["clip_roberta"], tmp_path / "changed", name, **content), OPTIONS)


def test_a_limit_of_the_tokenizer_is_the_limit_of_the_model(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = changed(folders["clip_roberta"], tmp_path / "changed", "tokenizer_config.json", model_max_length=9)
    # RoBERTa's positions begin after that of padding, which is 0 here.
    for path, longest in ((folder, 9), (folders["clip_roberta"], LENGTH - 1), (folders["vit_bert"], LENGTH)):
        model = DualEncoderFamily().load(path, OPTIONS)
        assert model.preprocessing["text"]["max_length"] == longest
        axis = model.graphs["text_encoder"].spec.axis("sequence")
        assert (axis.minimum, axis.maximum) == (3, longest)
