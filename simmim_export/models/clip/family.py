"""CLIP as a model family: from a folder of transformers or of open_clip to graphs, pipelines and a similarity."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simmim_export.errors import CheckpointError
from simmim_export.models.clip import open_clip
from simmim_export.models.family import LoadOptions, SourceModel
from simmim_export.models.huggingface.folder import CONFIG, Folder, load_weights, open_folder, require_model_type
from simmim_export.models.huggingface.processor_settings import CLIP, processor_settings
from simmim_export.models.huggingface.two_towers import PIPELINES, require_rgb, require_size, scale_of
from simmim_export.models.tokenizer import check_tokenizer
from simmim_export.spec import Similarity
from simmim_export.system.telemetry import without_telemetry

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from simmim_export.models.huggingface.image_processor import ImageProcessor

# The classes of transformers, by the model_type of config.json.
CLASSES = {"clip": "CLIPModel", "metaclip_2": "MetaClip2Model"}
# The widths of the image encoders that have a name.
_SIZES = {768: "B", 1024: "L", 1280: "H", 1408: "g", 1664: "bigG"}


class CLIPFamily:
    """CLIP (Radford et al., 2021) and MetaCLIP 2 as transformers saves them, and CLIP as open_clip saves it."""

    name = "clip"

    def recognize(self, path: Path) -> None:
        """Accept a folder with a config.json of one of :data:`CLASSES`, and one with an open_clip_config.json."""
        if not open_clip.is_folder(path):
            require_model_type(path, CLASSES)

    def load(self, path: Path, options: LoadOptions) -> SourceModel:
        options.refuse("a model of the family clip", "attention", "answers", "image_size")
        if open_clip.is_folder(path):
            folder, config = Folder(path=path, config={}), open_clip.read_config(path)
            processor, tokenizer = config.image_processor(), folder.tokenizer()
            model, kind, where = config.load_weights(), "open_clip", path / open_clip.CONFIG
        else:
            folder = open_folder(path, model_types=CLASSES)
            processor, tokenizer = _image_processor(folder), folder.tokenizer()
            kind, where = CLASSES[folder.model_type], path / CONFIG
            with without_telemetry("transformers"):
                model_class = getattr(import_module("transformers"), kind)
            model = load_weights(folder, model_class)
        return _source_model(model, kind, processor, tokenizer=tokenizer, where=where, max_batch=options.max_batch)


def _image_processor(folder: Folder) -> ImageProcessor:
    from simmim_export.models.huggingface.image_processor import image_processor

    where, settings = processor_settings(folder, {"CLIP": CLIP})
    return image_processor(settings, where=where)


def _source_model(
    model: Any, kind: str, processor: ImageProcessor, *, tokenizer: str, where: Path, max_batch: int
) -> SourceModel:
    """``model``, with the attributes of transformers' CLIPModel, as an exporter needs it."""
    from simmim_export.models.clip.graphs import graphs

    vision, text = model.config.vision_config, model.config.text_config
    side, patch = (_square(vision, name, where) for name in ("image_size", "patch_size"))
    require_size(processor.preprocessing, side, where=where)
    require_rgb(vision, where=where)
    checked = check_tokenizer(tokenizer, text.vocab_size, where=where.parent, fix="give the tokenizer of the model")
    end = _end_token(checked, text.eos_token_id, largest=kind != CLASSES["metaclip_2"], where=where)
    shortest, longest = checked.num_special_tokens_to_add(False) + 1, text.max_position_embeddings
    if longest < shortest:
        what = f"texts have up to {longest} tokens, and a word with its special tokens has {shortest}"
        raise CheckpointError(what, where=where, fix="give the tokenizer of the model")
    size = _SIZES.get(vision.hidden_size, f"{vision.num_hidden_layers}x{vision.hidden_size}")
    return SourceModel(
        config={
            "preset": f"ViT-{size}/{patch}",
            "architecture": kind,
            "image_size": side,
            "embed_dim": model.config.projection_dim,
            "vision": _sizes(vision),
            "text": _sizes(text),
        },
        graphs=graphs(model, processor, end=end, shortest=shortest, max_batch=max_batch),
        pipelines=PIPELINES,
        preprocessing={"image": processor.preprocessing, "text": {"max_length": longest}},
        tokenizer=tokenizer,
        labels={},
        similarity=Similarity(scale=scale_of(model.logit_scale, where=where.parent)),
    )


def _sizes(config: Any) -> dict[str, Any]:
    """What a reader of the manifest wants to know about a tower."""
    return {
        "layers": config.num_hidden_layers,
        "width": config.hidden_size,
        "heads": config.num_attention_heads,
        "activation": config.hidden_act,
    }


def _square(config: Any, name: str, where: Path) -> int:
    """The setting ``name`` in pixels. Raise :class:`CheckpointError` for two different sides."""
    value = getattr(config, name)
    sides = set(value) if isinstance(value, list | tuple) else {value}
    if len(sides) != 1 or type(side := sides.pop()) is not int:
        raise CheckpointError(f"{name} is {value!r}, and CLIP's images are square", where=where, fix="give one number")
    return side


def _end_token(tokenizer: Tokenizer, eos: object, *, largest: bool, where: Path) -> int:
    """The id of the token at which a text is pooled: the last one that ``tokenizer`` adds.

    ``eos`` is the configuration's. With ``largest``, 2 means that transformers and open_clip pool at the largest id of a text:
    early files had a wrong number there. Raise :class:`CheckpointError` unless the configuration means the same token: texts
    would be pooled at their first token, and all be embedded alike.
    """
    specials = tokenizer.encode("").ids
    if not specials:
        fix = "give a tokenizer that ends every text with the model's end token"
        raise CheckpointError("the tokenizer adds no end token to a text", where=where.parent, fix=fix)
    end: int = specials[-1]
    highest = max(tokenizer.get_vocab(with_added_tokens=True).values())
    if largest and eos == 2 and highest != end:
        what = (
            f"texts are pooled at their largest id; the end token is {end}, and the tokenizer has ids up to {highest}"
        )
        raise CheckpointError(what, where=where, fix=f"remove the tokens above {end} from the tokenizer")
    if eos != end and not (largest and eos == 2):
        what = f"texts are pooled at the token {eos!r}, and the tokenizer ends them with {end}"
        raise CheckpointError(what, where=where, fix=f"set eos_token_id in text_config to {end}")
    return end
