"""The commands that relate an image to texts: ask, match, classify."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simmim_export.cli.items import progress_of_many, report_failure, stops_at_failure
from simmim_export.cli.model import open_model
from simmim_export.console import check_output, print_json, say
from simmim_export.console.app import App
from simmim_export.console.options import AsJson, BundlePath, EngineOptions, Overwrite, Strict

if TYPE_CHECKING:
    import numpy as np

    from simmim_export.runtime.bulk import Outcome
    from simmim_export.runtime.images import ImageSource
    from simmim_export.runtime.runtime import Answer, EncodedImage, Runtime

# A command runs a bundle that has one of these pipelines. With texts, classify needs one of JUDGE instead.
CLASSIFY, JUDGE = ("classify_image", "classify_video"), ("classify_text",)
PIPELINES: Mapping[str, tuple[str, ...]] = {
    "embed": ("embed_image", "embed_text"),
    "ask": ("answer", "answer_video"),
    "match": ("match",),
    "classify": CLASSIFY,
}
ASK_EXAMPLES = (
    'simmim-export ask bundle photo.jpg "what colour is the circle?"',
    'simmim-export ask bundle photo.jpg "how many?" "what shape?" --top-k 1',
    'simmim-export ask bundle photo.jpg "what colour is it?" --explain where.png',
)
MATCH_EXAMPLES = ('simmim-export match bundle photo.jpg "a red circle" "two blue squares"',)
CLASSIFY_EXAMPLES = (
    "simmim-export classify bundle photo.jpg",
    "simmim-export classify bundle frames/ --top-k 5",
    'simmim-export classify bundle photo.jpg "there is a red circle"',
)
ImagePath = Annotated[Path, typer.Argument(metavar="IMAGE", help="Image file.")]
ImageOrClip = Annotated[
    Path,
    typer.Argument(
        metavar="IMAGE", help="Image file; if the model takes clips, also a folder of frames or an animation."
    ),
]


def register(app: App) -> None:
    """Add the commands of this module to ``app``."""
    app.command(examples=ASK_EXAMPLES)(ask)
    app.command(examples=MATCH_EXAMPLES)(match)
    app.command(examples=CLASSIFY_EXAMPLES)(classify)


def ask(
    engine: EngineOptions,
    bundle: BundlePath,
    image: ImageOrClip,
    questions: Annotated[list[str], typer.Argument(metavar="QUESTION", help="One or more questions.")],
    top_k: Annotated[
        int, typer.Option("--top-k", metavar="N", min=1, help="Number of answers to show for each question.")
    ] = 3,
    explain: Annotated[
        Path | None,
        typer.Option(
            "--explain",
            metavar="PNG",
            help="Draw where the model looked. The bundle must have been exported with --attention.",
        ),
    ] = None,
    overwrite: Overwrite = False,
    strict: Strict = False,
    as_json: AsJson = False,
) -> None:
    """Answer questions about an image or a clip.

    The image is encoded once for all questions.
    """
    from simmim_export.runtime import bulk

    if explain is not None:
        _check_drawing(explain, overwrite=overwrite)
    items = bulk.texts(questions, "question")
    with open_model(bundle, engine) as model, progress_of_many("ask", items) as watch:
        _require_pipeline(model, "ask")
        frames = _frames(model, image, "answer_video")
        encoded = _encode(model, frames)

        def answer(asked: list[str]) -> Sequence[tuple[list[Answer], np.ndarray | None]]:
            if explain is None:
                return [(row, None) for row in model.answers(encoded, asked, top_k)]
            return [model.explain(encoded, question, top_k) for question in asked]

        pipeline = "answer_video" if encoded.clip else "answer"
        stops = stops_at_failure(items, strict=strict, as_json=as_json)
        outcome = bulk.run_texts(model, items, answer, pipeline, strict=stops, watch=watch, failed=report_failure)
        if explain is not None and outcome.rows:
            rows = list(outcome.rows.values())
            lines = [f"{question}  {row[0].label}" for question, (row, _) in zip(outcome.sources, rows, strict=True)]
            _draw(explain, frames[0], maps=[attention for _, attention in rows if attention is not None], lines=lines)
    answers = {index: row for index, (row, _) in outcome.rows.items()}
    _show(answers, outcome, keys=("question", "answers", "answer"), as_json=as_json)
    if explain is not None and outcome.rows and not as_json:
        say(f"wrote {explain}")
    outcome.require_all("answered")


def match(
    engine: EngineOptions,
    bundle: BundlePath,
    image: ImagePath,
    texts: Annotated[list[str], typer.Argument(metavar="TEXT", help="One or more texts.")],
    strict: Strict = False,
    as_json: AsJson = False,
) -> None:
    """Rate how well each text describes an image.

    Prints a probability for each text. The probabilities are independent of one another.
    """
    from simmim_export.runtime import bulk

    items = bulk.texts(texts)
    with open_model(bundle, engine) as model, progress_of_many("match", items) as watch:
        _require_pipeline(model, "match")
        encoded = model.encode_image(image)
        stops = stops_at_failure(items, strict=strict, as_json=as_json)
        outcome = bulk.run_texts(
            model,
            items,
            lambda batch: model.match(encoded, batch).tolist(),
            "match",
            strict=stops,
            watch=watch,
            failed=report_failure,
        )
    if as_json:
        print_json(outcome.as_json(lambda text, score: {"text": text, "score": score}))
    else:
        for text, score in zip(outcome.sources, outcome.rows.values(), strict=True):
            say(f"{score:6.1%}  {text}")
    outcome.require_all("matched")


def classify(
    engine: EngineOptions,
    bundle: BundlePath,
    image: ImageOrClip,
    texts: Annotated[
        list[str] | None,
        typer.Argument(metavar="TEXT", help="Texts to judge against the image. The bundle needs a text_class head."),
    ] = None,
    top_k: Annotated[int, typer.Option("--top-k", metavar="N", min=1, help="Number of classes to show.")] = 3,
    strict: Strict = False,
    as_json: AsJson = False,
) -> None:
    """Classify an image or a clip, or judge texts against it."""
    from simmim_export.runtime import bulk

    items = bulk.texts(texts or [])
    with open_model(bundle, engine) as model, progress_of_many("classify", items) as watch:
        _require_pipeline(model, "classify", texts=bool(texts))
        encoded = _encode(model, _frames(model, image, "classify_video"))
        if texts:
            outcome = bulk.run_texts(
                model,
                items,
                lambda batch: model.classify_text(encoded, batch, top_k),
                "classify_text",
                strict=stops_at_failure(items, strict=strict, as_json=as_json),
                watch=watch,
                failed=report_failure,
            )
        else:
            named = bulk.Item(image, str(image), str(image))
            outcome = bulk.Outcome([named], {0: model.classify(encoded, top_k)}, {})
    _show(outcome.rows, outcome, keys=("input", "classes", "label"), as_json=as_json)
    outcome.require_all("classified")


def _show(
    rows: Mapping[int, list[Answer]], outcome: Outcome[Any], *, keys: tuple[str, str, str], as_json: bool
) -> None:
    """Print labels and scores for each item. ``keys``: the JSON keys of the item, of its labels, and of one label."""
    item_key, labels_key, label_key = keys
    labeled = replace(outcome, rows=rows)

    def as_row(source: str, answers: list[Answer]) -> dict[str, Any]:
        return {item_key: source, labels_key: [{label_key: one.label, "score": one.score} for one in answers]}

    if as_json:
        print_json(labeled.as_json(as_row))
        return
    for source, answers in zip(labeled.sources, rows.values(), strict=True):
        say(f"{source}  " + ", ".join(f"{one.label} {one.score:.1%}" for one in answers))


def _require_pipeline(model: Runtime, command: str, *, texts: bool = False) -> None:
    """Raise :class:`UsageError` unless the bundle has a pipeline for ``command``; the error names what the bundle can do.

    ``texts``: whether classify was given texts to judge.
    """
    from simmim_export.errors import UsageError

    present = {pipeline.name for pipeline in model.bundle.manifest.pipelines}
    needed, alternative = (JUDGE, CLASSIFY) if texts else (PIPELINES[command], JUDGE)
    if present.intersection(needed):
        return
    if command == "classify" and present.intersection(alternative):
        fix = "leave out the texts" if texts else "add texts to judge against the image"
    else:
        others = [name for name, pipelines in PIPELINES.items() if present.intersection(pipelines)]
        fix = f"use {', '.join(others)} with it, or export a checkpoint that was trained for {command}"
    what = f"this bundle cannot {command}{' texts' if texts else ''}: its model has no head for that"
    raise UsageError(what, where=model.bundle.root, fix=fix)


def _frames(model: Runtime, image: Path, video_pipeline: str) -> Sequence[ImageSource]:
    """The frames of a folder, or of an animation if the bundle has ``video_pipeline``; otherwise the one image."""
    from simmim_export.runtime.clips import is_animation, read_clip

    has_video = video_pipeline in (pipeline.name for pipeline in model.bundle.manifest.pipelines)
    if image.is_dir() or (has_video and is_animation(image)):
        return read_clip(image)
    return [image]


def _encode(model: Runtime, frames: Sequence[ImageSource]) -> EncodedImage:
    return model.encode_clip(frames) if len(frames) > 1 else model.encode_image(frames[0])


def _check_drawing(path: Path, *, overwrite: bool) -> None:
    """Raise :class:`UsageError`, before anything is computed, if ``path`` is not a PNG file that can be written."""
    from simmim_export.errors import UsageError

    if path.suffix.lower() != ".png":
        raise UsageError("the drawing must be a PNG file", where=path, fix="give --explain a name that ends in .png")
    check_output(path, "--explain", overwrite=overwrite)
    if not path.absolute().parent.is_dir():
        raise UsageError("no such folder", where=path.parent, fix="make it with mkdir, or choose another --explain")


def _draw(path: Path, image: ImageSource, *, maps: list[np.ndarray], lines: list[str]) -> None:
    from simmim_export.runtime.explain import sheet
    from simmim_export.runtime.images import decode
    from simmim_export.system.files import destination, replacing

    drawing = sheet(decode(image), maps, lines)
    with replacing(destination(path)) as temporary:
        drawing.save(temporary, format="PNG")
