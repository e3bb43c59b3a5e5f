"""Reads a folder of open_clip: its open_clip_config.json, and its weights as those of transformers' CLIPModel.

Names and options are those of https://github.com/mlfoundations/open_clip, src/open_clip/model.py and transform.py. An option that
makes another model than a plain CLIP is refused, and so is one that is not known here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from msgspec import Meta, Struct

from simmim_export.errors import CheckpointError
from simmim_export.models.files import COPY_AGAIN, read_tensors
from simmim_export.models.huggingface.folder import MOST_JSON, model_type
from simmim_export.models.huggingface.folder import WEIGHTS as OTHER_WEIGHTS
from simmim_export.models.huggingface.processor_settings import BICUBIC, BILINEAR, CLIP_MEAN, CLIP_STD
from simmim_export.system.files import read_file
from simmim_export.system.telemetry import without_telemetry

if TYPE_CHECKING:
    from torch import Tensor

    from simmim_export.models.huggingface.image_processor import ImageProcessor

CONFIG = "open_clip_config.json"
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_FIX = (
    "give a CLIP with a Vision Transformer and CLIP's own text encoder, as ViT-B-32, ViT-L-14, ViT-H-14 and ViT-bigG-14 are: "
    "no ResNet, no tower of timm or Hugging Face, no CoCa, no SigLIP"
)

_Size = Annotated[int, Meta(ge=1, le=1 << 20)]
# With a tuple of two, msgspec 0.22 corrupts memory: it mixes up the bound of the number and the length of the tuple.
_Sides = _Size | Annotated[list[_Size], Meta(min_length=2, max_length=2)]
_Layers = Annotated[int, Meta(ge=1, le=256)]
_Ratio = Annotated[float, Meta(gt=0, le=64)]
_Three = tuple[float, float, float]


class _Vision(Struct):
    """vision_cfg with open_clip's defaults. Sizes of images are in pixels."""

    image_size: _Sides = 224
    layers: _Layers = 12
    width: _Size = 768
    head_width: _Size = 64
    mlp_ratio: _Ratio = 4.0
    patch_size: _Size = 16


class _Text(Struct):
    """text_cfg with open_clip's defaults."""

    context_length: _Size = 77
    vocab_size: _Size = 49408
    width: _Size = 512
    heads: _Size = 8
    layers: _Layers = 12
    mlp_ratio: _Ratio = 4.0


class _Model(Struct):
    embed_dim: _Size
    vision_cfg: _Vision
    text_cfg: _Text
    quick_gelu: bool = False


class _Preprocess(Struct):
    """preprocess_cfg. open_clip takes its own defaults for what is missing or null."""

    size: _Sides | None = None
    mode: str | None = None
    mean: _Three | None = None
    std: _Three | None = None
    interpolation: str | None = None
    resize_mode: str | None = None


class _File(Struct):
    model_cfg: _Model
    preprocess_cfg: _Preprocess = msgspec.field(default_factory=_Preprocess)


# The value of every other option in a plain CLIP, by the path of its object; null and what is false mean the same. Those with
# `...` matter in training or for another architecture alone.
_PLAIN: Mapping[str, Mapping[str, object]] = {
    "model_cfg": {
        "custom_text": False,
        "multimodal_cfg": None,
        "init_logit_bias": None,
        "nonscalar_logit_scale": False,
        "init_logit_scale": ...,
        "cast_dtype": ...,
        "output_dict": ...,
    },
    "model_cfg.vision_cfg": {
        "timm_model_name": None,
        **dict.fromkeys(("timm_model_pretrained", "timm_pool", "timm_proj", "timm_proj_bias", "timm_drop"), ...),
        **dict.fromkeys(("timm_drop_path", "attn_pooler_queries", "attn_pooler_heads", "n_queries"), ...),
        **dict.fromkeys(("patch_dropout", "output_tokens"), ...),
        "ls_init_value": None,
        "attentional_pool": False,
        "global_average_pool": False,
        "input_patchnorm": False,
        "no_ln_pre": False,
        "pos_embed_type": "learnable",
        "final_ln_after_pool": False,
        "pool_type": "tok",
        "act_kwargs": None,
        "norm_kwargs": None,
    },
    "model_cfg.text_cfg": {
        "hf_model_name": None,
        **dict.fromkeys(("hf_tokenizer_name", "hf_model_pretrained", "hf_proj_type", "hf_pooler_type"), ...),
        **dict.fromkeys(("pad_id", "output_tokens"), ...),
        "tokenizer_kwargs": None,
        "ls_init_value": None,
        "embed_cls": False,
        "no_causal_mask": False,
        "final_ln_after_pool": False,
        "pool_type": "argmax",
        "proj_bias": False,
        "proj_type": "linear",
        "act_kwargs": None,
        "norm_kwargs": None,
    },
}
_OWN = {"model_cfg": _Model, "model_cfg.vision_cfg": _Vision, "model_cfg.text_cfg": _Text}

