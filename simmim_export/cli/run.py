"""Commands that run a bundle: embed, ask, match, classify. None of them imports PyTorch unless --engine torch asks for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
from simmim_export.console import check_output, print_json, progress_bar, say

if TYPE_CHECKING:
    import numpy as np

    from simmim_export.runtime.bulk import Failure, Item, Outcome, Watch
    from simmim_export.runtime.images import ImageSource
    from simmim_export.runtime.runtime import Answer, EncodedImage, Runtime

# What each command needs of a bundle: one of these pipelines. With texts classify needs JUDGE.
CLASSIFY, JUDGE = ("classify_image", "classify_video"), ("classify_text",)
PIPELINES: Mapping[str, tuple[str, ...]] = {
    "embed": ("embed_image", "embed_text"),
    "ask": ("answer", "answer_video"),
    "match": ("match",),
    "classify": CLASSIFY,
}
# From so many items on there is a progress bar.
MANY = 50


def register(app: typer.Typer) -> None:
    """Add the commands of this file to ``app``."""
    for command in (embed, ask, match, classify):
        app.command()(command)


ImagePath = Annotated[Path, typer.Argument(metavar="IMAGE", help="Image file.")]
ImageOrClip = Annotated[
    Path, typer.Argument(metavar="IMAGE", help="Image file; for a model with video a folder of frames or an animation.")
]

Strict = Annotated[bool, typer.Option("--strict", help="Stop at the first item that cannot be used.")]


def embed(
    bundle: BundlePath,
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="FILES", help="Image files, and folders of them.")
    ] = None,
    recursive: Annotated[bool, typer.Option("--recursive", help="Also take pictures in folders below.")] = False,
    text: Annotated[list[str] | None, typer.Option("--text", help="Text to embed; repeatable.")] = None,
    text_file: Annotated[
        list[Path] | None,
        typer.Option("--texts", metavar="FILE", help="File with one text per line, in UTF-8; repeatable."),
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write the vectors to this .npz file.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")] = False,
    strict: Strict = False,
    engine: EngineName = "ort",
    device: DeviceName = None,
    precision: PrecisionName = None,
    checkpoint: CheckpointOption = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Embed images or texts as unit-length float32 vectors. One that cannot be read is reported and left out; exit 5 then."""
    from simmim_export.errors import UsageError
    from simmim_export.runtime import bulk
    from simmim_export.runtime.vectors import require_storable, save_vectors

    if bool(files) == bool(text or text_file):
        raise UsageError(
            "give image files, or --text and --texts, and not both", fix="simmim-export embed BUNDLE photo.jpg"
        )
    if recursive and not files:
        raise UsageError("--recursive is for folders of images", fix="drop --recursive")
    if output is not None:
        check_output(output, overwrite, "-o")
    if files:
        items = bulk.pictures(files, recursive)
    else:
        items = [*bulk.texts(text or []), *(item for path in text_file or [] for item in bulk.read_texts(path))]
    if output is not None:
        require_storable([item.source for item in items])
    with opened(bundle, engine, device, precision, checkpoint, threads) as model, _progress("embed", items) as watch:
        outcome = bulk.embed(model, items, strict=_stops(strict, items, as_json), watch=watch, failed=_report)
        space = str(model.bundle.manifest.embedding["digest"])
    failures = list(outcome.failures.values())
    vectors = bulk.stacked(outcome) if outcome.rows else None
    if output is not None and vectors is not None:
        save_vectors(output, vectors, outcome.sources, space, failed=[failure.source for failure in failures])
    if as_json:
        failed = [failure.as_json() for failure in failures]
        rows = [] if vectors is None else vectors.tolist()
        print_json({"space": space, "sources": outcome.sources, "embeddings": rows, "failed": failed})
    elif vectors is not None:
        for source, vector in zip(outcome.sources, vectors, strict=True):
            shown = " ".join(f"{value:+.4f}" for value in vector[:4])
            say(f"{source}: {vector.dtype} [{len(vector)}] {shown} ...")
        for failure in failures:
            say(f"{failure.error.where}: left out: {failure.error.what}")
        if output is not None:
            say(f"wrote {output}: embeddings {list(vectors.shape)} float32, space {space[:12]}")
    outcome.require_all("embedded")


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
    strict: Strict = False,
    engine: EngineName = "ort",
    device: DeviceName = None,
    precision: PrecisionName = None,
    checkpoint: CheckpointOption = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Answer questions about an image or a clip, which is encoded once for all of them."""
    from simmim_export.runtime import bulk

    if explain is not None:
        _check_drawing(explain, overwrite)
    items = bulk.texts(questions, "question")
    with opened(bundle, engine, device, precision, checkpoint, threads) as model, _progress("ask", items) as watch:
        _require(model, "ask")
        frames = _frames(model, image, "answer_video")
        seen = _see(model, frames)

        def answer(asked: list[str]) -> Sequence[tuple[list[Answer], np.ndarray | None]]:
            if explain is None:
                return [(row, None) for row in model.answers(seen, asked, top_k)]
            return [model.explain(seen, question, top_k) for question in asked]

        pipeline = "answer_video" if seen.clip else "answer"
        options = {"strict": _stops(strict, items, as_json), "watch": watch, "failed": _report}
        outcome = bulk.run_texts(model, items, answer, pipeline, **options)
        if explain is not None and outcome.rows:
            rows = list(outcome.rows.values())
            lines = [f"{question}  {row[0].label}" for question, (row, _) in zip(outcome.sources, rows, strict=True)]
            _draw(explain, frames[0], [attention for _, attention in rows if attention is not None], lines)
    _show({index: row for index, (row, _) in outcome.rows.items()}, outcome, ("question", "answers", "answer"), as_json)
    if explain is not None and outcome.rows and not as_json:
        say(f"wrote {explain}")
    outcome.require_all("answered")


def classify(
    bundle: BundlePath,
    image: ImageOrClip,
    texts: Annotated[
        list[str] | None,
        typer.Argument(metavar="TEXT", help="Texts to judge against the image, for a text_class head."),
    ] = None,
    top_k: Annotated[int, typer.Option("--top-k", min=1, help="Classes to show.")] = 3,
    strict: Strict = False,
    engine: EngineName = "ort",
    device: DeviceName = None,
    precision: PrecisionName = None,
    checkpoint: CheckpointOption = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Classify an image or a clip, or judge given texts against it."""
    from simmim_export.runtime import bulk

    items = bulk.texts(texts or [])
    with opened(bundle, engine, device, precision, checkpoint, threads) as model, _progress("classify", items) as watch:
        _require(model, "classify", texts=bool(texts))
        seen = _see(model, _frames(model, image, "classify_video"))
        if texts:
            options = {"strict": _stops(strict, items, as_json), "watch": watch, "failed": _report}
            outcome = bulk.run_texts(
                model, items, lambda batch: model.classify_text(seen, batch, top_k), "classify_text", **options
            )
        else:
            named = bulk.Item(image, str(image), str(image))
            outcome = bulk.Outcome([named], {0: model.classify(seen, top_k)}, {})
    _show(outcome.rows, outcome, ("input", "classes", "label"), as_json)
    outcome.require_all("classified")


