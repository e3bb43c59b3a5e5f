"""The judge's process: an error at its start reaches the caller."""

from __future__ import annotations

from pathlib import Path

import pytest

from simmim_export.bundle import Bundle
from simmim_export.errors import BundleError, EngineUnavailable
from simmim_export.planning.judge import Judge
from simmim_export.proof.evidence import FILE as EVIDENCE


@pytest.mark.parametrize(
    ("engine", "damaged", "error"),
    [("trt", False, EngineUnavailable), ("ort", True, BundleError)],
)
def test_an_error_at_the_start_is_raised_with_its_type(
    asked_bundle: Path, tmp_path: Path, engine: str, damaged: bool, error: type[Exception]
) -> None:
    bundle = Bundle.open(asked_bundle)
    evidence = asked_bundle / EVIDENCE
    if damaged:
        evidence = tmp_path / "evidence.npz"
        evidence.write_bytes((asked_bundle / EVIDENCE).read_bytes()[:1000])
    tokenizer = (asked_bundle / "tokenizer.json").read_text(encoding="utf-8")
    with pytest.raises(error):
        Judge(engine, bundle.manifest, tokenizer, evidence, asked_bundle / "golden.npz")
