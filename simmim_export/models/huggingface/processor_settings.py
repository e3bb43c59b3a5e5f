"""The settings of a folder's image processor, with those that its class in transformers has by default."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simmim_export.errors import CheckpointError
from simmim_export.models.huggingface.folder import Folder

# The mean and the standard deviation of red, green and blue, in [0, 1]: those of CLIP's training data, and a plain half.
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)
# PIL's numbers of its filters.
BILINEAR, BICUBIC = 2, 3
# The endings of the names of an image processor in the versions of transformers.
_ENDINGS = ("ImageProcessor", "ImageProcessorFast", "ImageProcessorPil", "FeatureExtractor")
CLIP: Mapping[str, Any] = {
    "resample": BICUBIC,
    "size": {"shortest_edge": 224},
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "image_mean": CLIP_MEAN,
    "image_std": CLIP_STD,
}


def processor_settings(folder: Folder, known: Mapping[str, Mapping[str, Any]]) -> tuple[Path, dict[str, Any]]:
    """The file that holds the settings of the image processor of ``folder``, and all settings. ``known`` has, for the beginning
    of the name of each class that is possible, such as ``CLIP``, the settings that the file may leave out. A file that names no
    class, as old ones do, is of the first one.

    Raise :class:`CheckpointError` if the folder has no image processor, or one of another class: that would have other defaults,
    or ignore some of the settings.
    """
    where, settings = folder.image_settings()
    first = next(iter(known)) + _ENDINGS[0]
    kind = settings.get("image_processor_type", settings.get("feature_extractor_type", first))
    for start, defaults in known.items():
        if kind in [start + ending for ending in _ENDINGS]:
            return where, dict(defaults) | settings
    what = f"the image_processor_type is {kind!r}"
    fix = f"give a model with one of these: {', '.join(f'{start}ImageProcessor' for start in known)}"
    raise CheckpointError(what, where=where, fix=fix)
