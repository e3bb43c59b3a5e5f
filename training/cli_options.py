"""The options that several training commands share, spelled, typed and explained once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Preset = Annotated[str, typer.Option("--preset", help="tiny, small, base or large.")]
Output = Annotated[
    Path, typer.Option("-o", "--output", metavar="CKPT", help="Checkpoint to write: a .pt file or a folder.")
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of weights, data and sampling.")]
Data = Annotated[
    str,
    typer.Option(
        "--data",
        help="shapes, clips, digits; or on disk table (CSV or JSON lines), vqav2, coco, karpathy, clevr, snli_ve, "
        "image_folder, frames, webdataset.",
    ),
]
Root = Annotated[
    Path | None, typer.Option("--data-root", help="Folder of a data set on disk, laid out as in docs/training.md.")
]
Examples = Annotated[
    int | None, typer.Option("--examples", min=1, help="Train on so many images only, for training with few labels.")
]
Split = Annotated[str, typer.Option("--split", help="CoGenT split of shapes: iid, A or B.")]
Steps = Annotated[int | None, typer.Option("--steps", help="Train this many steps; the same weights every time.")]
Minutes = Annotated[float | None, typer.Option("--minutes", help="Train this long; the schedule follows the clock.")]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Images in a batch of one process.")]
Lr = Annotated[float, typer.Option("--lr", help="Peak learning rate of AdamW; Muon's is 5 times as high.")]
Optimizer = Annotated[
    str,
    typer.Option("--optimizer", help="muon (with AdamW for what is no hidden matrix) or adamw, for pretrained towers."),
]
Start = Annotated[
    Path | None, typer.Option("--from", metavar="CKPT", help="Checkpoint to start from; without it, a new --preset.")
]
AnyPreset = Annotated[
    str | None,
    typer.Option("--preset", help="tiny, small, base or large; must agree with --from.", show_default="tiny"),
]
Mixed = Annotated[str, typer.Option("--mixed-precision", help="no, bf16 or fp16, by Accelerate.")]
Accumulate = Annotated[int, typer.Option("--accumulate", min=1, help="Batches added up for one step.")]
SaveEvery = Annotated[int, typer.Option("--save-every", min=1, help="Steps between saves of the trainer's state.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the trainer's state beside the output, exactly.")]
ImageSize = Annotated[
    int | None,
    typer.Option("--image-size", min=32, help="Side of an image in pixels; the preset's, or --from's, without."),
]
MaxLength = Annotated[
    int | None,
    typer.Option(
        "--max-length", min=3, help="Longest text in tokens; the preset's (or the encoder's), or --from's, without."
    ),
]
Freeze = Annotated[
    str | None, typer.Option("--freeze", help="image or text: leave that encoder's pretrained body as it is.")
]
Scenes = Annotated[
    int,
    typer.Option(
        "--eval-scenes",
        min=0,
        help="Held-out scenes to evaluate on (on the CPU), and others to take along as evidence; 0 for none.",
    ),
]
