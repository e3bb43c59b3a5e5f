"""What a training command is asked for, and every rule on it that can be checked before PyTorch is imported."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from simmim_export.errors import UsageError
from simmim_export.models.simmim import parts
from simmim_export.models.simmim.presets import preset as find_preset
from simmim_export.training.data import dataset
from simmim_export.training.data.base import Data
from simmim_export.training.data.records import Record
from simmim_export.training.output import check_output
from simmim_export.training.text_folder import check_text_folder, is_local

Watch = Callable[[str, int, int], None]
OPTIMIZERS = ("muon", "adamw")
MIXED = ("no", "bf16", "fp16")
# The objectives of pretraining; those that compare captions need two images in a batch.
OBJECTIVES = ("itc", "itm", "mlm", "tags", "mim")
COMPARING = frozenset({"itc", "itm"})


@dataclass(frozen=True)
class Task:
    """The head that a task trains, what its figures are measured on (see :meth:`Data.limit`), and whether it is of clips."""

    head: str
    measured_on: str
    video: bool = False


TASKS: Mapping[str, Task] = {
    "vqa": Task("vqa", "questions"),
    "retrieval": Task("match", "captions"),
    "text_class": Task("text_class", "statements"),
    "image_class": Task("image_class", "classes"),
    "video_class": Task("video_class", "classes", video=True),
    "video_qa": Task("video_qa", "questions", video=True),
}


@dataclass(frozen=True)
class Recipe:
    """How to optimize. Either ``steps`` or ``minutes`` of wall-clock time; the learning rate follows the share done.

    With ``minutes`` a slow machine takes fewer steps and still ends with a learning rate of zero; only ``steps`` gives
    the same weights twice. ``optimizer``: ``adamw``, or ``muon`` for the hidden layers' matrices with AdamW for the rest;
    ``lr`` is AdamW's, Muon's is a fixed multiple of it.
    """

    steps: int | None = None
    minutes: float | None = None
    optimizer: str = "muon"
    lr: float = 1e-3
    weight_decay: float = 0.01
    warmup: float = 0.05
    clip: float = 1.0
    accumulate: int = 1
    mixed_precision: str = "no"
    seed: int = 0
    save_every: int = 500

    def __post_init__(self) -> None:
        if self.steps is None and self.minutes is None:
            raise UsageError("how long to train is missing: --steps or --minutes", fix="add --minutes 3")
        if self.steps is not None and self.minutes is not None:
            raise UsageError("--steps and --minutes exclude each other", fix="drop --steps, or drop --minutes")
        if self.steps is not None and self.steps < 1:
            raise UsageError(f"--steps must be 1 or more: it is {self.steps}", fix="give --steps 1000")
        if self.minutes is not None and not positive(self.minutes):
            raise UsageError(f"--minutes must be above zero, and finite: it is {self.minutes}", fix="give --minutes 3")
        if not positive(self.lr):
            raise UsageError(f"--lr must be above zero, and finite: it is {self.lr}", fix="give --lr 1e-3")
        # What torch.manual_seed takes, with room for one seed a process.
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"--seed must be 0 or more, and below 2**63: it is {self.seed}", fix="give --seed 0")
        if self.optimizer not in OPTIMIZERS:
            raise UsageError(f"unknown optimizer {self.optimizer!r}", fix=f"choose {' or '.join(OPTIMIZERS)}")
        if self.mixed_precision not in MIXED:
            raise UsageError(
                f"unknown mixed precision {self.mixed_precision!r}", fix=f"choose one of {', '.join(MIXED)}"
            )

    def lr_scale(self, done: float) -> float:
        """Share of ``lr`` when the share ``done`` in [0, 1] of training is over: linear warm-up, then a cosine to 0."""
        return min(1.0, (done + 1e-3) / self.warmup) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def positive(value: float) -> bool:
    """Whether ``value`` is above zero and finite; NaN is neither."""
    return math.isfinite(value) and value > 0


@dataclass(frozen=True)
class Plan:
    """How to fine-tune: every ``rehearse``-th batch of questions is one of pretraining, so that embeddings and matching do
    not drift away while the towers learn to answer (0 never); look-ups first (``curriculum``)."""

    rehearse: int = 8
    curriculum: bool = True


@dataclass(frozen=True)
class DataChoice:
    """Which data: its name, its folder if it is on disk, the CoGenT split of shapes, how many examples of it, and how many
    questions an image has in a batch (None: as many as is usual for it)."""

    name: str = "shapes"
    root: Path | None = None
    split: str = "iid"
    examples: int | None = None
    questions: int | None = None
    # What was read from disk, by split: each file is read once in a command.
    known: dict[str, list[Record]] = field(default_factory=dict, repr=False, compare=False)

    def open(self, seed: int, stream: str, size: int) -> Data:
        """One stream, for images of ``size`` pixels."""
        return dataset(
            self.name,
            seed,
            stream,
            self.split,
            size,
            root=self.root,
            examples=self.examples if stream == "train" else None,
            questions=self.questions,
            known=self.known,
        )


@dataclass(frozen=True)
class NewModel:
    """What to change of a preset: None leaves it.

    ``image_encoder`` names a trunk and ``image_weights`` its weights, a file or torchvision's name for them;
    ``text_encoder`` is a folder in Hugging Face's layout, or a name on its hub, whose weights, configuration and tokenizer
    are taken; ``frames`` is the most that a clip may have; ``image_size`` is in pixels, ``max_length`` in tokens.
    """

    preset: str = "tiny"
    fusion: str | None = None
    interaction: str | None = None
    frames: int | None = None
    image_encoder: str | None = None
    image_weights: str | None = None
    text_encoder: str | None = None
    image_size: int | None = None
    max_length: int | None = None


@dataclass(frozen=True)
class Job:
    """What pretraining and fine-tuning share: where to write, what to read, how to optimize, who watches.

    ``image_size`` and ``max_length``: train (and leave) the model at so many pixels and with texts of up to so many tokens,
    None as it is. ``frozen``: the encoder, ``image`` or ``text``, whose pretrained body stays as it is.
    """

    output: Path
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
        """Where the trainer's state is kept while training lasts."""
        return self.output.with_name(f"{self.output.name}.trainer")


