"""CLIP from its folders: pixels, tokens and embeddings as transformers and open_clip give them, and folders that are refused."""

from __future__ import annotations

import json
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clip_folders import LONGEST, SIDE, corpus, open_clip_config, save_clip, save_metaclip, save_open_clip
from PIL import Image
from pretrained import changed, linked
from torch.nn.functional import normalize
from torchvision.transforms.functional import InterpolationMode, center_crop, resize
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel, CLIPProcessor, MetaClip2Model

from simmim_export import load
from simmim_export.errors import CheckpointError, TruncatedText
from simmim_export.export.bundled_samples import FOLDER, PHOTOGRAPHS, sample_images, sample_texts
from simmim_export.models.clip.family import CLIPFamily
from simmim_export.models.family import LoadOptions, SourceModel, family_of
from simmim_export.runtime.images import ImagePreprocessing, load_pixels
from simmim_export.runtime.text import Tokenizer
from simmim_export.spec import Score, Similarity

OPTIONS = LoadOptions(max_batch=2)
FAMILY = CLIPFamily()
PROCESSOR = "preprocessor_config.json"
# Float32 sums in another order. The worst that was measured is 5.3e-7.
CLOSE = 2e-6


@pytest.fixture(scope="session")
def clip(family_model: Callable[[str], Path]) -> Path:
    return family_model("clip")


@pytest.fixture(scope="session")
def loaded(family_source: Callable[[str], SourceModel]) -> SourceModel:
    """The model of ``clip``."""
    return family_source("clip")


@pytest.fixture(scope="session")
def theirs(clip: Path) -> CLIPModel:
    """The model of ``clip`` in transformers."""
    return CLIPModel.from_pretrained(clip)


@pytest.fixture(scope="session")
def open_clip(family_model: Callable[[str], Path]) -> Path:
    return family_model("open_clip")


@pytest.fixture(scope="session")
def bundle(family_bundle: Callable[[str], Path]) -> Path:
    return family_bundle("clip")


class Code:
    """Makes a file when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("executed"),)


def encoded(model: SourceModel, texts: list[str]) -> torch.Tensor:
    graph = model.graphs["text_encoder"]
    tokenizer = Tokenizer(model.tokenizer, model.preprocessing["text"]["max_length"], graphs=[graph.spec])
    ids, _ = tokenizer.encode(texts)
    with torch.inference_mode():
        return graph.module(torch.from_numpy(ids))


def test_a_bundle_gives_the_embeddings_of_transformers(clip: Path, theirs: CLIPModel, bundle: Path) -> None:
    texts = ["a red circle", " ".join(corpus()[:30]), "a <|endoftext|> inside", "it's 3 o'clock", *sample_texts()[:8]]
    with load(bundle) as model, pytest.warns(TruncatedText):
        images, embedded = model.embed_image([FOLDER / name for name in PHOTOGRAPHS]), model.embed_text(texts)
        assert model.bundle.manifest.similarity == Similarity(
            scale=pytest.approx(float(theirs.logit_scale.detach().exp())), score=Score.SOFTMAX
        )
    wanted, wanted_texts = embeddings_of_transformers(clip, theirs, texts)
    np.testing.assert_allclose(images, wanted, atol=CLOSE)
    np.testing.assert_allclose(embedded, wanted_texts, atol=CLOSE)


def test_embeddings_of_another_kind_of_clip_are_those_of_transformers(tmp_path: Path) -> None:
    """With another activation, the end token in its configuration, and weights in several files."""
    folder = save_clip(tmp_path / "clip", eos=None, activation="gelu", shards=True)
    model, theirs = FAMILY.load(folder, OPTIONS), CLIPModel.from_pretrained(folder)
    assert len(list(folder.glob("*.safetensors"))) > 1
    pixels = load_pixels(
        [FOLDER / name for name in PHOTOGRAPHS], ImagePreprocessing.from_json(model.preprocessing["image"])
    )
    texts = [*sample_texts()[:6], "a <|endoftext|> inside"]
    with torch.inference_mode():
        images = model.graphs["image_encoder"].module(torch.from_numpy(pixels))
    wanted, wanted_texts = embeddings_of_transformers(folder, theirs, texts)
    assert (images - wanted).abs().max() < CLOSE
    assert (encoded(model, texts) - wanted_texts).abs().max() < CLOSE


def embeddings_of_transformers(folder: Path, model: CLIPModel, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Those of PHOTOGRAPHS and of ``texts``. Different inputs are far apart, or a comparison would show nothing."""
    photographs = [Image.open(FOLDER / name) for name in PHOTOGRAPHS]
    values = AutoImageProcessor.from_pretrained(folder, backend="pil")(photographs, return_tensors="pt").pixel_values
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(texts, padding=True, truncation=True, max_length=LONGEST, return_tensors="pt")
    with torch.inference_mode():
        images = normalize(model.get_image_features(pixel_values=values).pooler_output, dim=-1)
        embedded = normalize(model.get_text_features(**ids).pooler_output, dim=-1)
    assert (images[0] - images[1]).abs().max() > 0.01
    assert (embedded[0] - embedded[1]).abs().max() > 0.01
    return images, embedded


