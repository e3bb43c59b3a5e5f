"""Images and clips of a data set as files, to look at and to ask about. Knows PNG, WebP and JSON; must not know models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from simmim_export.errors import UsageError
from simmim_export.system.outputs import replacing
from simmim_export.training.data import dataset
from simmim_export.training.data.shapes import contact_sheet
from simmim_export.training.data.shapes.dataset import ShapesBatch
from simmim_export.training.output import check_folder

# The data sets that are drawn, and are asked about.
DRAWN = ("shapes", "clips")
# Milliseconds that a frame of a clip is shown.
_FRAME_MS = 150


def draw(
    folder: Path, data: str, split: str, stream: str, seed: int, count: int, size: int, overwrite: bool
) -> tuple[list[dict[str, Any]], list[str]]:
    """Write ``count`` pictures of ``size`` pixels, records.json and (of shapes) sheet.png to ``folder``; return the records,
    and the names of the files beside the pictures.

    An image is a PNG, a clip a lossless animated WebP. Raise :class:`UsageError` for data that are not drawn, a stream that is
    none, and a folder that cannot be written to.
    """
    if data not in DRAWN:
        raise UsageError(f"{data!r} are no data that are drawn", fix=f"choose --data {' or '.join(DRAWN)}")
    source = dataset(data, seed, stream, split, size)
    check_folder(folder, overwrite)
    found = source.batch(0, count)
    answers = source.labels["vqa" if "vqa" in source.labels else "video_qa"]
    records: list[dict[str, Any]] = []
    for index, pixels in enumerate(found.pixels):
        clip = pixels.ndim == 4
        name = f"{index:04d}.{'webp' if clip else 'png'}"
        frames = [Image.fromarray(frame) for frame in (pixels if clip else pixels[None])]
        more: dict[str, Any] = {"append_images": frames[1:], "duration": _FRAME_MS, "lossless": True} if clip else {}
        with replacing(folder / name) as temporary:
            frames[0].save(temporary, format="WEBP" if clip else "PNG", save_all=clip, **more)
        asked = [
            {"question": question, "answer": answers[answer]}
            for question, answer in zip(found.questions[index], found.answers[index], strict=True)
        ]
        captions = found.captions[index] if found.captions else []
        records.append({"image": name, "captions": captions, "questions": asked})
    with replacing(folder / "records.json") as temporary:
        temporary.write_text(json.dumps(records, indent=1), encoding="utf-8")
    if isinstance(found, ShapesBatch):
        lines = [[f"{row['question']} {row['answer']}" for row in record["questions"]] for record in records]
        with replacing(folder / "sheet.png") as temporary:
            contact_sheet(found.scenes, lines, size).save(temporary, format="PNG")
        return records, ["records.json", "sheet.png"]
    return records, ["records.json"]
