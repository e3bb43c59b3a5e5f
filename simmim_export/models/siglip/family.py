"""SigLIP (Zhai et al., 2023) and SigLIP 2 (Tschannen et al., 2025): an image encoder, and a text encoder with a fixed length.

The text encoder has no mask and reads the last of its 64 positions, which is nearly always padding. So its axis is fixed, and
each text must be padded as in training. The checkpoints of SigLIP 2 with a fixed resolution have the model_type ``siglip``, too.
Those of ``siglip2`` (NaFlex) take any aspect ratio; they are exported at one size.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simmim_export.bundle.tokenizer_patterns import PUNCTUATION
from simmim_export.errors import CheckpointError, UsageError
from simmim_export.models.files import COPY_AGAIN
from simmim_export.models.huggingface.folder import CONFIG, TOKENIZER, Folder, open_folder, require_model_type
from simmim_export.models.huggingface.processor_settings import BICUBIC, BILINEAR, HALF, processor_settings
from simmim_export.spec import Axis, GraphSpec, Kind, Score, Similarity, TensorSpec
from simmim_export.system.telemetry import without_telemetry

if TYPE_CHECKING:
    from simmim_export.models.family import LoadOptions, SourceModel

TYPES = ("siglip", "siglip2")
TOKENIZER_CONFIG = "tokenizer_config.json"
# The settings of transformers' SiglipImageProcessor and Siglip2ImageProcessor.
_FIXED = {"resample": BICUBIC, "size": {"height": 224, "width": 224}, "image_mean": HALF, "image_std": HALF}
_FLEXIBLE = {"resample": BILINEAR, "image_mean": HALF, "image_std": HALF, "patch_size": 16, "max_num_patches": 256}


class SiglipFamily:
    """SiglipModel and Siglip2Model of transformers."""

    name = "siglip"

    def recognize(self, path: Path) -> None:
        require_model_type(path, TYPES)

    def load(self, path: Path, options: LoadOptions) -> SourceModel:
        folder = open_folder(path, model_types=TYPES)
        options.refuse("SigLIP", "attention", "answers")
        if folder.model_type == "siglip":
            options.refuse("SigLIP, whose images have one size,", "image_size")
        with without_telemetry("transformers"):
            from transformers import Siglip2Model, SiglipModel

        from simmim_export.models.family import Graph, SourceModel
        from simmim_export.models.huggingface.folder import load_weights
        from simmim_export.models.huggingface.image_processor import image_processor
        from simmim_export.models.huggingface.two_towers import (
            PIPELINES,
            bias_of,
            require_rgb,
            require_size,
            scale_of,
            vit_name,
        )
        from simmim_export.models.siglip.towers import ImageTower, TextTower
        from simmim_export.models.tokenizer import check_tokenizer

        if folder.model_type == "siglip":
            where, settings = processor_settings(folder, {"Siglip": _FIXED})
            processor = image_processor(settings, where=where)
            model = load_weights(folder, SiglipModel)
            require_size(processor.preprocessing, model.config.vision_config.image_size, where=path / CONFIG)
        else:
            where, settings = processor_settings(folder, {"Siglip2": _FLEXIBLE})
            model = load_weights(folder, Siglip2Model)
            settings["size"] = _size(settings, model.config.vision_config, options.image_size, where=path)
            processor = image_processor(settings, where=where)
        vision, text = model.config.vision_config, model.config.text_config
        require_rgb(vision, where=path / CONFIG)
        _check_towers(vision, text, where=path / CONFIG)
        tokenizer = tokenizer_json(folder, longest=text.max_position_embeddings)
        check_tokenizer(tokenizer, text.vocab_size, where=path / TOKENIZER)
        height, width = processor.preprocessing["height"], processor.preprocessing["width"]
        channels = vision.hidden_size
        batch = Axis("batch", 1, options.max_batch)
        pixels = TensorSpec("pixels", "uint8", ("batch", height, width, 3), Kind.IMAGE)
        ids = TensorSpec("input_ids", "int64", ("batch", text.max_position_embeddings), Kind.TOKEN_IDS)
        image_embed, text_embed = (
            TensorSpec(name, "float32", ("batch", channels), Kind.EMBEDDING) for name in ("image_embed", "text_embed")
        )
        image_graph = GraphSpec("image_encoder", (pixels,), (image_embed,), (batch,))
        text_graph = GraphSpec("text_encoder", (ids,), (text_embed,), (batch,))
        return SourceModel(
            config={
                "preset": vit_name(vision),
                "architecture": type(model).__name__,
                "image_size": [height, width],
                "max_length": text.max_position_embeddings,
                "embed_dim": channels,
            },
            graphs={
                "image_encoder": Graph(ImageTower(model.vision_model, processor).eval(), image_graph),
                "text_encoder": Graph(TextTower(model.text_model).eval(), text_graph),
            },
            pipelines=PIPELINES,
            preprocessing={"image": processor.preprocessing, "text": {"max_length": text.max_position_embeddings}},
            tokenizer=tokenizer,
            labels={},
            similarity=Similarity(
                scale=scale_of(model.logit_scale, where=path),
                bias=bias_of(model.logit_bias, where=path),
                score=Score.SIGMOID,
            ),
        )


def _check_towers(vision: Any, text: Any, *, where: Path) -> None:
    if not vision.vision_use_head:
        what = "vision_use_head is false: the image encoder gives no embedding"
        raise CheckpointError(what, where=where, fix="give a model that was trained with texts")
    if vision.hidden_size != text.projection_size:
        what = f"image embeddings have {vision.hidden_size} channels, text embeddings {text.projection_size}"
        raise CheckpointError(what, where=where, fix=COPY_AGAIN)


def _size(settings: Mapping[str, Any], vision: Any, asked: tuple[int, int] | None, *, where: Path) -> dict[str, object]:
    """The size of the images of a SigLIP 2 of any aspect ratio: ``asked``, (height, width) in pixels, or the largest square that
    its image processor makes. That processor resizes an image of the same aspect ratio in the same way."""
    patch, most, positions = settings["patch_size"], settings["max_num_patches"], vision.num_patches
    if patch != vision.patch_size or type(most) is not int or not 1 <= most <= 4096:
        what = f"patch_size is {patch!r} and max_num_patches {most!r}; the vision_config says {vision.patch_size!r}"
        raise CheckpointError(what, where=where, fix="give the image processor that belongs to this model")
    if math.isqrt(positions) ** 2 != positions:
        what = f"the vision_config has {positions} positions, which are not a square"
        raise CheckpointError(what, where=where / CONFIG, fix=COPY_AGAIN)
    side = patch * math.isqrt(most)
    height, width = asked or (side, side)
    if height % patch or width % patch or not 1 <= (height // patch) * (width // patch) <= most:
        what = f"images of {height} x {width} pixels are not 1 to {most} patches of {patch} x {patch}"
        raise UsageError(what, fix=f"give multiples of {patch}, for example --image-size {side}x{side}")
    return {"height": height, "width": width}


def tokenizer_json(folder: Folder, *, longest: int) -> str:
    """The text of the tokenizer.json of ``folder``, with everything that transformers' own tokenizers do besides.

    SiglipTokenizer (SigLIP's vocabulary, a Unigram) writes a text in lower case, drops ASCII punctuation and extra spaces, and
    pads with ``</s>``. Siglip2Tokenizer (Gemma's, a BPE) writes it in lower case and pads with ``<pad>``. Texts have ``longest``
    tokens. Raise :class:`CheckpointError` for a tokenizer of another kind, without that token, or that pads on the left.
    """
    where = folder.path / TOKENIZER
    try:
        content = json.loads(folder.tokenizer())
        kind = content["model"]["type"]
        steps = _steps(content.get("normalizer"))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CheckpointError(f"not a tokenizer.json: {error!r}", where=where, fix=COPY_AGAIN) from error
    settings = folder.read_json(TOKENIZER_CONFIG) if (folder.path / TOKENIZER_CONFIG).is_file() else {}
    if kind not in ("Unigram", "BPE"):
        what = f"its model is a {kind!r}; SigLIP has a Unigram, and SigLIP 2 a BPE"
        raise CheckpointError(what, where=where, fix="give the tokenizer that belongs to this model")
    if settings.get("padding_side", "right") != "right":
        what = f"padding_side is {settings['padding_side']!r}; these models were trained on texts that are padded on the right"
        raise CheckpointError(what, where=folder.path / TOKENIZER_CONFIG, fix="write right")
    lower = [{"type": "Lowercase"}]
    if kind == "Unigram":
        canonical = [
            *(lower if settings.get("do_lower_case", True) else []),
            _replace(PUNCTUATION, ""),
            _replace(r"\s+", " "),
            _STRIP,
        ]
        # Published files do a part of it themselves.
        while steps and (steps[0] in canonical or _drops_punctuation(steps[0])):
            del steps[0]
        steps = canonical + steps
    elif steps[:1] != lower:
        steps = lower + steps
    content["normalizer"] = {"type": "Sequence", "normalizers": steps}
    token = settings.get("pad_token") or ("</s>" if kind == "Unigram" else "<pad>")
    token = token.get("content") if isinstance(token, dict) else token
    content["padding"] = {
        "strategy": {"Fixed": longest},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": _id_of(content, token, where=where),
        "pad_type_id": 0,
        "pad_token": token,
    }
    return json.dumps(content, ensure_ascii=False)


_STRIP = {"type": "Strip", "strip_left": True, "strip_right": True}


def _replace(regex: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"Regex": regex}, "content": content}


def _drops_punctuation(step: object) -> bool:
    """Whether ``step`` drops nothing but ASCII punctuation."""
    if not isinstance(step, dict) or step.get("type") != "Replace" or step.get("content") != "":
        return False
    pattern = step.get("pattern")
    regex = pattern.get("Regex") if isinstance(pattern, dict) else None
    return isinstance(regex, str) and set(regex) <= set(PUNCTUATION)


def _steps(normalizer: Any) -> list[Any]:
    """The parts of ``normalizer``, that of a tokenizer.json."""
    if normalizer is None:
        return []
    return list(normalizer["normalizers"]) if normalizer["type"] == "Sequence" else [normalizer]


def _id_of(content: Mapping[str, Any], token: object, *, where: Path) -> Any:
    try:
        vocabulary = content["model"]["vocab"]
        pairs = (
            vocabulary.items() if isinstance(vocabulary, dict) else ((row[0], i) for i, row in enumerate(vocabulary))
        )
        ids = dict(pairs) | {added["content"]: added["id"] for added in content.get("added_tokens", [])}
    except (TypeError, KeyError, IndexError) as error:
        raise CheckpointError(f"not a tokenizer.json: {error!r}", where=where, fix=COPY_AGAIN) from error
    if not isinstance(token, str) or token not in ids:
        what = f"it has no token {token!r}, with which texts are padded"
        raise CheckpointError(what, where=where, fix="give the tokenizer that belongs to this model")
    if type(ids[token]) is not int:
        raise CheckpointError(f"the id of {token!r} is {ids[token]!r}", where=where, fix=COPY_AGAIN)
    return ids[token]
