"""The command ``onnx``: from a model in PyTorch to a bundle."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from simmim_export.cli.lower import LowerOptions, MaxBatch, parity_by_graph
from simmim_export.cli.tables import print_parity, print_search
from simmim_export.console import print_json, progress_bar
from simmim_export.console.options import AsJson, Overwrite, output
from simmim_export.export.limits import MAX_BATCH, OPSET

EXAMPLES = (
    "simmim-export onnx ckpt.pt -o bundle",
    "simmim-export onnx ckpt.pt --precision int8 --precision fp16",
    "simmim-export onnx ckpt.pt --precision int8 --budget answers=0.5pt",
    "simmim-export onnx openai/clip-vit-base-patch32 -o clip",
)
MODEL = "Model"


def onnx(
    lower: LowerOptions,
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="Checkpoint of simmim-train, folder in the layout of transformers, or name of a model on the Hugging Face hub.",
        ),
    ],
    output: Annotated[Path, output("BUNDLE", "Folder to write.")] = Path("bundle"),
    overwrite: Overwrite = False,
    opset: Annotated[int, typer.Option("--opset", metavar="N", help="ONNX opset, 18 to 24.")] = OPSET,
    max_batch: MaxBatch = MAX_BATCH,
    attention: Annotated[
        bool,
        typer.Option("--attention", help="Also output where each word looked in the image: needed for ask --explain."),
    ] = False,
    family: Annotated[
        str,
        typer.Option(
            "--family",
            metavar="NAME",
            help="Model family.",
            show_default="the one that recognizes it",
            rich_help_panel=MODEL,
        ),
    ] = "",
    answers: Annotated[
        Path | None,
        typer.Option(
            "--answers",
            metavar="FILE",
            help="For a model that ranks given answers, such as BLIP: a text file with one answer per line.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    image_size: Annotated[
        str | None,
        typer.Option(
            "--image-size",
            metavar="HxW",
            help="Height and width in pixels of the images that the graphs take, such as 384x512, for a model that leaves the "
            "choice, such as ViLT.",
            show_default="the model's own",
            rich_help_panel=MODEL,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Export a model to ONNX and check it against PyTorch.

    If MODEL is a path on this machine, the hub is not asked. A model from the hub is downloaded once. No code that comes with a
    model is executed.

    Every graph is compared with PyTorch at many shapes. With --budget the command also searches, for every installed engine, the
    fastest precision plan whose losses stay within the budget. Exit code 4 if a graph differs from PyTorch or no plan stays
    within the budget.
    """
    # These imports are light. A wrong path or number should not cost the seconds that PyTorch takes to load.
    from simmim_export.bundle import Staging
    from simmim_export.errors import EngineUnavailable
    from simmim_export.export.limits import (
        family_of,
        is_hub_name,
        model_path,
        parse_image_size,
        require_batch,
        require_opset,
    )
    from simmim_export.system.lines import read_lines
    from simmim_export.system.outputs import full_disk, no_empty_folders
    from simmim_export.system.watch import unwatched

    chosen = lower.parse()
    require_opset(opset)
    require_batch(max_batch)
    size = None if image_size is None else parse_image_size(image_size)
    candidates = () if answers is None else read_lines(answers, noun="answer")
    with no_empty_folders(output), Staging(output, overwrite):
        pass
    download = progress_bar("export", estimates=True) if is_hub_name(model) else nullcontext(unwatched)
    with download as progress:
        path = model_path(model, check=lambda path: family_of(path, name=family), watch=progress)
    try:
        import simmim_export.export.onnx  # noqa: F401 - imports PyTorch, and the exporter does so only when it traces
        from simmim_export.export.exporter import export_bundle
    except ModuleNotFoundError as error:
        fix = "pip install 'simmim-export[export]'"
        raise EngineUnavailable(f"exporting needs the package {error.name}", fix=fix) from error
    with full_disk(output), progress_bar("export", estimates=True) as progress:
        exported = export_bundle(
            path,
            output,
            overwrite=overwrite,
            opset=opset,
            max_batch=max_batch,
            attention=attention,
            answers=candidates,
            image_size=size,
            family=family,
            lower=chosen,
            evidence=lower.evidence,
            progress=progress,
        )
    if as_json:
        planning = exported.bundle.manifest.provenance.get("planning", [])
        parity = parity_by_graph(exported.reports)
        print_json({"bundle": str(exported.bundle.root), "parity": parity, "planning": planning})
        return
    print_parity(exported.reports, f"{output}: ONNX Runtime compared with PyTorch at every shape checked")
    for search in exported.searches:
        print_search(search)
