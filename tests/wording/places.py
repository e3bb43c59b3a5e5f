"""The files that the commands of messages.py are given: missing, damaged, empty and hostile ones."""

from __future__ import annotations

import json
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from support import spoil


def make_places(here: Path, *, bundle: Path, checkpoint: Path) -> None:
    """Fill the working directory ``here`` with the files that messages.py names."""
    _texts(here)
    _images(here)
    _checkpoints(here, checkpoint)
    _tables(here / "tables")
    _runs(here / "runs")
    _bundles(here / "damaged", bundle)
    _models(here / "models")


def _texts(here: Path) -> None:
    (here / "folder").mkdir()
    (here / "folder/notes.txt").write_text("notes\n")
    (here / "folder.pt").mkdir()
    (here / "folder.pt/notes.txt").write_text("notes\n")
    (here / "text.txt").write_text("This is a text.\n")
    (here / "empty.txt").touch()
    (here / "latin1.txt").write_bytes("a red caf\xe9\na circle\n".encode("latin-1"))
    (here / "long.txt").write_text("".join(f"{'red circle ' * (9 + n)}\n" for n in range(6)))
    (here / "gaps.txt").write_text("a red circle\n\na square\n")


def _images(here: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (4, 40, 60, 3), dtype=np.uint8)
    pictures = [Image.fromarray(pixels) for pixels in noise]
    pictures[0].save(here / "whole.png")
    (here / "cut.png").write_bytes((here / "whole.png").read_bytes()[:2000])
    (here / "empty.png").touch()
    (here / "text.png").write_text("This is a text.\n")
    (here / "huge.png").write_bytes(_png_header(60_000, 60_000))
    Image.fromarray(np.ones((8, 8), np.float32)).save(here / "floats.tiff")
    pictures[0].save(here / "animation.gif", save_all=True, append_images=pictures[1:])
    for folder, count in (("frames", 4), ("one_frame", 1)):
        (here / folder).mkdir()
        for number, picture in enumerate(pictures[:count]):
            picture.save(here / folder / f"{number}.png")


def _png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def _checkpoints(here: Path, checkpoint: Path) -> None:
    (here / "empty.pt").touch()
    (here / "cut.pt").write_bytes(checkpoint.read_bytes()[:100_000])


def _models(folder: Path) -> None:
    """Folders of transformers without weights, and what describes an ONNX file."""
    configs = {
        "llava": {"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"]},
        "clip": {"model_type": "clip", "architectures": ["CLIPModel"]},
        "code": {"model_type": "clip", "auto_map": {"AutoModel": "code.Model"}},
    }
    for name, config in configs.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps(config))
    spec = (
        'name = "m"\n[image]\nheight = 8\nwidth = 8\nresize = "squash"\ninterpolation = "bilinear"\n'
        '[[graphs]]\nname = "image_encoder"\n'
        'inputs = [{ name = "pixels", kind = "image" }]\noutputs = [{ name = "embed", kind = "embedding" }]\n'
        '[[pipelines]]\nverb = "embed_image"\ngraphs = ["image_encoder"]\n'
    )
    (folder / "spec.toml").write_text(spec)
    (folder / "typo.toml").write_text(spec.replace("height", "hight"))


def _tables(folder: Path) -> None:
    rows = {
        "no_columns": "photo,words\na.png,hello\n",
        "no_image": "image,question,answer\nmissing.png,what ?,red\n",
        "blank": "image,question,answer\nwhole.png,,red\n",
    }
    for name, text in rows.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "train.csv").write_text(text)
        shutil.copy(folder.parent / "whole.png", folder / name)


def _runs(folder: Path) -> None:
    folder.mkdir()
    whole: dict[str, Any] = {"schema": 1, "host": {}, "bundle": {}, "results": []}
    documents = {
        "other_version": {"schema": 99},
        "no_rows": whole,
        "no_host": {key: value for key, value in whole.items() if key != "host"},
    }
    for name, document in documents.items():
        (folder / f"{name}.json").write_text(json.dumps(document))


def _bundles(folder: Path, bundle: Path) -> None:
    folder.mkdir()

    def manifest(change: Callable[[Path], object]) -> Callable[[Path], object]:
        return lambda copy: change(copy / "manifest.json")

    def replaced(key: str, value: object) -> Callable[[Path], object]:
        def change(path: Path) -> None:
            path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))

        return change

    def flip(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)

    def lead_outside(path: Path) -> None:
        document = json.loads(path.read_text())
        document["artifacts"][0]["path"] = "../secret.onnx"
        del document["digest"]
        path.write_text(json.dumps(document))

    graph = "graphs/text_encoder.fp32.onnx"
    damages: dict[str, Callable[[Path], object]] = {
        "not_json": manifest(lambda path: path.write_text("{")),
        "not_utf8": manifest(lambda path: path.write_bytes(b"\xff")),
        "nested": manifest(lambda path: path.write_text("[" * 100_000)),
        "newer": manifest(replaced("schema", 99)),
        "altered": manifest(replaced("labels", {})),
        "wrong_type": manifest(replaced("graphs", "none")),
        "outside": manifest(lead_outside),
        "no_graph": lambda copy: (copy / graph).unlink(),
        "flipped": lambda copy: flip(copy / graph),
        "not_onnx": lambda copy: (copy / graph).write_text("This is a text."),
        "no_golden": lambda copy: (copy / "golden.npz").unlink(),
        "tokenizer": lambda copy: (copy / "tokenizer.json").write_text("{}"),
        "certificate": lambda copy: (copy / "certificate.json").write_text("{"),
    }
    for name, damage in damages.items():
        damage(Path(shutil.copytree(bundle, folder / name)))
    spoil(bundle, folder / "spoiled", 1.01)
