"""Evidence of a checkpoint that has none of its own."""

from __future__ import annotations

from pathlib import Path

import torch

from simmim_export.bundle import Bundle
from simmim_export.export.reference import make_evidence
from simmim_export.models.checkpoint import build, load
from simmim_export.models.graphs import graphs
from simmim_export.precision.calibration import MOST, calibrate


def test_samples_that_calibrate_do_not_judge(tiny_checkpoint: Path, tiny_bundle: Path) -> None:
    checkpoint = load(tiny_checkpoint)
    made = graphs(build(checkpoint, tiny_checkpoint), 4)
    texts = [f"what colour is the circle {'? ' * (n % 7)}{n}" for n in range(140)]
    size = checkpoint.config.image_size
    drawn = torch.randint(0, 256, (140, size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    # Every text and every picture comes twice, as a small data set gives them.
    twice = torch.arange(280) // 2
    checkpoint.samples.update(pixels=drawn[twice], texts=[texts[n] for n in twice])
    found = make_evidence(checkpoint, Bundle.open(tiny_bundle).manifest, made, "here", lambda *_: None)
    own = calibrate(checkpoint.samples["pixels"].numpy(), checkpoint.samples["texts"], None, {})
    assert len(own.texts) == len(own.pixels) == MOST and len(found.plain) == len(found.images["samples"]) == 140 - MOST
    assert not set(found.plain) & set(own.texts)
    assert not {image.tobytes() for image in found.images["samples"]} & {image.tobytes() for image in own.pixels}
    assert found.reference["text_embed"].shape == (140 - MOST, checkpoint.config.embed_dim)
