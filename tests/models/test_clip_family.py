"""CLIP from its folders: pixels, tokens and embeddings as transformers and open_clip give them, and folders that are refused."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
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
from safetensors.torch import load_file, save_file
from support import Once
from torch.nn.functional import normalize
from torchvision.transforms.functional import InterpolationMode, center_crop, resize
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel, CLIPProcessor, MetaClip2Model

from simmim_export import load
from simmim_export.errors import CheckpointError, SimmimError, TruncatedText, UsageError
from simmim_export.export.bundled_samples import FOLDER, PHOTOGRAPHS, sample_images, sample_texts
from simmim_export.models.clip.family import CLIPFamily
from simmim_export.models.family import LoadOptions, SourceModel, family_of
from simmim_export.runtime.images import ImagePreprocessing, load_pixels
from simmim_export.runtime.text import Tokenizer
from simmim_export.spec import Score, Similarity

OPTIONS = LoadOptions(max_batch=2)
FAMILY = CLIPFamily()
# Float32 sums in another order. The worst that was measured is 5.3e-7.
CLOSE = 2e-6


@pytest.fixture(scope="session")
def clip(once: Once) -> Path:
    return once("clip", save_clip)


@pytest.fixture(scope="session")
def open_clip(once: Once) -> Path:
    return once("open-clip", lambda path: save_open_clip(path, quick_gelu=False, archive=False))


@pytest.fixture
def copied(clip: Path, tmp_path: Path) -> Path:
    return shutil.copytree(clip, tmp_path / "copied")


@pytest.fixture(scope="session")
def bundle(once: Once, clip: Path) -> Path:
    from simmim_export.export.exporter import export_bundle

    return once("clip-bundle", lambda path: export_bundle(clip, path, max_batch=2))


def change(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Edit the object in a JSON file."""
    content = json.loads(path.read_text(encoding="utf-8"))
    edit(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def encoded(model: SourceModel, texts: list[str]) -> torch.Tensor:
    graph = model.graphs["text_encoder"]
    tokenizer = Tokenizer(model.tokenizer, model.preprocessing["text"]["max_length"], graphs=[graph.spec])
    ids, _ = tokenizer.encode(texts)
    with torch.inference_mode():
        return graph.module(torch.from_numpy(ids))


def test_recognizing_a_folder_does_not_import_pytorch(clip: Path, open_clip: Path) -> None:
    code = "import sys; from pathlib import Path; from simmim_export.models.family import family_of\n"
    code += "print(*(family_of(Path(p)).name for p in sys.argv[1:]), *{'torch', 'transformers'} & set(sys.modules))"
    command = [sys.executable, "-c", code, clip, open_clip]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["clip", "clip"], done.stderr


@pytest.mark.parametrize(("eos", "activation"), [(2, "quick_gelu"), (None, "gelu")])
def test_embeddings_are_those_of_transformers(clip: Path, tmp_path: Path, eos: int | None, activation: str) -> None:
    folder = clip if eos == 2 else save_clip(tmp_path / "clip", eos=eos, activation=activation, shards=True)
    model, theirs = FAMILY.load(folder, OPTIONS), CLIPModel.from_pretrained(folder)
    photographs = [Image.open(FOLDER / name) for name in PHOTOGRAPHS]
    pixels = load_pixels(photographs, ImagePreprocessing.from_json(model.preprocessing["image"]))
    values = AutoImageProcessor.from_pretrained(folder, backend="pil")(photographs, return_tensors="pt").pixel_values
    texts = [*sample_texts()[:12], " ".join(corpus()[:30]), "a <|endoftext|> inside"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(texts, padding=True, truncation=True, max_length=LONGEST, return_tensors="pt")
    with torch.inference_mode(), pytest.warns(TruncatedText):
        images = model.graphs["image_encoder"].module(torch.from_numpy(pixels))
        embedded = encoded(model, texts)
        expected_images = normalize(theirs.get_image_features(pixel_values=values).pooler_output, dim=-1)
        expected = normalize(theirs.get_text_features(**ids).pooler_output, dim=-1)
    assert (images - expected_images).abs().max() < CLOSE
    assert (embedded - expected).abs().max() < CLOSE
    # Different inputs must be far apart, or the comparison shows nothing.
    assert (images[0] - images[1]).abs().max() > 0.01
    assert (embedded[0] - embedded[1]).abs().max() > 0.01
    assert model.similarity == Similarity(
        scale=pytest.approx(float(theirs.logit_scale.detach().exp())), score=Score.SOFTMAX
    )


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
def test_pixels_are_those_of_transformers(copied: Path, side: int) -> None:
    change(copied / "preprocessor_config.json", lambda c: c.update(size={"shortest_edge": side}, crop_size=side))
    change(copied / "preprocessor_config.json", lambda c: c.update(do_normalize=False, do_rescale=False))
    theirs = AutoImageProcessor.from_pretrained(copied, backend="pil")
    own = ImagePreprocessing(side, side, resize="crop", interpolation="bicubic", shortest=side)
    for picture in pictures():
        expected = theirs(picture.convert("RGB"), return_tensors="np").pixel_values[0]
        assert expected.dtype == np.uint8
        np.testing.assert_array_equal(load_pixels([picture], own)[0], expected.transpose(1, 2, 0))


def test_pixels_are_those_of_open_clip_up_to_a_margin_that_is_rounded_otherwise(
    open_clip: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(open_clip, tmp_path / "folder")
    change(folder / "open_clip_config.json", lambda c: c["preprocess_cfg"].update(interpolation="bicubic"))
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


def test_tokens_of_a_thousand_texts_are_those_of_transformers(clip: Path) -> None:
    model, texts = FAMILY.load(clip, OPTIONS), thousand_texts()
    expected = AutoTokenizer.from_pretrained(clip)(texts, truncation=True)["input_ids"]
    own = Tokenizer(model.tokenizer, LONGEST, graphs=[model.graphs["text_encoder"].spec])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ids, mask = own.encode(texts)
    assert [row[: sum(kept)].tolist() for row, kept in zip(ids, mask, strict=True)] == expected
    assert sum(issubclass(warning.category, TruncatedText) for warning in caught) > 20


def test_a_text_in_a_longer_batch_has_the_same_embedding(clip: Path) -> None:
    model = FAMILY.load(clip, OPTIONS)
    alone, together = encoded(model, ["a red circle"]), encoded(model, ["a red circle", " ".join(corpus()[:4])])
    assert (alone[0] - together[0]).abs().max() < CLOSE
    ids = Tokenizer(model.tokenizer, LONGEST).encode(["a red circle"])[0][0].tolist()
    # transformers pads with the end token, and open_clip with 0.
    for padding in (ids[-1], 0):
        padded = torch.tensor([ids + [padding] * 9])
        with torch.inference_mode():
            assert (model.graphs["text_encoder"].module(padded)[0] - alone[0]).abs().max() < CLOSE


def test_a_bundle_gives_the_embeddings_of_transformers(clip: Path, bundle: Path) -> None:
    theirs, processor = CLIPModel.from_pretrained(clip), AutoImageProcessor.from_pretrained(clip, backend="pil")
    texts = ["a red circle", "two dogs run along the beach in the evening", "it's 3 o'clock"]
    photographs = [FOLDER / name for name in PHOTOGRAPHS]
    values = processor([Image.open(path) for path in photographs], return_tensors="pt").pixel_values
    ids = AutoTokenizer.from_pretrained(clip)(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        images = normalize(theirs.get_image_features(pixel_values=values).pooler_output, dim=-1)
        embedded = normalize(theirs.get_text_features(**ids).pooler_output, dim=-1)
    model = load(bundle)
    np.testing.assert_allclose(model.embed_image(photographs), images, atol=CLOSE)
    np.testing.assert_allclose(model.embed_text(texts), embedded, atol=CLOSE)


def test_a_processor_that_transformers_5_saved_is_read(copied: Path) -> None:
    before = FAMILY.load(copied, OPTIONS).preprocessing
    processor = CLIPProcessor(
        AutoImageProcessor.from_pretrained(copied, backend="pil"), AutoTokenizer.from_pretrained(copied)
    )
    (copied / "preprocessor_config.json").unlink()
    processor.save_pretrained(copied)
    assert (copied / "processor_config.json").is_file()
    assert FAMILY.load(copied, OPTIONS).preprocessing == before


# -- folders that are refused ----------------------------------------------------------------------------------------------


def unlink(*names: str) -> Callable[[Path], None]:
    return lambda folder: [(folder / name).unlink() for name in names] and None


def edit(name: str, change_it: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    return lambda folder: change(folder / name, change_it)


def truncate(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


class Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("executed"),)


def with_code(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"logit_scale": Code(), "padding": torch.zeros(300_000)}, folder / "pytorch_model.bin")


def without_shard(folder: Path) -> None:
    model = CLIPModel.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="200KB")
    sorted(folder.glob("model-*.safetensors"))[1].unlink()


def without_a_weight(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    del state["text_projection.weight"]
    save_file(state, folder / "model.safetensors", {"format": "pt"})


BAD: dict[str, Callable[[Path], object]] = {
    "no weights": unlink("model.safetensors"),
    "no tokenizer": unlink("tokenizer.json"),
    "no processor": unlink("preprocessor_config.json"),
    "truncated weights": truncate,
    "weights with code": with_code,
    "a missing shard": without_shard,
    "a missing weight": without_a_weight,
    "no JSON": lambda folder: (folder / "config.json").write_text("{", encoding="utf-8"),
    "code of its own": edit("config.json", lambda c: c.update(auto_map={"AutoModel": "model.Model"})),
    "another width": edit("config.json", lambda c: c["vision_config"].update(hidden_size=32)),
    "more layers": edit("config.json", lambda c: c["text_config"].update(num_hidden_layers=3)),
    "more layers than any": edit("config.json", lambda c: c["text_config"].update(num_hidden_layers=10**9)),
    "more weights than memory": edit("config.json", lambda c: c["text_config"].update(vocab_size=10**10)),
    "nonsense": edit("config.json", lambda c: c["text_config"].update(hidden_size="wide")),
    "another image size": edit("preprocessor_config.json", lambda c: c.update(crop_size=24)),
    "another processor": edit("preprocessor_config.json", lambda c: c.update(image_processor_type="ViTImageProcessor")),
    "an odd filter": edit("preprocessor_config.json", lambda c: c.update(resample=[3])),
    "another filter": edit("preprocessor_config.json", lambda c: c.update(resample=0)),
    "an odd factor": edit("preprocessor_config.json", lambda c: c.update(rescale_factor=None)),
    "a mean that is no number": edit(
        "preprocessor_config.json", lambda c: c.update(image_mean=[0.5, float("nan"), 0.5])
    ),
    "another end token": edit("config.json", lambda c: c["text_config"].update(eos_token_id=5)),
    "no end token": edit("tokenizer.json", lambda c: c.update(post_processor=None)),
    "no tokenizer.json": lambda folder: (folder / "tokenizer.json").write_text("[]", encoding="utf-8"),
    "a small vocabulary": edit("config.json", lambda c: c["text_config"].update(vocab_size=100)),
    "few positions": edit("config.json", lambda c: c["text_config"].update(max_position_embeddings=2)),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_folder_is_one_error(copied: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(copied.parent)
    BAD[name](copied)
    with pytest.raises(CheckpointError) as raised:
        FAMILY.load(copied, OPTIONS)
    assert raised.value.exit_code == 5
    assert str(copied) in str(raised.value.where)
    assert not Path("executed").exists()


def test_a_token_above_the_end_token_is_an_error_if_texts_are_pooled_at_the_largest_id(copied: Path) -> None:
    def add(content: dict[str, Any]) -> None:
        content["added_tokens"].append(
            content["added_tokens"][-1] | {"id": len(content["model"]["vocab"]), "content": "<x>"}
        )

    change(copied / "tokenizer.json", add)
    with pytest.raises(CheckpointError):
        FAMILY.load(copied, OPTIONS)


BAD_OPEN_CLIP: dict[str, Callable[[dict[str, Any]], object]] = {
    "ResNet": lambda c: c["model_cfg"]["vision_cfg"].update(layers=[3, 4, 6, 3]),
    "timm": lambda c: c["model_cfg"]["vision_cfg"].update(timm_model_name="vit_base_patch16_224"),
    "Hugging Face": lambda c: c["model_cfg"]["text_cfg"].update(hf_model_name="xlm-roberta-base"),
    "CoCa": lambda c: c["model_cfg"].update(multimodal_cfg={"width": 64}),
    "SigLIP": lambda c: c["model_cfg"].update(init_logit_bias=-10),
    "custom text": lambda c: c["model_cfg"].update(custom_text=True),
    "no causal mask": lambda c: c["model_cfg"]["text_cfg"].update(no_causal_mask=True),
    "pooled elsewhere": lambda c: c["model_cfg"]["text_cfg"].update(pool_type="last"),
    "an unknown option": lambda c: c["model_cfg"]["text_cfg"].update(rotary=False),
    "huge": lambda c: c["model_cfg"]["text_cfg"].update(layers=10**9),
    "wide": lambda c: c["model_cfg"]["text_cfg"].update(vocab_size=1 << 20, width=1 << 20),
    "heads": lambda c: c["model_cfg"]["text_cfg"].update(heads=3),
    "padded": lambda c: c["preprocess_cfg"].update(resize_mode="longest"),
    "no model": lambda c: c.pop("model_cfg"),
    "no object": lambda c: c.update(model_cfg=3),
    "another depth": lambda c: c["model_cfg"]["vision_cfg"].update(layers=1),
}


@pytest.mark.parametrize("name", BAD_OPEN_CLIP)
def test_another_model_of_open_clip_is_one_error(open_clip: Path, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(open_clip, tmp_path / "folder")
    change(folder / "open_clip_config.json", BAD_OPEN_CLIP[name])
    assert family_of(folder).name == "clip"
    with pytest.raises(CheckpointError) as raised:
        FAMILY.load(folder, OPTIONS)
    assert raised.value.exit_code == 5
    assert str(folder) in str(raised.value.where)


def test_code_in_weights_of_open_clip_is_not_executed(
    open_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(open_clip, tmp_path / "folder")
    monkeypatch.chdir(tmp_path)
    (folder / "open_clip_model.safetensors").unlink()
    torch.save({"logit_scale": Code()}, folder / "open_clip_pytorch_model.bin")
    with pytest.raises(CheckpointError) as raised:
        FAMILY.load(folder, OPTIONS)
    assert raised.value.where == str(folder / "open_clip_pytorch_model.bin")
    assert not Path("executed").exists()


@pytest.mark.parametrize("missing", ["open_clip_model.safetensors", "tokenizer.json"])
def test_a_folder_of_open_clip_without_a_file_is_one_error(open_clip: Path, tmp_path: Path, missing: str) -> None:
    folder = shutil.copytree(open_clip, tmp_path / "folder")
    (folder / missing).unlink()
    with pytest.raises(CheckpointError):
        FAMILY.load(folder, OPTIONS)


def test_a_folder_of_both_kinds_is_read_as_one_of_transformers(copied: Path) -> None:
    written = open_clip_config(10, quick_gelu=False)
    (copied / "open_clip_config.json").write_text(json.dumps(written), encoding="utf-8")
    assert FAMILY.load(copied, OPTIONS).config["architecture"] == "CLIPModel"


@pytest.mark.parametrize("option", [{"attention": True}, {"answers": ("yes",)}, {"image_size": (64, 64)}])
def test_an_option_without_a_use_is_an_error(clip: Path, option: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as raised:
        FAMILY.load(clip, LoadOptions(max_batch=2, **option))
    assert isinstance(raised.value, SimmimError)
    assert raised.value.exit_code == 2
