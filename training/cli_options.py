"""The options of the training commands: each is defined once, and help lists them in panels with the common ones first."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
from typer.core import TyperCommand

from simmim_export.training.options import DataChoice, Job
from simmim_export.training.progress import Watch
from simmim_export.training.recipe import Recipe

DATA, MODEL, EXPERTS = "Data", "Model", "For experts"

Output = Annotated[
    Path, typer.Option("-o", "--output", metavar="CKPT", help="Checkpoint to write: a .pt file or a folder.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
Split = Annotated[str, typer.Option("--split", help="CoGenT split of shapes: iid, A or B.", rich_help_panel=DATA)]
Seed = Annotated[
    int, typer.Option("--seed", min=0, help="Seed of weights, data and sampling.", rich_help_panel=EXPERTS)
]
ImageSize = Annotated[
    int | None,
    typer.Option(
        "--image-size",
        min=32,
        help="Side of an image in pixels. Default: taken from --from or the preset.",
        rich_help_panel=MODEL,
    ),
]
MaxLength = Annotated[
    int | None,
    typer.Option(
        "--max-length",
        min=3,
        help="Longest text in tokens. Default: taken from --from, the preset or the text encoder.",
        rich_help_panel=MODEL,
    ),
]
Scenes = Annotated[
    int,
    typer.Option(
        "--eval-scenes",
        min=0,
        help="Number of held-out images to measure on.",
    ),
]
Task = Annotated[str, typer.Option("--task", help="vqa, retrieval, text_class, image_class, video_class or video_qa.")]


@dataclass(frozen=True, kw_only=True)
class Training:
    """The options that pretrain and finetune share."""

    preset: Annotated[
        str | None,
        typer.Option(
            "--preset", help="Size of a new model: tiny, small, base or large. Default: that of --from, or tiny."
        ),
    ] = None
    minutes: Annotated[
        float | None, typer.Option("--minutes", help="Train for so many minutes. Give this or --steps.")
    ] = None
    output: Output
    start: Annotated[
        Path | None,
        typer.Option("--from", metavar="CKPT", help="Checkpoint to start from. Default: a new model."),
    ] = None
    data: Annotated[
        str,
        typer.Option(
            "--data",
            help="shapes, clips or digits; or on disk table (CSV or JSON lines), vqav2, coco, karpathy, clevr, snli_ve, "
            "image_folder, frames or webdataset.",
        ),
    ] = "shapes"
    data_root: Annotated[
        Path | None,
        typer.Option("--data-root", help="Folder of a data set on disk, laid out as in docs/training.md."),
    ] = None
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run exactly.")] = False
    overwrite: Overwrite = False
    as_json: AsJson = False
    examples: Annotated[
        int | None,
        typer.Option("--examples", min=1, help="Train on only so many images.", rich_help_panel=DATA),
    ] = None
    split: Split = "iid"
    image_size: ImageSize = None
    max_length: MaxLength = None
    freeze: Annotated[
        str | None,
        typer.Option(
            "--freeze", help="image or text: do not train the pretrained body of that encoder.", rich_help_panel=MODEL
        ),
    ] = None
    steps: Annotated[
        int | None,
        typer.Option(
            "--steps",
            help="Train for so many steps instead of minutes; the same seed then gives the same weights.",
            rich_help_panel=EXPERTS,
        ),
    ] = None
    seed: Seed = 0
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, help="Images in a batch of one process.", rich_help_panel=EXPERTS)
    ] = 32
    optimizer: Annotated[
        str,
        typer.Option(
            "--optimizer",
            help="muon (AdamW for all but hidden matrices) or adamw (for pretrained encoders).",
            rich_help_panel=EXPERTS,
        ),
    ] = "muon"
    lr: Annotated[
        float,
        typer.Option("--lr", help="Peak learning rate of AdamW; Muon's is 5 times as high.", rich_help_panel=EXPERTS),
    ] = 1e-3
    accumulate: Annotated[
        int, typer.Option("--accumulate", min=1, help="Batches to add up for one step.", rich_help_panel=EXPERTS)
    ] = 1
    mixed_precision: Annotated[
        str, typer.Option("--mixed-precision", help="no, bf16 or fp16.", rich_help_panel=EXPERTS)
    ] = "no"
    save_every: Annotated[
        int,
        typer.Option(
            "--save-every", min=1, help="Steps between saves of the trainer's state.", rich_help_panel=EXPERTS
        ),
    ] = 500
    eval_scenes: Annotated[
        int,
        typer.Option(
            "--eval-scenes",
            min=0,
            help="Held-out images to measure on and, separately, to store as evidence; 0 for none.",
            rich_help_panel=EXPERTS,
        ),
    ] = 1024

    def recipe(self) -> Recipe:
        """How to optimize. Raise :class:`UsageError` for values that make no sense."""
        return Recipe(
            steps=self.steps,
            minutes=self.minutes,
            optimizer=self.optimizer,
            lr=self.lr,
            accumulate=self.accumulate,
            mixed_precision=self.mixed_precision,
            seed=self.seed,
            save_every=self.save_every,
        )

    def job(self, recipe: Recipe, *, watch: Watch, questions: int | None = None) -> Job:
        """The job that these options describe; ``questions`` per image in a batch (None: the data set's usual number)."""
        return Job(
            output=self.output,
            start=self.start,
            preset=self.preset,
            data=DataChoice(
                self.data, root=self.data_root, split=self.split, examples=self.examples, questions=questions
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


def _weight(option: str, text: str) -> Any:
    return typer.Option(option, help=f"{text}; 0 leaves it out.", rich_help_panel="Weights of the objectives")


@dataclass(frozen=True, kw_only=True)
class Objectives:
    """The weight of each objective of pretraining."""

    itc: Annotated[float, _weight("--itc", "Contrast images and captions")] = 1.0
    itm: Annotated[float, _weight("--itm", "Match captions against similar wrong ones")] = 1.0
    mlm: Annotated[float, _weight("--mlm", "Fill in hidden words of captions")] = 1.0
    tags: Annotated[float, _weight("--tags", "Detect the captions' words in image tokens")] = 0.0
    mim: Annotated[float, _weight("--mim", "Paint hidden patches of the image")] = 0.0


def with_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Replace each parameter of ``command`` whose type is a dataclass by one option for each field of that dataclass.

    Typer reads a command's options off its parameters. This lets several commands share a group of options.
    """
    parameters: list[inspect.Parameter] = []
    groups: dict[str, Any] = {}
    for name, parameter in inspect.signature(command, eval_str=True).parameters.items():
        if not is_dataclass(parameter.annotation):
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        groups[name] = group = parameter.annotation
        hints = get_type_hints(group, include_extras=True)
        for member in fields(group):
            default = inspect.Parameter.empty if member.default is MISSING else member.default
            kind = inspect.Parameter.KEYWORD_ONLY
            parameters.append(inspect.Parameter(member.name, kind, default=default, annotation=hints[member.name]))

    @functools.wraps(command)
    def call(**values: Any) -> None:
        made = {
            name: group(**{member.name: values.pop(member.name) for member in fields(group)})
            for name, group in groups.items()
        }
        command(**values, **made)

    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return call


class PanelCommand(TyperCommand):
    """A command whose plain-text help lists its options in panels, the common ones first."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write one section for each panel, in the order in which the panels first occur."""
        panels: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                usual = "Arguments" if parameter.param_type_name == "argument" else "Options"
                panels.setdefault(getattr(parameter, "rich_help_panel", None) or usual, []).append(record)
        for panel, records in panels.items():
            with formatter.section(panel):
                formatter.write_dl(records)
