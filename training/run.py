"""The commands that write checkpoints, as functions: start, train, measure, write.

:mod:`simmim_export.training.checks` has already checked what can be checked without PyTorch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn

from simmim_export.errors import SimmimError, UsageError
from simmim_export.models.simmim.checkpoint import Checkpoint, build, load, save
from simmim_export.models.simmim.model import SimMIM
from simmim_export.models.simmim.presets import preset as find_preset
from simmim_export.system.files import digest
from simmim_export.training.article import import_article
from simmim_export.training.assemble import (
    as_checkpoint,
    check_batch,
    check_finite,
    freeze,
    new_checkpoint,
    resized,
    samples,
    with_head,
)
from simmim_export.training.checks import rehearses, require_captions, require_head, require_task
from simmim_export.training.data.base import Data, Source
from simmim_export.training.evidence import IMAGES as EVIDENCE
from simmim_export.training.evidence import gather_evidence
from simmim_export.training.figures import all_metrics, check_texts, judged_heads, measured_on, open_held_out
from simmim_export.training.interrupt import Stopped, deferred
from simmim_export.training.loop import Progress, train
from simmim_export.training.options import TASKS, Job, NewModel
from simmim_export.training.pretrain import Pretrain
from simmim_export.training.processes import leave, state
from simmim_export.training.progress import clock
from simmim_export.training.recipe import FinetuneSettings
from simmim_export.training.tasks import STAGES, Stage
from simmim_export.training.tokenizer import read_tokenizer

# The path of the checkpoint that was written, and its metrics.
Result = tuple[Path, dict[str, Any]]
# The most frames of a clip, for a model that gets its video encoder with its first video task.
FRAMES = 8


def init(output: Path, new: NewModel, *, seed: int) -> Result:
    """Write an untrained checkpoint."""
    checkpoint = new_checkpoint(new, seed=seed)
    save(checkpoint, output)
    return output, checkpoint.metrics


def import_state(
    path: Path, output: Path, *, tokenizer: Path | None, text_heads: int | None, max_length: int | None, image_size: int
) -> list[str]:
    """Write a checkpoint made from the article's state dict ``path``; return notes on what became of each part."""
    checkpoint, notes = import_article(
        path, tokenizer=tokenizer, text_heads=text_heads, max_length=max_length, image_size=image_size
    )
    save(checkpoint, output)
    return notes


def pretrain(job: Job, weights: Mapping[str, float]) -> Result:
    """Train on images and captions by the objectives whose weight is above 0."""
    started, parent = _start(job)
    source = _source(job, started)
    require_captions(source.data)
    if weights.get("itm"):
        started = with_head(started, "match", labels=source.data.labels["match"], frames=0, seed=job.recipe.seed)
    model, tokenizer = _build(job, started)
    check_batch(model, job.images)
    stage = Pretrain(model, tokenizer, source=source, weights=weights)
    # Only itm trains the match head; figures of an untrained head would be noise.
    tasks = ("match",) if "itm" in stage.weights else ()
    about = {"stage": "pretrain", "objectives": stage.weights} | parent
    return _carry_out(job, stage, model=model, tokenizer=tokenizer, started=started, tasks=tasks, about=about)


def finetune(job: Job, task: str, *, settings: FinetuneSettings) -> Result:
    """Train ``task``; a head that the checkpoint lacks is added to it."""
    require_task(task)
    row, seed = TASKS[task], job.recipe.seed
    started, parent = _start(job)
    source = _source(job, started)
    require_head(source.data, task)
    labels = source.data.labels
    frames = FRAMES if row.video else 0
    started = with_head(started, row.head, labels=labels[row.head], frames=frames, seed=seed)
    rehearsed = rehearses(source.data, task, rehearse=settings.rehearse)
    if rehearsed:
        started = with_head(started, "match", labels=labels["match"], frames=0, seed=seed)
    model, tokenizer = _build(job, started)
    check_batch(model, job.images * (FRAMES if row.video else 1))
    stage = STAGES[task](row.head, model, tokenizer=tokenizer, source=source, settings=settings)
    tasks = (task, "match") if rehearsed or task == "retrieval" else (task,)
    about = {"stage": "finetune", "task": task, **asdict(settings)} | parent
    return _carry_out(job, stage, model=model, tokenizer=tokenizer, started=started, tasks=tasks, about=about)


def _start(job: Job) -> tuple[Checkpoint, dict[str, Any]]:
    """The checkpoint to start from, and what the new one records about it."""
    if job.start is None:
        new = NewModel(job.preset or "tiny", image_size=job.image_size, max_length=job.max_length)
        size = job.image_size or find_preset(new.preset).image_size
        data = job.data.open(job.recipe.seed, "train", size=size)
        return new_checkpoint(new, seed=job.recipe.seed, data=data), {}
    started = load(job.start)
    if job.preset is not None and job.preset != started.config.preset:
        what = f"--preset {job.preset} disagrees with the checkpoint, which is {started.config.preset}"
        raise UsageError(what, where=job.start, fix="drop --preset")
    parent = {"parent": {"sha256": digest(job.start), "provenance": started.provenance}}
    return resized(started, image_size=job.image_size, max_length=job.max_length), parent


