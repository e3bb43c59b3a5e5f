"""One training loop for every task: step, schedule, report, save, resume.

A task gives batches by number and turns one into a loss; nothing here depends on what is trained.
Devices, processes, mixed precision and accumulation are Accelerate's.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from simmim_export.errors import DataError, EngineUnavailable, GateFailed, UsageError
from simmim_export.models.files import save_tensors
from simmim_export.system.telemetry import without_telemetry
from simmim_export.training.interrupt import Stopped, deferred
from simmim_export.training.muon import Muon
from simmim_export.training.options import Recipe, require_state
from simmim_export.training.processes import agreed, count, every, on_cpu, rank, state

with without_telemetry("accelerate"):
    from accelerate import Accelerator, DistributedDataParallelKwargs

# Seconds of training between saves of the trainer's state, however few steps that is: what a power cut may cost.
SAVE_SECONDS = 180.0
# Muon (Jordan et al., 2024) orthogonalises the momentum of a matrix, so that rare directions move as fast as common ones.
# A narrow model that must learn to look things up by attention got there in half the steps. With the update scaled to the
# size of AdamW's (Liu et al., 2025, "Muon is scalable"), 5 times AdamW's rate fine-tuned best of 5 and 10; 20 was worse
# than AdamW.
MUON_RATIO = 5.0


class Stage(Protocol):
    """A task with its model: a module whose forward turns batch number ``index`` into a scalar loss."""

    def batch(self, index: int, done: float) -> Any:
        """Batch number ``index`` of this process, on the CPU, when the share ``done`` in [0, 1] of training is over."""
        ...

    def samples(self, batch: Any) -> int:
        """How many samples (captions, questions) a batch holds."""
        ...

    def __call__(self, batch: Any) -> Tensor:
        """The loss of a batch."""
        ...


@dataclass
class Progress:
    """Where training stands. ``loss`` is a running mean; ``seconds`` counts training alone, across resumes."""

    step: int = 0
    seconds: float = 0.0
    samples: int = 0
    loss: float = float("nan")

    def done(self, recipe: Recipe) -> float:
        """The share of training that is over, in [0, 1]."""
        if recipe.steps is not None:
            return self.step / recipe.steps
        return min(1.0, self.seconds / (60 * (recipe.minutes or 1)))


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

    The trainer's state is saved beside the output every ``save_every`` steps, every :data:`SAVE_SECONDS` and at the end,
    and removed by the caller when the checkpoint is written; with ``resume`` training goes on from it exactly, and where it
    was over nothing is trained. ``batches`` names all beside the recipe that decides what is in a batch, as plain values.

    A signal that asks any of the processes to stop (see :mod:`simmim_export.training.interrupt`) ends training in all of
    them after the step, with the state saved, by :class:`Stopped`. Raises :class:`UsageError` for a state that is missing or
    belongs to another recipe or other batches, :class:`EngineUnavailable` for FP16 on a CPU, and :class:`GateFailed` when
    the loss is NaN or infinite.
    """
    if recipe.mixed_precision == "fp16" and state().device.type == "cpu":
        # Accelerate would train in FP32 and say nothing.
        raise EngineUnavailable("FP16 needs a GPU, and there is none here", fix="use --mixed-precision bf16, or no")
    unused_is_fine = DistributedDataParallelKwargs(find_unused_parameters=True)
    accelerator = Accelerator(
        cpu=on_cpu(),
        mixed_precision=recipe.mixed_precision,
        gradient_accumulation_steps=recipe.accumulate,
        kwargs_handlers=[unused_is_fine],
    )
    torch.manual_seed(recipe.seed + 1000 * accelerator.process_index)
    source: Any = stage
    # The optimizers stay ours: Accelerate's step one by one, and settle the scale of FP16 after each (see :func:`update`).
    prepared = accelerator.prepare(stage)
    optimizers = make_optimizers(stage, recipe)
    progress = Progress()
    if resume:
        progress = load_state(state_path, stage, optimizers, recipe, batches, accelerator.scaler)
    saved = replace(progress)
    set_training(prepared)

    def save() -> Progress:
        try:
            save_state(state_path, stage, optimizers, recipe, progress, batches, accelerator.scaler)
        except UsageError as error:
            if saved.step:
                error.fix = (
                    f"{error.fix}; then repeat the command with --resume: step {saved.step} is kept in {state_path}"
                )
            raise
        return replace(progress)

    def step() -> None:
        scale = recipe.lr_scale(progress.done(recipe))
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = group["peak_lr"] * scale
        loss, seen = 0.0, 0
        for part in range(recipe.accumulate):
            batch = source.batch(progress.step * recipe.accumulate + part, progress.done(recipe))
            with accelerator.accumulate(prepared):
                part_loss = prepared(to_device(batch, accelerator.device))
                accelerator.backward(part_loss)
                if accelerator.sync_gradients:
                    update(stage, optimizers, recipe.clip, accelerator.scaler)
            loss += part_loss.item() / recipe.accumulate
            seen += source.samples(batch)
        if not math.isfinite(loss):
            raise GateFailed(
                f"the loss is {loss} at step {progress.step}", fix=f"lower --lr (it was {recipe.lr}) and start again"
            )
        progress.step += 1
        progress.samples += seen * accelerator.num_processes
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
            # A signal that came after the last decision.
            if stop := agreed(0.0, request.number)[1]:
                raise Stopped(stop)
    except Stopped as stopped:
        stopped.kept = state_path if saved.step else None
        raise
    accelerator.wait_for_everyone()
    return progress


