"""What a training command is asked to do, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

from simmim_export.errors import CheckpointError, UsageError
from simmim_export.system.watch import Watch
from simmim_export.training.data import DATASETS, GENERATED, DataChoice
from simmim_export.training.recipe import Recipe

# The objectives of pretraining. Those that compare captions need two images in a batch.
OBJECTIVES = ("itc", "itm", "mlm", "tags", "mim")
COMPARING = frozenset({"itc", "itm"})


@dataclass(frozen=True)
class Task:
    """The head that a task trains, what its accuracy is measured on (see :meth:`Data.limit`), and whether it takes clips."""

    head: str
    measured_on: str
    _: KW_ONLY
    video: bool = False


TASKS: Mapping[str, Task] = {
    "vqa": Task("vqa", "questions"),
    "retrieval": Task("match", "captions"),
    "text_class": Task("text_class", "statements"),
    "image_class": Task("image_class", "classes"),
    "video_class": Task("video_class", "classes", video=True),
    "video_qa": Task("video_qa", "questions", video=True),
}


@dataclass(frozen=True, kw_only=True)
class DataRequest:
    """The data that the command line asks to evaluate on; None means the checkpoint's own."""

    name: str | None = None
    root: Path | None = None
    split: str | None = None
    seed: int | None = None

    def check(self, stream: str) -> None:
        """Raise :class:`UsageError`, before a checkpoint is read, for named data that make no sense."""
        if self.name is not None and (self.root is not None or self.name in GENERATED):
            DataChoice(self.name, root=self.root, split=self.split or "iid").open(self.seed or 0, stream, size=64)
        elif self.name is not None and self.name not in DATASETS:
            raise UsageError(f"unknown data set {self.name!r}", fix=f"choose one of {', '.join(DATASETS)}")

    def resolve(self, provenance: Mapping[str, Any], where: Path) -> tuple[DataChoice, int]:
        """The data and the seed to evaluate the checkpoint ``where`` with: as requested, else as in its ``provenance``.

        What is recorded about one data set is not used for another. A checkpoint that was never trained is evaluated on
        `shapes` with seed 0. Raise :class:`UsageError` for a recorded folder that does not exist here, and
        :class:`CheckpointError` for a malformed record.
        """
        data = _recorded(provenance, "data", Mapping, where) or {}
        recipe = _recorded(provenance, "recipe", Mapping, where) or {}
        known = _recorded(data, "name", str, where)
        name = self.name or known or "shapes"
        same = name == known
        split = _recorded(data, "split", str, where) if same and name == "shapes" else None
        folder = _recorded(data, "root", str, where) if same else None
        seed = _recorded(recipe, "seed", int, where)
        root = self.root
        if root is None and folder is not None:
            root = Path(folder)  # as it was typed: a relative folder must exist here, too
            if not root.is_dir():
                what = f"the checkpoint was trained on {name} in {folder}; {root.absolute()} does not exist"
                raise UsageError(what, where=where, fix=f"say where the data are now: --data-root FOLDER of {name}")
        choice = DataChoice(name, root=root, split=self.split or split or "iid")
        return choice, next(value for value in (self.seed, seed, 0) if value is not None)


def _recorded(record: Mapping[str, Any], name: str, kind: type, where: Path) -> Any:
    """``record[name]``, or None if it is missing. Raise :class:`CheckpointError` if it is not a ``kind``."""
    value = record.get(name)
    if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
        what = f"the checkpoint's record of its training data is malformed: {name}"
        raise CheckpointError(what, where=where, fix="say what to evaluate on: --data, --data-root, --split, --seed")
    return value


@dataclass(frozen=True)
class NewModel:
    """A preset, and what to change in it (None: nothing).

    ``image_encoder`` names a trunk, and ``image_weights`` its weights: a file, or torchvision's name for them.
    ``text_encoder`` is a folder in Hugging Face's layout, or a name on its hub; its weights, configuration and tokenizer are
    used. ``frames`` is the most that a clip may have, ``image_size`` is in pixels, ``max_length`` in tokens.
    """

    preset: str = "tiny"
    _: KW_ONLY
    fusion: str | None = None
    interaction: str | None = None
    frames: int | None = None
    image_encoder: str | None = None
    image_weights: str | None = None
    text_encoder: str | None = None
    image_size: int | None = None
    max_length: int | None = None


@dataclass(frozen=True, kw_only=True)
class Job:
    """What pretraining and fine-tuning share: where to start and where to write, what to read, how to optimize.

    ``start`` is the checkpoint to start from; without it a new model of ``preset`` is made (None: tiny). ``images`` is the
    batch size. ``image_size`` (pixels) and ``max_length`` (tokens) change the model, None keeps its own. ``frozen`` names the
    encoder, ``image`` or ``text``, whose pretrained body is not trained.
    """

    output: Path
    start: Path | None
    preset: str | None
    data: DataChoice
    images: int
    recipe: Recipe
    resume: bool
    overwrite: bool
    eval_scenes: int
    watch: Watch
    image_size: int | None = None
    frozen: str | None = None
    max_length: int | None = None

    @property
    def state_path(self) -> Path:
        """Where the trainer's state is kept until training is over."""
        return self.output.with_name(f"{self.output.name}.trainer")
