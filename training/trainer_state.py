"""The trainer's state on disk: everything that an interrupted training needs to continue exactly."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from simmim_export.errors import DataError, UsageError
from simmim_export.models.simmim.checkpoint import save_tensors
from simmim_export.training.checks import require_state
from simmim_export.training.processes import count, every, rank
from simmim_export.training.recipe import Recipe


@dataclass(kw_only=True)
class Progress:
    """Where training stands. ``loss`` is a running mean; ``seconds`` counts training only, and continues after a resume."""

    step: int = 0
    seconds: float = 0.0
    samples: int = 0
    loss: float = float("nan")

    def done(self, recipe: Recipe) -> float:
        """The share of training that is over, in [0, 1]."""
        if recipe.steps is not None:
            return self.step / recipe.steps
        return min(1.0, self.seconds / (60 * (recipe.minutes or 1)))


def save_state(
    path: Path,
    stage: nn.Module,
    *,
    optimizers: Sequence[torch.optim.Optimizer],
    recipe: Recipe,
    progress: Progress,
    batches: Mapping[str, Any] | None = None,
    scaler: Any = None,
) -> None:
    """Write weights, optimizers, position, the loss scale of FP16, and the random numbers and buffers of every process.

    It is a single file: if every process wrote its own, a kill could leave parts of different steps.
    """
    # On the CPU: otherwise every process would load the tensor onto the GPU that it came from.
    buffers = {name: value.cpu() for name, value in stage.named_buffers()}
    own = {"random": torch.get_rng_state(), "buffers": buffers}
    if torch.cuda.is_available():
        own["cuda"] = torch.cuda.get_rng_state()
    processes = every(own)
    if rank() != 0:
        return
    content = {
        "kind": "simmim-trainer",
        "recipe": asdict(recipe),
        "batches": dict(batches or {}),
        "progress": asdict(progress),
        "scaler": None if scaler is None else scaler.state_dict(),
        "stage": stage.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "processes": processes,
    }
    save_tensors(content, path)


def load_state(
    path: Path,
    stage: nn.Module,
    *,
    optimizers: Sequence[torch.optim.Optimizer],
    recipe: Recipe,
    batches: Mapping[str, Any] | None = None,
    scaler: Any = None,
) -> Progress:
    """Restore what :func:`save_state` wrote, and return where training stood.

    Raise :class:`UsageError` for a state of another recipe, other batches or another model, and :class:`DataError` for a
    damaged file. The caller must not train after either, because part of the state may already be restored.
    """
    require_state(path)
    try:
        content = torch.load(path, weights_only=True, map_location="cpu")
        # States of older versions do not describe their batches, and match none.
        saved, processes = dict(content["recipe"] | content.get("batches", {})), content["processes"]
        wanted = asdict(recipe) | dict(batches or {})
        both = [(key, saved.get(key), wanted.get(key)) for key in wanted | saved]
        changed = [f"{key} was {old}, is {new}" for key, old, new in both if bool(old != new)]
        if len(processes) != count():
            changed.append(f"processes were {len(processes)}, are {count()}")
    # A damaged file can raise anything; to the user it means the same.
    except Exception as error:
        raise _damaged(error, path) from error
    if changed:
        what = f"the trainer state belongs to another recipe: {'; '.join(changed)}"
        raise UsageError(what, where=path, fix="repeat the command with the same options")
    try:
        own, progress = processes[rank()], Progress(**content["progress"])
        _check_position(progress)
        stage.load_state_dict(content["stage"])
        buffers = dict(stage.named_buffers())
        for name, value in own["buffers"].items():
            buffers[name].copy_(value)
        for optimizer, state_dict in zip(optimizers, content["optimizers"], strict=True):
            optimizer.load_state_dict(state_dict)
        if scaler is not None:
            scaler.load_state_dict(content["scaler"])
        torch.set_rng_state(own["random"])
        if "cuda" in own and torch.cuda.is_available():
            torch.cuda.set_rng_state(own["cuda"])
    except (RuntimeError, ValueError, KeyError) as error:
        what = f"the trainer state belongs to another model: {str(error).splitlines()[0]}"
        raise UsageError(what, where=path, fix="start anew") from error
    except Exception as error:
        raise _damaged(error, path) from error
    return progress


def _check_position(progress: Progress) -> None:
    whole = isinstance(progress.step, int) and isinstance(progress.samples, int)
    if not whole or min(progress.step, progress.samples, progress.seconds) < 0 or not math.isfinite(progress.seconds):
        raise TypeError(f"training cannot stand at {progress}")


def _damaged(error: Exception, path: Path) -> DataError:
    reason = str(error) or type(error).__name__
    return DataError(f"the trainer state is damaged: {reason.splitlines()[0]}", where=path, fix="start anew")
