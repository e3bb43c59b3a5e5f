"""The inputs that are timed, that judge the accuracy, and that calibrate. Every process reads the same file."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from simmim_export.benchmarks.results import BenchmarkResult, Param
from simmim_export.bundle import Bundle
from simmim_export.errors import DataError, TruncatedText, UnknownWords
from simmim_export.runtime import Model, load
from simmim_export.spec import BATCH, GraphSpec, Kind, Verb

# Tokens of the texts that are timed, if the graph takes so many.
LENGTHS = (12, 32)
TIMED, JUDGES, CALIBRATION = "timed", "judges", "calibration"
Feeds = Mapping[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Task:
    """One encoder: its ``graph``, its ``embedding`` (the name of an output), the sizes of each timed input, and the file with all
    inputs."""

    graph: str
    embedding: str
    timed: tuple[dict[str, Param], ...]
    judges: int
    inputs: Path

    @property
    def target(self) -> str:
        """How a row names what was run."""
        return f"graph:{self.graph}"

    def is_of(self, row: BenchmarkResult) -> bool:
        """Whether ``row`` measured this encoder."""
        return row.target == self.target


def tasks(bundle: Path, *, judges: Sequence[str], calibration: Sequence[str], folder: Path) -> list[Task]:
    """A task for each encoder of ``bundle`` that is a whole pipeline: of images, judged by the golden ones, and of texts, judged
    by ``judges``. Their inputs are written to ``folder``.

    Raise :class:`DataError` for a bundle without such an encoder.
    """
    manifest, made = Bundle.open(bundle).manifest, []
    with load(bundle) as model:
        for pipeline in manifest.pipelines:
            if pipeline.verb in (Verb.EMBED_IMAGE, Verb.EMBED_TEXT) and len(pipeline.graphs) == 1:
                spec = manifest.graph(pipeline.graphs[0])
                of_texts = pipeline.verb is Verb.EMBED_TEXT
                parts = _texts(model, spec, judges, calibration) if of_texts else _images(model, spec)
                path = folder / f"{spec.name}.npz"
                _write(path, parts)
                made.append(
                    Task(
                        graph=spec.name,
                        embedding=pipeline.outputs[0],
                        timed=tuple(_sizes(feeds, spec) for feeds in parts[TIMED]),
                        judges=len(parts[JUDGES]),
                        inputs=path,
                    )
                )
    if not made:
        raise DataError(
            "no encoder of this bundle is a pipeline of its own", where=bundle, fix="choose another --bundle"
        )
    return made


def _images(model: Model, spec: GraphSpec) -> dict[str, list[Feeds]]:
    """Golden images, one by one. The first is timed."""
    golden = model.bundle.golden()
    feeds = golden.feeds(golden.largest(), spec)
    (rows,) = {len(array) for array in feeds.values()}
    images: list[Feeds] = [{name: array[row : row + 1] for name, array in feeds.items()} for row in range(rows)]
    return {TIMED: images[:1], JUDGES: images, CALIBRATION: []}


def _texts(model: Model, spec: GraphSpec, judges: Sequence[str], calibration: Sequence[str]) -> dict[str, list[Feeds]]:
    """Each text alone. Timed are the first tokens of all of them in a row, at each of :data:`LENGTHS`."""
    with warnings.catch_warnings():
        # A text that is cut is cut for everybody, and the vocabulary need not have every word.
        warnings.simplefilter("ignore", TruncatedText)
        warnings.simplefilter("ignore", UnknownWords)
        long = model.tokens([" ".join(judges[:10])])
        judged: list[Feeds] = [model.tokens([text]) for text in judges]
        calibrating: list[Feeds] = [model.tokens([text]) for text in calibration]
    timed: list[Feeds] = [_cut(long, spec, length) for length in _lengths(spec, long)]
    return {TIMED: timed, JUDGES: judged, CALIBRATION: calibrating}


def _lengths(spec: GraphSpec, long: Feeds) -> list[int]:
    """Those of :data:`LENGTHS` that the graph takes; its longest instead of those beyond."""
    (axis,) = (axis for axis in spec.axes if axis.name != BATCH)
    tokens = next(iter(long.values())).shape[1]
    return list(dict.fromkeys(max(axis.minimum, min(length, axis.maximum, tokens)) for length in LENGTHS))


def _cut(long: Feeds, spec: GraphSpec, length: int) -> Feeds:
    """The first ``length`` tokens, of which the last is the one that ends a text."""
    cut = {name: array[:, :length].copy() for name, array in long.items()}
    for tensor in spec.inputs:
        if tensor.kind is Kind.TOKEN_IDS:
            cut[tensor.name][:, -1] = long[tensor.name][:, -1]
    return cut


def _sizes(feeds: Feeds, spec: GraphSpec) -> dict[str, Param]:
    """The size of each dynamic axis in ``feeds``."""
    sizes: dict[str, Param] = {}
    for tensor in spec.inputs:
        pairs = zip(tensor.shape, feeds[tensor.name].shape, strict=True)
        sizes |= {name: size for name, size in pairs if isinstance(name, str)}
    return sizes


def _write(path: Path, parts: Mapping[str, Sequence[Feeds]]) -> None:
    """Write the feeds of each part under ``PART:NUMBER:TENSOR``."""
    arrays = {
        f"{part}:{number}:{name}": array
        for part, several in parts.items()
        for number, feeds in enumerate(several)
        for name, array in feeds.items()
    }
    np.savez(path, allow_pickle=False, **arrays)


def read_feeds(path: Path, part: str) -> list[dict[str, np.ndarray]]:
    """The feeds of ``part`` in the file that :func:`tasks` wrote, in order."""
    feeds: dict[int, dict[str, np.ndarray]] = {}
    with np.load(path, allow_pickle=False) as file:
        for key in file.files:
            own, number, name = key.split(":", 2)
            if own == part:
                feeds.setdefault(int(number), {})[name] = file[key]
    return [feeds[number] for number in sorted(feeds)]
