"""The figures of docs/results.md about emoji, measured on a small model and a small folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from simmim_export.models.simmim.checkpoint import build
from simmim_export.models.simmim.model import SimMIM
from simmim_export.training.assemble import new_checkpoint
from simmim_export.training.data.readers import read
from simmim_export.training.emoji_page import EMOJI
from simmim_export.training.emoji_results import SEARCHED, search
from simmim_export.training.options import NewModel
from simmim_export.training.results_page import page
from simmim_export.training.tokenizer import read_tokenizer


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_search_is_measured_next_to_its_controls(tmp_path: Path) -> None:
    from test_emoji import packages

    checkpoint = new_checkpoint(NewModel("tiny"), seed=0)
    model, records = build(checkpoint, "here").eval(), read("emoji", packages(tmp_path), "train")
    torch.manual_seed(1)
    figures = search(model, SimMIM(model.config).eval(), read_tokenizer(checkpoint.tokenizer), records=records)
    count = len(records)
    assert figures["images"] == count and figures["chance"]["recall_at_1"] == pytest.approx(1 / count)
    assert 0 <= figures["recall_at_1"]["accuracy"] <= figures["recall_at_5"]["accuracy"] <= 1
    blind = figures["controls"]["no image"]
    # Equal scores everywhere: exactly chance.
    assert blind["recall_at_1"]["accuracy"] == pytest.approx(1 / count)
    assert set(figures["controls"]) == {"shuffled names", "untrained image encoder", "no image"}

    rows = [{"style": style, "seen_style": a, "seen_emoji": b, **figures} for style, a, b, _ in SEARCHED]
    stage = {"stage": "pretrain", "seconds": 60, "samples": 1000, "image_size": 64, "frozen": "text"}
    stored = {
        EMOJI: {"metrics": {"rows": rows, "stages": [stage], "image_encoder": "tiny"}, "seconds": 9, "revision": 0}
    }
    shown = page(json.loads(json.dumps(stored)), [])
    assert shown.count("| OpenMoji |") == 2 and "1,000 images of 64 pixels" in shown
    assert "Emoji" not in page({}, [])
