"""The options that several commands share: each is named, typed and explained once, here.

A dataclass is a group of options: a command takes it as one parameter, and :class:`~simmim_export.console.app.App` turns its
fields into options.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout instead of tables.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")]
Save = Annotated[
    Path | None,
    typer.Option("--save", metavar="FILE", help="Also write everything to this JSON file, raw samples included."),
]
Resume = Annotated[
    Path | None,
    typer.Option(
        "--resume",
        metavar="FILE",
        help="Continue the interrupted measurement in FILE, in place of --save. Repeat its other options. Not for a soak.",
    ),
]
# More would take years, or do not fit the numbers that are sent to the process of an engine.
MOST_ROUNDS, MOST_RUNS, MOST_MINUTES = 3000, 10**8, 60 * 24 * 30
Warmup = Annotated[
    int, typer.Option("--warmup", metavar="N", min=0, max=MOST_RUNS, help="Untimed runs before each round.")
]
BundlePath = Annotated[
    Path, typer.Argument(metavar="BUNDLE", help="Folder that simmim-export onnx wrote.", show_default=False)
]


def output(metavar: str, text: str) -> typer.models.OptionInfo:
    """The option ``-o``: where a command writes its result. ``text`` explains it."""
    return typer.Option("-o", "--output", metavar=metavar, help=text)


def contestants(default: str) -> typer.models.OptionInfo:
    """The option ``--engine`` of a command that takes several engines. ``default``: in words, those it takes without it."""
    return typer.Option(
        "--engine",
        metavar="ENGINE",
        help="Engine to measure, as NAME[@DEVICE][:PRECISION], such as ort:int8 or ort@cuda:fp16. simmim-export doctor lists the "
        "names. Repeatable.",
        show_default=default,
        rich_help_panel="Engine",
    )


Precision = Annotated[
    str | None,
    typer.Option(
        "--precision",
        metavar="PRECISION",
        help="fp32, fp16, bf16, int8, planned (what onnx --budget chose), or one per graph: "
        "image_encoder=int8,text_encoder=bf16.",
        show_default="fp32",
        rich_help_panel="Engine",
    ),
]
Strict = Annotated[bool, typer.Option("--strict", help="Stop at the first item that cannot be used.")]
Budget = Annotated[
    str | None,
    typer.Option(
        "--budget",
        metavar="LIMITS",
        help="How much a lower precision may cost, such as answers=0.5pt,cosine=0.998. Limits: answers, retrieval, cosine, "
        "agreement.",
    ),
]
Rounds = Annotated[
    int,
    typer.Option(
        "--rounds",
        metavar="N",
        min=1,
        max=MOST_ROUNDS,
        help="Timed rounds; the engines take turns in each. Ratios need 6 or more.",
    ),
]


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Which engine runs the bundle, and how."""

    engine: Annotated[
        str,
        typer.Option(
            "--engine",
            metavar="ENGINE",
            help="ort, openvino, trt, trt-rtx or torch; or auto, the fastest engine that was certified on this machine.",
            rich_help_panel="Engine",
        ),
    ] = "ort"
    device: Annotated[
        str | None,
        typer.Option(
            "--device",
            metavar="DEVICE",
            help="cuda runs the engine on an NVIDIA GPU: --engine ort --device cuda is ort@cuda.",
            show_default="cpu, or the GPU for trt and trt-rtx",
            rich_help_panel="Engine",
        ),
    ] = None
    precision: Precision = None
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            "--checkpoint",
            metavar="CKPT",
            help="For --engine torch: the checkpoint that the bundle was exported from.",
            rich_help_panel="Engine",
        ),
    ] = None
    threads: Annotated[
        int | None,
        typer.Option(
            "--threads",
            metavar="N",
            min=1,
            help="CPU threads.",
            show_default="all that this process may use",
            rich_help_panel="Engine",
        ),
    ] = None
