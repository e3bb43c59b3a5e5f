"""The commands as functions: load, train, evaluate, write. Knows the order of the steps; must not know how any is done."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from tokenizers import Tokenizer
from torch import nn

from simmim_export.errors import UsageError
from simmim_export.models.checkpoint import Checkpoint, build, file_digest, load, save
from simmim_export.models.simmim import SimMIM
from simmim_export.training.assemble import NewModel, as_checkpoint, new_checkpoint
from simmim_export.training.data import dataset
from simmim_export.training.evaluate import evaluate_match, evaluate_vqa
from simmim_export.training.loop import Progress, Recipe, remove_state, train
from simmim_export.training.pretrain import Pretrain
from simmim_export.training.source import Source
from simmim_export.training.tasks import Vqa

Watch = Callable[[str, int, int], None]
Result = tuple[Path, dict[str, Any]]
TASKS = ("vqa",)
EVALUATORS = {"vqa": evaluate_vqa, "match": evaluate_match}


@dataclass(frozen=True)
class Job:
    """What pretraining and fine-tuning share: where to write, what to read, how to optimise, who watches."""

    output: Path
    data: str
    split: str
    images: int
    recipe: Recipe
    resume: bool
    overwrite: bool
    eval_scenes: int
    watch: Watch

    @property
    def state_path(self) -> Path:
        """Where the trainer's state is kept while training lasts."""
        return self.output.with_name(f"{self.output.name}.trainer")


def check_output(path: Path, overwrite: bool) -> None:
    """Raise :class:`UsageError` if ``path`` exists and is not to be replaced."""
    if path.exists() and not overwrite:
        raise UsageError("the output already exists", where=path, fix="add --overwrite, or choose another -o")
    path.absolute().parent.mkdir(parents=True, exist_ok=True)


def init(output: Path, new: NewModel, seed: int, overwrite: bool) -> Result:
    """Write an untrained checkpoint."""
    check_output(output, overwrite)
    checkpoint = new_checkpoint(new, seed=seed)
    save(checkpoint, output)
    return output, checkpoint.metrics


def pretrain(job: Job, start: Path | None, preset: str | None, weights: Mapping[str, float]) -> Result:
    """Train a new model, or that of ``start``, on images and captions by the objectives with a weight above 0."""
    check_output(job.output, job.overwrite)
    started, parent = _start(job, start, preset)
    model, tokenizer = build(started, start or "a new model"), Tokenizer.from_str(started.tokenizer)
    stage = Pretrain(model, tokenizer, _source(job, model), weights)
    progress = _train(job, stage)
    # Matching has learned something only from itm; a figure for an untrained head would be noise.
    heads = ("match",) if "itm" in stage.weights else ()
    metrics = dict(started.metrics) | _metrics(job, model, tokenizer, heads)
    return _write(job, model, started, progress, metrics, {"stage": "pretrain", "objectives": stage.weights} | parent)


def finetune(job: Job, task: str, start: Path | None, preset: str | None, rehearse: int, curriculum: bool) -> Result:
    """Train ``task`` from a checkpoint, or from nothing."""
    check_output(job.output, job.overwrite)
    if task not in TASKS:
        raise UsageError(f"unknown task {task!r}", fix=f"choose one of {', '.join(TASKS)}")
    started, parent = _start(job, start, preset)
    model, tokenizer = build(started, start or "a new model"), Tokenizer.from_str(started.tokenizer)
    source = _source(job, model)
    progress = _train(job, Vqa(model, tokenizer, source, rehearse, curriculum))
    metrics = _metrics(job, model, tokenizer, ("vqa", "match"))
    extra = {"stage": "finetune", "task": task, "rehearse": rehearse, "curriculum": curriculum}
    return _write(job, model, started, progress, metrics, extra | parent)


def evaluate(path: Path, data: str, split: str, stream: str, seed: int, scenes: int, watch: Watch) -> dict[str, Any]:
    """Measure every trained head of a checkpoint on ``scenes`` scenes of ``stream``."""
    checkpoint = load(path)
    model, tokenizer = build(checkpoint, path), Tokenizer.from_str(checkpoint.tokenizer)
    held_out = dataset(data, seed, stream, split, model.config.image_size)
    if stream.startswith("train"):
        raise UsageError("--stream train is what the model learned from", fix="choose test")
    return {
        name: found if found.get("untrained") else EVALUATORS[name](model, tokenizer, held_out, scenes, watch)
        for name, found in checkpoint.metrics.items()
    }


def _start(job: Job, start: Path | None, preset: str | None) -> tuple[Checkpoint, dict[str, Any]]:
    """The checkpoint to start from, and what to record of it."""
    if start is None:
        return new_checkpoint(NewModel(preset or "tiny"), seed=job.recipe.seed), {}
    started = load(start)
    if preset is not None and preset != started.config.preset:
        what = f"--preset {preset} disagrees with the checkpoint's {started.config.preset}"
        raise UsageError(what, where=start, fix="drop --preset")
    return started, {"parent": {"sha256": file_digest(start), "provenance": started.provenance}}


def _source(job: Job, model: SimMIM) -> Source:
    state = PartialState()
    data = dataset(job.data, job.recipe.seed, "train", job.split, model.config.image_size)
    return Source(data, job.images, state.process_index, state.num_processes)


def _train(job: Job, stage: nn.Module) -> Progress:
    def watch(progress: Progress, done: float) -> None:
        rate = progress.samples / max(progress.seconds, 1e-9)
        left = progress.seconds * (1 - done) / max(done, 1e-9)
        step = f"step {progress.step}, loss {progress.loss:.3f}, {rate:.0f} samples/s, {left:.0f} s left"
        job.watch(step, round(1000 * done), 1000)

    return train(stage, job.recipe, state_path=job.state_path, resume=job.resume, watch=watch)


def _metrics(job: Job, model: SimMIM, tokenizer: Tokenizer, tasks: tuple[str, ...]) -> dict[str, Any]:
    if not PartialState().is_main_process:
        return {}
    held_out = dataset(job.data, job.recipe.seed, "test", job.split, model.config.image_size)
    model.to("cpu")
    return {task: EVALUATORS[task](model, tokenizer, held_out, job.eval_scenes, job.watch) for task in tasks}


def _write(
    job: Job,
    model: SimMIM,
    started: Checkpoint,
    progress: Progress,
    metrics: dict[str, Any],
    provenance: dict[str, Any],
) -> Result:
    data = dataset(job.data, job.recipe.seed, "train", job.split, model.config.image_size)
    provenance |= {"recipe": asdict(job.recipe), "images": job.images, "data": data.describe()}
    provenance |= {"steps": progress.step, "samples": progress.samples, "seconds": round(progress.seconds, 1)}
    provenance |= {"processes": PartialState().num_processes}
    if PartialState().is_main_process:
        save(as_checkpoint(model, started.tokenizer, data, metrics, provenance), job.output)
        remove_state(job.state_path)
    return job.output, metrics
