"""SigLIP and SigLIP 2 from a folder of transformers, compared with transformers itself. The weights are random."""

from __future__ import annotations

import json
import random
import re
import string
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from PIL import Image
from support import Once, unigram_tokenizer
from tokenizers import Tokenizer as Library

import simmim_export
from simmim_export.bundle import Bundle
from simmim_export.errors import CheckpointError, TruncatedText, UsageError
from simmim_export.export.bundled_samples import sample_images, sample_texts
from simmim_export.export.exporter import export_bundle
from simmim_export.export.golden import make_golden
from simmim_export.models.family import LoadOptions, family_of
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

SIDE, LENGTH, ROWS = 32, 64, 200
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
TEXT = TINY | {"vocab_size": 400, "max_position_embeddings": LENGTH, "projection_size": 32}
OPTIONS = LoadOptions(max_batch=3)
UNIGRAM = [*string.ascii_lowercase, "/<>", *(f"\u2581{word}" for word in " ".join(sample_texts()).lower().split())]


def published_tokenizer() -> dict[str, Any]:
    """A tokenizer.json with the parts of SigLIP's, which drops less punctuation than its own tokenizer does."""
    content = json.loads(unigram_tokenizer(dict.fromkeys(UNIGRAM)))
    punctuation = r"""[!"\#\$%\&'\(\)\*\+,\-\.:;=\?@\[\\\]\^_`\{\|\}\~]"""
    steps = [
        {"type": "Lowercase"},
        {"type": "Replace", "pattern": {"Regex": punctuation}, "content": ""},
        {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
        {"type": "Strip", "strip_left": True, "strip_right": True},
    ]
    content["normalizer"]["normalizers"][:0] = steps
    return content


def gemma_tokenizer() -> dict[str, Any]:
    """A tokenizer.json with the parts of Gemma's: bytes for unknown characters, and no lower case."""
    letters = [*"\u2581!,.'", *string.ascii_letters]
    words = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    words += ["th", "the", "\u2581the"]
    merges = [("t", "h"), ("th", "e"), ("\u2581", "the")]
    special = [
        {"id": i, "content": word, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        for i, word in enumerate(words[:5])
    ]
    model = {"type": "BPE", "vocab": {word: i for i, word in enumerate(words)}, "merges": merges}
    template = [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "<eos>", "type_id": 0}}]
    return {
        "version": "1.0",
        "added_tokens": [token | {"special": True} for token in special],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": template,
            "pair": template,
            "special_tokens": {"<eos>": {"id": "<eos>", "ids": [1], "tokens": ["<eos>"]}},
        },
        "model": model | {"unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True},
    }