def test_metaclip_2_pools_at_the_token_that_its_configuration_names(tmp_path: Path) -> None:
    sys.path.append(str(Path(__file__).parents[1] / "bundle"))
    from real_tokenizers import REAL

    tokenizer = json.loads(json.dumps(REAL["xlm_roberta"]))
    folder = save_metaclip(tmp_path / "metaclip", json.dumps(tokenizer))
    model, theirs = FAMILY.load(folder, OPTIONS), MetaClip2Model.from_pretrained(folder)
    texts = ["red", "a red cat", "abc def ghi"]
    own = Tokenizer(model.tokenizer, LONGEST, graphs=[model.graphs["text_encoder"].spec])
    ids, mask = own.encode(texts)
    with torch.inference_mode():
        expected = theirs.get_text_features(torch.from_numpy(ids), torch.from_numpy(mask)).pooler_output
    assert (encoded(model, texts) - normalize(expected, dim=-1)).abs().max() < CLOSE


@pytest.mark.parametrize("quick_gelu", [False, True])
def test_embeddings_are_those_of_open_clip(tmp_path: Path, quick_gelu: bool) -> None:
    folder = tmp_path / "open_clip"
    theirs = save_open_clip(folder, quick_gelu=quick_gelu, archive=quick_gelu)
    model = FAMILY.load(folder, OPTIONS)
    pixels = torch.from_numpy(sample_images(model.preprocessing["image"])[:6])
    values = (pixels.permute(0, 3, 1, 2) / 255 - torch.tensor([0.4, 0.5, 0.6])[:, None, None]) / torch.tensor(
        [0.2, 0.3, 0.4]
    )[:, None, None]
    texts = list(sample_texts()[:6])
    ids = AutoTokenizer.from_pretrained(folder)(texts, padding="max_length", max_length=LONGEST, return_tensors="pt")
    with torch.inference_mode():
        images, expected = model.graphs["image_encoder"].module(pixels), theirs.encode_image(values)
        assert (images - expected).abs().max() < CLOSE
        assert (encoded(model, texts) - theirs.encode_text(ids.input_ids)).abs().max() < CLOSE
    assert (expected[0] - expected[1]).abs().max() > 0.01
    assert model.similarity == Similarity(scale=pytest.approx(float(theirs.logit_scale.detach().exp())))
    image = {"height": SIDE, "width": SIDE, "resize": "crop", "shortest": SIDE, "interpolation": "bilinear"}
    assert dict(model.preprocessing["image"]) == image


def pictures() -> Iterator[Image.Image]:
    noise = np.random.default_rng(7)
    for width, height in ((224, 224), (1, 1), (640, 480), (333, 500), (225, 227), (31, 97), (1024, 32), (33, 32)):
        yield Image.fromarray(noise.integers(0, 256, (height, width, 3), np.uint8))
    yield Image.fromarray(noise.integers(0, 256, (60, 90), np.uint8))
    # The runtime lays transparency over white. What transformers sees is without it, as convert("RGB") leaves it.
    yield Image.fromarray(noise.integers(0, 256, (60, 90, 4), np.uint8)).convert("RGB")
    yield Image.fromarray(noise.integers(0, 256, (70, 50), np.uint8)).convert("P")
    for name in PHOTOGRAPHS:
        with Image.open(FOLDER / name) as photograph:
            yield photograph.convert("RGB")


@pytest.mark.parametrize("side", [32, 224])
def test_pixels_are_those_of_transformers(clip: Path, tmp_path: Path, side: int) -> None:
    settings = {"size": {"shortest_edge": side}, "crop_size": side, "do_normalize": False, "do_rescale": False}
    folder = changed(clip, tmp_path / "folder", PROCESSOR, **settings)
    theirs = AutoImageProcessor.from_pretrained(folder, backend="pil")
    own = ImagePreprocessing(side, side, resize="crop", interpolation="bicubic", shortest=side)
    for picture in pictures():
        expected = theirs(picture.convert("RGB"), return_tensors="np").pixel_values[0]
        assert expected.dtype == np.uint8
        np.testing.assert_array_equal(load_pixels([picture], own)[0], expected.transpose(1, 2, 0))


