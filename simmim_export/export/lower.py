"""What is to be written beside FP32, as it was asked for.

Knows options. Must not know graphs or PyTorch, so that a wrong option costs no import of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from simmim_export.errors import UsageError
from simmim_export.precision.calibration import require_folder
from simmim_export.proof.budget import Budget
from simmim_export.spec import Precision


@dataclass(frozen=True)
class Lower:
    """What to write beside FP32. ``precisions``: FP16, INT8 or both; ``calibration``: a folder of samples, else the
    checkpoint's own; ``full_range``: INT8 with weights of 8 bits, not 7 (None: nobody asked for either); ``budget``: plan
    precisions inside it.

    Raise :class:`UsageError` for an option without what it is for, :class:`DataError` where there is no such folder."""

    precisions: tuple[Precision, ...] = ()
    calibration: Path | None = None
    full_range: bool | None = None
    budget: Budget | None = None

    def __post_init__(self) -> None:
        fix = "add --precision int8"
        for option, given in (
            ("--calibration", self.calibration is not None),
            ("--reduce-range or --full-range", self.full_range is not None),
            ("--budget", self.budget is not None),
        ):
            if given and not self.precisions:
                raise UsageError(f"{option} without a precision that needs it", fix=fix)
        if (self.budget or self.full_range is not None) and Precision.INT8 not in self.precisions:
            raise UsageError("--budget, --reduce-range and --full-range are for INT8", fix=fix)
        if self.calibration is not None:
            require_folder(self.calibration)