def _show(rows: Mapping[int, list[Answer]], outcome: Outcome[Any], names: tuple[str, str, str], as_json: bool) -> None:
    """Print labels with their scores for each item; ``names`` are the JSON keys of the item, of its labels and of one label."""
    item_key, labels_key, label_key = names
    labeled = replace(outcome, rows=rows)
    if as_json:
        print_json(
            labeled.as_json(
                lambda source, row: {
                    item_key: source,
                    labels_key: [{label_key: one.label, "score": one.score} for one in row],
                }
            )
        )
        return
    for source, row in zip(labeled.sources, rows.values(), strict=True):
        say(f"{source}  " + ", ".join(f"{one.label} {one.score:.1%}" for one in row))


def _report(failure: Failure) -> None:
    """Say on stderr, as soon as it happens, that an item is left out."""
    say(f"left out: {failure.error}", error=True, lines=True)


def _stops(strict: bool, items: Sequence[Item], as_json: bool) -> bool:
    """Whether the first failure ends the command: with one item there is nothing to go on with, but with --json its failure is
    part of what is printed."""
    return strict or (len(items) == 1 and not as_json)


def _require(model: Runtime, command: str, *, texts: bool = False) -> None:
    """Raise :class:`UsageError`, which says what the bundle is made for, unless it has a pipeline for ``command``.

    ``texts``: whether classify was given texts to judge.
    """
    from simmim_export.errors import UsageError

    present = {pipeline.name for pipeline in model.bundle.manifest.pipelines}
    needed, otherwise = (JUDGE, CLASSIFY) if texts else (PIPELINES[command], JUDGE)
    if present.intersection(needed):
        return
    if command == "classify" and present.intersection(otherwise):
        fix = "leave out the texts" if texts else "add texts to judge against the image"
    else:
        others = [name for name, pipelines in PIPELINES.items() if present.intersection(pipelines)]
        fix = f"use it with {', '.join(others)}, or export a checkpoint that was trained for {command}"
    what = f"this bundle cannot {command}{' texts' if texts else ''}: it has no head for it"
    raise UsageError(what, where=model.bundle.root, fix=fix)


@contextmanager
def _progress(title: str, items: Sequence[Item]) -> Iterator[Watch]:
    """A progress bar on stderr for many items."""
    if len(items) < MANY:
        yield lambda *_: None
        return
    with progress_bar(title) as watch:
        yield watch


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
    from simmim_export.runtime.explain import sheet
    from simmim_export.runtime.images import decode
    from simmim_export.system.outputs import destination, replacing

    drawn = sheet(decode(image), maps, lines)
    with replacing(destination(path)) as temporary:
        drawn.save(temporary, format="PNG")


def match(
    bundle: BundlePath,
    image: ImagePath,
    texts: Annotated[list[str], typer.Argument(metavar="TEXT", help="One text or more.")],
    strict: Strict = False,
    engine: EngineName = "ort",
    device: DeviceName = None,
    precision: PrecisionName = None,
    checkpoint: CheckpointOption = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Say for each text how probably it describes the image."""
    from simmim_export.runtime import bulk

    items = bulk.texts(texts)
    with opened(bundle, engine, device, precision, checkpoint, threads) as model, _progress("match", items) as watch:
        _require(model, "match")
        seen = model.encode_image(image)
        options = {"strict": _stops(strict, items, as_json), "watch": watch, "failed": _report}
        outcome = bulk.run_texts(model, items, lambda batch: model.match(seen, batch).tolist(), "match", **options)
    if as_json:
        print_json(outcome.as_json(lambda text, score: {"text": text, "score": score}))
    else:
        for text, score in zip(outcome.sources, outcome.rows.values(), strict=True):
            say(f"{score:6.1%}  {text}")
    outcome.require_all("matched")
