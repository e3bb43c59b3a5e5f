"""The command ``simmim-train``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from simmim_export.console import new_app, print_json, progress_bar, run_app, say
from simmim_export.console.metrics import print_metrics
from simmim_export.console.options import AsJson, Overwrite
from simmim_export.training.cli_options import (
    DATA,
    MODEL,
    ImageSize,
    MaxLength,
    Objectives,
    Output,
    Scenes,
    Seed,
    Split,
    Task,
    Training,
    option,
)
from simmim_export.training.interrupt import resumable

app = new_app("Train SimMIM models: an image and a text encoder, their fusion, and task heads.", program="simmim-train")


@app.command(
    examples=("simmim-train init -o start.pt", "simmim-train init --preset small --image-encoder resnet18 -o start.pt")
)
def init(
    output: Output,
    preset: Annotated[str, option("--preset", help="Size of the model: tiny, small, base or large.")] = "tiny",
    text_encoder: Annotated[
        str | None,
        option(
            "--text-encoder",
            help="Folder of a Hugging Face text encoder, or its name on the hub; its weights are used.",
        ),
    ] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    fusion: Annotated[
        str | None, option("--fusion", help="concat_sequence, concat_feature, gated, film or bilinear.", panel=MODEL)
    ] = None,
    interaction: Annotated[str | None, option("--interaction", help="attention, linear or graph.", panel=MODEL)] = None,
    frames: Annotated[
        int | None, option("--frames", min=2, help="Most frames in a clip, for video.", panel=MODEL)
    ] = None,
    image_encoder: Annotated[
        str | None, option("--image-encoder", help="tiny, or the name of a torchvision ResNet.", panel=MODEL)
    ] = None,
    image_weights: Annotated[
        str | None,
        option("--image-weights", help="File with a ResNet's state dict, or torchvision's name for one.", panel=MODEL),
    ] = None,
    image_size: ImageSize = None,
    max_length: MaxLength = None,
    seed: Seed = 0,
) -> None:
    """Write a new, untrained checkpoint."""
    from simmim_export.training import checks, options

    new = options.NewModel(
        preset,
        fusion=fusion,
        interaction=interaction,
        frames=frames,
        image_encoder=image_encoder,
        image_weights=image_weights,
        text_encoder=text_encoder,
        image_size=image_size,
        max_length=max_length,
    )
    checks.check_init(output, new, overwrite=overwrite)
    from simmim_export.training import run

    report(run.init(output, new, seed=seed), as_json=as_json)


@app.command("import", examples=("simmim-train import article.pt --tokenizer tokenizer.json -o ckpt.pt",))
def import_state(
    state: Annotated[
        Path, typer.Argument(metavar="FILE", help="State dict of the article's class, .pt or .safetensors.")
    ],
    output: Output,
    tokenizer: Annotated[
        Path | None, option("--tokenizer", help="The text encoder's tokenizer.json. Required.")
    ] = None,
    text_heads: Annotated[
        int | None, option("--text-heads", help="Number of attention heads of the text encoder. Required.")
    ] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    max_length: Annotated[
        int | None,
        option(
            "--max-length",
            min=3,
            help="Longest text in tokens.",
            show_default="32, or fewer if the encoder has fewer positions",
            panel=MODEL,
        ),
    ] = None,
    image_size: Annotated[int, option("--image-size", min=32, help="Side of an image in pixels.", panel=MODEL)] = 224,
) -> None:
    """Turn a state dict of the article into a checkpoint.

    The state dict has visual_encoder, text_encoder and projector; the command says what it did with each of them.
    """
    from simmim_export.training import checks

    checks.check_import(state, output, overwrite=overwrite)
    from simmim_export.training import run

    notes = run.import_state(
        state, output, tokenizer=tokenizer, text_heads=text_heads, max_length=max_length, image_size=image_size
    )
    if as_json:
        print_json({"checkpoint": str(output), "notes": notes})
        return
    for note in notes:
        say(note)
    say(f"wrote {output}")


@app.command(
    examples=(
        "simmim-train pretrain --minutes 3 -o pre.pt",
        "simmim-train pretrain --data coco --data-root COCO --steps 1000 -o pre.pt",
    )
)
def pretrain(training: Training, objectives: Objectives) -> None:
    """Pretrain on images and captions."""
    from simmim_export.training import checks

    weights = asdict(objectives)
    with resumable(training.resume), progress_bar("pretrain") as watch:
        job = training.job(watch)
        checks.check_pretrain(job, weights)
        from simmim_export.training import run

        checkpoint = run.pretrain(job, weights)
    report(checkpoint, as_json=training.as_json)


@app.command(
    examples=(
        "simmim-train finetune --from pre.pt --minutes 10 -o ckpt.pt",
        "simmim-train finetune --data vqav2 --data-root VQA --minutes 60 -o ckpt.pt",
        "simmim-train finetune --task video_class --data clips --minutes 5 -o video.pt",
    )
)
def finetune(
    *,
    task: Task = "vqa",
    training: Training,
    questions: Annotated[
        int | None,
        option(
            "--questions",
            min=1,
            help="Questions per image in a batch.",
            show_default="8 for shapes, else 4",
            panel=DATA,
        ),
    ] = None,
    rehearse: Annotated[
        int, option("--rehearse", min=0, help="Make every n-th batch one of pretraining; 0 for none.", panel=DATA)
    ] = 8,
    curriculum: Annotated[
        bool, option("--curriculum/--no-curriculum", help="Ask easy questions of shapes first.", panel=DATA)
    ] = True,
) -> None:
    """Fine-tune on a task.

    If the checkpoint lacks the head for it, the head is added.
    """
    from simmim_export.training import checks
    from simmim_export.training.recipe import FinetuneSettings

    with resumable(training.resume), progress_bar("finetune") as watch:
        job = training.job(watch, questions=questions)
        checks.check_finetune(job, task, rehearse=rehearse)
        from simmim_export.training import run

        checkpoint = run.finetune(job, task, settings=FinetuneSettings(rehearse=rehearse, curriculum=curriculum))
    report(checkpoint, as_json=training.as_json)


@app.command(examples=("simmim-train evaluate ckpt.pt", "simmim-train evaluate ckpt.pt --split B --json"))
def evaluate(
    checkpoint: Annotated[Path, typer.Argument(metavar="CKPT", help="Checkpoint to evaluate.")],
    eval_scenes: Scenes = 1024,
    pointing: Annotated[
        bool, option("--pointing", help="Also measure whether the model looks at the thing that it is asked about.")
    ] = False,
    as_json: AsJson = False,
    data: Annotated[
        str | None, option("--data", help="Name of the data set.", show_default="that of training", panel=DATA)
    ] = None,
    data_root: Annotated[
        Path | None,
        option("--data-root", help="Folder of a data set on disk.", show_default="that of training", panel=DATA),
    ] = None,
    split: Annotated[
        str | None,
        option("--split", help="CoGenT split of shapes: iid, A or B.", show_default="that of training", panel=DATA),
    ] = None,
    stream: Annotated[str, option("--stream", help="Held-out stream of the data set.", panel=DATA)] = "test",
    seed: Annotated[
        int | None, option("--seed", min=0, help="Seed of the data.", show_default="that of training", panel=DATA)
    ] = None,
) -> None:
    """Measure a checkpoint on held-out data, next to its controls."""
    from simmim_export.training import checks
    from simmim_export.training.options import DataRequest

    checks.check_evaluate(checkpoint, stream, scenes=eval_scenes)
    request = DataRequest(name=data, root=data_root, split=split, seed=seed)
    request.check(stream)
    from simmim_export.training.figures import evaluate

    with progress_bar("evaluate") as watch:
        metrics = evaluate(checkpoint, request, stream=stream, scenes=eval_scenes, pointing=pointing, watch=watch)
    show(metrics, as_json=as_json)


@app.command(
    examples=("simmim-train draw --count 8 -o images", "simmim-train draw --data clips --stream demo -o clips")
)
def draw(
    output: Annotated[Path, option("-o", "--output", metavar="FOLDER", help="Folder to write.")],
    data: Annotated[str, option("--data", help="shapes (images) or clips (animations).")] = "shapes",
    count: Annotated[int, option("--count", min=1, max=1024, help="Number of images.")] = 8,
    size: Annotated[int, option("--size", min=16, max=4096, help="Side of an image in pixels.")] = 64,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    split: Split = "iid",
    stream: Annotated[str, option("--stream", help="Stream of the data set.", panel=DATA)] = "test",
    seed: Seed = 0,
) -> None:
    """Draw images of a data set, with questions and answers.

    Writes PNG files, or WebP files of clips, and records.json with their captions, questions and answers.
    """
    from simmim_export.training.drawing import draw as write

    records, beside = write(
        output, data, split=split, stream=stream, seed=seed, count=count, size=size, overwrite=overwrite
    )
    if as_json:
        print_json(records)
    else:
        say(f"wrote {len(records)} pictures, {', '.join(beside)} to {output}")


def report(written: tuple[Path, dict[str, Any]], *, as_json: bool) -> None:
    """Print the path of a checkpoint and its metrics, in the main process only."""
    from simmim_export.training.processes import state

    path, metrics = written
    if not state().is_main_process:
        return
    show(metrics | {"checkpoint": str(path)} if as_json else metrics, as_json=as_json)
    if not as_json:
        say(f"wrote {path}")


def show(metrics: dict[str, Any], *, as_json: bool) -> None:
    """Print metrics: as JSON, or as a table of figures with their controls, followed by the tasks without figures."""
    if as_json:
        print_json(metrics)
        return
    untrained = [task for task, row in metrics.items() if "untrained" in row]
    reasons = {task: row["not_measured"] for task, row in metrics.items() if "not_measured" in row}
    measured = {task: row for task, row in metrics.items() if task not in (*untrained, *reasons)}
    if measured:
        print_metrics(measured)
    if untrained:
        say(f"not trained yet: {', '.join(untrained)}")
    for task, reason in reasons.items():
        say(f"{task} was not measured: {reason}")


def main() -> None:
    """Entry point of ``simmim-train``."""
    run_app(app)


if __name__ == "__main__":
    main()
