"""Commands that run a bundle: embed, ask, match. None of them imports PyTorch unless --engine torch asks for it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from simmim_export.cli.options import AsJson, BundlePath, CheckpointOption, EngineName, PrecisionName, Threads
from simmim_export.console import print_json


def register(app: typer.Typer) -> None:
    """Add the commands of this file to ``app``."""
    for command in (embed, ask, match):
        app.command()(command)


ImagePath = Annotated[Path, typer.Argument(metavar="IMAGE", help="Image file.")]


def embed(
    bundle: BundlePath,
    files: Annotated[list[Path] | None, typer.Argument(metavar="FILES", help="Image files.")] = None,
    text: Annotated[list[str] | None, typer.Option("--text", help="Text to embed; repeatable.")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write the vectors to this .npz file.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")] = False,
    engine: EngineName = "ort",
    precision: PrecisionName = "fp32",
    checkpoint: CheckpointOption = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Embed images or texts as unit-length float32 vectors."""
    from simmim_export.errors import UsageError
    from simmim_export.runtime import load
    from simmim_export.runtime.vectors import save_vectors

    if bool(files) == bool(text):
        raise UsageError("give image files or --text, and not both", fix="simmim-export embed BUNDLE photo.jpg")
    if output is not None and output.exists() and not overwrite:
        raise UsageError("the output already exists", where=output, fix="add --overwrite, or choose another -o")
    with load(bundle, engine, precision, checkpoint=checkpoint, threads=threads) as model:
        sources = [str(item) for item in (files or text or [])]
        vectors = model.embed_image(files) if files else model.embed_text(text or [])
        space = str(model.bundle.manifest.embedding["digest"])
    if output is not None:
        save_vectors(output, vectors, sources, space)
    if as_json:
        print_json({"space": space, "sources": sources, "embeddings": vectors.tolist()})
        return
    for source, vector in zip(sources, vectors, strict=True):
        shown = " ".join(f"{value:+.4f}" for value in vector[:4])
        print(f"{source}: {vector.dtype} [{len(vector)}] {shown} ...")
    if output is not None:
        print(f"wrote {output}: embeddings {list(vectors.shape)} float32, space {space[:12]}")


def ask(
    bundle: BundlePath,
    image: ImagePath,
    questions: Annotated[list[str], typer.Argument(metavar="QUESTION", help="One question or more.")],
    top_k: Annotated[int, typer.Option("--top-k", min=1, help="Answers to show for each question.")] = 3,
    engine: EngineName = "ort",
    precision: PrecisionName = "fp32",
    checkpoint: CheckpointOption = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Answer questions about an image; the image is encoded once for all of them."""
    from simmim_export.runtime import load

    with load(bundle, engine, precision, checkpoint=checkpoint, threads=threads) as model:
        answers = model.answers(image, questions, top_k)
    if as_json:
        rows = [[{"answer": a.label, "score": a.score} for a in row] for row in answers]
        print_json([{"question": q, "answers": row} for q, row in zip(questions, rows, strict=True)])
        return
    for question, row in zip(questions, answers, strict=True):
        print(f"{question}  " + ", ".join(f"{a.label} {a.score:.1%}" for a in row))


def match(
    bundle: BundlePath,
    image: ImagePath,
    texts: Annotated[list[str], typer.Argument(metavar="TEXT", help="One text or more.")],
    engine: EngineName = "ort",
    precision: PrecisionName = "fp32",
    checkpoint: CheckpointOption = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Say for each text how probably it describes the image."""
    from simmim_export.runtime import load

    with load(bundle, engine, precision, checkpoint=checkpoint, threads=threads) as model:
        scores = model.match(image, texts)
    if as_json:
        print_json([{"text": text, "score": float(score)} for text, score in zip(texts, scores, strict=True)])
        return
    for text, score in zip(texts, scores, strict=True):
        print(f"{score:6.1%}  {text}")
