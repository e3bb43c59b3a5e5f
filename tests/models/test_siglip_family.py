"""SigLIP and SigLIP 2 from a folder of transformers, compared with transformers itself. The weights are random."""

from __future__ import annotations

import json
import random
import re
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from model_folders import SIGLIP_LENGTH, UNIGRAM, gemma_tokenizer, siglip_tokenizer
from onnx import numpy_helper
from PIL import Image
from pretrained import changed
from support import unigram_tokenizer
from tokenizers import Tokenizer as Library

import simmim_export
from simmim_export.bundle import Bundle
from simmim_export.errors import CheckpointError, TruncatedText, UsageError
from simmim_export.export.bundled_samples import sample_images, sample_texts, with_samples
from simmim_export.export.golden import make_golden
from simmim_export.models.family import LoadOptions, SourceModel, family_of
from simmim_export.models.siglip.family import SiglipFamily
from simmim_export.precision.emulation import rounded
from simmim_export.precision.fp16 import Fp16
from simmim_export.precision.halve import halve
from simmim_export.precision.islands import LARGEST, ranges
from simmim_export.precision.measure import run
from simmim_export.proof.parity import difference
from simmim_export.runtime.images import ImagePreprocessing, load_pixels
from simmim_export.runtime.text import Tokenizer
from simmim_export.spec import Score

LENGTH, ROWS = SIGLIP_LENGTH, 200
OPTIONS = LoadOptions(max_batch=2)


@pytest.fixture(scope="session")
def siglip(family_model: Callable[[str], Path]) -> Path:
    return family_model("siglip")


@pytest.fixture(scope="session")
def siglip2(family_model: Callable[[str], Path]) -> Path:
    return family_model("siglip2")


@pytest.fixture(scope="session")
def loaded(family_source: Callable[[str], SourceModel]) -> SourceModel:
    """The model of ``siglip``."""
    return family_source("siglip")


@pytest.fixture(scope="session")
def bundle(family_bundle: Callable[[str], Path]) -> Path:
    return family_bundle("siglip")


def pictures() -> list[Image.Image]:
    generator = np.random.default_rng(0)
    noise = [generator.integers(0, 256, (*shape, 3), np.uint8) for shape in ((50, 31), (9, 90), (32, 32))]
    squash = {"height": 300, "width": 200, "resize": "squash", "interpolation": "bicubic"}
    return [Image.fromarray(array) for array in [*noise, *sample_images(squash)[:6]]]


def canonical(text: str) -> str:
    """What transformers' SiglipTokenizer does before SentencePiece sees a text."""
    text = text.lower().translate(str.maketrans("", "", string.punctuation))
    return re.sub(r"\s+", " ", text).strip()


def texts(count: int) -> list[str]:
    """Texts of 1 to 90 words with punctuation, capitals, spaces, tabs, accents and other scripts between them."""
    source = random.Random(0)
    words = [*" ".join(sample_texts()).split(), "CAFÉ", "日本", "\U0001f600", "a/b", "<i>", "it's", "(x)", "½", "Ａ"]
    gaps = [" ", " ", " ", "  ", "\t", " - ", ", ", "!\n", "\u00a0", "..."]
    rows = []
    for _ in range(count):
        parts = source.choices(words, k=source.choice((1, 2, 5, 12, 30, 90)))
        rows.append("".join(part + source.choice(gaps) for part in parts))
    return rows


def of_transformers(text: str, path: Path) -> Any:
    from transformers import PreTrainedTokenizerFast

    path.write_text(text, encoding="utf-8")
    return PreTrainedTokenizerFast(tokenizer_file=str(path), pad_token="</s>" if "</s>" in text else "<pad>")


