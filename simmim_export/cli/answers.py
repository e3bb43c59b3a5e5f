"""The commands that relate an image to texts: ask, match, classify."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simmim_export.cli.model import open_model, running
from simmim_export.console import check_output, print_json, say
from simmim_export.console.options import AsJson, BundlePath, EngineOptions, Overwrite, Strict
from simmim_export.spec import Verb

if TYPE_CHECKING:
    import numpy as np

    from simmim_export.runtime.bulk import Outcome
    from simmim_export.runtime.images import ImageSource
    from simmim_export.runtime.inputs import EncodedImage
    from simmim_export.runtime.model import Model
    from simmim_export.runtime.scores import Answer

# A command needs a bundle with one of these verbs.
VERBS: Mapping[str, tuple[Verb, ...]] = {
    "embed": (Verb.EMBED_IMAGE, Verb.EMBED_TEXT),
    "ask": (Verb.ANSWER,),
    "match": (Verb.MATCH,),
    "classify": (Verb.CLASSIFY, Verb.CLASSIFY_TEXT),
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
    "simmim-export classify bundle photo.jpg --label cat --label dog",
    'simmim-export classify bundle photo.jpg --labels names.txt --template "a {}"',
)
ImagePath = Annotated[Path, typer.Argument(metavar="IMAGE", help="Image file.")]
ImageOrClip = Annotated[
    Path,
    typer.Argument(
        metavar="IMAGE", help="Image file; if the model takes clips, also a folder of frames or an animation."
    ),
]


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
    # Where the model looked, for each question that it answered.
    maps: list[np.ndarray] = []
    with (
        open_model(bundle, engine) as model,
        running("ask", items, strict=strict, as_json=as_json) as options,
    ):
        _require(model, Verb.ANSWER)
        frames = _frames(model, image, Verb.ANSWER)
        encoded = _encode(model, frames)

        def answer(asked: list[str]) -> list[list[Answer]]:
            if explain is None:
                return model.answers(encoded, asked, top_k=top_k)
            explanations = [model.explain(encoded, question, top_k=top_k) for question in asked]
            maps.extend(one.attention for one in explanations)
            return [one.answers for one in explanations]

        outcome = bulk.run_texts(model, items, compute=answer, verb=Verb.ANSWER, clip=encoded.clip, **options)
        if explain is not None and outcome.rows:
            _draw(explain, frames[0], outcome, maps=maps)
    _show(outcome, keys=("question", "answers", "answer"), as_json=as_json)
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
    with (
        open_model(bundle, engine) as model,
        running("match", items, strict=strict, as_json=as_json) as options,
    ):
        _require(model, Verb.MATCH)
        encoded = model.encode_image(image)

        def rate(batch: list[str]) -> list[float]:
            return [float(score) for score in model.match(encoded, batch)]

        outcome = bulk.run_texts(model, items, compute=rate, verb=Verb.MATCH, **options)
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
    label: Annotated[
        list[str] | None,
        typer.Option(
            "--label",
            metavar="LABEL",
            help="Choose among these classes instead of the model's own. The model must embed images and texts. Repeatable.",
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option("--labels", metavar="FILE", help="Like --label, read from a file: one class per line."),
    ] = None,
    template: Annotated[
        list[str] | None,
        typer.Option(
            "--template",
            metavar="TEMPLATE",
            help="Text to put each label into, at {}. Repeatable: the embeddings of all templates are averaged.",
            show_default="a photo of a {}",
        ),
    ] = None,
    top_k: Annotated[int, typer.Option("--top-k", metavar="N", min=1, help="Number of classes to show.")] = 3,
    strict: Strict = False,
    as_json: AsJson = False,
) -> None:
    """Classify an image or a clip, or judge texts against it.

    With --label or --labels, the classes are these texts: no training is needed (zero-shot). A model that was trained with a
    sigmoid, such as SigLIP, scores each class independently, so its scores do not add up to 100 %.
    """
    from simmim_export.runtime import bulk
    from simmim_export.runtime.zero_shot import TEMPLATE

    names = _named(label, labels, template=template, texts=texts)
    items = bulk.texts(texts or [])
    with (
        open_model(bundle, engine) as model,
        running("classify", items, strict=strict, as_json=as_json) as options,
    ):
        verb = Verb.CLASSIFY_TEXT if texts else Verb.EMBED_IMAGE if names else Verb.CLASSIFY
        if not names:
            _require(model, verb)
        frames = _frames(model, image, verb)
        if texts:
            encoded = _encode(model, frames)

            def judge(batch: list[str]) -> list[list[Answer]]:
                return model.classify_text(encoded, batch, top_k=top_k)

            outcome = bulk.run_texts(model, items, compute=judge, verb=verb, clip=encoded.clip, **options)
        else:
            named = bulk.Item(image, str(image), str(image))
            shown = model.encode_clip(frames) if len(frames) > 1 else frames[0]
            classes = model.classify(shown, names or None, template=template or TEMPLATE, top_k=top_k)
            outcome = bulk.Outcome(items=[named], rows={0: classes}, failures={})
    _show(outcome, keys=("input", "classes", "label"), as_json=as_json)
    outcome.require_all("classified")


def _named(
    label: list[str] | None, file: Path | None, *, template: list[str] | None, texts: list[str] | None
) -> tuple[str, ...]:
    """The classes that --label or --labels names; empty without both. Raise :class:`UsageError` for options that contradict each
    other, and :class:`DataError` for a file that cannot be used."""
    from simmim_export.errors import UsageError
    from simmim_export.system.lines import read_lines

    if label and file is not None:
        raise UsageError(
            "--label and --labels exclude each other", fix="write all classes into the file, or leave it out"
        )
    if (label or file is not None) and texts:
        what = "texts are judged by the model's own classes, and --label and --labels replace these"
        raise UsageError(what, fix="leave out the texts, or the labels")
    if template and not label and file is None:
        raise UsageError("--template needs labels", fix="add --label LABEL for each class, or --labels FILE")
    return tuple(label or ()) if file is None else read_lines(file, noun="class")


def _show(outcome: Outcome[list[Answer]], *, keys: tuple[str, str, str], as_json: bool) -> None:
    """Print labels and scores for each item. ``keys``: the JSON keys of the item, of its labels, and of one label."""
    item_key, labels_key, label_key = keys

    def as_row(source: str, answers: list[Answer]) -> dict[str, Any]:
        return {item_key: source, labels_key: [{label_key: one.label, "score": one.score} for one in answers]}

    if as_json:
        print_json(outcome.as_json(as_row))
        return
    for source, answers in zip(outcome.sources, outcome.rows.values(), strict=True):
        say(f"{source}  " + ", ".join(f"{one.label} {one.score:.1%}" for one in answers))


def _require(model: Model, verb: Verb) -> None:
    """Raise :class:`UsageError` unless the bundle has ``verb``; the error names what the bundle can do."""
    from simmim_export.errors import UsageError

    present = {pipeline.verb for pipeline in model.bundle.manifest.pipelines}
    if verb in present:
        return
    words = verb.replace("_", " ")
    other = {Verb.CLASSIFY: Verb.CLASSIFY_TEXT, Verb.CLASSIFY_TEXT: Verb.CLASSIFY}.get(verb)
    if verb is Verb.CLASSIFY and model.bundle.manifest.similarity is not None:
        fix = "name the classes yourself: --label cat --label dog"
    elif other in present:
        fix = "leave out the texts" if verb is Verb.CLASSIFY_TEXT else "add texts to judge against the image"
    else:
        commands = [command for command, verbs in VERBS.items() if present.intersection(verbs)]
        fix = f"use {', '.join(commands)} with it, or export a checkpoint that was trained for {words}"
    raise UsageError(f"this bundle cannot {words}: its model has no head for that", where=model.bundle.root, fix=fix)


def _frames(model: Model, image: Path, verb: Verb) -> Sequence[ImageSource]:
    """The frames of a folder, or of an animation if the bundle has ``verb`` for clips; otherwise the one image."""
    from simmim_export.runtime.clips import is_animation, read_clip

    takes_clips = model.bundle.manifest.pipeline_for(verb, clip=True) is not None
    if image.is_dir() or (takes_clips and is_animation(image)):
        return read_clip(image)
    return [image]


def _encode(model: Model, frames: Sequence[ImageSource]) -> EncodedImage:
    return model.encode_clip(frames) if len(frames) > 1 else model.encode_image(frames[0])


def _check_drawing(path: Path, *, overwrite: bool) -> None:
    """Raise :class:`UsageError`, before anything is computed, if ``path`` is not a PNG file that can be written."""
    from simmim_export.errors import UsageError

    if path.suffix.lower() != ".png":
        raise UsageError("the drawing must be a PNG file", where=path, fix="give --explain a name that ends in .png")
    check_output(path, "--explain", overwrite=overwrite)
    if not path.absolute().parent.is_dir():
        raise UsageError("no such folder", where=path.parent, fix="make it with mkdir, or choose another --explain")


def _draw(path: Path, image: ImageSource, outcome: Outcome[list[Answer]], *, maps: Sequence[np.ndarray]) -> None:
    from simmim_export.runtime.explain import Panel, sheet
    from simmim_export.runtime.images import decode
    from simmim_export.system.outputs import destination, replacing

    best = [answers[0] for answers in outcome.rows.values()]
    drawing = sheet(decode(image), [Panel(*row) for row in zip(outcome.sources, best, maps, strict=True)])
    with replacing(destination(path)) as temporary:
        drawing.save(temporary, format="PNG")
