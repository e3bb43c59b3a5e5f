"""Which precisions an export writes besides FP32. It imports neither PyTorch nor onnx, so that a wrong option fails at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from simmim_export.errors import UsageError
from simmim_export.precision.calibration import require_folder
from simmim_export.proof.budget import Budget
from simmim_export.spec import Precision

# The precisions that passes write files for. An engine computes the FP32 file in BF16 by itself.
WRITTEN = (Precision.FP16, Precision.INT8)


@dataclass(frozen=True)
class Lower:
    """What to write besides FP32: ``precisions``, of :data:`WRITTEN`.

    ``calibration`` is a folder of samples; by default the checkpoint's own are used. With ``budget`` precisions are planned
    within it.

    Raise :class:`UsageError` for a precision that no file is written in and for an option that nothing would use, and
    :class:`DataError` for a folder that does not exist.
    """

    precisions: tuple[Precision, ...] = ()
    calibration: Path | None = None
    budget: Budget | None = None

    def __post_init__(self) -> None:
        for precision in self.precisions:
            if precision not in WRITTEN:
                fix = f"choose among {', '.join(WRITTEN)}"
                raise UsageError(f"an export writes no file in {precision} besides FP32", fix=fix)
        fix = "add --precision int8"
        for option, given in (
            ("--calibration", self.calibration is not None),
            ("--budget", self.budget is not None),
        ):
            if given and not self.precisions:
                raise UsageError(f"{option} without a precision that needs it", fix=fix)
        if self.budget and Precision.INT8 not in self.precisions:
            raise UsageError("--budget is for INT8", fix=fix)
        if self.calibration is not None:
            require_folder(self.calibration)
