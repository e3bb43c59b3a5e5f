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
from simmim_export.spec import Verb

if TYPE_CHECKING:
    import numpy as np

    from simmim_export.runtime.bulk import Failure, Item, Outcome, Watch
    from simmim_export.runtime.images import ImageSource
    from simmim_export.runtime.inputs import EncodedImage
    from simmim_export.runtime.model import Answer, Model

# A command needs a bundle with one of these verbs.
VERBS: Mapping[str, tuple[Verb, ...]] = {
    "embed": (Verb.EMBED_IMAGE, Verb.EMBED_TEXT),
    "ask": (Verb.ANSWER,),
    "match": (Verb.MATCH,),
    "classify": (Verb.CLASSIFY, Verb.CLASSIFY_TEXT),
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
        lost = [failure.source for failure in failures]
        save_vectors(output, vectors, sources=outcome.sources, space=space, failed=lost)
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
        _require(model, Verb.ANSWER)
        frames = _frames(model, image, Verb.ANSWER)
        seen = _see(model, frames)

        def answer(asked: list[str]) -> Sequence[tuple[list[Answer], np.ndarray | None]]:
            if explain is None:
                return [(row, None) for row in model.answers(seen, asked, top_k=top_k)]
            return [model.explain(seen, question, top_k=top_k) for question in asked]

        options = {"strict": _stops(strict, items, as_json), "watch": watch, "failed": _report}
        outcome = bulk.run_texts(model, items, compute=answer, verb=Verb.ANSWER, clip=seen.clip, **options)
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
        verb = Verb.CLASSIFY_TEXT if texts else Verb.CLASSIFY
        _require(model, verb)
        seen = _see(model, _frames(model, image, verb))
        if texts:
            options = {"strict": _stops(strict, items, as_json), "watch": watch, "failed": _report}

            def judge(judged: list[str]) -> list[list[Answer]]:
                return model.classify_text(seen, judged, top_k=top_k)

            outcome = bulk.run_texts(model, items, compute=judge, verb=verb, clip=seen.clip, **options)
        else:
            named = bulk.Item(image, str(image), str(image))
            outcome = bulk.Outcome(items=[named], rows={0: model.classify(seen, top_k=top_k)}, failures={})
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


def _require(model: Model, verb: Verb) -> None:
    """Raise :class:`UsageError`, which names the commands that the bundle can serve, unless it has ``verb``."""
    from simmim_export.errors import UsageError

    present = {pipeline.verb for pipeline in model.bundle.manifest.pipelines}
    if verb in present:
        return
    other = {Verb.CLASSIFY: Verb.CLASSIFY_TEXT, Verb.CLASSIFY_TEXT: Verb.CLASSIFY}.get(verb)
    if other in present:
        fix = "leave out the texts" if verb is Verb.CLASSIFY_TEXT else "add texts to judge against the image"
    else:
        commands = [command for command, verbs in VERBS.items() if present.intersection(verbs)]
        fix = f"use it with {', '.join(commands)}, or export a checkpoint that was trained for {verb}"
    raise UsageError(f"this bundle cannot {verb}: it has no head for it", where=model.bundle.root, fix=fix)


@contextmanager
def _progress(title: str, items: Sequence[Item]) -> Iterator[Watch]:
    """A progress bar on stderr for many items."""
    if len(items) < MANY:
        yield lambda *_: None
        return
    with progress_bar(title) as watch:
        yield watch


def _frames(model: Model, image: Path, verb: Verb) -> Sequence[ImageSource]:
    """The frames of a clip: of a folder, or of an animation where the bundle has ``verb`` for clips; else the one picture."""
    from simmim_export.runtime.clips import is_animation, read_clip

    takes_clips = model.bundle.manifest.pipeline_for(verb, clip=True) is not None
    if image.is_dir() or (takes_clips and is_animation(image)):
        return read_clip(image)
    return [image]


def _see(model: Model, frames: Sequence[ImageSource]) -> EncodedImage:
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
        _require(model, Verb.MATCH)
        seen = model.encode_image(image)

        def rate(rated: list[str]) -> list[float]:
            scores: list[float] = model.match(seen, rated).tolist()
            return scores

        outcome = bulk.run_texts(
            model,
            items,
            compute=rate,
            verb=Verb.MATCH,
            strict=_stops(strict, items, as_json),
            watch=watch,
            failed=_report,
        )
    if as_json:
        print_json(outcome.as_json(lambda text, score: {"text": text, "score": score}))
    else:
        for text, score in zip(outcome.sources, outcome.rows.values(), strict=True):
            say(f"{score:6.1%}  {text}")
    outcome.require_all("matched")