def check_init(output: Path, new: NewModel, overwrite: bool) -> None:
    """Raise :class:`UsageError` or :class:`InputError` for a new model that cannot be made or written."""
    check_output(output, overwrite)
    config = find_preset(new.preset)
    parts.require_trunk(new.image_encoder or config.image_trunk)
    fusion = new.fusion or config.fusion
    parts.require_fusion(fusion)
    parts.require_interaction(new.interaction or config.interaction, parts.FUSIONS[fusion])
    if new.image_weights is not None and weights_file(new.image_weights) is not None:
        parts.require_weights(Path(new.image_weights))
    if new.text_encoder is not None and is_local(new.text_encoder):
        check_text_folder(Path(new.text_encoder))


def weights_file(weights: str) -> Path | None:
    """The file that ``weights`` names; None for torchvision's name of weights."""
    path = Path(weights)
    return path if path.exists() or path.suffix else None


def check_import(state: Path, output: Path, overwrite: bool) -> None:
    """Raise :class:`UsageError` or :class:`InputError` for a state dict that is not there or an output that cannot be."""
    check_output(output, overwrite)
    parts.require_weights(state)


def check_pretrain(job: Job, start: Path | None, preset: str | None, weights: Mapping[str, float]) -> None:
    """Raise :class:`UsageError` or :class:`InputError` for what pretraining cannot begin with; reads data on disk."""
    check_output(job.output, job.overwrite)
    require_pairs(objective_weights(weights), job.images)
    _check_start(job, start, preset)
    require_captions(_training_data(job))


def check_finetune(job: Job, task: str, start: Path | None, preset: str | None, rehearse: int) -> None:
    """As :func:`check_pretrain`, for fine-tuning ``task`` with every ``rehearse``-th batch of pretraining (0: none)."""
    check_output(job.output, job.overwrite)
    require_task(task)
    if task == "retrieval":
        require_pairs(COMPARING, job.images)
    _check_start(job, start, preset)
    data = _training_data(job)
    require_head(data, task)
    if rehearses(data, task, rehearse) and job.images < 2:
        what = "rehearsal compares captions, and needs 2 images or more in a batch"
        raise UsageError(what, fix="raise --batch-size, or add --rehearse 0")


