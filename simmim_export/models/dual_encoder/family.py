"""Dual encoders of transformers: VisionTextDualEncoderModel, two encoders of any kind, and ChineseCLIPModel.

transformers itself cannot run a VisionTextDualEncoderModel with a ResNet (its configuration has no hidden_size), nor with a text
encoder without a pooler.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from simmim_export.errors import CheckpointError
from simmim_export.models.files import COPY_AGAIN
from simmim_export.models.huggingface.folder import CONFIG, TOKENIZER, Folder, open_folder, require_model_type
from simmim_export.models.huggingface.processor_settings import BILINEAR, CLIP, HALF, processor_settings
from simmim_export.models.huggingface.text_models import TEXT_FAMILIES, text_positions
from simmim_export.spec import Axis, GraphSpec, Kind, Similarity, TensorSpec
from simmim_export.system.telemetry import without_telemetry

if TYPE_CHECKING:
    from simmim_export.models.family import LoadOptions, SourceModel

TYPES = ("vision-text-dual-encoder", "chinese_clip")
VISION_TYPES = ("vit", "clip_vision_model")
# transformers gives their output no pooler_output, which VisionTextDualEncoderModel reads.
WITHOUT_POOLER = ("distilbert", "electra", "nomic_bert")
TEXT_TYPES = tuple(name for name in TEXT_FAMILIES if name not in WITHOUT_POOLER)
# The most tokens of a text, if neither the tokenizer nor the positions allow fewer.
MOST_TOKENS = 512
# The settings of transformers' image processors, by the beginning of their names.
_PROCESSORS = {
    "ViT": {"resample": BILINEAR, "size": {"height": 224, "width": 224}, "image_mean": HALF, "image_std": HALF},
    "CLIP": CLIP,
    "ChineseCLIP": CLIP,
}


class DualEncoderFamily:
    """VisionTextDualEncoderModel and ChineseCLIPModel of transformers."""

    name = "dual_encoder"

    def recognize(self, path: Path) -> None:
        require_model_type(path, TYPES)

    def load(self, path: Path, options: LoadOptions) -> SourceModel:
        folder = open_folder(path, model_types=TYPES)
        options.refuse("a dual encoder", "attention", "answers", "image_size")
        _check_types(folder)
        with without_telemetry("transformers"):
            from transformers import ChineseCLIPModel, VisionTextDualEncoderModel

        from simmim_export.models.dual_encoder.towers import ImageTower, TextTower
        from simmim_export.models.family import Graph, SourceModel
        from simmim_export.models.huggingface.folder import load_weights
        from simmim_export.models.huggingface.image_processor import image_processor
        from simmim_export.models.huggingface.two_towers import (
            PIPELINES,
            require_rgb,
            require_size,
            scale_of,
            vit_name,
        )
        from simmim_export.models.tokenizer import check_tokenizer

        where, settings = processor_settings(folder, _PROCESSORS)
        processor = image_processor(settings, where=where)
        chinese = folder.model_type == "chinese_clip"
        model: Any = load_weights(folder, ChineseCLIPModel if chinese else VisionTextDualEncoderModel)
        vision, text = model.config.vision_config, model.config.text_config
        require_rgb(vision, where=path / CONFIG)
        require_size(processor.preprocessing, vision.image_size, where=path / CONFIG)
        tokenizer = folder.tokenizer()
        library = check_tokenizer(tokenizer, text.vocab_size, where=path / TOKENIZER)
        longest = _longest(folder, model.text_model)
        # One word between the special tokens.
        shortest = library.num_special_tokens_to_add(False) + 1
        if longest < shortest:
            what = f"a text has at most {longest} tokens, which leaves no room for a word"
            raise CheckpointError(what, where=path, fix=COPY_AGAIN)
        batch, sequence = Axis("batch", 1, options.max_batch), Axis("sequence", shortest, longest)
        height, width = processor.preprocessing["height"], processor.preprocessing["width"]
        pixels = TensorSpec("pixels", "uint8", ("batch", height, width, 3), Kind.IMAGE)
        ids = TensorSpec("input_ids", "int64", ("batch", "sequence"), Kind.TOKEN_IDS)
        mask = TensorSpec("attention_mask", "int64", ("batch", "sequence"), Kind.TEXT_MASK)
        channels = model.config.projection_dim
        image_embed, text_embed = (
            TensorSpec(name, "float32", ("batch", channels), Kind.EMBEDDING) for name in ("image_embed", "text_embed")
        )
        image_graph = GraphSpec("image_encoder", (pixels,), (image_embed,), (batch,))
        text_graph = GraphSpec("text_encoder", (ids, mask), (text_embed,), (batch, sequence))
        image_tower = ImageTower(model.vision_model, model.visual_projection, processor=processor)
        text_tower = TextTower(model.text_model, model.text_projection, pools_first=chinese)
        return SourceModel(
            config={
                "preset": f"{vit_name(vision)} with {text.model_type}",
                "architecture": type(model).__name__,
                "image_size": [height, width],
                "max_length": longest,
                "embed_dim": channels,
            },
            graphs={
                "image_encoder": Graph(image_tower.eval(), image_graph),
                "text_encoder": Graph(text_tower.eval(), text_graph),
            },
            pipelines=PIPELINES,
            preprocessing={"image": processor.preprocessing, "text": {"max_length": longest}},
            tokenizer=tokenizer,
            labels={},
            similarity=Similarity(scale=scale_of(model.logit_scale, where=path)),
        )


def _check_types(folder: Folder) -> None:
    """Raise :class:`CheckpointError` unless both encoders of a VisionTextDualEncoderModel are of types that can be exported."""
    if folder.model_type == "chinese_clip":
        return
    for name, types in (("vision_config", VISION_TYPES), ("text_config", TEXT_TYPES)):
        part = folder.config.get(name)
        kind = part.get("model_type") if isinstance(part, dict) else None
        if kind not in types:
            what = f"the model_type of {name} is {kind!r}"
            fix = f"give a model with one of these: {', '.join(types)}"
            raise CheckpointError(what, where=folder.path / CONFIG, fix=fix)


def _longest(folder: Folder, encoder: Any) -> int:
    """The most tokens of a text: as many as the tokenizer and the positions of ``encoder`` allow, and :data:`MOST_TOKENS`."""
    settings = folder.path / "tokenizer_config.json"
    limit = folder.read_json(settings.name).get("model_max_length") if settings.is_file() else None
    positions = text_positions(encoder)
    # transformers writes 10^30, as an integer or not, for no limit.
    limits = [limit] if isinstance(limit, int) and limit > 0 else []
    return min([MOST_TOKENS, *limits, *([positions] if positions is not None else [])])
