"""Texts and pictures with what Python makes of them, so that the page can find out whether it makes the same."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import PIL

from simmim_export.bundle import Bundle
from simmim_export.errors import ImageError, TextError
from simmim_export.proof.evidence import FILE as EVIDENCE
from simmim_export.proof.evidence import Evidence
from simmim_export.runtime.images import ImagePreprocessing, load_pixels
from simmim_export.runtime.text import Tokenizer

# Whether Pillow resizes the columns of a tall picture before its rows: since version 13.
TALL_FIRST = int(PIL.__version__.split(".")[0]) >= 13
# Width and height of the test pictures, in pixels: smaller, larger, narrow, wide.
SIZES = ((97, 61), (640, 3), (5, 400), (32, 32), (211, 305))
# So many of the texts that the bundle's evidence asks are checks too.
ASKED = 100
# Texts on which tokenizers differ.
TEXTS = (
    "What colour is the LARGE red circle?",
    "  two   spaces,\ttabs\nand lines ",
    "it's 3.14 o'clock - isn't it?! (yes)",
    "Caf\u00e9 cafe\u0301 na\u00efve \u00c5ngstr\u00f6m",
    "\u039f\u0394\u039f\u03a3 \u03a3\u03a3 \u0130stanbul stra\u00dfe",
    "\u4e00\u4e8c\u4e09 \U00020000 \u3053\u3093\u306b\u3061\u306f \ud55c\uad6d\uc5b4",
    "\U0001f600 \U0001f468\u200d\U0001f469\u200d\U0001f467 \u2122 \u00bd \u00a7",
    "\u00a0no\u2009break\u3000space",
    "[CLS] <s> </s> [MASK] red",
    "zzzzqqqq " * 3,
    "word " * 600,
    "x" * 300,
)


def noise(count: int) -> np.ndarray:
    """The first ``count`` bytes of the test pictures, uint8; picture.js has the same."""
    return ((np.arange(count, dtype=np.uint64) * 2654435761 & 0xFFFFFFFF) >> 24).astype(np.uint8)


def picture_checks(preprocessing: ImagePreprocessing) -> list[dict[str, Any]]:
    """The width and height of each test picture, and the SHA-256 of its pixels after ``preprocessing``."""
    checks = []
    for width, height in SIZES:
        picture = noise(width * height * 3).reshape(height, width, 3)
        try:
            pixels = load_pixels([picture], preprocessing)
        except ImageError:  # too narrow to be cropped; the page refuses it, too
            continue
        checks.append({"width": width, "height": height, "sha256": hashlib.sha256(pixels.tobytes()).hexdigest()})
    return checks


def text_checks(tokenizer: Tokenizer, asked: Sequence[str]) -> list[dict[str, Any]]:
    """Those of :data:`TEXTS` and ``asked`` that ``tokenizer`` takes, each with its ids."""
    checks = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for text in dict.fromkeys([*TEXTS, *asked]):
            try:
                ids = token_ids(tokenizer, text)
            except TextError:
                continue
            checks.append({"text": text, "ids": ids})
    return checks


def token_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of one text with its special tokens, without padding."""
    ids, mask = tokenizer.encode([text])
    return [int(each) for each in ids[0][mask[0] == 1]]


def asked_texts(bundle: Bundle) -> list[str]:
    """Up to :data:`ASKED` of the texts in the bundle's evidence."""
    if EVIDENCE not in bundle.manifest.files:
        return []
    tasks = Evidence.load(bundle.file(EVIDENCE)).tasks.values()
    return [text for task in tasks for row in task.texts for text in row][:ASKED]
