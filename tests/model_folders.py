"""Tiny models with random weights, as an export reads them: a row for every architecture of every model family.

tests/contracts/test_families.py goes through the rows, so a new family adds one here. The fixtures ``family_model``,
``family_source`` and ``family_bundle`` of conftest.py give the model of a row, loaded and exported, to every test that wants it.
"""

from __future__ import annotations

import json
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretrained import WORDPIECES, save_random
from support import make_checkpoint, unigram_tokenizer, word_tokenizer

from simmim_export.export.bundled_samples import sample_texts
from simmim_export.export.limits import MAX_BATCH

if TYPE_CHECKING:
    from simmim_export.models.family import SourceModel


@dataclass(frozen=True, kw_only=True)
class Row:
    """A model of ``family``, which ``write`` makes.

    ``options`` are the :class:`simmim_export.models.family.LoadOptions` that it has a use for, with a value for each; it has to
    refuse all others. It is a folder of transformers unless ``layout`` says otherwise. It is exported unless another row has
    graphs of the same kind.
    """

    family: str
    write: Callable[[Path], object]
    options: Mapping[str, Any] = field(default_factory=dict)
    layout: str = "transformers"
    exported: bool = True
    max_batch: int = 2

    def load(self, path: Path) -> SourceModel:
        """The model at ``path``, with the options of this row."""
        from simmim_export.models.family import LoadOptions, family_of

        return family_of(path, name=self.family).load(path, LoadOptions(max_batch=self.max_batch, **self.options))


# The side of the images in pixels, if nothing else is said.
SIDE = 32
_TOWER = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}


def _save(model: Any, processor: Any, folder: Path, *, tokenizer: str) -> None:
    """Write a two-tower ``model`` with random biases and positions, which transformers begins with zeros."""
    import torch

    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
        model.logit_scale.fill_(2.0)
        if hasattr(model, "logit_bias"):
            model.logit_bias.fill_(-3.0)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tokenizer, encoding="utf-8")


# -- CLIP ------------------------------------------------------------------------------------------------------------------


def write_clip(path: Path) -> None:
    from clip_folders import save_clip

    save_clip(path)


def write_open_clip(path: Path) -> None:
    from clip_folders import save_open_clip

    save_open_clip(path, quick_gelu=False, archive=False)


# -- SigLIP ----------------------------------------------------------------------------------------------------------------

SIGLIP_LENGTH = 64
SIGLIP_TEXT = _TOWER | {"vocab_size": 400, "max_position_embeddings": SIGLIP_LENGTH, "projection_size": 32}
UNIGRAM = [*string.ascii_lowercase, "/<>", *(f"\u2581{word}" for word in " ".join(sample_texts()).lower().split())]


def siglip_tokenizer() -> dict[str, Any]:
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


def write_siglip(path: Path) -> None:
    import torch
    from transformers import SiglipConfig, SiglipImageProcessor, SiglipModel

    torch.manual_seed(0)
    config = SiglipConfig(text_config=SIGLIP_TEXT, vision_config=_TOWER | {"image_size": SIDE, "patch_size": 8})
    processor = SiglipImageProcessor(size={"height": SIDE, "width": SIDE})
    _save(SiglipModel(config), processor, path, tokenizer=json.dumps(siglip_tokenizer()))


def write_siglip2(path: Path) -> None:
    import torch
    from transformers import Siglip2Config, Siglip2ImageProcessor, Siglip2Model

    torch.manual_seed(0)
    config = Siglip2Config(text_config=SIGLIP_TEXT, vision_config=_TOWER | {"num_patches": 9, "patch_size": 8})
    processor = Siglip2ImageProcessor(patch_size=8, max_num_patches=16)
    _save(Siglip2Model(config), processor, path, tokenizer=json.dumps(gemma_tokenizer()))


# -- dual encoders ---------------------------------------------------------------------------------------------------------

DUAL_LENGTH = 20
DUAL_TEXT = _TOWER | {"vocab_size": 60, "max_position_embeddings": DUAL_LENGTH}
_DUAL_VISION = _TOWER | {"image_size": SIDE, "patch_size": 8}
_DUAL_CHANNELS = 24
_CROP = {"size": {"shortest_edge": SIDE + 4}, "crop_size": {"height": SIDE, "width": SIDE}}


def _write_dual(path: Path, vision: Any, text: Any, processor: Any) -> None:
    import torch
    from transformers import VisionTextDualEncoderConfig, VisionTextDualEncoderModel

    torch.manual_seed(0)
    config = VisionTextDualEncoderConfig.from_vision_text_configs(vision, text, projection_dim=_DUAL_CHANNELS)
    _save(VisionTextDualEncoderModel(config), processor, path, tokenizer=word_tokenizer())


def write_vit_bert(path: Path) -> None:
    """Its image processor is in processor_config.json, where version 5 of transformers writes it."""
    from transformers import BertConfig, ViTConfig, ViTImageProcessor

    processor = ViTImageProcessor(size={"height": SIDE, "width": SIDE})
    _write_dual(path, ViTConfig(**_DUAL_VISION), BertConfig(**DUAL_TEXT), processor)
    settings = path / "preprocessor_config.json"
    joint = {"image_processor": json.loads(settings.read_text()), "processor_class": "VisionTextDualEncoderProcessor"}
    (path / "processor_config.json").write_text(json.dumps(joint), encoding="utf-8")
    settings.unlink()