def test_pixels_are_those_of_open_clip_up_to_a_margin_that_is_rounded_otherwise(
    open_clip: Path, tmp_path: Path
) -> None:
    bicubic = {"preprocess_cfg__interpolation": "bicubic"}
    folder = changed(open_clip, tmp_path / "folder", "open_clip_config.json", **bicubic)
    own = ImagePreprocessing.from_json(FAMILY.load(folder, OPTIONS).preprocessing["image"])
    noise, shifted = np.random.default_rng(8), 0
    for extra in range(8):
        picture = Image.fromarray(noise.integers(0, 256, (SIDE, SIDE + extra, 3), np.uint8))
        left = round(extra / 2)  # half to even, as in torchvision's CenterCrop
        theirs = np.asarray(resize(picture, SIDE, InterpolationMode.BICUBIC))
        np.testing.assert_array_equal(
            np.asarray(center_crop(Image.fromarray(theirs), SIDE)), theirs[:, left : left + SIDE]
        )
        shift = left - extra // 2
        shifted += shift
        assert shift == (extra % 4 == 3)
        np.testing.assert_array_equal(load_pixels([picture], own)[0], theirs[:, left - shift : left - shift + SIDE])
    assert shifted == 2


def thousand_texts() -> list[str]:
    lines, chance = corpus(), random.Random(9)
    odd = [
        *("it's 3 o'clock", "  two\t\tspaces\n", "ÉCOLE café e\u0301", "日本語の写真", "\U0001f408\u200d\u2b1b a cat"),
        *("x<|endoftext|>y", "<|startoftext|>", "I'LL WE'VE don't", "a" * 400, "12345 67.8%", "\ufb01ne ligature"),
        *("\u0130stanbul", "naïve\u2014dash…", "!!!???", "ß \u1e9e", "\u200b z"),
    ]
    texts = odd + [" ".join(chance.sample(lines, 8)) for _ in range(60)]
    while len(texts) < 1000:
        words = chance.choice(lines).split()
        start = chance.randrange(len(words))
        texts.append(" ".join(words[start : start + chance.randint(1, 12)]))
    return texts


def test_tokens_of_a_thousand_texts_are_those_of_transformers(clip: Path, loaded: SourceModel) -> None:
    texts = thousand_texts()
    expected = AutoTokenizer.from_pretrained(clip)(texts, truncation=True)["input_ids"]
    own = Tokenizer(loaded.tokenizer, LONGEST, graphs=[loaded.graphs["text_encoder"].spec])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ids, mask = own.encode(texts)
    assert [row[: sum(kept)].tolist() for row, kept in zip(ids, mask, strict=True)] == expected
    assert sum(issubclass(warning.category, TruncatedText) for warning in caught) > 20


def test_a_text_in_a_longer_batch_has_the_same_embedding(loaded: SourceModel) -> None:
    alone, together = encoded(loaded, ["a red circle"]), encoded(loaded, ["a red circle", " ".join(corpus()[:4])])
    assert (alone[0] - together[0]).abs().max() < CLOSE
    ids = Tokenizer(loaded.tokenizer, LONGEST).encode(["a red circle"])[0][0].tolist()
    # transformers pads with the end token, and open_clip with 0.
    for padding in (ids[-1], 0):
        padded = torch.tensor([ids + [padding] * 9])
        with torch.inference_mode():
            assert (loaded.graphs["text_encoder"].module(padded)[0] - alone[0]).abs().max() < CLOSE


