"""Evidence for tests that is not what it must be, under digests that fit."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from simmim_export.bundle import Bundle
from simmim_export.proof.evidence import FILE
from simmim_export.system.files import digest
from simmim_export.system.npz import pack, unpack

Arrays = dict[str, np.ndarray]
LOGITS, EMBED, LABELS = "reference/logits/vqa", "reference/texts", "labels/vqa"


def forged(bundle: Path, copy: Path, change: Callable[[Arrays], object]) -> Bundle:
    """A copy with other evidence, under digests that fit. Its graphs are links to those of ``bundle``."""
    shutil.copytree(bundle, copy, copy_function=os.link, ignore=shutil.ignore_patterns(".certificate*"))
    arrays, manifest = unpack(copy / FILE), Bundle.open(copy).manifest
    change(arrays)
    for name in (FILE, "manifest.json"):
        (copy / name).unlink()
    (copy / FILE).write_bytes(pack(arrays))
    files = dict(manifest.files) | {FILE: digest(copy / FILE)}
    (copy / "manifest.json").write_text(replace(manifest, files=files).dumps())
    return Bundle.open(copy)


def words(change: Callable[[dict[str, Any]], object]) -> Callable[[Arrays], None]:
    """Change the JSON of the evidence."""

    def apply(arrays: Arrays) -> None:
        content = json.loads(arrays["words"].tobytes())
        change(content)
        arrays["words"] = np.frombuffer(json.dumps(content).encode(), np.uint8)

    return apply


def put(key: str, make: Callable[[np.ndarray], Any]) -> Callable[[Arrays], None]:
    """Replace one tensor by what ``make`` gives for it."""

    def apply(arrays: Arrays) -> None:
        arrays[key] = np.asarray(make(arrays[key]))

    return apply


def with_one(key: str, value: float) -> Callable[[Arrays], None]:
    """Replace one value of a tensor."""

    def change(array: np.ndarray) -> np.ndarray:
        array = array.copy()
        array.reshape(-1)[3] = value
        return array

    return put(key, change)