# Names of open_clip in a block of a transformer, and those of transformers. in_proj is split into q, k and v.
_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_IN_BLOCK = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+?)[._](weight|bias)")
_PROJECTIONS = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}
_OUTSIDE = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "logit_scale": "logit_scale",
}


def is_folder(path: Path) -> bool:
    """Whether ``path`` is to be read as a folder of open_clip: it has an open_clip_config.json, and is not a whole folder of
    transformers as well."""
    whole = model_type(path) and any((path / name).is_file() for name in OTHER_WEIGHTS)
    return (path / CONFIG).is_file() and not whole


def read_config(path: Path) -> OpenCLIP:
    """The model in the folder ``path``. Raise :class:`CheckpointError` for a file that cannot be read, and for a model that is
    not a plain CLIP."""
    where = path / CONFIG
    try:
        text = read_file(where, most=MOST_JSON)
        file, content = msgspec.json.decode(text, type=_File), msgspec.json.decode(text)
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{CONFIG} does not describe a plain CLIP: {error}", where=where, fix=_FIX) from error
    for place, plain in _PLAIN.items():
        options = content
        for key in place.split("."):
            options = options[key]
        for name, value in options.items():
            if name in _OWN[place].__struct_fields__ or plain.get(name) is ...:
                continue
            if name not in plain or (value != plain[name] and (value or plain[name])):
                what = f"{name} in {place} is {msgspec.json.encode(value).decode()[:60]}: this is not a plain CLIP"
                raise CheckpointError(what, where=where, fix=_FIX)
    return OpenCLIP(path, file)


