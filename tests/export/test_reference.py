"""Evidence of a checkpoint that has none of its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from simmim_export.bundle import Bundle
from simmim_export.errors import BundleError
from simmim_export.export.reference import make_evidence
from simmim_export.models.simmim.checkpoint import build, load
from simmim_export.models.simmim.graphs import graphs
from simmim_export.precision.calibration import MOST, calibrate
from simmim_export.proof.evidence import Evidence, Task


@pytest.mark.parametrize(("head", "size", "label"), [("other", 64, 0), ("vqa", 32, 0), ("vqa", 64, 99)])
def test_evidence_for_another_model_is_not_exported(
    tiny_checkpoint: Path, tiny_bundle: Path, head: str, size: int, label: int
) -> None:
    checkpoint = load(tiny_checkpoint)
    task = Task(images="s", texts=(("a",), ("b",)), labels=np.full((2, 1), label, np.int64))
    evidence = Evidence(images={"s": np.zeros((2, size, size, 3), np.uint8)}, tasks={head: task}, source={}).save()
    asked = replace(checkpoint, evidence=torch.from_numpy(np.frombuffer(evidence, np.uint8).copy()))
    made = graphs(build(checkpoint, tiny_checkpoint), 4)
    with pytest.raises(BundleError) as caught:
        make_evidence(asked, Bundle.open(tiny_bundle).manifest, made, "here", lambda *_: None)
    assert caught.value.exit_code == 5 and caught.value.where == "here"


def test_answers_that_are_not_finite_are_no_references(tiny_checkpoint: Path, tiny_bundle: Path) -> None:
    checkpoint = load(tiny_checkpoint)
    made = graphs(build(checkpoint, tiny_checkpoint), 4)
    with torch.no_grad():
        next(made["text_encoder"].module.parameters()).fill_(float("inf"))
    with pytest.raises(BundleError) as caught:
        make_evidence(checkpoint, Bundle.open(tiny_bundle).manifest, made, "here", lambda *_: None)
    assert "texts" in caught.value.what


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
    assert found.reference["texts"].shape == (140 - MOST, checkpoint.config.embed_dim)
