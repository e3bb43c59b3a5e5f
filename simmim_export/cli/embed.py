"""The command ``embed``: images or texts as vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from simmim_export.cli.model import open_model, running
from simmim_export.console import check_output, print_json, say
from simmim_export.console.options import AsJson, BundlePath, EngineOptions, Overwrite, Strict, output

EXAMPLES = (
    "simmim-export embed bundle photo.jpg",
    "simmim-export embed bundle photos/ --recursive -o photos.npz",
    "simmim-export embed bundle --texts captions.txt -o captions.npz",
)


def embed(
    engine: EngineOptions,
    bundle: BundlePath,
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="FILES", help="Image files, and folders of image files.")
    ] = None,
    recursive: Annotated[bool, typer.Option("--recursive", help="Also take images in subfolders.")] = False,
    text: Annotated[list[str] | None, typer.Option("--text", metavar="TEXT", help="Text to embed. Repeatable.")] = None,
    text_file: Annotated[
        list[Path] | None,
        typer.Option("--texts", metavar="FILE", help="UTF-8 file with one text per line. Repeatable."),
    ] = None,
    output: Annotated[Path | None, output("FILE", "Write the vectors to this .npz file.")] = None,
    overwrite: Overwrite = False,
    strict: Strict = False,
    as_json: AsJson = False,
) -> None:
    """Turn images or texts into unit-length float32 vectors.

    An item that cannot be used is reported and left out; the exit code is then 5.
    """
    import numpy as np

    from simmim_export.errors import UsageError
    from simmim_export.runtime import bulk

    if bool(files) == bool(text or text_file):
        what = "give either image files or texts (--text, --texts)"
        raise UsageError(what, fix="simmim-export embed BUNDLE photo.jpg")
    if recursive and not files:
        raise UsageError("--recursive is for folders of images, and the items are texts", fix="drop --recursive")
    if output is not None:
        check_output(output, "-o", overwrite=overwrite)
    if files:
        items = bulk.pictures(files, recursive)
    else:
        items = [*bulk.texts(text or []), *(item for path in text_file or [] for item in bulk.read_texts(path))]
    if output is not None:
        bulk.require_storable([item.source for item in items])
    with (
        open_model(bundle, engine) as model,
        running("embed", items, strict=strict, as_json=as_json) as options,
    ):
        outcome = bulk.embed(model, items, **options)
        space = str(model.bundle.manifest.embedding["digest"])
    failures = list(outcome.failures.values())
    vectors = np.stack(list(outcome.rows.values())) if outcome.rows else None
    if output is not None and vectors is not None:
        lost = [failure.source for failure in failures]
        bulk.save_vectors(output, vectors, sources=outcome.sources, space=space, failed=lost)
    if as_json:
        failed = [failure.as_json() for failure in failures]
        rows = [] if vectors is None else vectors.tolist()
        print_json({"space": space, "sources": outcome.sources, "embeddings": rows, "failed": failed})
    elif vectors is not None:
        for source, vector in zip(outcome.sources, vectors, strict=True):
            beginning = " ".join(f"{value:+.4f}" for value in vector[:4])
            say(f"{source}: {vector.dtype} [{len(vector)}] {beginning} ...")
        for failure in failures:
            say(f"{failure.error.where}: left out: {failure.error.what}")
        if output is not None:
            say(f"wrote {output}: embeddings {list(vectors.shape)} float32, space {space[:12]}")
    outcome.require_all("embedded")
