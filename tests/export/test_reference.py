"""The evidence of a bundle: PyTorch's answers to the model's own, or to samples if the model has none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from simmim_export.bundle import Bundle, Manifest
from simmim_export.errors import BundleError
from simmim_export.export.reference import make_evidence
from simmim_export.models.family import LoadOptions, SourceModel, family_of
from simmim_export.precision.calibration import MOST, calibrate
from simmim_export.proof.evidence import Evidence, Task


@pytest.fixture
def model(tiny_checkpoint: Path) -> SourceModel:
    """The model of ``tiny_checkpoint``, which has no evidence of its own."""
    return family_of(tiny_checkpoint).load(tiny_checkpoint, LoadOptions(max_batch=4))


@pytest.fixture(scope="module")
def manifest(tiny_bundle: Path) -> Manifest:
    return Bundle.open(tiny_bundle).manifest


def evidence_of(model: SourceModel, manifest: Manifest) -> Evidence:
    return make_evidence(model, manifest, where="here", watch=lambda *_: None)


@pytest.mark.parametrize(("head", "size", "label"), [("other", 64, 0), ("vqa", 32, 0), ("vqa", 64, 99)])
def test_evidence_about_another_model_is_an_error(
    model: SourceModel, manifest: Manifest, head: str, size: int, label: int
) -> None:
    task = Task(images="s", texts=(("a",), ("b",)), labels=np.full((2, 1), label, np.int64))
    other = Evidence(images={"s": np.zeros((2, size, size, 3), np.uint8)}, tasks={head: task}, source={}).save()
    with pytest.raises(BundleError) as caught:
        evidence_of(replace(model, evidence=other), manifest)
    assert caught.value.exit_code == 5 and caught.value.where == "here"


def test_outputs_that_are_not_finite_are_an_error(model: SourceModel, manifest: Manifest) -> None:
    with torch.no_grad():
        next(model.graphs["text_encoder"].module.parameters()).fill_(float("inf"))
    with pytest.raises(BundleError) as caught:
        evidence_of(model, manifest)
    assert "texts" in caught.value.what


def test_samples_that_calibrate_are_not_evidence(model: SourceModel, manifest: Manifest) -> None:
    texts = [f"what colour is the circle {'? ' * (n % 7)}{n}" for n in range(140)]
    drawn = np.random.default_rng(0).integers(0, 256, (140, *model.images.shape[1:]), dtype=np.uint8)
    # Every text and every picture comes twice, as in a small data set.
    twice = np.arange(280) // 2
    model = replace(model, images=drawn[twice], texts=tuple(texts[n] for n in twice))
    evidence = evidence_of(model, manifest)
    own = calibrate(model.images, model.texts, folder=None, preprocessing={})
    assert len(own.texts) == len(own.images) == MOST
    assert len(evidence.plain) == len(evidence.images["samples"]) == 140 - MOST
    assert not set(evidence.plain) & set(own.texts)
    assert not {image.tobytes() for image in evidence.images["samples"]} & {image.tobytes() for image in own.images}
    assert evidence.reference["texts"].shape == (140 - MOST, manifest.embedding["dim"])