def test_a_processor_that_transformers_5_saved_is_read(clip: Path, loaded: SourceModel, tmp_path: Path) -> None:
    folder = linked(clip, tmp_path / "folder")
    processor = CLIPProcessor(
        AutoImageProcessor.from_pretrained(folder, backend="pil"), AutoTokenizer.from_pretrained(folder)
    )
    for name in (PROCESSOR, "tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    processor.save_pretrained(folder)
    assert (folder / "processor_config.json").is_file()
    assert FAMILY.load(folder, OPTIONS).preprocessing == loaded.preprocessing


# -- folders that are refused, besides those of tests/contracts/test_families.py --------------------------------------------

BAD: dict[str, tuple[str, dict[str, Any]]] = {
    "more layers": ("config.json", {"text_config__num_hidden_layers": 3}),
    "more layers than any": ("config.json", {"text_config__num_hidden_layers": 10**9}),
    "more weights than memory": ("config.json", {"text_config__vocab_size": 10**10}),
    "nonsense": ("config.json", {"text_config__hidden_size": "wide"}),
    "another image size": (PROCESSOR, {"crop_size": 24}),
    "another processor": (PROCESSOR, {"image_processor_type": "ViTImageProcessor"}),
    "an odd filter": (PROCESSOR, {"resample": [3]}),
    "another filter": (PROCESSOR, {"resample": 0}),
    "an odd factor": (PROCESSOR, {"rescale_factor": None}),
    "a mean that is no number": (PROCESSOR, {"image_mean": [0.5, float("nan"), 0.5]}),
    "another end token": ("config.json", {"text_config__eos_token_id": 5}),
    "no end token": ("tokenizer.json", {"post_processor": None}),
    "a small vocabulary": ("config.json", {"text_config__vocab_size": 100}),
    "few positions": ("config.json", {"text_config__max_position_embeddings": 2}),
}


@pytest.mark.parametrize("name", BAD)
def test_a_folder_whose_parts_do_not_fit_is_one_error(clip: Path, tmp_path: Path, name: str) -> None:
    file, fields = BAD[name]
    refused(changed(clip, tmp_path / "folder", file, **fields))


def refused(folder: Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        FAMILY.load(folder, OPTIONS)
    assert caught.value.exit_code == 5 and str(folder) in str(caught.value.where)
    return caught.value


def test_a_token_above_the_end_token_is_an_error_if_texts_are_pooled_at_the_largest_id(
    clip: Path, tmp_path: Path
) -> None:
    content = json.loads((clip / "tokenizer.json").read_text(encoding="utf-8"))
    above = content["added_tokens"][-1] | {"id": len(content["model"]["vocab"]), "content": "<x>"}
    added = [*content["added_tokens"], above]
    refused(changed(clip, tmp_path / "folder", "tokenizer.json", added_tokens=added))


BAD_OPEN_CLIP: dict[str, dict[str, Any]] = {
    "ResNet": {"model_cfg__vision_cfg__layers": [3, 4, 6, 3]},
    "timm": {"model_cfg__vision_cfg__timm_model_name": "vit_base_patch16_224"},
    "Hugging Face": {"model_cfg__text_cfg__hf_model_name": "xlm-roberta-base"},
    "CoCa": {"model_cfg__multimodal_cfg": {"width": 64}},
    "SigLIP": {"model_cfg__init_logit_bias": -10},
    "custom text": {"model_cfg__custom_text": True},
    "no causal mask": {"model_cfg__text_cfg__no_causal_mask": True},
    "pooled elsewhere": {"model_cfg__text_cfg__pool_type": "last"},
    "an unknown option": {"model_cfg__text_cfg__rotary": False},
    "huge": {"model_cfg__text_cfg__layers": 10**9},
    "wide": {"model_cfg__text_cfg__vocab_size": 1 << 20, "model_cfg__text_cfg__width": 1 << 20},
    "heads": {"model_cfg__text_cfg__heads": 3},
    "padded": {"preprocess_cfg__resize_mode": "longest"},
    "no model": {"model_cfg": None},
    "no object": {"model_cfg": 3},
    "another depth": {"model_cfg__vision_cfg__layers": 2},
}


@pytest.mark.parametrize("name", BAD_OPEN_CLIP)
def test_another_model_of_open_clip_is_one_error(open_clip: Path, tmp_path: Path, name: str) -> None:
    folder = changed(open_clip, tmp_path / "folder", "open_clip_config.json", **BAD_OPEN_CLIP[name])
    assert family_of(folder).name == "clip"
    refused(folder)


def test_code_in_weights_of_open_clip_is_not_executed(
    open_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = linked(open_clip, tmp_path / "folder")
    monkeypatch.chdir(tmp_path)
    (folder / "open_clip_model.safetensors").unlink()
    torch.save({"logit_scale": Code()}, folder / "open_clip_pytorch_model.bin")
    assert refused(folder).where == str(folder / "open_clip_pytorch_model.bin")
    assert not Path("executed").exists()


@pytest.mark.parametrize("missing", ["open_clip_model.safetensors", "tokenizer.json"])
def test_a_folder_of_open_clip_without_a_file_is_one_error(open_clip: Path, tmp_path: Path, missing: str) -> None:
    folder = linked(open_clip, tmp_path / "folder")
    (folder / missing).unlink()
    refused(folder)


def test_a_folder_of_both_kinds_is_read_as_one_of_transformers(clip: Path, tmp_path: Path) -> None:
    folder = linked(clip, tmp_path / "folder")
    written = open_clip_config(10, quick_gelu=False)
    (folder / "open_clip_config.json").write_text(json.dumps(written), encoding="utf-8")
    assert FAMILY.load(folder, OPTIONS).config["architecture"] == "CLIPModel"
