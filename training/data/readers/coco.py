"""Reader of COCO captions (Chen et al., 2015)."""

from __future__ import annotations

from pathlib import Path

from simmim_export.errors import DataError
from simmim_export.training.data.readers.files import field, finished, load_json, rows, split_file, unique
from simmim_export.training.data.records import Record


def read(root: Path, split: str) -> list[Record]:
    """The split ``train2014``, ``val2017``, ...: annotations/captions_{split}.json, pictures in {split}/."""
    path = split_file(root, "annotations/captions_*.json", split)
    content = load_json(path)
    names: dict[int, str] = {}
    for where, row in rows(content, "images", path):
        number = field(row, "id", int, where)
        unique(names, number, where, "the image id")
        names[number] = field(row, "file_name", str, where)
    captions: dict[int, list[str]] = {}
    seen: dict[int, str] = {}
    for where, row in rows(content, "annotations", path):
        number, text = field(row, "image_id", int, where), field(row, "caption", str, where).strip()
        if "id" in row:
            unique(seen, field(row, "id", int, where), where, "the caption id")
            seen[row["id"]] = where
        if number not in names:
            raise DataError(f"a caption without an image: image_id {number}", where=where, fix="use one release")
        if not text:
            raise DataError("the caption is empty", where=where, fix="correct the record")
        captions.setdefault(number, []).append(text)
    bare = [number for number in names if number not in captions]
    if bare:
        what = f"{len(bare)} images without a caption, the first is image {bare[0]}"
        raise DataError(what, where=path, fix="use one release")
    return finished(
        [Record(str(n), (root / split / name,), captions=tuple(captions[n])) for n, name in names.items()], path
    )
