"""The figures of a model on held-out data: what is measured, on what, and what is recorded if nothing is measured."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from simmim_export.console import say
from simmim_export.errors import CheckpointError, DataError, UsageError
from simmim_export.models.simmim.checkpoint import Checkpoint, build, load
from simmim_export.models.simmim.model import SimMIM
from simmim_export.system.watch import Watch
from simmim_export.training.data.base import Data
from simmim_export.training.data.shapes import Shapes
from simmim_export.training.evaluation import EVALUATORS
from simmim_export.training.evaluation.pointing import pointing_game
from simmim_export.training.options import TASKS, DataRequest, Job
from simmim_export.training.processes import state
from simmim_export.training.tokenizer import check_lengths, read_tokenizer


def head_of(task: str) -> str:
    """The head that ``task`` trains. A metric that is not named after a task is named after its head."""
    return TASKS[task].head if task in TASKS else task


def measured_on(task: str) -> str:
    """What ``task`` is measured on, in the words of :meth:`Data.limit`; captions if ``task`` is the name of a head."""
    return TASKS[task].measured_on if task in TASKS else "captions"


def judged_heads(metrics: Mapping[str, Any], data: Data, *, labels: Mapping[str, Sequence[str]]) -> set[str]:
    """The trained heads in ``metrics`` whose classes have the same numbers in ``data`` as in ``labels``."""
    heads = {head_of(name) for name, figures in metrics.items() if "untrained" not in figures}
    return {head for head in heads if list(data.labels.get(head, ())) == list(labels.get(head, ()))}


def open_held_out(job: Job, data: Data, *, started: Checkpoint, tasks: Sequence[str]) -> Data | None:
    """The data that ``tasks`` will be measured on, opened before training so that problems show early.

    None if nothing will be measured. Raise as :func:`check_classes`, and for a split that cannot be read.
    """
    if job.eval_scenes == 0 or not (tasks or judged_heads(started.metrics, data, labels=started.labels)):
        return None
    held_out = data.on("test")
    try:
        held_out.open()
    except UsageError as error:
        error.fix = f"{error.fix}; or train without figures: --eval-scenes 0"
        raise
    for task in tasks:
        check_classes(held_out, head_of(task), trained=started.labels[head_of(task)])
    return held_out


def check_texts(
    job: Job, model: SimMIM, *, tokenizer: Tokenizer, kinds: Collection[str], streams: Sequence[Data | None]
) -> None:
    """Raise :class:`DataError`, before the first step, for a text on disk that is too long for the model."""
    for data, kind in ((data, kind) for data in streams if data is not None for kind in kinds):
        if texts := data.texts(kind):
            job.watch(f"checking the lengths of {len(texts)} {kind}", 0, 1)
            check_lengths(tokenizer, texts, max_length=model.config.max_length)


def check_classes(held_out: Data, head: str, *, trained: Sequence[str]) -> None:
    """Raise :class:`DataError` unless ``held_out`` numbers the classes of ``head`` as training does."""
    classes = list(held_out.labels.get(head, ()))
    if classes != list(trained):
        odd = sorted(set(classes) ^ set(trained))
        named = f": {', '.join(odd[:5])}{' ...' if len(odd) > 5 else ''}" if odd else " in another order"
        what = f"held-out data of {held_out.name} have other classes for {head} than training{named}"
        raise DataError(what, fix="do not change the data set while a model trains, and start anew")


def measure(
    task: str, model: SimMIM, *, tokenizer: Tokenizer, held_out: Data, scenes: int, watch: Watch
) -> dict[str, Any]:
    """The figures of ``task``, or the reason why there are none: a split may lack what they are measured on."""
    kind = measured_on(task)
    if held_out.limit(kind) == 0:
        return {"not_measured": f"{held_out.stream} of {held_out.name} has no {kind}"}
    return EVALUATORS[task](head_of(task), model, tokenizer=tokenizer, data=held_out, scenes=scenes, watch=watch)


def all_metrics(
    job: Job, model: SimMIM, *, tokenizer: Tokenizer, started: Checkpoint, tasks: Sequence[str], held_out: Data | None
) -> dict[str, Any]:
    """The figures of ``tasks``. Those of other heads no longer hold, because training changed the encoders."""
    if not state().is_main_process:
        return {}
    stale = {"not_measured": "trained earlier, and the encoders have changed since"}
    others = {name: figures if "untrained" in figures else stale for name, figures in started.metrics.items()}
    if held_out is None:
        return others | {task: {"not_measured": "--eval-scenes 0"} for task in tasks}
    # Whatever trained the model, figures are computed on the CPU. Say so to whoever waits for them.
    where = "" if next(model.parameters()).device.type == "cpu" else ", on the CPU"
    model.to("cpu")

    def watch(step: str, done: int, total: int) -> None:
        job.watch(step + where, done, total)

    return others | {
        task: measure(task, model, tokenizer=tokenizer, held_out=held_out, scenes=job.eval_scenes, watch=watch)
        for task in tasks
    }


def evaluate(
    path: Path, request: DataRequest, *, stream: str, scenes: int, pointing: bool, watch: Watch
) -> dict[str, Any]:
    """Measure every trained head of the checkpoint ``path`` on ``scenes`` images of ``stream``.

    ``pointing`` also measures whether the model looks at the thing that it is asked about. The result maps each task to its
    figures, or says why there are none. Raise :class:`CheckpointError` if nothing was trained or the data have other classes,
    and :class:`UsageError` if the pointing game cannot be played on the data.
    """
    checkpoint = load(path)
    data, seed = request.resolve(checkpoint.provenance, path)
    place = "" if data.root is None else f" in {data.root}"
    say(f"evaluating on {stream} of {data.name}{place}, seed {seed}", error=True)
    model, tokenizer = build(checkpoint, path), read_tokenizer(checkpoint.tokenizer)
    held_out = data.open(seed, stream, size=model.config.image_size)
    held_out.open()
    if not checkpoint.metrics and not pointing:
        fix = f"train it: simmim-train finetune --from {shlex.quote(str(path))} --minutes 3 -o new.pt"
        raise CheckpointError("nothing in this checkpoint has been trained", where=path, fix=fix)
    metrics: dict[str, Any] = {}
    for name, stored in checkpoint.metrics.items():
        head = head_of(name)
        if "untrained" in stored:
            metrics[name] = stored
        elif head not in held_out.labels:
            metrics[name] = {"not_measured": f"the data set {data.name} has no classes for it"}
        elif list(held_out.labels[head]) != checkpoint.labels[head]:
            what = f"the data set {data.name} has other classes for {head} than the checkpoint"
            raise CheckpointError(what, where=path, fix="evaluate it on the data that it was trained for")
        else:
            metrics[name] = measure(name, model, tokenizer=tokenizer, held_out=held_out, scenes=scenes, watch=watch)
    if pointing:
        if not isinstance(held_out, Shapes):
            what = f"the pointing game needs to know where things are, and {data.name} does not say"
            raise UsageError(what, fix="use --pointing with --data shapes")
        metrics["pointing"] = pointing_game(model, tokenizer, data=held_out, scenes=scenes, watch=watch)
    return metrics
