"""Reader of SNLI-VE (Xie et al., 2019)."""

from __future__ import annotations

import warnings
from pathlib import Path

from simmim_export.errors import DataError
from simmim_export.training.data.readers.files import field, finished, load_lines, split_file
from simmim_export.training.data.records import Record, Statement

LABELS = ("contradiction", "entailment", "neutral")


def read(root: Path, split: str) -> list[Record]:
    """The split ``train``, ``dev`` or ``test``: snli_ve_{split}.jsonl, pictures in flickr30k_images/.

    Pairs on which the annotators did not agree (gold_label "-") are left out; a warning counts them.
    """
    path = split_file(root, "snli_ve_*.jsonl", split)
    stated: dict[str, list[Statement]] = {}
    undecided = 0
    for where, row in load_lines(path):
        image, label = field(row, "Flickr30K_ID", str, where), field(row, "gold_label", str, where)
        text = field(row, "sentence2", str, where)
        if label == "-":
            undecided += 1
            continue
        if label not in LABELS:
            raise DataError(
                f"the label is {label!r}, not one of {', '.join(LABELS)}", where=where, fix="correct the record"
            )
        stated.setdefault(image, []).append(Statement(text, label))
    if undecided:
        warnings.warn(f"{path}: {undecided} pairs without a gold label are left out", stacklevel=2)
    folder = root / "flickr30k_images"
    return finished(
        [Record(key, (folder / f"{key}.jpg",), statements=tuple(statements)) for key, statements in stated.items()],
        path,
    )
