"""Writes images and clips of a data set as files, to look at and to ask about."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from simmim_export.errors import UsageError
from simmim_export.system.outputs import replacing
from simmim_export.training.data import DataChoice
from simmim_export.training.data.shapes.dataset import ShapesBatch
from simmim_export.training.data.shapes.draw import contact_sheet
from simmim_export.training.output import check_folder

# The data sets that can be drawn.
DRAWN = ("shapes", "clips")


def draw(
    folder: Path, data: str, *, split: str, stream: str, seed: int, count: int, size: int, overwrite: bool
) -> tuple[list[dict[str, Any]], list[str]]:
    """Write ``count`` pictures of ``size`` pixels, records.json and (for shapes) sheet.png to ``folder``; return the
    records, and the names of the files beside the pictures.

    An image is a PNG, a clip a lossless animated WebP. Raise :class:`UsageError` for a data set that cannot be drawn,
    an unknown stream, and a folder that cannot be written to.
    """
    if data not in DRAWN:
        raise UsageError(f"cannot draw data set {data!r}", fix=f"choose --data {' or '.join(DRAWN)}")
    source = DataChoice(data, split=split).open(seed, stream, size=size)
    check_folder(folder, overwrite)
    batch = source.batch(0, count)
    answers = source.labels["vqa" if "vqa" in source.labels else "video_qa"]
    records: list[dict[str, Any]] = []
    for index, pixels in enumerate(batch.pixels):
        clip = pixels.ndim == 4
        name = f"{index:04d}.{'webp' if clip else 'png'}"
        frames = [Image.fromarray(frame) for frame in (pixels if clip else pixels[None])]
        # Each frame of a clip is shown for 150 milliseconds.
        more: dict[str, Any] = {"append_images": frames[1:], "duration": 150, "lossless": True} if clip else {}
        with replacing(folder / name) as temporary:
            frames[0].save(temporary, format="WEBP" if clip else "PNG", save_all=clip, **more)
        asked = [
            {"question": question, "answer": answers[answer]}
            for question, answer in zip(batch.questions[index], batch.answers[index], strict=True)
        ]
        captions = batch.captions[index] if batch.captions else []
        records.append({"image": name, "captions": captions, "questions": asked})
    with replacing(folder / "records.json") as temporary:
        temporary.write_text(json.dumps(records, indent=1), encoding="utf-8")
    if isinstance(batch, ShapesBatch):
        lines = [[f"{row['question']} {row['answer']}" for row in record["questions"]] for record in records]
        with replacing(folder / "sheet.png") as temporary:
            contact_sheet(batch.scenes, lines, size=size).save(temporary, format="PNG")
        return records, ["records.json", "sheet.png"]
    return records, ["records.json"]