def write_clip_roberta(path: Path) -> None:
    from transformers import AutoConfig, CLIPImageProcessor, CLIPVisionConfig

    text = AutoConfig.for_model("roberta", **DUAL_TEXT, pad_token_id=0)
    _write_dual(path, CLIPVisionConfig(**_DUAL_VISION), text, CLIPImageProcessor(**_CROP))


def write_chinese_clip(path: Path) -> None:
    import torch
    from transformers import ChineseCLIPConfig, ChineseCLIPImageProcessor, ChineseCLIPModel

    torch.manual_seed(0)
    config = ChineseCLIPConfig(text_config=DUAL_TEXT, vision_config=_DUAL_VISION, projection_dim=_DUAL_CHANNELS)
    _save(ChineseCLIPModel(config), ChineseCLIPImageProcessor(**_CROP), path, tokenizer=word_tokenizer())


# -- BLIP and ViLT ---------------------------------------------------------------------------------------------------------

LONGEST, BEGIN, END = 14, len(WORDPIECES), WORDPIECES["[SEP]"]
# Some begin like others, and one is the beginning of another.
BLIP_ANSWERS = ("two", "two dogs", "two small cats", "red", "yes", "two dog", "a small round square")
VILT_SIZE, VILT_SQUARE = (96, 128), (96, 96)
VILT_LABELS = ("yes", "no", "red", "two dogs", "2")
_FUSED = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}
_BLIP_PROCESSOR = {
    "image_processor_type": "BlipImageProcessor",
    "size": {"height": SIDE, "width": SIDE},
    "resample": 3,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
_VILT_PROCESSOR = {
    "image_processor_type": "ViltImageProcessor",
    "size": {"shortest_edge": 96},
    "size_divisor": 32,
    "resample": 3,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "do_pad": True,
}


def _write_blip(path: Path, architecture: str, *, layers: int) -> None:
    import transformers

    text = {"vocab_size": len(WORDPIECES) + 2, "num_hidden_layers": layers, "max_position_embeddings": LONGEST}
    text |= {"bos_token_id": BEGIN, "sep_token_id": END}
    image = {"num_hidden_layers": 1, "image_size": SIDE, "patch_size": 16}
    config = transformers.BlipConfig(text_config=_FUSED | text, vision_config=_FUSED | image, image_text_hidden_size=16)
    save_random(getattr(transformers, architecture)(config), path, processor=_BLIP_PROCESSOR)


def write_blip_itm(path: Path) -> None:
    _write_blip(path, "BlipForImageTextRetrieval", layers=1)


def write_blip_vqa(path: Path) -> None:
    # With one layer, no answer would see what a prefix has become.
    _write_blip(path, "BlipForQuestionAnswering", layers=2)


def _write_vilt(path: Path, architecture: str, **fields: Any) -> None:
    import transformers

    # The positions are 2 x 2, and both tests of parity need more.
    sizes = {"vocab_size": len(WORDPIECES), "max_position_embeddings": LONGEST, "image_size": 64}
    config = transformers.ViltConfig(**_FUSED, **sizes, num_hidden_layers=1, **fields)
    save_random(getattr(transformers, architecture)(config), path, processor=_VILT_PROCESSOR)


def write_vilt_vqa(path: Path) -> None:
    names = dict(enumerate(VILT_LABELS))
    _write_vilt(
        path, "ViltForQuestionAnswering", id2label=names, label2id={label: index for index, label in names.items()}
    )


def write_vilt_itr(path: Path) -> None:
    _write_vilt(path, "ViltForImageAndTextRetrieval")


# -- SimMIM ----------------------------------------------------------------------------------------------------------------


def write_simmim(path: Path) -> None:
    """With every head, and a video encoder."""
    from simmim_export.models.simmim.heads import HEADS

    make_checkpoint(path, heads=tuple(HEADS), frames=8)


ROWS: Mapping[str, Row] = {
    "clip": Row(family="clip", write=write_clip),
    "open_clip": Row(family="clip", write=write_open_clip, layout="open_clip", exported=False),
    "siglip": Row(family="siglip", write=write_siglip),
    "siglip2": Row(family="siglip", write=write_siglip2, options={"image_size": (16, 40)}, exported=False),
    "vit_bert": Row(family="dual_encoder", write=write_vit_bert),
    "clip_roberta": Row(family="dual_encoder", write=write_clip_roberta, exported=False),
    "chinese_clip": Row(family="dual_encoder", write=write_chinese_clip, exported=False),
    "blip_itm": Row(family="blip", write=write_blip_itm),
    "blip_vqa": Row(family="blip", write=write_blip_vqa, options={"answers": BLIP_ANSWERS}),
    "vilt_vqa": Row(family="vilt", write=write_vilt_vqa, options={"image_size": VILT_SIZE}),
    "vilt_itr": Row(family="vilt", write=write_vilt_itr, options={"image_size": VILT_SQUARE}),
    "simmim": Row(
        family="simmim", write=write_simmim, options={"attention": True}, layout="simmim", max_batch=MAX_BATCH
    ),
}
