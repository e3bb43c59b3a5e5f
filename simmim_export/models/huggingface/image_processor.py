"""The settings of an image processor to a bundle's preprocessing, and the normalization that goes into the graph.

The recipes are those of the "pil" backend of transformers. Its other backend, torchvision, differs by up to 24 of 255 on noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from simmim_export.errors import CheckpointError
from simmim_export.models.huggingface.processor_settings import BICUBIC, BILINEAR

_FILTERS = {BILINEAR: "bilinear", BICUBIC: "bicubic"}
_FIX = "give a model whose images are resized, rescaled by 1/255 and normalized, as those of docs/models.md"


@dataclass(frozen=True, kw_only=True)
class ImageProcessor:
    """``preprocessing`` is the manifest's for images. ``mean`` and ``std`` have a number for each of red, green and blue, whose
    values are in [0, 1]."""

    preprocessing: Mapping[str, Any]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def image_processor(settings: Mapping[str, Any], *, where: Path) -> ImageProcessor:
    """The image processor with ``settings``, which the file ``where`` holds
    (:func:`simmim_export.models.huggingface.processor_settings.processor_settings`).

    ``size`` is either ``{"height", "width"}`` (both sides are scaled) or ``{"shortest_edge"}`` with a center crop. Raise
    :class:`CheckpointError` for settings that ask for another kind of preprocessing.
    """

    def refuse(what: str) -> CheckpointError:
        return CheckpointError(f"this preprocessing cannot be exported: {what}", where=where, fix=_FIX)

    for step in ("do_resize", "do_rescale", "do_normalize"):
        if settings.get(step, True) is not True:
            raise refuse(f"{step} is {settings[step]!r}")
    factor, resample = settings.get("rescale_factor", 1 / 255), settings.get("resample")
    if not isinstance(factor, int | float) or not abs(factor * 255 - 1) <= 1e-6:
        raise refuse(f"rescale_factor is {factor!r}")
    interpolation = _FILTERS.get(resample) if isinstance(resample, int) else None
    if interpolation is None:
        raise refuse(f"resample is {resample!r}; bilinear (2) and bicubic (3) are supported")
    preprocessing = {"interpolation": interpolation, **_sides(settings, refuse)}
    return ImageProcessor(
        preprocessing=preprocessing,
        mean=_three(settings.get("image_mean"), "image_mean", refuse),
        std=_three(settings.get("image_std"), "image_std", refuse),
    )


def _sides(settings: Mapping[str, Any], refuse: Any) -> dict[str, Any]:
    """height, width, resize and, for a crop, shortest."""
    size = settings.get("size")
    # Files of older versions have one number: the shortest side if the picture is cropped, else both sides.
    crops = bool(settings.get("do_center_crop", False))
    if isinstance(size, int):
        size = {"shortest_edge": size} if crops else {"height": size, "width": size}
    if not isinstance(size, Mapping):
        raise refuse(f"size is {size!r}")
    if set(size) == {"height", "width"}:
        height, width = (_side(size[side], f"size.{side}", refuse) for side in ("height", "width"))
        if crops and (height, width) != _crop(settings, refuse):
            raise refuse("both sides are scaled, and then cropped")
        return {"height": height, "width": width, "resize": "squash"}
    if set(size) == {"shortest_edge"} and crops:
        shortest = _side(size["shortest_edge"], "size.shortest_edge", refuse)
        height, width = _crop(settings, refuse)
        if shortest < max(height, width):
            raise refuse(f"the crop of {height} x {width} is larger than the shortest side, {shortest}")
        return {"height": height, "width": width, "resize": "crop", "shortest": shortest}
    raise refuse(f"size is {dict(size)!r}" + ("" if crops else " without a crop"))


def _crop(settings: Mapping[str, Any], refuse: Any) -> tuple[int, int]:
    crop = settings.get("crop_size")
    if isinstance(crop, int):
        crop = {"height": crop, "width": crop}
    if not isinstance(crop, Mapping) or not {"height", "width"} <= set(crop):
        raise refuse(f"crop_size is {crop!r}")
    return (
        _side(crop["height"], "crop_size.height", refuse),
        _side(crop["width"], "crop_size.width", refuse),
    )


def _side(value: object, name: str, refuse: Any) -> int:
    if type(value) is not int or not 1 <= value <= 4096:
        raise refuse(f"{name} is {value!r}")
    return value


def _three(values: object, name: str, refuse: Any) -> tuple[float, float, float]:
    numbers = list(values) if isinstance(values, list | tuple) else []
    if len(numbers) != 3 or not all(isinstance(n, int | float) and isfinite(n) and abs(n) <= 1e3 for n in numbers):
        raise refuse(f"{name} is {values!r}")
    red, green, blue = (float(number) for number in numbers)
    if name == "image_std" and min(red, green, blue) < 1e-3:
        raise refuse(f"{name} is {values!r}")
    return red, green, blue


class Normalized(nn.Module):
    """pixels uint8 [batch, height, width, 3] -> float32 [batch, 3, height, width], as an encoder of transformers takes them:
    (pixels / 255 - mean) / std."""

    mean: Tensor
    scale: Tensor

    def __init__(self, processor: ImageProcessor) -> None:
        super().__init__()
        # Scaled by 255, so that there is one subtraction and one product.
        self.register_buffer("mean", 255 * torch.tensor(processor.mean).reshape(1, 3, 1, 1))
        scale = 1 / (255 * torch.tensor(processor.std))
        self.register_buffer("scale", scale.reshape(1, 3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        # Cast first: TensorRT accepts bytes as a network input only if a Cast reads them directly.
        return (pixels.float().permute(0, 3, 1, 2) - self.mean) * self.scale
