"""One training loop for every task: step, schedule, report, save, resume.

A task gives numbered batches and turns one into a loss; nothing here depends on what is trained. Accelerate takes care of
devices, processes, mixed precision and accumulation.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from simmim_export.errors import EngineUnavailable, GateFailed, UsageError
from simmim_export.system.telemetry import without_telemetry
from simmim_export.training.interrupt import Stopped, deferred
from simmim_export.training.optimizers import make_optimizers
from simmim_export.training.processes import agreed, on_cpu, state
from simmim_export.training.recipe import Recipe
from simmim_export.training.trainer_state import Progress, load_state, save_state

with without_telemetry("accelerate"):
    from accelerate import Accelerator, DistributedDataParallelKwargs

# Seconds of training between saves of the trainer's state, however few steps that is. A power cut costs no more than this.
SAVE_SECONDS = 180.0
Watch = Callable[[Progress, float], None]


def train(
    stage: nn.Module,
    recipe: Recipe,
    *,
    state_path: Path,
    resume: bool = False,
    watch: Watch = lambda progress, done: None,
    batches: Mapping[str, Any] | None = None,
) -> Progress:
    """Train ``stage`` in place and return where it ended; ``watch(progress, done)`` is called after every step.

    ``stage`` turns a batch into its scalar loss, and has two more methods: ``batch(index, done)``, the batch of that number in
    this process, on the CPU, when the share ``done`` in [0, 1] of training is over; and ``samples(batch)``, the number of its
    samples (images or questions).

    The trainer's state is saved to ``state_path`` every ``save_every`` steps, every :data:`SAVE_SECONDS` and at the end. The
    caller deletes it once the checkpoint is written. With ``resume``, training continues from it exactly; if training was
    over, nothing is trained. ``batches`` names, as plain values, everything besides the recipe that decides what is in a
    batch.

    A signal that asks any of the processes to stop (see :mod:`simmim_export.training.interrupt`) ends training in all of them
    after the current step: the state is saved and :class:`Stopped` is raised. Raise :class:`UsageError` for a state that is
    missing or belongs to another recipe or other batches, :class:`EngineUnavailable` for FP16 on a CPU, and
    :class:`GateFailed` if the loss becomes NaN or infinite.
    """
    if recipe.mixed_precision == "fp16" and state().device.type == "cpu":
        # Accelerate would silently train in FP32.
        raise EngineUnavailable("FP16 needs a GPU, and this machine has none", fix="use --mixed-precision bf16, or no")
    unused_is_fine = DistributedDataParallelKwargs(find_unused_parameters=True)
    accelerator = Accelerator(
        cpu=on_cpu(),
        mixed_precision=recipe.mixed_precision,
        gradient_accumulation_steps=recipe.accumulate,
        kwargs_handlers=[unused_is_fine],
    )
    torch.manual_seed(recipe.seed + 1000 * accelerator.process_index)
    source: Any = stage
    # The optimizers are not handed to Accelerate: it would adjust the FP16 scale after each of them (see :func:`update`).
    prepared = accelerator.prepare(stage)
    optimizers = make_optimizers(stage, recipe)
    progress = Progress()
    if resume:
        progress = load_state(
            state_path, stage, optimizers=optimizers, recipe=recipe, batches=batches, scaler=accelerator.scaler
        )
    saved = replace(progress)
    set_training(prepared)

    def save() -> Progress:
        try:
            save_state(
                state_path,
                stage,
                optimizers=optimizers,
                recipe=recipe,
                progress=progress,
                batches=batches,
                scaler=accelerator.scaler,
            )
        except UsageError as error:
            if saved.step:
                again = f"repeat the command with --resume: step {saved.step} is kept in {state_path}"
                error.fix = f"{error.fix}; then {again}"
            raise
        return replace(progress)

    def step() -> None:
        scale = recipe.lr_scale(progress.done(recipe))
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = group["peak_lr"] * scale
        loss, samples = 0.0, 0
        for part in range(recipe.accumulate):
            batch = source.batch(progress.step * recipe.accumulate + part, progress.done(recipe))
            with accelerator.accumulate(prepared):
                part_loss = prepared(to_device(batch, accelerator.device))
                accelerator.backward(part_loss)
                if accelerator.sync_gradients:
                    update(stage, optimizers, clip=recipe.clip, scaler=accelerator.scaler)
            loss += part_loss.item() / recipe.accumulate
            samples += source.samples(batch)
        if not math.isfinite(loss):
            fix = f"lower --lr (it was {recipe.lr}) and start again"
            raise GateFailed(f"the loss is {loss} at step {progress.step}", fix=fix)
        progress.step += 1
        progress.samples += samples * accelerator.num_processes
        progress.loss = loss if math.isnan(progress.loss) else 0.95 * progress.loss + 0.05 * loss

    try:
        with deferred() as request:
            while progress.done(recipe) < 1:
                started = time.perf_counter()
                step()
                seconds = progress.seconds + time.perf_counter() - started
                progress.seconds, stop = agreed(seconds, request.number)
                late = progress.seconds - saved.seconds >= SAVE_SECONDS
                if late or stop or progress.step % recipe.save_every == 0 or progress.done(recipe) == 1:
                    saved = save()
                watch(progress, progress.done(recipe))
                if stop:
                    raise Stopped(stop)
            # A signal may have come after the last step's decision.
            if stop := agreed(0.0, request.number)[1]:
                raise Stopped(stop)
    except Stopped as stopped:
        stopped.kept = state_path if saved.step else None
        raise
    accelerator.wait_for_everyone()
    return progress


def set_training(module: nn.Module) -> None:
    """Put ``module`` in training mode, except its frozen parts: there batch norm keeps its statistics and dropout is off."""
    module.train()
    for part in module.modules():
        parameters = list(part.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            part.eval()


def update(
    stage: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    *,
    clip: float,
    scaler: torch.amp.GradScaler | None = None,
) -> None:
    """Clip the gradients to a norm of at most ``clip``, take one step with every optimizer, and zero the gradients.

    With the ``scaler`` of FP16, gradients are unscaled first. If any gradient is NaN or infinite, no optimizer steps, because
    clipping has spread it to all of them; the scale then falls. (``scaler.step`` would look only at each optimizer's own
    gradients.)
    """
    if scaler is not None:
        for optimizer in optimizers:
            scaler.unscale_(optimizer)
    norm = nn.utils.clip_grad_norm_(stage.parameters(), clip)
    if scaler is None or norm.isfinite():
        for optimizer in optimizers:
            optimizer.step()
    if scaler is not None:
        scaler.update()
    for optimizer in optimizers:
        optimizer.zero_grad()


def to_device(batch: Any, device: torch.device) -> Any:
    """``batch`` with its tensors on ``device``; other values stay as they are."""
    return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}
