"""The command ``simmim-train``: parses, calls, prints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from simmim_export.console import new_app, print_json, progress_bar, run_app, say
from simmim_export.console.metrics import print_metrics
from simmim_export.console.options import AsJson, Overwrite
from simmim_export.training.cli_options import (
    Accumulate,
    AnyPreset,
    BatchSize,
    Data,
    Examples,
    Freeze,
    ImageSize,
    Lr,
    MaxLength,
    Minutes,
    Mixed,
    Optimizer,
    Output,
    Preset,
    Resume,
    Root,
    SaveEvery,
    Scenes,
    Seed,
    Split,
    Start,
    Steps,
)
from simmim_export.training.interrupt import resumable

app = new_app("Train SimMIM models: an image and a text encoder, their fusion, and task heads.", program="simmim-train")


@app.command(
    examples=("simmim-train init -o start.pt", "simmim-train init --preset small --image-encoder resnet18 -o start.pt")
)
def init(
    output: Output,
    preset: Preset = "tiny",
    fusion: Annotated[
        str | None, typer.Option("--fusion", help="concat_sequence, concat_feature, gated, film or bilinear.")
    ] = None,
    interaction: Annotated[str | None, typer.Option("--interaction", help="attention, linear or graph.")] = None,
    frames: Annotated[
        int | None, typer.Option("--frames", min=2, help="Let the model take clips of up to so many frames.")
    ] = None,
    image_encoder: Annotated[
        str | None, typer.Option("--image-encoder", help="tiny or a torchvision ResNet, instead of the preset's.")
    ] = None,
    image_weights: Annotated[
        str | None,
        typer.Option("--image-weights", help="A ResNet's state dict, or torchvision's name for one (DEFAULT)."),
    ] = None,
    text_encoder: Annotated[
        str | None,
        typer.Option(
            "--text-encoder", help="Folder of a Hugging Face encoder (or its name) to take, with its weights."
        ),
    ] = None,
    image_size: ImageSize = None,
    max_length: MaxLength = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Write an untrained checkpoint, to start from or to benchmark."""
    from simmim_export.training import options

    encoders = (image_encoder, image_weights, text_encoder)
    new = options.NewModel(preset, fusion, interaction, frames, *encoders, image_size, max_length)
    options.check_init(output, new, overwrite)
    from simmim_export.training import run

    report(run.init(output, new, seed), as_json)


