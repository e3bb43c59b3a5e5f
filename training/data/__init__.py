"""Data sets by name. :mod:`simmim_export.training.data.readers` reads those on disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path

from simmim_export.errors import UsageError
from simmim_export.training.data.base import Data
from simmim_export.training.data.digits import Digits
from simmim_export.training.data.files import Files
from simmim_export.training.data.readers import READERS, read
from simmim_export.training.data.records import Record
from simmim_export.training.data.shapes import Shapes
from simmim_export.training.data.shapes.clips import Clips

GENERATED = ("shapes", "clips", "digits")
DATASETS = (*GENERATED, *READERS)
# The streams of generated data. `make demo` asks about "demo", which is used neither for training nor for evaluation.
STREAMS = ("train", "val", "test", "samples", "demo")
# Which split on disk each stream of a reader is read from. Without "val", evidence comes from the same split as the
# figures: VQAv2 and COCO have no third split, and CLEVR withholds the answers of its third.
SPLITS: Mapping[str, Mapping[str, str]] = {
    "vqav2": {"train": "train2014", "test": "val2014"},
    "coco": {"train": "train2014", "test": "val2014"},
    "karpathy": {"train": "train", "val": "val", "test": "test"},
    "clevr": {"train": "train", "test": "val"},
    "snli_ve": {"train": "train", "val": "dev", "test": "test"},
    # noto and twemoji are further streams to evaluate: the held-out emoji of "test", in the styles of training.
    "emoji": {"train": "train", "val": "style", "test": "both", "noto": "noto", "twemoji": "twemoji"},
}
_PLAIN = {"train": "train", "val": "val", "test": "test"}


@dataclass(frozen=True)
class DataChoice:
    """A data set by name.

    ``root`` is its folder if it is on disk, ``split`` the CoGenT split of shapes, ``examples`` how many images to train on (None:
    all), ``questions`` how many to ask about each image of a batch (None: the data set's usual number), and
    ``augment`` whether to change training images on disk at random.
    """

    name: str = "shapes"
    _: KW_ONLY
    root: Path | None = None
    split: str = "iid"
    examples: int | None = None
    questions: int | None = None
    augment: bool = False
    # The records of each split that was read, so that a command reads each file once.
    known: dict[str, list[Record]] = field(default_factory=dict, repr=False, compare=False)

    def open(self, seed: int, stream: str, *, size: int) -> Data:
        """One stream of the data set, with images of ``size`` pixels.

        Raise :class:`UsageError` for an unknown name or stream, a missing or senseless root, and an option that does not apply.
        """
        name, root = self.name, self.root
        examples = self.examples if stream == "train" else None
        if name not in DATASETS:
            raise UsageError(f"unknown data set {name!r}", fix=f"choose one of {', '.join(DATASETS)}")
        if name in GENERATED and root is not None:
            raise UsageError(f"the data set {name} is generated, not read from disk", fix="drop --data-root")
        if name in GENERATED and self.augment:
            raise UsageError(f"--augment changes images on disk, and the data set {name} is not", fix="drop --augment")
        if name in GENERATED and stream not in STREAMS:
            # Generated data would exist for any name of a stream, including a misspelled one.
            raise UsageError(f"the data set {name} has no stream {stream!r}", fix=f"choose one of {', '.join(STREAMS)}")
        if name == "shapes":
            return Shapes(
                seed, stream, split=self.split, size=size, questions_per_scene=self.questions or 8, examples=examples
            )
        if self.split != "iid":
            raise UsageError(
                f"the data set {name} has no CoGenT split {self.split!r}", fix="drop --split, or use --data shapes"
            )
        if name == "digits":
            return Digits(seed, stream, size=size, examples=examples)
        if name == "clips":
            if examples is not None:
                raise UsageError(
                    "--examples does not apply to clips, which are generated without end", fix="drop --examples"
                )
            return Clips(seed, stream, size=size, questions_per_clip=self.questions or 4)
        if root is None:
            raise UsageError(f"the data set {name} is read from disk", fix="give its folder with --data-root")
        return Files(
            name,
            root,
            read=read,
            splits=SPLITS.get(name, _PLAIN),
            seed=seed,
            stream=stream,
            size=size,
            questions_per_image=self.questions or 4,
            examples=examples,
            augment=self.augment,
            known=self.known,
        )
