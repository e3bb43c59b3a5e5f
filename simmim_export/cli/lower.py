"""The options that ``onnx`` and ``adopt`` share, and how both print what they exported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simmim_export.console.options import Budget

if TYPE_CHECKING:
    from collections.abc import Sequence

    from simmim_export.export.lower import Lower
    from simmim_export.proof.parity import ParityReport

PANEL = "Lower precision"
MaxBatch = Annotated[
    int,
    typer.Option(
        "--max-batch",
        metavar="N",
        help="Largest batch that the graphs are checked for and accept, 2 to 256. The runtime splits larger batches.",
    ),
]


@dataclass(frozen=True, kw_only=True)
class LowerOptions:
    """What to write besides FP32."""

    precision: Annotated[
        list[str] | None,
        typer.Option(
            "--precision",
            metavar="PRECISION",
            help="fp16 or int8: also write every graph in this precision. Repeatable. fp32 is always written.",
            rich_help_panel=PANEL,
        ),
    ] = None
    budget: Budget = None
    calibration: Annotated[
        Path | None,
        typer.Option(
            "--calibration",
            metavar="DIR",
            help="Folder of images, and texts.txt with one text per line, to measure ranges on.",
            show_default="the samples in the checkpoint",
            rich_help_panel=PANEL,
        ),
    ] = None

    evidence: Annotated[
        Path | None,
        typer.Option(
            "--evidence",
            metavar="DIR",
            help="For a model without labeled examples: folder of images that lower precisions are judged by, "
            "with texts.txt (one text per line), captions.jsonl or both.",
            rich_help_panel=PANEL,
        ),
    ] = None

    def parse(self) -> Lower:
        """The options, checked, without the evidence. Raise :class:`UsageError` and :class:`DataError` as :class:`Lower` does,
        and :class:`UsageError` for BF16, which no file is written in."""
        from simmim_export.errors import UsageError
        from simmim_export.export.evidence_folder import require_evidence
        from simmim_export.export.lower import Lower
        from simmim_export.proof.budget import Budget as Limits
        from simmim_export.spec import Precision

        precisions = tuple(dict.fromkeys(Precision.parse(name) for name in self.precision or []))
        if Precision.BF16 in precisions:
            fix = "export without it, then: simmim-export verify BUNDLE --engine openvino --precision bf16"
            raise UsageError("--precision bf16 writes nothing: engines run the fp32 graphs at bf16", fix=fix)
        if self.evidence is not None:
            require_evidence(self.evidence, self.calibration)
        limits = None if self.budget is None else Limits.parse(self.budget)
        return Lower(tuple(p for p in precisions if p is not Precision.FP32), self.calibration, limits)


def parity_by_graph(reports: Sequence[ParityReport]) -> dict[str, dict[str, Any]]:
    """The figures of each graph for JSON: those of FP32, and under the name of every other variant those of that variant."""
    parity: dict[str, dict[str, Any]] = {report.graph: {} for report in reports}
    for report in reports:
        figures = report.summary()
        parity[report.graph] |= figures if report.precision == "fp32" else {report.variant or report.precision: figures}
    return parity
