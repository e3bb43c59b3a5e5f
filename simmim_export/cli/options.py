"""Options that several commands share, so that they are spelled, typed and explained once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

BundlePath = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder that simmim-export onnx wrote.")]
EngineName = Annotated[str, typer.Option("--engine", help="torch, ort, openvino or trt.")]
PrecisionName = Annotated[str, typer.Option("--precision", help="fp32, fp16, bf16 or int8.")]
CheckpointOption = Annotated[
    Path | None, typer.Option("--checkpoint", help="For --engine torch: the checkpoint that the bundle was made from.")
]
Threads = Annotated[
    int | None, typer.Option("--threads", min=1, help="CPU threads; by default what this process may use.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
