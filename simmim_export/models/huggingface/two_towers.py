"""What the families with an image encoder and a text encoder share. Importing it does not import PyTorch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simmim_export.errors import CheckpointError
from simmim_export.spec import Pipeline, Verb

# What two towers can be asked for.
PIPELINES = (
    Pipeline("embed_image", ("image_encoder",), ("image_embed",), Verb.EMBED_IMAGE),
    Pipeline("embed_text", ("text_encoder",), ("text_embed",), Verb.EMBED_TEXT),
)
# The names of the sizes of Vision Transformers, by width and layers: Dosovitskiy et al., 2021; Zhai et al., 2022;
# Alabdulmohsin et al., 2023; Tschannen et al., 2025.
_SIZES = {
    (192, 12): "Ti",
    (384, 12): "S",
    (768, 12): "B",
    (1024, 24): "L",
    (1152, 27): "So400m",
    (1280, 32): "H",
    (1408, 40): "g",
    (1536, 40): "g-opt",
}


def vit_name(config: Any) -> str:
    """A name such as ViT-B/16 for the vision configuration ``config``; one of another size is named by its width and layers."""
    width, layers = config.hidden_size, config.num_hidden_layers
    return f"ViT-{_SIZES.get((width, layers), f'{width}x{layers}')}/{config.patch_size}"


def require_rgb(vision: Any, *, where: Path) -> None:
    """Raise :class:`CheckpointError` unless the configuration ``vision``, from the file ``where``, is for images of three
    channels."""
    if vision.num_channels != 3:
        what = f"num_channels of the vision_config is {vision.num_channels!r}"
        raise CheckpointError(what, where=where, fix="give a model for color images")


def require_size(preprocessing: Mapping[str, Any], side: object, *, where: Path) -> None:
    """Raise :class:`CheckpointError` unless ``preprocessing``, the manifest's, makes images of ``side`` x ``side`` pixels, which
    the file ``where`` asks for."""
    if (preprocessing["height"], preprocessing["width"]) != (side, side):
        made = f"{preprocessing['height']} x {preprocessing['width']}"
        what = f"the image processor makes images of {made} pixels, and the vision_config says {side!r}"
        raise CheckpointError(what, where=where, fix="give the image processor that belongs to this model")


def scale_of(logit_scale: Any, *, where: Path) -> float:
    """exp of the parameter ``logit_scale``, one number. Raise :class:`CheckpointError` unless that is between 1e-4 and 1e4, the
    limits of a manifest."""
    exponent = float(logit_scale.detach())
    if not 1e-4 <= math.exp(min(exponent, 99.0)) <= 1e4:
        what = f"logit_scale is {exponent:g}, and its exponential is not between 0.0001 and 10,000"
        raise CheckpointError(what, where=where, fix="give weights that were trained")
    return math.exp(exponent)


def bias_of(logit_bias: Any, *, where: Path) -> float:
    """The parameter ``logit_bias``, one number. Raise :class:`CheckpointError` unless it is within -1e4 and 1e4."""
    bias = float(logit_bias.detach())
    if not abs(bias) <= 1e4:
        what = f"logit_bias is {bias:g}, and is not between -10,000 and 10,000"
        raise CheckpointError(what, where=where, fix="give weights that were trained")
    return bias