def _build(job: Job, started: Checkpoint) -> tuple[SimMIM, Tokenizer]:
    """The model and the tokenizer of ``started``, with the encoder frozen that ``job`` freezes."""
    model = build(started, job.start or "a new model")
    if job.frozen is not None:
        freeze(model, job.frozen)
    return model, read_tokenizer(started.tokenizer)


def _source(job: Job, started: Checkpoint) -> Source:
    here = state()
    data = job.data.open(job.recipe.seed, "train", size=started.config.image_size)
    return Source(data, job.images, process=here.process_index, processes=here.num_processes)


def _carry_out(
    job: Job,
    stage: Stage | Pretrain,
    *,
    model: SimMIM,
    tokenizer: Tokenizer,
    started: Checkpoint,
    tasks: Sequence[str],
    about: Mapping[str, Any],
) -> Result:
    """Train ``stage`` and with it ``model``, measure ``tasks``, and write the checkpoint with ``about`` in its provenance."""
    data = stage.source.data
    held_out = open_held_out(job, data, started=started, tasks=tasks)
    kinds = {measured_on(task) for task in tasks} or {"captions"}
    check_texts(job, model, tokenizer=tokenizer, kinds=kinds, streams=(data, held_out))
    progress = _train(job, model, stage=stage, batches=_batches(job, data, about))
    with _kept(job):
        metrics = all_metrics(job, model, tokenizer=tokenizer, started=started, tasks=tasks, held_out=held_out)
        if state().is_main_process:
            _write(job, model, data=data, started=started, progress=progress, metrics=metrics, about=about)
    return job.output, metrics


def _batches(job: Job, data: Data, about: Mapping[str, Any]) -> dict[str, Any]:
    """Everything besides the recipe that decides what is in a batch and where training starts, as plain values.

    A trainer's state can be resumed only if all of it is the same.
    """
    choice = job.data
    return {**about} | {
        "data": choice.name,
        "data_root": None if choice.root is None else str(choice.root.absolute()),
        "split": choice.split,
        "examples": choice.examples,
        "augment": choice.augment,
        "questions": choice.questions,
        "records": data.describe().get("records"),
        "batch_size": job.images,
        "image_size": job.image_size,
        "max_length": job.max_length,
        "frozen": job.frozen,
        "parent": about.get("parent", {}).get("sha256"),
    }


def _train(job: Job, model: SimMIM, *, stage: nn.Module, batches: Mapping[str, Any]) -> Progress:
    """Train ``stage``, and with it ``model``. Raise as :func:`train` and :func:`check_finite`."""

    steps, minutes = job.recipe.steps, job.recipe.minutes

    def watch(progress: Progress, done: float) -> None:
        if not state().is_main_process:
            return
        rate = progress.samples / max(progress.seconds, 1e-9)
        left = clock(progress.seconds * (1 - done) / max(done, 1e-9))
        speed = f"loss {progress.loss:.3f}, {rate:.0f} samples/s, {left} left"
        if steps is not None:
            job.watch(f"step {progress.step} of {steps}, {speed}", progress.step, steps)
        elif minutes is not None:
            now = f"minute {min(progress.seconds / 60, minutes):.1f} of {minutes:g}, step {progress.step}"
            job.watch(f"{now}, {speed}", round(min(progress.seconds, 60 * minutes)), max(1, round(60 * minutes)))

    try:
        progress = train(stage, job.recipe, state_path=job.state_path, resume=job.resume, watch=watch, batches=batches)
    except Stopped:
        leave()
        raise
    # Only the first process measures and writes.
    leave()
    check_finite(model, f"lower --lr (it was {job.recipe.lr}) and start again")
    return progress


@contextmanager
def _kept(job: Job) -> Iterator[None]:
    """A block after training: an error that the user can fix, or a signal, says how to continue without training again."""
    try:
        yield
    except Stopped as stopped:
        stopped.kept = job.state_path
        raise
    except SimmimError as error:
        again = f"repeat the command with --resume: the trained state is kept in {job.state_path}"
        error.fix = again if error.fix is None else f"{error.fix}; then {again}"
        raise


def _write(
    job: Job,
    model: SimMIM,
    *,
    data: Data,
    started: Checkpoint,
    progress: Progress,
    metrics: dict[str, Any],
    about: Mapping[str, Any],
) -> None:
    """Write the checkpoint with up to ``eval_scenes`` held-out examples of each trained head, and delete the trainer's state."""
    provenance = {
        **about,
        "recipe": asdict(job.recipe),
        "images": job.images,
        "data": data.describe(),
        "steps": progress.step,
        "samples": progress.samples,
        "seconds": round(progress.seconds, 1),
        "processes": state().num_processes,
        "image_size": model.config.image_size,
        "frozen": job.frozen,
    }
    checkpoint = as_checkpoint(
        model,
        started.tokenizer,
        labels=started.labels,
        samples=samples(data, started.samples["texts"]),
        metrics=metrics,
        provenance=provenance,
    )
    heads = judged_heads(metrics, data, labels=checkpoint.labels)
    evidence = gather_evidence(data, heads, count=min(job.eval_scenes, EVIDENCE))
    if evidence is not None:
        checkpoint.evidence = torch.frombuffer(bytearray(evidence.save()), dtype=torch.uint8)
    # A signal that comes now must not interrupt the write: half a checkpoint is useless.
    with deferred():
        save(checkpoint, job.output)
        job.state_path.unlink(missing_ok=True)
