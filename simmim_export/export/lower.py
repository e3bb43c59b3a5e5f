"""What is to be written beside FP32, as it was asked for.

Knows options and this processor. Must not know graphs or PyTorch, so that a wrong option costs no import of it.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

from simmim_export.errors import ReducedRange, UsageError
from simmim_export.host import has_integer_dot
from simmim_export.proof.budget import Budget
from simmim_export.spec import Precision, Range


@dataclass(frozen=True)
class Lower:
    """What to write beside FP32. ``precisions``: FP16, INT8 or both; ``calibration``: a folder of samples, else the
    checkpoint's own; ``levels``: of INT8 for CPUs (None: what this one computes fastest); ``budget``: plan precisions inside
    it."""

    precisions: tuple[Precision, ...] = ()
    calibration: Path | None = None
    levels: Range | None = None
    budget: Budget | None = None

    def __post_init__(self) -> None:
        fix = "add --precision int8"
        for option, given in (
            ("--calibration", self.calibration is not None),
            ("--reduce-range or --full-range", self.levels is not None),
            ("--budget", self.budget is not None),
        ):
            if given and not self.precisions:
                raise UsageError(f"{option} without a precision that needs it", fix=fix)
        if (self.budget or self.levels is not None) and Precision.INT8 not in self.precisions:
            raise UsageError("--budget, --reduce-range and --full-range are for INT8", fix=fix)

    def range(self) -> Range:
        """The levels of INT8. What nobody chose follows this processor and is said with a :class:`ReducedRange` warning where
        it is not the full range: without VNNI convolutions in 8 bits take a fifth longer, and matrix products hardly do, which
        lose more (ONNX Runtime 1.32, AVX2: ResNet-18 31 ms for 26, MiniLM 17.3 for 16.0)."""
        if self.levels is not None or Precision.INT8 not in self.precisions or has_integer_dot() is not False:
            return self.levels or Range.FULL
        what = "this processor has no VNNI: the weights of INT8 convolutions are written in 7 bits"
        fix = "add --full-range for devices that have it, or --reduce-range for OpenVINO on those that have not"
        warnings.warn(f"{what}; {fix}", ReducedRange, stacklevel=3)
        return Range.CONVOLUTIONS
