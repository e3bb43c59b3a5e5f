"""The figures of a model on held-out data: what is measured, on what, and what is recorded where nothing is."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer

from simmim_export.errors import DataError, UsageError
from simmim_export.models.simmim.checkpoint import Checkpoint
from simmim_export.models.simmim.model import SimMIM
from simmim_export.training.data.base import Data
from simmim_export.training.evaluation import EVALUATORS
from simmim_export.training.options import TASKS, Job, Watch
from simmim_export.training.processes import state
from simmim_export.training.tokenizer import check_lengths


def head_of(task: str) -> str:
    """The head that ``task`` trains; a metric that is no task's is called like its head."""
    return TASKS[task].head if task in TASKS else task


def measured_on(task: str) -> str:
    """What the figures of ``task`` are measured on, as :meth:`Data.limit` calls it; a metric that is no task's is of captions."""
    return TASKS[task].measured_on if task in TASKS else "captions"


def judged_heads(metrics: Mapping[str, Any], data: Data, labels: Mapping[str, Sequence[str]]) -> set[str]:
    """The heads in ``metrics`` that were trained, and whose classes ``data`` numbers as ``labels`` does."""
    heads = {head_of(name) for name, found in metrics.items() if "untrained" not in found}
    return {head for head in heads if list(data.labels.get(head, ())) == list(labels.get(head, ()))}


def open_held_out(job: Job, data: Data, started: Checkpoint, tasks: Sequence[str]) -> Data | None:
    """The data that ``tasks`` will be measured on, opened before training: what is missing there is better said first.

    None where there is nothing to measure. Raise as :func:`check_classes`, and for a split that cannot be read.
    """
    if job.eval_scenes == 0 or not (tasks or judged_heads(started.metrics, data, started.labels)):
        return None
    found = data.on("test")
    try:
        found.open()
    except UsageError as error:
        error.fix = f"{error.fix}; or train without figures: --eval-scenes 0"
        raise
    for task in tasks:
        check_classes(found, head_of(task), started.labels[head_of(task)])
    return found


def check_texts(
    job: Job, model: SimMIM, tokenizer: Tokenizer, kinds: Collection[str], streams: Sequence[Data | None]
) -> None:
    """Raise :class:`DataError` for a text on disk that is too long for the model, before the first step."""
    for data, kind in ((data, kind) for data in streams if data is not None for kind in kinds):
        if texts := data.texts(kind):
            job.watch(f"lengths of {len(texts)} {kind}", 0, 1)
            check_lengths(tokenizer, texts, model.config.max_length)


def check_classes(held_out: Data, head: str, trained: Sequence[str]) -> None:
    """Raise :class:`DataError` unless ``held_out`` numbers the classes of ``head`` as training does."""
    found = list(held_out.labels.get(head, ()))
    if found != list(trained):
        odd = sorted(set(found) ^ set(trained))
        named = f": {', '.join(odd[:5])}{' ...' if len(odd) > 5 else ''}" if odd else " in another order"
        what = f"held-out data of {held_out.name} have other classes for {head} than training{named}"
        raise DataError(what, fix="leave the data set as it is while a model trains, and start anew")


def measure(
    task: str, model: SimMIM, tokenizer: Tokenizer, held_out: Data, scenes: int, watch: Watch
) -> dict[str, Any]:
    """The figures of ``task``, or why there are none: a split may lack what they are measured on."""
    kind = measured_on(task)
    if held_out.limit(kind) == 0:
        return {"not_measured": f"{held_out.stream} of {held_out.name} has no {kind}"}
    return EVALUATORS[task](head_of(task), model, tokenizer, held_out, scenes, watch)


def all_metrics(
    job: Job, model: SimMIM, tokenizer: Tokenizer, started: Checkpoint, tasks: Sequence[str], held_out: Data | None
) -> dict[str, Any]:
    """Figures of ``tasks``; what the checkpoint knew of other heads holds no longer, since the towers have changed."""
    if not state().is_main_process:
        return {}
    stale = {"not_measured": "trained earlier, and the towers have changed since"}
    kept = {name: found if "untrained" in found else stale for name, found in started.metrics.items()}
    if held_out is None:
        return kept | {task: {"not_measured": "--eval-scenes 0"} for task in tasks}
    # Figures are computed on the CPU, whatever trained: who waits for them should know.
    where = "" if next(model.parameters()).device.type == "cpu" else ", on the CPU"
    model.to("cpu")

    def watch(step: str, done: int, total: int) -> None:
        job.watch(step + where, done, total)

    return kept | {task: measure(task, model, tokenizer, held_out, job.eval_scenes, watch) for task in tasks}