def test_a_bundle_gives_the_embeddings_of_transformers(siglip: Path, bundle: Path) -> None:
    from transformers import AutoImageProcessor, SiglipModel

    original = SiglipModel.from_pretrained(siglip).eval()
    pixels = AutoImageProcessor.from_pretrained(siglip, backend="pil")(pictures(), return_tensors="pt").pixel_values
    model = simmim_export.load(bundle)
    tokenizer = Library.from_str(json.dumps(siglip_tokenizer()))
    tokenizer.enable_truncation(LENGTH)
    tokenizer.enable_padding(length=LENGTH, pad_id=1, pad_token="</s>")
    captions = [text for text in texts(10) if len(text) < 100]
    ids = torch.tensor([tokenizer.encode(canonical(text)).ids for text in captions])
    with torch.no_grad():
        image, text = original.get_image_features(pixels), original.get_text_features(ids)
        wanted = [torch.nn.functional.normalize(output.pooler_output, dim=-1) for output in (image, text)]
        scores = torch.sigmoid(original(ids, pixels).logits_per_image)
    images, captioned = model.embed_image(pictures()), model.embed_text(captions)
    assert np.abs(images - wanted[0].numpy()).max() < 2e-6
    assert np.abs(captioned - wanted[1].numpy()).max() < 2e-6
    similarity = model.bundle.manifest.similarity
    assert similarity is not None and similarity.score is Score.SIGMOID
    logits = similarity.scale * images @ captioned.T + similarity.bias
    assert np.abs(1 / (1 + np.exp(-logits)) - scores.numpy()).max() < 1e-5


def test_pixels_are_those_of_transformers(siglip: Path, loaded: SourceModel) -> None:
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(siglip, backend="pil")
    raw = processor(pictures(), do_rescale=False, do_normalize=False, return_tensors="np").pixel_values
    preprocessing = ImagePreprocessing.from_json(loaded.preprocessing["image"])
    assert np.array_equal(load_pixels(pictures(), preprocessing), raw.transpose(0, 2, 3, 1))


def test_golden_texts_have_the_fixed_length_and_its_padding(loaded: SourceModel) -> None:
    model = with_samples(loaded)
    golden = make_golden(model, 2)
    tokenizer = Tokenizer(model.tokenizer, LENGTH, graphs=[graph.spec for graph in model.graphs.values()])
    for case in golden.cases.values():
        ids = case["input_ids"]
        assert ids.shape[1] == LENGTH and "attention_mask" not in case
        for row in range(1, len(ids), 2):
            assert np.array_equal(ids[row], tokenizer.encode([model.texts[row]])[0][0]) and ids[row, -1] == 1


@pytest.mark.parametrize("published", [True, False])
def test_ids_are_those_of_siglips_own_tokenizer(siglip: Path, tmp_path: Path, published: bool) -> None:
    plain = json.loads(unigram_tokenizer(dict.fromkeys(UNIGRAM)))
    folder = siglip if published else changed(siglip, tmp_path / "plain", "tokenizer.json", **plain)
    model = SiglipFamily().load(folder, OPTIONS)
    mine = Tokenizer(model.tokenizer, LENGTH, graphs=[graph.spec for graph in model.graphs.values()])
    theirs = of_transformers(json.dumps(plain), tmp_path / "tokenizer.json")
    rows = [text for text in texts(1000) if canonical(text)]
    settings = {"padding": "max_length", "truncation": True, "max_length": LENGTH}
    with pytest.warns(TruncatedText):
        ids = mine.encode(rows)[0]
    assert len(rows) > 900 and np.array_equal(ids, theirs([canonical(text) for text in rows], **settings)["input_ids"])


def test_ids_of_siglip2_are_those_of_gemmas_tokenizer_in_lower_case(siglip2: Path, tmp_path: Path) -> None:
    model = SiglipFamily().load(siglip2, OPTIONS)
    mine = Tokenizer(model.tokenizer, LENGTH, graphs=[graph.spec for graph in model.graphs.values()])
    theirs = of_transformers(json.dumps(gemma_tokenizer()), tmp_path / "tokenizer.json")
    settings = {"padding": "max_length", "truncation": True, "max_length": LENGTH}
    rows = texts(ROWS)
    with pytest.warns(TruncatedText):
        ids = mine.encode(rows)[0]
    assert np.array_equal(ids, theirs([text.lower() for text in rows], **settings)["input_ids"])