def check_evaluate(checkpoint: Path, stream: str, scenes: int) -> None:
    """Raise :class:`UsageError` or :class:`InputError` for what cannot be measured."""
    if stream.startswith("train"):
        raise UsageError(f"--stream {stream} is what the model learned from", fix="choose test")
    if stream == "samples":
        raise UsageError(
            "--stream samples is for calibration, and on disk it is what the model learned from", fix="choose test"
        )
    if scenes == 0:
        raise UsageError("--eval-scenes 0 measures nothing", fix="give 1 or more")
    parts.require_checkpoint(checkpoint)


def objective_weights(weights: Mapping[str, float]) -> dict[str, float]:
    """The ``weights`` above 0. Raise :class:`UsageError` for an unknown objective, a weight below 0, and where none is left."""
    unknown = sorted(set(weights) - set(OBJECTIVES))
    if unknown:
        raise UsageError(f"unknown objective {unknown[0]!r}", fix=f"choose from {', '.join(OBJECTIVES)}")
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights.values()):
        raise UsageError("an objective's weight must be 0 or more, and finite", fix="give 0 to leave it out")
    kept = {name: weight for name, weight in weights.items() if weight > 0}
    if not kept:
        raise UsageError("pretraining needs an objective", fix=f"give one of {', '.join(OBJECTIVES)} a weight")
    return kept


def require_pairs(objectives: Mapping[str, float] | frozenset[str], images: int) -> None:
    """Raise :class:`UsageError` where one of ``objectives`` compares captions, and a batch has a single image."""
    if COMPARING & set(objectives) and images < 2:
        raise UsageError("itc and itm need 2 images or more in a batch", fix="raise --batch-size")


def require_captions(data: Data) -> None:
    """Raise :class:`UsageError` for data that nothing can be pretrained on."""
    if "match" not in data.labels:
        raise UsageError(f"the data set {data.name} has no captions", fix="choose --data shapes")


def require_task(task: str) -> None:
    """Raise :class:`UsageError` unless ``task`` is one of :data:`TASKS`."""
    if task not in TASKS:
        raise UsageError(f"unknown task {task!r}", fix=f"choose one of {', '.join(TASKS)}")


def require_head(data: Data, task: str) -> None:
    """Raise :class:`UsageError` for data that have nothing for ``task``."""
    if TASKS[task].head not in data.labels:
        others = sorted(name for name, t in TASKS.items() if t.head in data.labels)
        fix = f"choose --task {' or '.join(others)}" if others else "give data with questions, captions or classes"
        raise UsageError(f"the data set {data.name} has nothing for the task {task}", fix=fix)


def rehearses(data: Data, task: str, rehearse: int) -> bool:
    """Whether some batches of ``task`` on ``data`` are of pretraining."""
    return bool(rehearse) and TASKS[task].measured_on == "questions" and "match" in data.labels


def require_state(path: Path) -> None:
    """Raise :class:`UsageError` unless there is a trainer's state to resume."""
    if not path.is_file():
        raise UsageError("there is no trainer state to resume", where=path, fix="leave out --resume to start anew")


def _check_start(job: Job, start: Path | None, preset: str | None) -> None:
    if job.frozen is not None:
        parts.require_encoder(job.frozen)
        if start is None:
            what = f"--freeze {job.frozen} would keep an encoder that has learned nothing"
            raise UsageError(what, fix="give a checkpoint to start from with --from")
    if preset is not None:
        find_preset(preset)
    if start is not None:
        parts.require_checkpoint(start)
    if job.resume:
        require_state(job.state_path)


def _training_data(job: Job) -> Data:
    """The training data, read. Its images are not decoded, so their size does not matter yet."""
    data = job.data.open(job.recipe.seed, "train", job.image_size or 64)
    data.open()
    return data
