"""Commands that run a bundle: embed, ask, match, classify. None of them imports PyTorch unless --engine torch asks for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from simmim_export.cli.options import (
    AsJson,
    BundlePath,
    CheckpointOption,
    DeviceName,
    EngineName,
    PrecisionName,
    Threads,
    opened,
)
from simmim_export.console import check_output, print_json, say

if TYPE_CHECKING:
    import numpy as np

    from simmim_export.runtime.images import ImageSource
    from simmim_export.runtime.runtime import EncodedImage, Runtime


def register(app: typer.Typer) -> None:
    """Add the commands of this file to ``app``."""
    for command in (embed, ask, match, classify):
        app.command()(command)


ImagePath = Annotated[Path, typer.Argument(metavar="IMAGE", help="Image file.")]
ImageOrClip = Annotated[
    Path, typer.Argument(metavar="IMAGE", help="Image file; for a model with video a folder of frames or an animation.")
]


def embed(
    bundle: BundlePath,
    files: Annotated[list[Path] | None, typer.Argument(metavar="FILES", help="Image files.")] = None,
    text: Annotated[list[str] | None, typer.Option("--text", help="Text to embed; repeatable.")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write the vectors to this .npz file.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")] = False,
    engine: EngineName = "ort",
    device: DeviceName = None,
    precision: PrecisionName = None,
    checkpoint: CheckpointOption = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Embed images or texts as unit-length float32 vectors."""
    from simmim_export.errors import UsageError
    from simmim_export.runtime.vectors import save_vectors

    if bool(files) == bool(text):
        raise UsageError("give image files or --text, and not both", fix="simmim-export embed BUNDLE photo.jpg")
    if output is not None:
        check_output(output, overwrite, "-o")
    with opened(bundle, engine, device, precision, checkpoint, threads) as model:
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
    image: ImageOrClip,
    questions: Annotated[list[str], typer.Argument(metavar="QUESTION", help="One question or more.")],
    top_k: Annotated[int, typer.Option("--top-k", min=1, help="Answers to show for each question.")] = 3,
    explain: Annotated[
        Path | None,
        typer.Option("--explain", metavar="PNG", help="Draw where the model looked; the bundle needs --attention."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")] = False,
    engine: EngineName = "ort",
    device: DeviceName = None,
    precision: PrecisionName = None,
    checkpoint: CheckpointOption = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Answer questions about an image or a clip, which is encoded once for all of them."""
    if explain is not None:
        _check_drawing(explain, overwrite)
    with opened(bundle, engine, device, precision, checkpoint, threads) as model:
        frames = _frames(model, image, "answer_video")
        seen = _see(model, frames)
        if explain is None:
            answers = model.answers(seen, questions, top_k)
        else:
            explained = [model.explain(seen, question, top_k) for question in questions]
            answers = [found.answers for found in explained]
            lines = [f"{question}  {found[0].label}" for question, found in zip(questions, answers, strict=True)]
            _draw(explain, frames[0], [found.attention for found in explained], lines)
    if as_json:
        rows = [[{"answer": a.label, "score": a.score} for a in row] for row in answers]
        print_json([{"question": q, "answers": row} for q, row in zip(questions, rows, strict=True)])
        return
    for question, row in zip(questions, answers, strict=True):
        say(f"{question}  " + ", ".join(f"{a.label} {a.score:.1%}" for a in row))
    if explain is not None:
        say(f"wrote {explain}")


def classify(
    bundle: BundlePath,
    image: ImageOrClip,
    texts: Annotated[
        list[str] | None,
        typer.Argument(metavar="TEXT", help="Texts to judge against the image, for a text_class head."),
    ] = None,
    top_k: Annotated[int, typer.Option("--top-k", min=1, help="Classes to show.")] = 3,
    engine: EngineName = "ort",
    device: DeviceName = None,
    precision: PrecisionName = None,
    checkpoint: CheckpointOption = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Say of which class an image or a clip is, or with texts, what holds of each in it."""

    with opened(bundle, engine, device, precision, checkpoint, threads) as model:
        seen = _see(model, _frames(model, image, "classify_video"))
        rows = model.classify_text(seen, texts, top_k) if texts else [model.classify(seen, top_k)]
    names = texts or [str(image)]
    if as_json:
        scored = [[{"label": a.label, "score": a.score} for a in row] for row in rows]
        print_json([{"input": name, "classes": row} for name, row in zip(names, scored, strict=True)])
        return
    for name, row in zip(names, rows, strict=True):
        say(f"{name}  " + ", ".join(f"{a.label} {a.score:.1%}" for a in row))


def _frames(model: Runtime, image: Path, video_pipeline: str) -> Sequence[ImageSource]:
    """The frames of a clip: of a folder, or of an animation where the bundle has ``video_pipeline``; else the one picture."""
    from simmim_export.runtime.clips import is_animation, read_clip

    has_video = video_pipeline in (pipeline.name for pipeline in model.bundle.manifest.pipelines)
    if image.is_dir() or (has_video and is_animation(image)):
        return read_clip(image)
    return [image]


def _see(model: Runtime, frames: Sequence[ImageSource]) -> EncodedImage:
    """What :func:`_frames` gave, through the tower."""
    return model.encode_clip(frames) if len(frames) > 1 else model.encode_image(frames[0])


def _check_drawing(path: Path, overwrite: bool) -> None:
    """Raise :class:`UsageError`, before anything is computed, where no PNG can be drawn at ``path``."""
    from simmim_export.errors import UsageError

    if path.suffix.lower() != ".png":
        raise UsageError("the drawing is a PNG", where=path, fix="give --explain a name that ends in .png")
    check_output(path, overwrite, "--explain")
    if not path.absolute().parent.is_dir():
        raise UsageError("there is no such folder", where=path.parent, fix="make it, or choose another --explain")


def _draw(path: Path, image: ImageSource, maps: list[np.ndarray], lines: list[str]) -> None:
    from simmim_export.files import replacing
    from simmim_export.runtime.explain import sheet
    from simmim_export.runtime.images import decode

    drawn = sheet(decode(image), maps, lines)
    with replacing(path) as temporary:
        drawn.save(temporary, format="PNG")


def match(
    bundle: BundlePath,
    image: ImagePath,
    texts: Annotated[list[str], typer.Argument(metavar="TEXT", help="One text or more.")],
    engine: EngineName = "ort",
    device: DeviceName = None,
    precision: PrecisionName = None,
    checkpoint: CheckpointOption = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Say for each text how probably it describes the image."""

    with opened(bundle, engine, device, precision, checkpoint, threads) as model:
        scores = model.match(image, texts)
    if as_json:
        print_json([{"text": text, "score": float(score)} for text, score in zip(texts, scores, strict=True)])
        return
    for text, score in zip(texts, scores, strict=True):
        say(f"{score:6.1%}  {text}")