@app.command("import", examples=("simmim-train import article.pt --tokenizer tokenizer.json -o ckpt.pt",))
def import_state(
    state: Annotated[
        Path, typer.Argument(metavar="FILE", help="State dict of the article's class, .pt or .safetensors.")
    ],
    output: Output,
    tokenizer: Annotated[
        Path | None, typer.Option("--tokenizer", help="tokenizer.json of the text encoder; no state dict holds it.")
    ] = None,
    text_heads: Annotated[
        int | None, typer.Option("--text-heads", help="Attention heads of the text encoder; no shape tells them.")
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option(
            "--max-length", min=3, help="Longest text in tokens, at most the encoder's positions.", show_default="32"
        ),
    ] = None,
    image_size: Annotated[int, typer.Option("--image-size", min=32, help="Side of an image in pixels.")] = 224,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Turn a state dict of the article's class into a checkpoint.

    The state dict has visual_encoder, text_encoder and projector; the command says what it did with each of them.
    """
    from simmim_export.training import options

    options.check_import(state, output, overwrite)
    from simmim_export.training import run

    notes = run.import_state(state, output, tokenizer, text_heads, max_length, image_size)
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
def pretrain(
    output: Output,
    start: Start = None,
    preset: AnyPreset = None,
    data: Data = "shapes",
    data_root: Root = None,
    split: Split = "iid",
    examples: Examples = None,
    image_size: ImageSize = None,
    max_length: MaxLength = None,
    freeze: Freeze = None,
    steps: Steps = None,
    minutes: Minutes = None,
    batch_size: BatchSize = 32,
    optimizer: Optimizer = "muon",
    lr: Lr = 1e-3,
    itc: Annotated[
        float, typer.Option("--itc", help="Weight of contrasting images and captions; 0 leaves it out.")
    ] = 1.0,
    itm: Annotated[float, typer.Option("--itm", help="Weight of matching against hard negatives.")] = 1.0,
    mlm: Annotated[float, typer.Option("--mlm", help="Weight of filling in hidden words of the captions.")] = 1.0,
    tags: Annotated[
        float, typer.Option("--tags", help="Weight of detecting the captions' words in image tokens.")
    ] = 0.0,
    mim: Annotated[float, typer.Option("--mim", help="Weight of painting hidden patches of the image.")] = 0.0,
    seed: Seed = 0,
    mixed_precision: Mixed = "no",
    accumulate: Accumulate = 1,
    save_every: SaveEvery = 500,
    eval_scenes: Scenes = 1024,
    resume: Resume = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Pretrain on images and captions with a mixture of objectives."""
    from simmim_export.training import options

    recipe = options.Recipe(
        steps,
        minutes,
        optimizer,
        lr,
        accumulate=accumulate,
        mixed_precision=mixed_precision,
        seed=seed,
        save_every=save_every,
    )
    with resumable(resume), progress_bar("pretrain") as watch:
        choice = options.DataChoice(data, data_root, split, examples)
        kept = (image_size, freeze, max_length)
        job = options.Job(output, choice, batch_size, recipe, resume, overwrite, eval_scenes, watch, *kept)
        weights = {"itc": itc, "itm": itm, "mlm": mlm, "tags": tags, "mim": mim}
        options.check_pretrain(job, start, preset, weights)
        from simmim_export.training import run

        checkpoint = run.pretrain(job, start, preset, weights)
    report(checkpoint, as_json)


@app.command(
    examples=(
        "simmim-train finetune --from pre.pt --minutes 10 -o ckpt.pt",
        "simmim-train finetune --data vqav2 --data-root VQA --minutes 60 -o ckpt.pt",
        "simmim-train finetune --task video_class --data clips --minutes 5 -o video.pt",
    )
)
def finetune(
    output: Output,
    start: Start = None,
    task: Annotated[
        str, typer.Option("--task", help="vqa, retrieval, text_class, image_class, video_class or video_qa.")
    ] = "vqa",
    preset: AnyPreset = None,
    data: Data = "shapes",
    data_root: Root = None,
    split: Split = "iid",
    examples: Examples = None,
    image_size: ImageSize = None,
    max_length: MaxLength = None,
    freeze: Freeze = None,
    steps: Steps = None,
    minutes: Minutes = None,
    batch_size: BatchSize = 32,
    optimizer: Optimizer = "muon",
    lr: Lr = 1e-3,
    questions: Annotated[
        int | None,
        typer.Option("--questions", min=1, help="Questions per image in a batch.", show_default="8 for shapes"),
    ] = None,
    rehearse: Annotated[
        int, typer.Option("--rehearse", min=0, help="Every n-th batch is one of pretraining; 0 for none.")
    ] = 8,
    curriculum: Annotated[
        bool,
        typer.Option(
            "--curriculum/--no-curriculum", help="Ask for look-ups first, then about places, then everything."
        ),
    ] = True,
    seed: Seed = 0,
    mixed_precision: Mixed = "no",
    accumulate: Accumulate = 1,
    save_every: SaveEvery = 500,
    eval_scenes: Scenes = 1024,
    resume: Resume = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Fine-tune on a task. If the checkpoint lacks the head for it, the head is added."""
    from simmim_export.training import options

    recipe = options.Recipe(
        steps,
        minutes,
        optimizer,
        lr,
        accumulate=accumulate,
        mixed_precision=mixed_precision,
        seed=seed,
        save_every=save_every,
    )
    with resumable(resume), progress_bar("finetune") as watch:
        choice = options.DataChoice(data, data_root, split, examples, questions)
        kept = (image_size, freeze, max_length)
        job = options.Job(output, choice, batch_size, recipe, resume, overwrite, eval_scenes, watch, *kept)
        options.check_finetune(job, task, start, preset, rehearse)
        from simmim_export.training import run

        checkpoint = run.finetune(job, task, start, preset, options.Plan(rehearse, curriculum))
    report(checkpoint, as_json)


@app.command(examples=("simmim-train evaluate ckpt.pt", "simmim-train evaluate ckpt.pt --split B --json"))
def evaluate(
    checkpoint: Annotated[Path, typer.Argument(metavar="CKPT", help="Checkpoint to evaluate.")],
    data: Annotated[
        str | None,
        typer.Option("--data", help="As in pretrain.", show_default="the data that the checkpoint was trained on"),
    ] = None,
    data_root: Annotated[
        Path | None,
        typer.Option("--data-root", help="Folder of a data set on disk.", show_default="the one of training"),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option("--split", help="CoGenT split of shapes: iid, A or B.", show_default="the one of training"),
    ] = None,
    stream: Annotated[str, typer.Option("--stream", help="Held-out stream of the data set.")] = "test",
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="Seed of the data.", show_default="the one of training")
    ] = None,
    eval_scenes: Scenes = 1024,
    pointing: Annotated[
        bool,
        typer.Option("--pointing", help="Also play the pointing game: is the hottest token on what is asked about?"),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Measure a checkpoint on held-out data, beside blind controls."""
    from simmim_export.training import options
    from simmim_export.training.recall import DataRequest

    options.check_evaluate(checkpoint, stream, eval_scenes)
    request = DataRequest(data, data_root, split, seed)
    request.check(stream)
    from simmim_export.training import run

    with progress_bar("evaluate") as watch:
        metrics = run.evaluate(checkpoint, request, stream, eval_scenes, pointing, watch)
    show(metrics, as_json)


@app.command(
    examples=("simmim-train draw --count 8 -o images", "simmim-train draw --data clips --stream demo -o clips")
)
def draw(
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FOLDER", help="Folder to write.")],
    data: Annotated[str, typer.Option("--data", help="shapes, or clips as animations.")] = "shapes",
    split: Split = "iid",
    stream: Annotated[str, typer.Option("--stream", help="Stream of the data set.")] = "test",
    seed: Seed = 0,
    count: Annotated[int, typer.Option("--count", min=1, max=1024, help="How many images.")] = 8,
    size: Annotated[int, typer.Option("--size", min=16, max=4096, help="Side of an image in pixels.")] = 64,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Draw images of the built-in data set.

    Writes PNG files, or WebP files of clips, and records.json with their captions, questions and answers.
    """
    from simmim_export.training.drawing import draw as write

    records, beside = write(output, data, split, stream, seed, count, size, overwrite)
    if as_json:
        print_json(records)
    else:
        say(f"wrote {len(records)} pictures, {', '.join(beside)} to {output}")


def report(path_and_metrics: tuple[Path, dict[str, Any]], as_json: bool) -> None:
    """Say what was written, and its metrics: once, not in every process."""
    from simmim_export.training.processes import state

    path, metrics = path_and_metrics
    if not state().is_main_process:
        return
    show(metrics | {"checkpoint": str(path)} if as_json else metrics, as_json)
    if not as_json:
        say(f"wrote {path}")


def show(metrics: dict[str, Any], as_json: bool) -> None:
    """Metrics as a table, every figure beside its controls."""
    if as_json:
        print_json(metrics)
        return
    print_metrics(metrics)


def main() -> None:
    """Entry point of ``simmim-train``."""
    run_app(app)


if __name__ == "__main__":
    main()
