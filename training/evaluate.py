"""The command that measures a checkpoint on held-out data, as a function."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from simmim_export.console import say
from simmim_export.errors import CheckpointError, UsageError
from simmim_export.models.simmim.checkpoint import build, load
from simmim_export.training.data.shapes import Shapes
from simmim_export.training.evaluation.pointing import pointing_game
from simmim_export.training.figures import head_of, measure
from simmim_export.training.progress import Watch
from simmim_export.training.recall import DataRequest
from simmim_export.training.tokenizer import read_tokenizer


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
