"""Options that several commands share, spelled, typed and explained once, and the model that they open."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from simmim_export.console import say

if TYPE_CHECKING:
    from simmim_export.runtime import Model

BundlePath = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder that simmim-export onnx wrote.")]
EngineName = Annotated[
    str,
    typer.Option(
        "--engine",
        help="torch, ort, openvino, trt, one with its device as ort@cuda, or auto: the fastest that is certified here.",
    ),
]
DeviceName = Annotated[
    str | None,
    typer.Option(
        "--device",
        help="cuda: the engine on an NVIDIA GPU, where it runs there (ort, ort-graph, torch, torch-compile, trt).",
    ),
]
PrecisionName = Annotated[
    str | None,
    typer.Option(
        "--precision",
        help="fp32 (the default), fp16, bf16, int8, planned, or one for each graph: image_encoder=int8,text_encoder=bf16.",
    ),
]
CheckpointOption = Annotated[
    Path | None, typer.Option("--checkpoint", help="For --engine torch: the checkpoint that the bundle was made from.")
]
Threads = Annotated[
    int | None, typer.Option("--threads", min=1, help="CPU threads; by default what this process may use.")
]
BudgetOption = Annotated[
    str | None,
    typer.Option(
        "--budget",
        help="What a lower precision may cost: answers=0.5pt,retrieval=0.5pt,cosine=0.998,agreement=99% or some of these.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]


def opened(
    bundle: Path,
    engine: str,
    device: str | None,
    precision: str | None,
    checkpoint: Path | None,
    threads: int | None,
) -> Model:
    """The model that these options ask for; what ``auto`` chose is said on stderr."""
    from simmim_export.runtime import load

    model = load(bundle, engine, precision=precision, device=device, checkpoint=checkpoint, threads=threads)
    if model.why is not None:
        say(f"engine auto: {model.engine.name} at {model.plan}: {model.why}", error=True)
    return model