@pytest.mark.parametrize("size", [None, (16, 40)])
def test_siglip2_at_a_fixed_size_agrees_with_transformers(siglip2: Path, size: tuple[int, int] | None) -> None:
    """For images that have the aspect ratio of that size."""
    from transformers import AutoImageProcessor, Siglip2Model

    model = SiglipFamily().load(siglip2, LoadOptions(max_batch=2, image_size=size))
    height, width = size or (32, 32)
    images = [picture.resize((width * 5 // 2, height * 5 // 2)) for picture in pictures()]
    patches = height * width // 64
    processor = AutoImageProcessor.from_pretrained(siglip2, backend="pil", max_num_patches=patches)
    original = Siglip2Model.from_pretrained(siglip2).eval()
    ids = torch.randint(5, 300, (3, LENGTH))
    with torch.no_grad():
        inputs = processor(images, return_tensors="pt")
        assert inputs.spatial_shapes.unique(dim=0).tolist() == [[height // 8, width // 8]]
        image, text = original.get_image_features(**inputs), original.get_text_features(ids)
        wanted = [torch.nn.functional.normalize(output.pooler_output, dim=-1) for output in (image, text)]
        pixels = load_pixels(images, ImagePreprocessing.from_json(model.preprocessing["image"]))
        assert (model.graphs["image_encoder"].module(torch.tensor(pixels)) - wanted[0]).abs().max() < 2e-6
        assert (model.graphs["text_encoder"].module(ids) - wanted[1]).abs().max() < 2e-6


@pytest.mark.parametrize("size", [(30, 32), (64, 64)])
def test_siglip2_refuses_a_size_that_its_patches_do_not_make(siglip2: Path, size: tuple[int, int]) -> None:
    with pytest.raises(UsageError):
        SiglipFamily().load(siglip2, LoadOptions(max_batch=2, image_size=size))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("preprocessor_config.json", {"size": {"height": 48, "width": 48}}),
        ("preprocessor_config.json", {"image_processor_type": "CLIPImageProcessor"}),
        ("preprocessor_config.json", {"resample": [3]}),
        ("preprocessor_config.json", {"rescale_factor": "1/255"}),
        ("config.json", {"text_config__projection_size": 24}),
        ("tokenizer_config.json", {"pad_token": "[PAD]"}),
        ("tokenizer_config.json", {"padding_side": "left"}),
        ("tokenizer.json", {"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}),
        ("tokenizer.json", {"normalizer": {"type": "Sequence"}}),
        ("tokenizer.json", {"model": {"type": "Unigram", "vocab": 3}}),
        ("tokenizer.json", {"added_tokens": [3]}),
        ("tokenizer.json", {"normalizer": {"type": "Replace", "pattern": 3, "content": ""}}),
    ],
)
def test_a_folder_whose_parts_do_not_fit_is_bad_input(
    siglip: Path, tmp_path: Path, name: str, changes: dict[str, Any]
) -> None:
    folder = changed(siglip, tmp_path / "changed", name, **changes)
    with pytest.raises(CheckpointError) as caught:
        family_of(folder).load(folder, OPTIONS)
    assert caught.value.exit_code == 5 and str(folder) in str(caught.value.where)


def with_large_activations(model: onnx.ModelProto) -> onnx.ModelProto:
    """``model`` with activations in its first layer that are 200,000 times larger. The next product undoes that."""
    bias = "encoder.layers.0.mlp.fc1.bias"
    (add,) = (node for node in model.graph.node if bias in node.input)
    product = next(node for node in model.graph.node if set(node.output) & set(add.input))
    (gelu,) = (node for node in model.graph.node if set(add.output) & set(node.input))
    undoing = next(node for node in model.graph.node if set(gelu.output) & set(node.input))
    factors = {product.input[1]: 2e5, bias: 2e5, undoing.input[1]: 1 / 2e5}
    for tensor in model.graph.initializer:
        if tensor.name in factors:
            array = numpy_helper.to_array(tensor) * np.float32(factors[tensor.name])
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return model


def test_activations_beyond_fp16_are_found_and_stay_in_fp32(bundle: Path) -> None:
    model = with_large_activations(onnx.load(bundle / "graphs/image_encoder.fp32.onnx"))
    preprocessing = Bundle.open(bundle).manifest.preprocessing["image"]
    feeds = [
        {"pixels": pixels[None]} for pixels in load_pixels(pictures(), ImagePreprocessing.from_json(preprocessing))
    ]
    assert max(ranges(model, feeds).values()) > LARGEST
    fp16 = Fp16(feeds)
    after = fp16(model)
    assert any("gelu" in name.lower() for name in fp16.islands) and len(fp16.islands) < len(model.graph.node) / 2

    def embeddings(graph: onnx.ModelProto) -> np.ndarray:
        rows = run(graph, feeds, ["image_embed"], optimized=False)
        return np.concatenate([row["image_embed"] for row in rows])

    exact = embeddings(model)
    assert difference(embeddings(rounded(after)), exact)[1] > 0.9999
    # Without islands, the embeddings are those of another model, or are not numbers.
    assert difference(embeddings(rounded(halve(model))), exact)[1] < 0.9
