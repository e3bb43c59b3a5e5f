"""What a training command is asked to do, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path

from simmim_export.training.data import dataset
from simmim_export.training.data.base import Data
from simmim_export.training.data.records import Record
from simmim_export.training.progress import Watch
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


@dataclass(frozen=True)
class DataChoice:
    """Which data: the name of the data set, its folder if it is on disk, the CoGenT split of shapes, how many examples to use,
    and how many questions to ask about each image of a batch (None: the data set's usual number)."""

    name: str = "shapes"
    _: KW_ONLY
    root: Path | None = None
    split: str = "iid"
    examples: int | None = None
    questions: int | None = None
    # The records of each split that was read, so that a command reads each file once.
    known: dict[str, list[Record]] = field(default_factory=dict, repr=False, compare=False)

    def open(self, seed: int, stream: str, *, size: int) -> Data:
        """One stream of the data set, with images of ``size`` pixels."""
        return dataset(
            self.name,
            stream,
            seed=seed,
            split=self.split,
            size=size,
            root=self.root,
            examples=self.examples if stream == "train" else None,
            questions=self.questions,
            known=self.known,
        )


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
