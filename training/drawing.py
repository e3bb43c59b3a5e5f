"""Images of a data set as files, to look at and to ask about. Knows PNG and JSON; must not know models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from simmim_export.errors import UsageError
from simmim_export.training.data import dataset
from simmim_export.training.data.shapes import ANSWERS, contact_sheet


def draw(
    folder: Path, data: str, split: str, stream: str, seed: int, count: int, size: int, overwrite: bool
) -> list[dict[str, Any]]:
    """Write ``count`` PNG files of ``size`` pixels, records.json and sheet.png to ``folder``, and return the records."""
    source = dataset(data, seed, stream, split, size)
    if folder.exists() and not overwrite:
        raise UsageError("the output already exists", where=folder, fix="add --overwrite, or choose another -o")
    found = source.batch(0, count)
    folder.mkdir(parents=True, exist_ok=True)
    records: list[dict[str, Any]] = []
    for index in range(count):
        name = f"{index:04d}.png"
        Image.fromarray(found.pixels[index]).save(folder / name)
        asked: list[dict[str, str]] = [
            {"question": question, "answer": ANSWERS[answer]}
            for question, answer in zip(found.questions[index], found.answers[index], strict=True)
        ]
        records.append({"image": name, "captions": found.captions[index], "questions": asked})
    (folder / "records.json").write_text(json.dumps(records, indent=1), encoding="utf-8")
    lines = [
        [f"{question} {ANSWERS[answer]}" for question, answer in zip(texts, answers, strict=True)]
        for texts, answers in zip(found.questions, found.answers, strict=True)
    ]
    contact_sheet(found.scenes, lines, size).save(folder / "sheet.png")
    return records
