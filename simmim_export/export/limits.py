"""What an export can be asked for, checked before PyTorch is imported: the model, opsets, batches and sizes of images."""

from __future__ import annotations

import re

from simmim_export.bundle.schema import MAX_SIDE
from simmim_export.errors import UsageError
from simmim_export.models.family import family_of as family_of
from simmim_export.models.huggingface.hub import is_hub_name as is_hub_name
from simmim_export.models.huggingface.hub import model_path as model_path

OPSETS = range(18, 25)
OPSET = 20
# A bundle keeps golden tensors of its largest batch, and a proof also runs each sample of that batch alone. At 256 this takes
# 200 MB and 500 runs of each graph of preset base. The runtime splits what is larger.
BATCHES = range(2, 257)
MAX_BATCH = 8


def require_opset(opset: int) -> None:
    """Raise :class:`UsageError` for an opset that is not exported."""
    if opset not in OPSETS:
        fix = f"choose {OPSETS[0]} to {OPSETS[-1]}; {OPSET} is the default"
        raise UsageError(f"opset {opset} is not supported", fix=fix)


def require_batch(max_batch: int) -> None:
    """Raise :class:`UsageError` for a largest batch that is too small or too large to be proven."""
    if max_batch < BATCHES[0]:
        fix = f"give {BATCHES[0]} or more: a batch of 1 is always included"
        raise UsageError(f"--max-batch {max_batch} is too small", fix=fix)
    if max_batch > BATCHES[-1]:
        fix = f"give {BATCHES[-1]} or less: more than a batch is run in parts"
        raise UsageError(f"--max-batch {max_batch} is too large", fix=fix)


def parse_image_size(text: str) -> tuple[int, int]:
    """(height, width) in pixels from a text such as ``384x512``. Raise :class:`UsageError` for any other text."""
    match = re.fullmatch(r"([1-9][0-9]{0,3})x([1-9][0-9]{0,3})", text)
    if match is None or max(map(int, match.groups())) > MAX_SIDE:
        what = f"--image-size {text!r} is not a height and a width of 1 to {MAX_SIDE} pixels"
        raise UsageError(what, fix="write it as HEIGHTxWIDTH, for example 384x512")
    return int(match[1]), int(match[2])