def set_training(module: nn.Module) -> None:
    """Training mode for all but what has parameters and trains none: batch norm there keeps its statistics, dropout is off."""
    module.train()
    for part in module.modules():
        parameters = list(part.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            part.eval()


def update(
    stage: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    clip: float,
    scaler: torch.amp.GradScaler | None = None,
) -> None:
    """One step of all optimizers by gradients of a norm of at most ``clip``, which are zero afterwards.

    With the ``scaler`` of FP16 the gradients are unscaled once, and where one of them is NaN or infinite, whose parameter it
    may be, no optimizer steps: clipping has spread it to all. The scale then falls, as it rises after many steps that were
    taken. (``scaler.step`` for each optimizer would look only at the gradients of its own.)
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


def make_optimizers(stage: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """The optimisers of ``recipe`` over every parameter that is trained, each in exactly one of them.

    Muon takes the weights of linear layers of equal or comparable fan (attention, feed-forward, projections of tokens),
    AdamW the rest: convolutions, embeddings, embedding projections and heads, whose rows mean something one by one, and
    all vectors. Matrices decay; vectors (biases, norms, the temperature) do not.
    """
    hidden = hidden_matrices(stage) if recipe.optimizer == "muon" else []
    taken = {id(parameter) for parameter in hidden}
    rest = [p for p in stage.parameters() if p.requires_grad and id(p) not in taken]
    groups = [
        {"params": [p for p in rest if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0},
    ]
    made: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.98), fused=True)]
    if hidden:
        rate = recipe.lr * MUON_RATIO
        made.append(Muon(hidden, lr=rate, weight_decay=recipe.weight_decay))
    for group in (group for optimizer in made for group in optimizer.param_groups):
        group["peak_lr"] = group["lr"]
    return made


def hidden_matrices(stage: nn.Module) -> list[nn.Parameter]:
    """The weights of the linear layers inside a repeated block (a member of a ModuleList): attention and feed-forward."""
    blocks = [block for module in stage.modules() if isinstance(module, nn.ModuleList) for block in module]
    linear = {id(m.weight) for block in blocks for m in block.modules() if isinstance(m, nn.Linear)}
    return [parameter for parameter in stage.parameters() if id(parameter) in linear and parameter.requires_grad]


def to_device(batch: Any, device: torch.device) -> Any:
    """A dict of tensors on ``device``; whatever is no tensor stays."""
    return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}


def save_state(
    path: Path,
    stage: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    recipe: Recipe,
    progress: Progress,
    batches: Mapping[str, Any] | None = None,
    scaler: Any = None,
) -> None:
    """Write all that :func:`train` needs to go on exactly: weights, optimizer, position, the scale of FP16's losses, and of
    every process its random numbers and buffers. It is one file: parts written by several processes could be of different
    steps after a kill."""
    # On the CPU: a tensor of one GPU would be unpacked on that GPU by every process.
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
    optimizers: Sequence[torch.optim.Optimizer],
    recipe: Recipe,
    batches: Mapping[str, Any] | None = None,
    scaler: Any = None,
) -> Progress:
    """Put back what :func:`save_state` wrote, and return where training stood.

    Raise :class:`UsageError` for a state of another recipe, other batches or another model, and :class:`DataError` for a file
    that is damaged. The caller must not train after either: parts of the state may have been put back.
    """
    require_state(path)
    try:
        content = torch.load(path, weights_only=True, map_location="cpu")
        # States from before there was a description of the batches have none, and fit none.
        saved, processes = dict(content["recipe"] | content.get("batches", {})), content["processes"]
        wanted = asdict(recipe) | dict(batches or {})
        both = [(key, saved.get(key), wanted.get(key)) for key in wanted | saved]
        changed = [f"{key} was {old}, is {new}" for key, old, new in both if bool(old != new)]
        if len(processes) != count():
            changed.append(f"processes were {len(processes)}, are {count()}")
    # Whatever a damaged file raises, it means the same to the user.
    except Exception as error:
        raise _damaged(error, path) from error
    if changed:
        what = f"the trainer state belongs to another recipe: {'; '.join(changed)}"
        raise UsageError(what, where=path, fix="repeat it")
    try:
        own, progress = processes[rank()], Progress(**content["progress"])
        whole = isinstance(progress.step, int) and isinstance(progress.samples, int)
        if (
            not whole
            or min(progress.step, progress.samples, progress.seconds) < 0
            or not math.isfinite(progress.seconds)
        ):
            raise TypeError(f"training cannot stand at {progress}")
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


def _damaged(error: Exception, path: Path) -> DataError:
    said = str(error) or type(error).__name__
    return DataError(f"the trainer state is damaged: {said.splitlines()[0]}", where=path, fix="start anew")
