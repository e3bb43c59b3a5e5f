"""Every rule on a training command that can be checked before PyTorch is imported."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from simmim_export.errors import UsageError
from simmim_export.models.simmim import parts
from simmim_export.models.simmim.presets import preset as find_preset
from simmim_export.training.data.base import Data
from simmim_export.training.options import COMPARING, OBJECTIVES, TASKS, Job, NewModel
from simmim_export.training.output import check_output
from simmim_export.training.text_folder import check_text_folder, is_local


def check_init(output: Path, new: NewModel, *, overwrite: bool) -> None:
    """Raise :class:`UsageError` or :class:`InputError` for a new model that cannot be made or written."""
    check_output(output, overwrite)
    config = find_preset(new.preset)
    parts.require_trunk(new.image_encoder or config.image_trunk)
    fusion = new.fusion or config.fusion
    parts.require_fusion(fusion)
    parts.require_interaction(new.interaction or config.interaction, parts.FUSIONS[fusion])
    if new.image_weights is not None and weights_file(new.image_weights) is not None:
        parts.require_weights(Path(new.image_weights))
    if new.text_encoder is not None and is_local(new.text_encoder):
        check_text_folder(Path(new.text_encoder))


def weights_file(weights: str) -> Path | None:
    """The file that ``weights`` names; None if it is torchvision's name of weights."""
    path = Path(weights)
    return path if path.exists() or path.suffix else None


def check_import(state: Path, output: Path, *, overwrite: bool) -> None:
    """Raise :class:`UsageError` or :class:`InputError` for a missing state dict or an output that cannot be written."""
    check_output(output, overwrite)
    parts.require_weights(state)


def check_pretrain(job: Job, weights: Mapping[str, float]) -> None:
    """Raise :class:`UsageError` or :class:`InputError` if pretraining cannot begin; this reads the data on disk."""
    check_output(job.output, job.overwrite)
    require_pairs(objective_weights(weights), job.images)
    _check_start(job)
    require_captions(_training_data(job))


def check_finetune(job: Job, task: str, *, rehearse: int) -> None:
    """As :func:`check_pretrain`, for fine-tuning ``task`` with every ``rehearse``-th batch of pretraining (0: none)."""
    check_output(job.output, job.overwrite)
    require_task(task)
    if task == "retrieval":
        require_pairs(COMPARING, job.images)
    _check_start(job)
    data = _training_data(job)
    require_head(data, task)
    if rehearses(data, task, rehearse=rehearse) and job.images < 2:
        what = "rehearsal compares captions, so it needs 2 images or more in a batch"
        raise UsageError(what, fix="raise --batch-size, or add --rehearse 0")


def check_evaluate(checkpoint: Path, stream: str, *, scenes: int) -> None:
    """Raise :class:`UsageError` or :class:`InputError` if ``checkpoint`` cannot be measured on ``stream``."""
    if stream.startswith("train"):
        raise UsageError(f"the model was trained on --stream {stream}", fix="choose test")
    if stream == "samples":
        what = "--stream samples is for calibration; of a data set on disk it is part of the training data"
        raise UsageError(what, fix="choose test")
    if scenes == 0:
        raise UsageError("--eval-scenes 0 measures nothing", fix="give 1 or more")
    parts.require_checkpoint(checkpoint)


def objective_weights(weights: Mapping[str, float]) -> dict[str, float]:
    """The ``weights`` above 0. Raise :class:`UsageError` for an unknown objective, a bad weight, and if none is above 0."""
    unknown = sorted(set(weights) - set(OBJECTIVES))
    if unknown:
        raise UsageError(f"unknown objective {unknown[0]!r}", fix=f"choose from {', '.join(OBJECTIVES)}")
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights.values()):
        raise UsageError("an objective's weight must be 0 or more, and finite", fix="give 0 to leave it out")
    used = {name: weight for name, weight in weights.items() if weight > 0}
    if not used:
        raise UsageError("pretraining needs an objective", fix=f"give one of {', '.join(OBJECTIVES)} a weight")
    return used


def require_pairs(objectives: Mapping[str, float] | frozenset[str], images: int) -> None:
    """Raise :class:`UsageError` if one of ``objectives`` compares captions and a batch has a single image."""
    if COMPARING & set(objectives) and images < 2:
        raise UsageError("itc and itm need 2 images or more in a batch", fix="raise --batch-size")


def require_captions(data: Data) -> None:
    """Raise :class:`UsageError` for data without captions: nothing can be pretrained on them."""
    if "match" not in data.labels:
        raise UsageError(f"the data set {data.name} has no captions", fix="choose --data shapes")


def require_task(task: str) -> None:
    """Raise :class:`UsageError` unless ``task`` is one of :data:`TASKS`."""
    if task not in TASKS:
        raise UsageError(f"unknown task {task!r}", fix=f"choose one of {', '.join(TASKS)}")


def require_head(data: Data, task: str) -> None:
    """Raise :class:`UsageError` for data that cannot train ``task``."""
    if TASKS[task].head not in data.labels:
        others = sorted(name for name, t in TASKS.items() if t.head in data.labels)
        fix = f"choose --task {' or '.join(others)}" if others else "give data with questions, captions or classes"
        raise UsageError(f"the data set {data.name} has nothing for the task {task}", fix=fix)


def rehearses(data: Data, task: str, *, rehearse: int) -> bool:
    """Whether fine-tuning ``task`` on ``data`` also takes batches of pretraining."""
    return bool(rehearse) and TASKS[task].measured_on == "questions" and "match" in data.labels


def require_state(path: Path) -> None:
    """Raise :class:`UsageError` unless there is a trainer's state to resume."""
    if not path.is_file():
        raise UsageError("there is no trainer state to resume", where=path, fix="leave out --resume to start anew")


def _check_start(job: Job) -> None:
    if job.frozen is not None:
        parts.require_encoder(job.frozen)
        if job.start is None:
            what = f"--freeze {job.frozen} would keep an encoder that has learned nothing"
            raise UsageError(what, fix="give a checkpoint to start from with --from")
    if job.preset is not None:
        find_preset(job.preset)
    if job.start is not None:
        parts.require_checkpoint(job.start)
    if job.resume:
        require_state(job.state_path)


def _training_data(job: Job) -> Data:
    """The training data, read. Images are not decoded, so their size does not matter yet."""
    data = job.data.open(job.recipe.seed, "train", size=job.image_size or 64)
    data.open()
    return data
