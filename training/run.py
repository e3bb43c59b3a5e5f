"""The training commands as functions: load, train, evaluate, write.

What can be checked without PyTorch was checked before, by :mod:`simmim_export.training.options`.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from simmim_export.console import say
from simmim_export.errors import CheckpointError, SimmimError, UsageError
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
from simmim_export.training.data.base import Data
from simmim_export.training.data.shapes import Shapes
from simmim_export.training.evaluation.pointing import pointing_game
from simmim_export.training.evidence import IMAGES as EVIDENCE
from simmim_export.training.evidence import gather_evidence
from simmim_export.training.figures import (
    all_metrics,
    check_texts,
    head_of,
    judged_heads,
    measure,
    measured_on,
    open_held_out,
)
from simmim_export.training.interrupt import Stopped, deferred
from simmim_export.training.loop import Progress, train
from simmim_export.training.options import (
    TASKS,
    Job,
    NewModel,
    Plan,
    Watch,
    rehearses,
    require_captions,
    require_head,
    require_task,
)
from simmim_export.training.pretrain import Pretrain
from simmim_export.training.processes import leave, state
from simmim_export.training.recall import DataRequest
from simmim_export.training.source import Source
from simmim_export.training.tasks import STAGES
from simmim_export.training.tokenizer import read_tokenizer

Result = tuple[Path, dict[str, Any]]
# The most frames of a clip, in a model that gets its video encoder from its first video task.
FRAMES = 8


def init(output: Path, new: NewModel, seed: int) -> Result:
    """Write an untrained checkpoint."""
    checkpoint = new_checkpoint(new, seed=seed)
    save(checkpoint, output)
    return output, checkpoint.metrics


def import_state(
    path: Path,
    output: Path,
    tokenizer: Path | None,
    text_heads: int | None,
    max_length: int | None,
    image_size: int,
) -> list[str]:
    """Write the checkpoint of an article's state dict; return what became of its parts."""
    checkpoint, notes = import_article(
        path, tokenizer=tokenizer, text_heads=text_heads, max_length=max_length, image_size=image_size
    )
    save(checkpoint, output)
    return notes


def pretrain(job: Job, start: Path | None, preset: str | None, weights: Mapping[str, float]) -> Result:
    """Train a new model, or that of ``start``, on images and captions by the objectives with a weight above 0."""
    started, parent = _start(job, start, preset)
    source = _source(job, started)
    require_captions(source.data)
    if weights.get("itm"):
        started = with_head(started, "match", source.data.labels["match"], 0, job.recipe.seed)
    model, tokenizer = _build(job, started, start)
    check_batch(model, job.images)
    stage = Pretrain(model, tokenizer, source, weights)
    # Matching has learned something only from itm; a figure for an untrained head would be noise.
    tasks = ("match",) if "itm" in stage.weights else ()
    held_out = open_held_out(job, source.data, started, tasks)
    check_texts(job, model, tokenizer, {"captions"}, (source.data, held_out))
    extra = {"stage": "pretrain", "objectives": stage.weights}
    progress = _train(job, model, stage, _batches(job, source, parent, **extra))
    with _kept(job):
        metrics = all_metrics(job, model, tokenizer, started, tasks, held_out)
        return _write(job, source.data, model, started, progress, metrics, extra | parent)


def finetune(job: Job, task: str, start: Path | None, preset: str | None, plan: Plan) -> Result:
    """Train ``task`` from a checkpoint, or from nothing; a head that the checkpoint lacks is added to it."""
    require_task(task)
    row = TASKS[task]
    started, parent = _start(job, start, preset)
    source = _source(job, started)
    require_head(source.data, task)
    labels = source.data.labels
    started = with_head(started, row.head, labels[row.head], FRAMES if row.video else 0, job.recipe.seed)
    if rehearses(source.data, task, plan.rehearse):
        started = with_head(started, "match", labels["match"], 0, job.recipe.seed)
    model, tokenizer = _build(job, started, start)
    check_batch(model, job.images * (FRAMES if row.video else 1))
    stage = STAGES[task](row.head, model, tokenizer, source, plan)
    rehearsed = ("match",) if task == "retrieval" or getattr(stage, "pretrain", None) is not None else ()
    tasks, extra = (task, *rehearsed), {"stage": "finetune", "task": task, **asdict(plan)}
    held_out = open_held_out(job, source.data, started, tasks)
    check_texts(job, model, tokenizer, {measured_on(name) for name in tasks}, (source.data, held_out))
    progress = _train(job, model, stage, _batches(job, source, parent, **extra))
    with _kept(job):
        metrics = all_metrics(job, model, tokenizer, started, tasks, held_out)
        return _write(job, source.data, model, started, progress, metrics, extra | parent)


def evaluate(
    path: Path, request: DataRequest, stream: str, scenes: int, pointing: bool, watch: Watch
) -> dict[str, Any]:
    """Measure every trained head of a checkpoint that the data can measure, on ``scenes`` scenes of ``stream``; with
    ``pointing`` also whether the model looks at the thing it is asked about."""
    checkpoint = load(path)
    data, seed = request.resolve(checkpoint.provenance, path)
    place = "" if data.root is None else f" in {data.root}"
    say(f"evaluating on {stream} of {data.name}{place}, seed {seed}", error=True)
    model, tokenizer = build(checkpoint, path), read_tokenizer(checkpoint.tokenizer)
    held_out = data.open(seed, stream, model.config.image_size)
    held_out.open()
    if not checkpoint.metrics and not pointing:
        what = "nothing in this checkpoint has been trained, so there is nothing to measure"
        raise CheckpointError(
            what,
            where=path,
            fix=f"train it: simmim-train finetune --from {shlex.quote(str(path))} --minutes 3 -o new.pt",
        )
    metrics = {}
    for name, found in checkpoint.metrics.items():
        head = head_of(name)
        if "untrained" in found or head not in held_out.labels:
            metrics[name] = found if "untrained" in found else {"not_measured": f"the data set {data.name} has none"}
            continue
        if list(held_out.labels[head]) != checkpoint.labels[head]:
            what = f"the data set {data.name} has other classes for {head} than the checkpoint"
            raise CheckpointError(what, where=path, fix="evaluate it on the data that it was trained for")
        metrics[name] = measure(name, model, tokenizer, held_out, scenes, watch)
    if pointing:
        if not isinstance(held_out, Shapes):
            raise UsageError(f"nobody knows the boxes of {data.name}", fix="use --pointing with --data shapes")
        metrics["pointing"] = pointing_game(model, tokenizer, held_out, scenes, watch)
    return metrics