def write_folder(path: Path, kind: str = "siglip") -> None:
    """A folder of transformers with a tiny model of the model_type ``kind``."""
    from transformers import (
        Siglip2Config,
        Siglip2ImageProcessor,
        Siglip2Model,
        SiglipConfig,
        SiglipImageProcessor,
        SiglipModel,
    )

    torch.manual_seed(0)
    if kind == "siglip":
        config = SiglipConfig(text_config=TEXT, vision_config=TINY | {"image_size": SIDE, "patch_size": 8})
        model, processor = SiglipModel(config), SiglipImageProcessor(size={"height": SIDE, "width": SIDE})
    else:
        config = Siglip2Config(text_config=TEXT, vision_config=TINY | {"num_patches": 9, "patch_size": 8})
        model, processor = Siglip2Model(config), Siglip2ImageProcessor(patch_size=8, max_num_patches=16)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
        model.logit_scale.fill_(2.0)
        model.logit_bias.fill_(-3.0)
    model.save_pretrained(path)
    processor.save_pretrained(path)
    tokenizer = published_tokenizer() if kind == "siglip" else gemma_tokenizer()
    (path / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")


@pytest.fixture(scope="session")
def siglip(once: Once) -> Path:
    return once("siglip", write_folder)


@pytest.fixture(scope="session")
def siglip2(once: Once) -> Path:
    return once("siglip2", lambda path: write_folder(path, "siglip2"))


@pytest.fixture(scope="session")
def bundle(once: Once, siglip: Path) -> Path:
    return once("siglip-bundle", lambda path: export_bundle(siglip, path, max_batch=2))


def edited(folder: Path, into: Path, name: str, **changes: Any) -> Path:
    """A copy of ``folder`` whose JSON file ``name`` has ``changes``."""
    into.mkdir()
    for file in folder.iterdir():
        (into / file.name).symlink_to(file)
    content = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
    (into / name).unlink(missing_ok=True)
    (into / name).write_text(json.dumps(content | changes), encoding="utf-8")
    return into


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


def test_a_siglip_folder_is_recognized(siglip: Path, siglip2: Path) -> None:
    assert all(isinstance(family_of(folder), SiglipFamily) for folder in (siglip, siglip2))


def test_a_bundle_gives_the_embeddings_of_transformers(siglip: Path, bundle: Path) -> None:
    from transformers import AutoImageProcessor, SiglipModel

    original = SiglipModel.from_pretrained(siglip).eval()
    pixels = AutoImageProcessor.from_pretrained(siglip, backend="pil")(pictures(), return_tensors="pt").pixel_values
    model = simmim_export.load(bundle)
    tokenizer = Library.from_str(json.dumps(published_tokenizer()))
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


def test_pixels_are_those_of_transformers(siglip: Path) -> None:
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(siglip, backend="pil")
    raw = processor(pictures(), do_rescale=False, do_normalize=False, return_tensors="np").pixel_values
    preprocessing = ImagePreprocessing.from_json(SiglipFamily().load(siglip, OPTIONS).preprocessing["image"])
    assert np.array_equal(load_pixels(pictures(), preprocessing), raw.transpose(0, 2, 3, 1))


def test_golden_texts_have_the_fixed_length_and_its_padding(siglip: Path) -> None:
    model = SiglipFamily().load(siglip, OPTIONS)
    images, texts = sample_images(model.preprocessing["image"]), sample_texts()
    golden = make_golden(replace(model, images=images, texts=texts), 3)
    tokenizer = Tokenizer(model.tokenizer, LENGTH, graphs=[graph.spec for graph in model.graphs.values()])
    for case in golden.cases.values():
        ids = case["input_ids"]
        assert ids.shape[1] == LENGTH and "attention_mask" not in case
        for row in range(1, len(ids), 2):
            assert np.array_equal(ids[row], tokenizer.encode([texts[row]])[0][0]) and ids[row, -1] == 1


@pytest.mark.parametrize("published", [True, False])
def test_ids_are_those_of_siglips_own_tokenizer(siglip: Path, tmp_path: Path, published: bool) -> None:
    plain = json.loads(unigram_tokenizer(dict.fromkeys(UNIGRAM)))
    folder = siglip if published else edited(siglip, tmp_path / "plain", "tokenizer.json", **plain)
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

    model = SiglipFamily().load(siglip2, LoadOptions(max_batch=3, image_size=size))
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


def test_options_that_siglip_has_no_use_for_are_usage_errors(siglip: Path, siglip2: Path) -> None:
    for folder, options in (
        (siglip, LoadOptions(max_batch=2, answers=("yes", "no"))),
        (siglip, LoadOptions(max_batch=2, image_size=(64, 64))),
        (siglip2, LoadOptions(max_batch=2, image_size=(30, 32))),
        (siglip2, LoadOptions(max_batch=2, image_size=(64, 64))),
    ):
        with pytest.raises(UsageError):
            SiglipFamily().load(folder, options)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("preprocessor_config.json", {"size": {"height": 48, "width": 48}}),
        ("preprocessor_config.json", {"image_processor_type": "CLIPImageProcessor"}),
        ("preprocessor_config.json", {"resample": [3]}),
        ("preprocessor_config.json", {"rescale_factor": "1/255"}),
        ("config.json", {"auto_map": {"AutoModel": "modeling.Model"}}),
        ("config.json", {"text_config": TEXT | {"projection_size": 24}}),
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
    folder = edited(siglip, tmp_path / "edited", name, **changes)
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
