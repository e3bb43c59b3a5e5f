"""What is to be written beside FP32, as it was asked for.

Knows options and this processor. Must not know graphs or PyTorch, so that a wrong option costs no import of it.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

from simmim_export.errors import EngineUnavailable, ReducedRange, UsageError
from simmim_export.host import has_integer_dot
from simmim_export.proof.budget import Budget
from simmim_export.spec import Precision


@dataclass(frozen=True)
class Lower:
    """What to write beside FP32. ``precisions``: FP16, INT8 or both; ``calibration``: a folder of samples, else the
    checkpoint's own; ``reduce_range``: INT8 in 7 bits, for processors without VNNI (None: what this one needs); ``budget``: plan
    precisions inside it."""

    precisions: tuple[Precision, ...] = ()
    calibration: Path | None = None
    reduce_range: bool | None = None
    budget: Budget | None = None

    def __post_init__(self) -> None:
        fix = "add --precision int8"
        for option, given in (
            ("--calibration", self.calibration is not None),
            ("--reduce-range or --full-range", self.reduce_range is not None),
            ("--budget", self.budget is not None),
        ):
            if given and not self.precisions:
                raise UsageError(f"{option} without a precision that needs it", fix=fix)
        if (self.budget or self.reduce_range is not None) and Precision.INT8 not in self.precisions:
            raise UsageError("--budget, --reduce-range and --full-range are for INT8", fix=fix)

    @property
    def reduced(self) -> bool:
        """Whether INT8 is written in 7 bits. What nobody chose follows this processor, which has to prove the graphs, and is
        said with a :class:`ReducedRange` warning. Raise :class:`EngineUnavailable` for a full range that cannot be proven here.
        """
        if Precision.INT8 not in self.precisions or has_integer_dot() is not False:
            return bool(self.reduce_range)
        what = "this processor has no VNNI, and INT8 products of full range saturate on it"
        if self.reduce_range is None:
            fix = "for devices with VNNI export on one, with the whole range"
            warnings.warn(f"{what}: INT8 is written in 7 bits; {fix}", ReducedRange, stacklevel=3)
        elif not self.reduce_range:
            fix = "export on a processor with VNNI, or with --reduce-range"
            raise EngineUnavailable(f"{what}: --full-range cannot be proven here", fix=fix)
        return True