def _start(job: Job, start: Path | None, preset: str | None) -> tuple[Checkpoint, dict[str, Any]]:
    """The checkpoint to start from, and what to record of it."""
    if start is None:
        new = NewModel(preset or "tiny", image_size=job.image_size, max_length=job.max_length)
        size = job.image_size or find_preset(new.preset).image_size
        data = job.data.open(job.recipe.seed, "train", size)
        return new_checkpoint(new, seed=job.recipe.seed, data=data), {}
    started = load(start)
    if preset is not None and preset != started.config.preset:
        what = f"--preset {preset} disagrees with the checkpoint's {started.config.preset}"
        raise UsageError(what, where=start, fix="drop --preset")
    parent = {"parent": {"sha256": digest(start), "provenance": started.provenance}}
    return resized(started, job.image_size, job.max_length), parent


def _build(job: Job, started: Checkpoint, start: Path | None) -> tuple[SimMIM, Tokenizer]:
    """The model of ``started``, which is that of ``start`` with what it lacked, to be trained as ``job`` says."""
    model = build(started, start or "a new model")
    if job.frozen is not None:
        freeze(model, job.frozen)
    return model, read_tokenizer(started.tokenizer)


def _source(job: Job, started: Checkpoint) -> Source:
    here = state()
    data = job.data.open(job.recipe.seed, "train", started.config.image_size)
    return Source(data, job.images, here.process_index, here.num_processes)


def _batches(job: Job, source: Source, parent: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """All beside the recipe that decides what is in a batch and where training starts, as plain values: a trainer's state
    goes on only where all of it is the same."""
    choice, started = job.data, parent.get("parent", {})
    return more | {
        "data": choice.name,
        "data_root": None if choice.root is None else str(choice.root.absolute()),
        "split": choice.split,
        "examples": choice.examples,
        "questions": choice.questions,
        "records": source.data.describe().get("records"),
        "batch_size": job.images,
        "image_size": job.image_size,
        "max_length": job.max_length,
        "frozen": job.frozen,
        "parent": started.get("sha256"),
    }


def _train(job: Job, model: SimMIM, stage: nn.Module, batches: Mapping[str, Any]) -> Progress:
    """Train ``stage``, and with it ``model``. Raise as :func:`train`, and :func:`check_finite`."""

    steps, minutes = job.recipe.steps, job.recipe.minutes

    def watch(progress: Progress, done: float) -> None:
        if not state().is_main_process:
            return
        rate = progress.samples / max(progress.seconds, 1e-9)
        left = round(progress.seconds * (1 - done) / max(done, 1e-9))
        speed = f"loss {progress.loss:.3f}, {rate:.0f} samples/s, {left // 60}:{left % 60:02d} left"
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
    # What follows, figures and the file, is the first process's alone.
    leave()
    check_finite(model, f"lower --lr (it was {job.recipe.lr}) and start again")
    return progress


@contextmanager
def _kept(job: Job) -> Iterator[None]:
    """For what follows training: an error that a user can mend, and a signal, say that training need not be repeated."""
    try:
        yield
    except Stopped as stopped:
        stopped.kept = job.state_path
        raise
    except SimmimError as error:
        again = f"repeat the command with --resume: what was trained is kept in {job.state_path}"
        error.fix = again if error.fix is None else f"{error.fix}; then {again}"
        raise


def _write(
    job: Job,
    data: Data,
    model: SimMIM,
    started: Checkpoint,
    progress: Progress,
    metrics: dict[str, Any],
    provenance: dict[str, Any],
) -> Result:
    provenance |= {"recipe": asdict(job.recipe), "images": job.images, "data": data.describe()}
    provenance |= {"steps": progress.step, "samples": progress.samples, "seconds": round(progress.seconds, 1)}
    provenance |= {"processes": state().num_processes, "image_size": model.config.image_size, "frozen": job.frozen}
    if state().is_main_process:
        found = samples(data, started.samples["texts"])
        written = as_checkpoint(model, started.tokenizer, started.labels, found, metrics, provenance)
        whole = replace(written, evidence=_evidence(job, data, metrics, written.labels))
        # A signal that comes now is too late to stop anything: half of a checkpoint would be worth less than all of it.
        with deferred():
            save(whole, job.output)
            job.state_path.unlink(missing_ok=True)
    return job.output, metrics


def _evidence(job: Job, data: Data, metrics: Mapping[str, Any], labels: Mapping[str, Sequence[str]]) -> Tensor:
    """Held-out examples of every trained head as bytes, uint8 [bytes]; none where nothing is to be evaluated."""
    found = gather_evidence(data, judged_heads(metrics, data, labels), min(job.eval_scenes, EVIDENCE))
    return torch.from_numpy(np.frombuffer(b"" if found is None else found.save(), np.uint8).copy())
