"""Reader of Karpathy's splits of COCO, Flickr30k and Flickr8k (2015)."""

from __future__ import annotations

import warnings
from pathlib import Path

from simmim_export.errors import DataError
from simmim_export.training.data.readers.files import field, finished, is_there, load_json, no_split, rows, unique
from simmim_export.training.data.records import Record

NAMES = ("dataset_coco.json", "dataset_flickr30k.json", "dataset_flickr8k.json")


def read(root: Path, split: str) -> list[Record]:
    """The split ``train``, ``val``, ``test`` or ``restval``, or several joined by +, as in ``train+restval``.

    Sentences without a word are left out; a warning counts them.
    """
    present = [root / name for name in NAMES if is_there(root / name)]
    if len(present) != 1:
        what = f"the folder has {len(present)} of {', '.join(NAMES)}, and exactly one is needed"
        raise DataError(what, where=root, fix="give the folder of one data set with --data-root")
    (path,), wanted = present, set(split.split("+"))
    records: dict[str, Record] = {}
    splits = set()
    blank = 0
    for where, row in rows(load_json(path), "images", path):
        part, name = field(row, "split", str, where), field(row, "filename", str, where)
        splits.add(part)
        if part not in wanted:
            continue
        key = f"{field(row, 'filepath', str, where)}/{name}" if row.get("filepath") else name
        unique(records, key, where, "the picture")
        captions = [field(s, "raw", str, where).strip() for s in field(row, "sentences", list, where)]
        if not any(captions):
            raise DataError(f"an image without a caption: {name}", where=where, fix="correct the record")
        blank += captions.count("")
        places = (root / key, root / "images" / name, root / name)
        image = next((place for place in places if is_there(place)), places[0])
        records[key] = Record(key, (image,), captions=tuple(caption for caption in captions if caption))
    if not wanted <= splits:
        raise no_split(
            split,
            splits,
            root=root,
            looked_for=[f"an image of the split {name!r} in {path.name}" for name in sorted(wanted - splits)],
        )
    if blank:
        warnings.warn(f"{path}: {blank} empty sentences are left out", stacklevel=2)
    return finished(list(records.values()), path)