class OpenCLIP:
    """A plain CLIP of open_clip: the folder that it is in, and its configuration."""

    def __init__(self, path: Path, file: _File) -> None:
        self._path, self._model, self._preprocess = path, file.model_cfg, file.preprocess_cfg

    def image_processor(self) -> ImageProcessor:
        """How images are made for it. Raise :class:`CheckpointError` for a way that is not supported.

        open_clip rounds the margins of a crop half to even, and this project down, as transformers does: one picture of four has
        its crop one pixel further left or further up.
        """
        from simmim_export.models.huggingface.image_processor import image_processor

        asked, where = self._preprocess, self._path / CONFIG
        # In training open_clip draws the filter, and then uses bicubic.
        filters = {None: BICUBIC, "bicubic": BICUBIC, "random": BICUBIC, "bilinear": BILINEAR}
        for name, value, known in (
            ("mode", asked.mode, (None, "RGB")),
            ("interpolation", asked.interpolation, filters),
            ("resize_mode", asked.resize_mode, (None, "shortest", "squash")),
        ):
            if value not in known:
                what = f"{name} in preprocess_cfg is {value!r}; {', '.join(filter(None, known))} can be exported"
                raise CheckpointError(what, where=where, fix=_FIX)
        size = asked.size if asked.size is not None else self._model.vision_cfg.image_size
        height, width = (size, size) if isinstance(size, int) else size
        crops = asked.resize_mode != "squash"
        if crops and height != width:
            what = f"images are cropped to {height} x {width} pixels, which is not a square"
            raise CheckpointError(what, where=where, fix=_FIX)
        sides = {"height": height, "width": width}
        settings = {
            "resample": filters[asked.interpolation],
            "do_center_crop": crops,
            "crop_size": sides,
            "size": {"shortest_edge": height} if crops else sides,
            "image_mean": asked.mean or CLIP_MEAN,
            "image_std": asked.std or CLIP_STD,
        }
        return image_processor(settings, where=where)

    def load_weights(self) -> Any:
        """transformers' CLIPModel with this model's weights: in eval mode, in FP32, with attention computed eagerly. Raise
        :class:`CheckpointError` for weights that are missing, damaged or not those of the configuration."""
        import torch

        from simmim_export.models.weights import check_state

        with without_telemetry("transformers"):
            from transformers import CLIPConfig, CLIPModel
        file = next((self._path / name for name in WEIGHTS if (self._path / name).is_file()), None)
        if file is None:
            what = f"the folder has no weights: none of {', '.join(WEIGHTS)}"
            raise CheckpointError(what, where=self._path, fix=f"put one of them beside {CONFIG}")
        state = _renamed(read_tensors(file), file)
        config = CLIPConfig(**self._config(), attn_implementation="eager")
        with torch.device("meta"):
            expected = CLIPModel(config).state_dict()
        check_state(state, expected, where=file, fix=COPY_AGAIN)
        # Only now is it known that the model is no larger than its file.
        model = CLIPModel(config)
        model.load_state_dict(state, assign=True)
        return model.eval()

    def _config(self) -> dict[str, Any]:
        """The arguments of transformers' CLIPConfig."""
        vision, text = self._model.vision_cfg, self._model.text_cfg
        heads = vision.width // vision.head_width
        if not heads or vision.width % heads or text.width % text.heads:
            what = f"widths of {vision.width} and {text.width} do not divide into {heads} and {text.heads} heads"
            raise CheckpointError(what, where=self._path / CONFIG, fix=COPY_AGAIN)
        activation = "quick_gelu" if self._model.quick_gelu else "gelu"
        return {
            "projection_dim": self._model.embed_dim,
            "vision_config": {
                "image_size": vision.image_size,
                "patch_size": vision.patch_size,
                "num_hidden_layers": vision.layers,
                "hidden_size": vision.width,
                "num_attention_heads": heads,
                "intermediate_size": int(vision.width * vision.mlp_ratio),
                "hidden_act": activation,
            },
            "text_config": {
                "max_position_embeddings": text.context_length,
                "vocab_size": text.vocab_size,
                "num_hidden_layers": text.layers,
                "hidden_size": text.width,
                "num_attention_heads": text.heads,
                "intermediate_size": int(text.width * text.mlp_ratio),
                "hidden_act": activation,
                # open_clip pools at the largest id of a text, and so does transformers with this number.
                "eos_token_id": 2,
            },
        }


def _renamed(state: Any, where: Path) -> dict[str, Tensor]:
    """``state``, the content of a file of weights, under the names of transformers. Names that open_clip does not have stay as
    they are. Raise :class:`CheckpointError` unless it is tensors by name."""
    from torch import Tensor

    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):  # a checkpoint of its training
        state = {str(key).removeprefix("module."): value for key, value in state["state_dict"].items()}
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError("the file does not hold tensors by name", where=where, fix="give open_clip's own weights")
    tensors: dict[str, Tensor] = {str(name): value for name, value in state.items()}
    renamed: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if (match := _IN_BLOCK.fullmatch(name)) is not None:
            visual, layer, part, kind = match.groups()
            block = f"{'vision' if visual else 'text'}_model.encoder.layers.{layer}"
            if part == "attn.in_proj" and value.ndim and value.shape[0] % 3 == 0:
                for projection, third in zip(("q_proj", "k_proj", "v_proj"), value.chunk(3), strict=True):
                    renamed[f"{block}.self_attn.{projection}.{kind}"] = third.clone()
            else:
                renamed[f"{block}.{_BLOCK.get(part, part)}.{kind}"] = value
        elif name in _PROJECTIONS:
            # open_clip multiplies by it from the right.
            renamed[_PROJECTIONS[name]] = value.T.contiguous() if value.ndim == 2 else value
        elif name != "attn_mask":  # a constant that early versions saved
            renamed[_OUTSIDE.get(name, name)] = value
    return renamed
