"""Data sets by name. One file or folder each; what is on disk is read by :mod:`simmim_export.training.data.readers`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from simmim_export.errors import UsageError
from simmim_export.training.data.base import Data
from simmim_export.training.data.digits import Digits
from simmim_export.training.data.files import Files
from simmim_export.training.data.readers import READERS, read
from simmim_export.training.data.records import Record
from simmim_export.training.data.shapes import Shapes
from simmim_export.training.data.shapes.clips import Clips

MADE = ("shapes", "clips", "digits")
DATASETS = (*MADE, *READERS)
# Of what is made. "demo" is what `make demo` asks about: neither learned from nor judged on.
STREAMS = ("train", "val", "test", "samples", "demo")
# reader -> the splits that streams are read from. Without val evidence and figures are of the same split: VQAv2 and COCO have
# no third one, the answers of CLEVR's are withheld.
SPLITS: Mapping[str, Mapping[str, str]] = {
    "vqav2": {"train": "train2014", "test": "val2014"},
    "coco": {"train": "train2014", "test": "val2014"},
    "karpathy": {"train": "train", "val": "val", "test": "test"},
    "clevr": {"train": "train", "test": "val"},
    "snli_ve": {"train": "train", "val": "dev", "test": "test"},
}
_PLAIN = {"train": "train", "val": "val", "test": "test"}


def dataset(
    name: str,
    seed: int,
    stream: str,
    split: str,
    size: int,
    *,
    root: Path | None = None,
    examples: int | None = None,
    questions: int | None = None,
    known: dict[str, list[Record]] | None = None,
) -> Data:
    """The data set called ``name``; ``split`` is the CoGenT split of shapes, ``root`` the folder of one on disk;
    ``questions`` an image in a batch; ``known`` what was read from ``root`` before, by split, and is not read again.

    Raise :class:`UsageError` for an unknown name, naming the choices, a stream that is none, and for a root that is missing or
    makes no sense.
    """
    if name not in DATASETS:
        raise UsageError(f"unknown data set {name!r}", fix=f"choose one of {', '.join(DATASETS)}")
    if name in MADE and root is not None:
        raise UsageError(f"the data set {name} is not on disk", fix="drop --data-root")
    if name in MADE and stream not in STREAMS:
        # A stream that is made would be made under any name, a misspelt one too.
        raise UsageError(f"the data set {name} has no stream {stream!r}", fix=f"choose one of {', '.join(STREAMS)}")
    if name == "shapes":
        return Shapes(seed, stream, split, size, questions or 8, examples)
    if split != "iid":
        raise UsageError(f"the data set {name} has no CoGenT split {split!r}", fix="drop --split, or use --data shapes")
    if name == "digits":
        return Digits(seed, stream, size, examples)
    if name == "clips":
        if examples is not None:
            raise UsageError(
                "clips are made as they are asked for: there is no --examples of them", fix="drop --examples"
            )
        return Clips(seed, stream, size, questions or 4)
    if root is None:
        raise UsageError(f"the data set {name} is read from disk", fix="give its folder with --data-root")
    splits = SPLITS.get(name, _PLAIN)
    return Files(
        name,
        root,
        read,
        splits,
        seed,
        stream,
        size,
        questions_per_image=questions or 4,
        examples=examples,
        known={} if known is None else known,
    )
