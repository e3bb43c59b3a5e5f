"""The options of the training commands: each is defined once, and help lists them in panels with the common ones first."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simmim_export.console.options import AsJson, Overwrite

if TYPE_CHECKING:
    from simmim_export.system.watch import Watch
    from simmim_export.training.options import Job

DATA, MODEL, EXPERTS = "Data", "Model", "For experts"


def option(*names: str, panel: str | None = None, **rest: Any) -> Any:
    """An option of Typer, listed in ``panel`` of the help (None: among the common ones)."""
    return typer.Option(*names, rich_help_panel=panel, **rest)


Output = Annotated[Path, option("-o", "--output", metavar="CKPT", help="Checkpoint to write: a .pt file or a folder.")]
Split = Annotated[str, option("--split", help="CoGenT split of shapes: iid, A or B.", panel=DATA)]
Seed = Annotated[int, option("--seed", min=0, help="Seed of weights, data and sampling.", panel=EXPERTS)]
ImageSize = Annotated[
    int | None,
    option(
        "--image-size",
        min=32,
        help="Side of an image in pixels.",
        show_default="that of the checkpoint or preset",
        panel=MODEL,
    ),
]
MaxLength = Annotated[
    int | None,
    option(
        "--max-length",
        min=3,
        help="Longest text in tokens.",
        show_default="that of the checkpoint, preset or text encoder",
        panel=MODEL,
    ),
]
Scenes = Annotated[int, option("--eval-scenes", min=0, help="Number of held-out images to measure on.")]
Task = Annotated[str, option("--task", help="vqa, retrieval, text_class, image_class, video_class or video_qa.")]


@dataclass(frozen=True, kw_only=True)
class Training:
    """The options that pretrain and finetune share."""

    preset: Annotated[
        str | None,
        option(
            "--preset", help="Size of a new model: tiny, small, base or large.", show_default="that of --from, or tiny"
        ),
    ] = None
    minutes: Annotated[float | None, option("--minutes", help="Train for so many minutes. Give this or --steps.")] = (
        None
    )
    output: Output
    start: Annotated[
        Path | None, option("--from", metavar="CKPT", help="Checkpoint to start from.", show_default="a new model")
    ] = None
    data: Annotated[
        str,
        option(
            "--data",
            help="shapes, clips or digits; or on disk table (CSV or JSON lines), vqav2, coco, karpathy, clevr, snli_ve, "
            "image_folder, frames, webdataset or emoji.",
        ),
    ] = "shapes"
    data_root: Annotated[
        Path | None, option("--data-root", help="Folder of a data set on disk, laid out as in docs/training.md.")
    ] = None
    resume: Annotated[bool, option("--resume", help="Continue an interrupted run exactly.")] = False
    overwrite: Overwrite = False
    as_json: AsJson = False
    examples: Annotated[int | None, option("--examples", min=1, help="Train on only so many images.", panel=DATA)] = (
        None
    )
    augment: Annotated[
        bool,
        option("--augment", help="Turn, scale, move and recolor the training images on disk at random.", panel=DATA),
    ] = False
    split: Split = "iid"
    image_size: ImageSize = None
    max_length: MaxLength = None
    freeze: Annotated[
        str | None,
        option("--freeze", help="image or text: do not train the pretrained body of that encoder.", panel=MODEL),
    ] = None
    steps: Annotated[
        int | None,
        option(
            "--steps",
            help="Train for so many steps instead of minutes; the same seed then gives the same weights.",
            panel=EXPERTS,
        ),
    ] = None
    seed: Seed = 0
    batch_size: Annotated[
        int, option("--batch-size", min=1, help="Images in a batch of one process.", panel=EXPERTS)
    ] = 32
    optimizer: Annotated[
        str,
        option(
            "--optimizer",
            help="muon (AdamW for all but hidden matrices) or adamw (for pretrained encoders).",
            panel=EXPERTS,
        ),
    ] = "muon"
    lr: Annotated[
        float, option("--lr", help="Peak learning rate of AdamW; Muon's is 5 times as high.", panel=EXPERTS)
    ] = 1e-3
    accumulate: Annotated[int, option("--accumulate", min=1, help="Batches to add up for one step.", panel=EXPERTS)] = 1
    mixed_precision: Annotated[str, option("--mixed-precision", help="no, bf16 or fp16.", panel=EXPERTS)] = "no"
    save_every: Annotated[
        int, option("--save-every", min=1, help="Steps between saves of the trainer's state.", panel=EXPERTS)
    ] = 500
    eval_scenes: Annotated[
        int,
        option(
            "--eval-scenes",
            min=0,
            help="Held-out images to measure on and, separately, to store as evidence; 0 for none.",
            panel=EXPERTS,
        ),
    ] = 1024

    def job(self, watch: Watch, *, questions: int | None = None) -> Job:
        """The job that these options describe, with ``questions`` per image in a batch (None: the data set's usual number).

        Raise :class:`UsageError` for a senseless value.
        """
        from simmim_export.training.data import DataChoice
        from simmim_export.training.options import Job
        from simmim_export.training.recipe import Recipe

        recipe = Recipe(
            steps=self.steps,
            minutes=self.minutes,
            optimizer=self.optimizer,
            lr=self.lr,
            accumulate=self.accumulate,
            mixed_precision=self.mixed_precision,
            seed=self.seed,
            save_every=self.save_every,
        )
        return Job(
            output=self.output,
            start=self.start,
            preset=self.preset,
            data=DataChoice(
                self.data,
                root=self.data_root,
                split=self.split,
                examples=self.examples,
                questions=questions,
                augment=self.augment,
            ),
            images=self.batch_size,
            recipe=recipe,
            resume=self.resume,
            overwrite=self.overwrite,
            eval_scenes=self.eval_scenes,
            watch=watch,
            image_size=self.image_size,
            frozen=self.freeze,
            max_length=self.max_length,
        )


def _weight(name: str, text: str) -> Any:
    return option(name, help=f"{text}; 0 leaves it out.", panel="Weights of the objectives")


@dataclass(frozen=True, kw_only=True)
class Objectives:
    """The weight of each objective of pretraining."""

    itc: Annotated[float, _weight("--itc", "Contrast images and captions")] = 1.0
    itm: Annotated[float, _weight("--itm", "Match captions against similar wrong ones")] = 1.0
    mlm: Annotated[float, _weight("--mlm", "Fill in hidden words of captions")] = 1.0
    tags: Annotated[float, _weight("--tags", "Detect the captions' words in image tokens")] = 0.0
    mim: Annotated[float, _weight("--mim", "Paint hidden patches of the image")] = 0.0
