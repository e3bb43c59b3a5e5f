"""The names of a model's parts, and whether they go together. Checked before PyTorch is imported."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from simmim_export.errors import CheckpointError, UsageError
from simmim_export.models.files import require_weights as require_weights
from simmim_export.models.huggingface.text_models import TEXT_FAMILIES as TEXT_FAMILIES

# The trunk for 64-pixel images, and torchvision's ResNets.
TRUNKS: tuple[str, ...] = ("tiny", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2")
TRUNKS += ("wide_resnet101_2", "resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d")
# Whether a fusion gives a single vector. A single vector has nothing to attend to.
FUSIONS: Mapping[str, bool] = {
    "concat_sequence": False,
    "concat_feature": True,
    "gated": True,
    "film": False,
    "bilinear": True,
}
INTERACTIONS = ("attention", "linear", "graph")
ENCODERS = ("image", "text")


def require_trunk(name: str) -> None:
    """Raise :class:`UsageError` unless ``name`` is one of :data:`TRUNKS`."""
    if name not in TRUNKS:
        raise UsageError(f"unknown image encoder {name!r}", fix=f"choose one of {', '.join(TRUNKS)}")


def require_fusion(name: str) -> None:
    """Raise :class:`UsageError` unless ``name`` is one of :data:`FUSIONS`."""
    if name not in FUSIONS:
        raise UsageError(f"unknown fusion {name!r}", fix=f"choose one of {', '.join(FUSIONS)}")


def require_interaction(name: str, single: bool) -> None:
    """Raise :class:`UsageError` unless ``name`` is one of :data:`INTERACTIONS` and goes with the fusion.

    ``single``: the fusion gives a single vector. Only ``linear`` goes with that: a softmax over one row is always 1, so
    ``attention`` and ``graph`` would be ``linear`` under another name.
    """
    if name not in INTERACTIONS:
        raise UsageError(f"unknown interaction {name!r}", fix=f"choose one of {', '.join(INTERACTIONS)}")
    if single and name != "linear":
        raise UsageError(
            f"interaction {name!r} has nothing to attend to: the fusion gives a single vector",
            fix="choose --interaction linear, or --fusion concat_sequence or film",
        )


def require_encoder(name: str) -> None:
    """Raise :class:`UsageError` unless ``name`` is one of :data:`ENCODERS`, which can be frozen."""
    if name not in ENCODERS:
        raise UsageError(f"unknown encoder {name!r} to freeze", fix=f"choose {' or '.join(ENCODERS)}")


def require_checkpoint(path: Path) -> None:
    """Raise :class:`CheckpointError` unless ``path`` exists and could be a checkpoint."""
    if not path.exists():
        make_one = "make one: simmim-train finetune --preset tiny --data shapes --minutes 3 -o ckpt.pt"
        raise CheckpointError("no such checkpoint", where=path, fix=make_one)
    if path.is_file():
        return
    if not path.is_dir():
        what = "a device, a pipe or a socket is not a checkpoint"
        raise CheckpointError(what, where=path, fix="give the ckpt.pt that simmim-train wrote")
    if (path / "checkpoint.json").is_file():
        return
    if (path / "manifest.json").is_file():
        what, fix = "this is a bundle, not a checkpoint", "give the checkpoint that it was exported from"
    elif (path / "model.safetensors").is_file():
        what, fix = "the checkpoint folder has no checkpoint.json", "copy the folder again, whole"
    else:
        what = "the folder is not a checkpoint: it has no checkpoint.json"
        fix = "give the ckpt.pt that simmim-train wrote"
    raise CheckpointError(what, where=path, fix=fix)


def require_text_family(name: object) -> None:
    """Raise :class:`UsageError` unless ``name``, a Hugging Face model_type, is one of :data:`TEXT_FAMILIES`."""
    if name not in TEXT_FAMILIES:
        what = f"text encoders of the model_type {name!r} cannot be used"
        raise UsageError(what, fix=f"choose an encoder of one of these: {', '.join(TEXT_FAMILIES)}")
