"""A real bundle and a real manifest that tests may change."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from edits import Content

FIGURE = {"accuracy": 0.5, "n": 4, "interval": [0.1, 0.9]}
WAY = {"embeddings": {"recall_at_1": FIGURE}, "reranked": {"recall_at_1": FIGURE}, "chance": 0.1}
# One row of each form that training writes.
METRICS = {
    "vqa": FIGURE | {"controls": {"blind": {"accuracy": 0.5}}, "by_family": {"count": FIGURE}, "data": {"name": "x"}},
    "match": FIGURE | {"text_to_image_recall_at_1": FIGURE | {"among": 4, "chance": 0.25}},
    "pointing": FIGURE | {"any_thing": 0.4, "chance": 0.1},
    "retrieval": {"captions": 4, "images": 2, "text_to_image": WAY | {"oracle": 0.9}, "image_to_text": WAY},
    "text_class": {"untrained": True},
    "image_class": {"not_measured": "the data set has none"},
}


@pytest.fixture(scope="module")
def content(every_bundle: Path) -> Content:
    """A real manifest with every verb, clips and attention, and with metrics of every kind and a plan."""
    read = json.loads((every_bundle / "manifest.json").read_text())
    read |= {
        "metrics": METRICS,
        "plans": {"ort": {"int8-u8": "image_encoder=int8,text_encoder=bf16"}, "ort@cuda": {"int8-s8": "fp32"}},
    }
    return read


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
