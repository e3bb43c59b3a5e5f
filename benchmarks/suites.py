"""What simmim-bench measures: the jobs of each suite, and whether the engines can run them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from simmim_export.benchmarks.contestants import Plan
from simmim_export.benchmarks.jobs import Job
from simmim_export.benchmarks.photographs import SIZES, photograph
from simmim_export.benchmarks.results import Param, Suite
from simmim_export.benchmarks.workloads import CALLS_PER_STREAM, OF_IMAGES, OF_TEXTS, STAGES, picture_size
from simmim_export.bundle import Bundle, Manifest
from simmim_export.engines.base import THROUGHPUT
from simmim_export.errors import UsageError
from simmim_export.runtime import load
from simmim_export.runtime.loading import compiled
from simmim_export.spec import BATCH, Axis, GraphSpec, Kind, Pipeline, Verb
from simmim_export.system.host import available_threads

# Questions about one image.
QUESTIONS = (1, 2, 4, 8, 16)
# Tokens of a text while another axis grows.
USUAL_LENGTH = 16
# The smallest photograph, for what is not about the size of photographs.
SMALL = min(SIZES)


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the user asked for: a bundle's manifest, the chosen pipelines, and the batch of the suite latency."""

    manifest: Manifest
    pipelines: Sequence[Pipeline]
    batch: int

    @classmethod
    def of(cls, bundle: Path, pipelines: Sequence[str] | None = None, *, batch: int = 1) -> Request:
        """The request for ``pipelines``, by default all of the bundle's. Raise :class:`UsageError` for an unknown pipeline, or
        for a batch that a graph does not accept."""
        manifest = Bundle.open(bundle).manifest
        chosen = [manifest.pipeline(name) for name in pipelines] if pipelines else list(manifest.pipelines)
        request = cls(manifest=manifest, pipelines=chosen, batch=batch)
        limit = min(manifest.graph(name).axis(BATCH).maximum for name in request.graphs)
        if batch > limit:
            fix = f"give --batch {limit} or less, or export with --max-batch {batch}"
            raise UsageError(f"batch {batch} is above the bundle's limit of {limit}", fix=fix)
        return request

    @property
    def graphs(self) -> list[str]:
        """The graphs of the chosen pipelines, each once."""
        return list(dict.fromkeys(name for pipeline in self.pipelines for name in pipeline.graphs))

    @property
    def of_images(self) -> list[Pipeline]:
        """The chosen pipelines that serve a verb for images or texts, and not for clips."""
        return [one for one in self.pipelines if self.manifest.pipeline_for(one.verb) == one]

    def serving(self, verb: Verb) -> Pipeline | None:
        """The chosen pipeline for ``verb``, or None."""
        return next((pipeline for pipeline in self.of_images if pipeline.verb == verb), None)


def latency(request: Request) -> Iterator[Job]:
    """Each graph, then each pipeline, on golden tensors of the requested batch."""
    params = {"batch": request.batch}
    for name in request.graphs:
        yield Job(suite="latency", target=f"graph:{name}", graphs=(name,), params=params, items=request.batch)
    for one in request.pipelines:
        target = f"pipeline:{one.name}"
        yield Job(suite="latency", target=target, graphs=one.graphs, params=params, items=request.batch)


def ladder(request: Request) -> Iterator[Job]:
    """Each verb for one image or text, from its graphs alone to the call of a user."""
    for one in request.of_images:
        for stage in STAGES:
            yield Job(suite="ladder", target=f"verb:{one.verb}", graphs=one.graphs, params={"stage": stage})


def throughput(request: Request) -> Iterator[Job]:
    """The pipelines that embed (or those that were named), at batches from 1 to the largest, and from several threads at once."""
    streams = available_threads()
    for one in _embedding(request):
        limit = min(request.manifest.graph(name).axis(BATCH).maximum for name in one.graphs)
        target = f"pipeline:{one.name}"
        for batch in sizes(1, limit):
            yield Job(suite="throughput", target=target, graphs=one.graphs, params={"batch": batch}, items=batch)
        calls = CALLS_PER_STREAM * streams
        params = {"batch": 1, "streams": streams}
        yield Job(suite="throughput", target=target, graphs=one.graphs, params=params, items=calls, hint=THROUGHPUT)


def reuse(request: Request) -> Iterator[Job]:
    """Several questions about one photograph in one call, and each one alone."""
    if (one := request.serving(Verb.ANSWER)) is not None:
        for stage, counts in (("alone", (max(QUESTIONS),)), ("api", QUESTIONS)):
            for count in counts:
                params: dict[str, Param] = {"questions": count, "stage": stage}
                yield Job(suite="reuse", target=f"verb:{one.verb}", graphs=one.graphs, params=params, items=count)


def photos(request: Request) -> Iterator[Job]:
    """From the file of a photograph to its embedding; by PyTorch with plain Pillow."""
    if (one := request.serving(Verb.EMBED_IMAGE)) is not None:
        for megapixels in SIZES:
            yield Job(suite="photos", target=f"verb:{one.verb}", graphs=one.graphs, params={"megapixels": megapixels})


def growth(request: Request) -> Iterator[Job]:
    """The graphs that read images, texts or frames, along each axis that may grow: batch, sequence, frames."""
    for name in request.graphs:
        spec = request.manifest.graph(name)
        if not any(tensor.kind in (Kind.IMAGE, Kind.TOKEN_IDS, Kind.FRAMES) for tensor in spec.inputs):
            continue
        for axis in spec.axes:
            for size in sizes(axis.minimum, axis.maximum):
                params = {other.name: _usual(spec, other) for other in spec.axes} | {axis.name: size}
                batch = params.get(BATCH, 1)
                yield Job(suite="growth", target=f"graph:{name}", graphs=(name,), params=params, items=batch)


def soak(request: Request, *, minutes: float, slices: int) -> Job:
    """Mixed work for ``minutes`` in all, in so many ``slices``: every verb on small and large photographs, and
    every pipeline at several batches."""
    parts: list[Job] = []
    for one in request.of_images:
        megapixels = [size for size in SIZES if size < max(SIZES)] if one.verb in OF_IMAGES else [SMALL]
        counts = (1, 3) if one.verb in OF_TEXTS and one.verb != Verb.EMBED_TEXT else (1,)
        for size in megapixels:
            for count in counts:
                params: dict[str, Param] = {"megapixels": size, "questions": count, "stage": "api"}
                parts.append(Job(suite="soak", target=f"verb:{one.verb}", graphs=one.graphs, params=params))
    for one in request.pipelines:
        limit = min(request.manifest.graph(name).axis(BATCH).maximum for name in one.graphs)
        for batch in sizes(1, limit):
            parts.append(Job(suite="soak", target=f"pipeline:{one.name}", graphs=one.graphs, params={"batch": batch}))
    return Job(
        suite="soak",
        target="soak:mixed",
        graphs=tuple(request.graphs),
        params={"minutes": minutes},
        iterations=1,
        parts=tuple(parts),
        seconds=60 * minutes / slices,
    )


# The suites, in the order in which a run measures them, and how often each runs a job in one round.
SUITES: dict[Suite, tuple[Callable[[Request], Iterator[Job]], int]] = {
    "latency": (latency, 20),
    "ladder": (ladder, 20),
    "throughput": (throughput, 4),
    "reuse": (reuse, 4),
    "photos": (photos, 8),
    "growth": (growth, 8),
}
# What each suite needs of a bundle, for the message if it is missing.
_NEEDS: dict[Suite, str] = {
    "ladder": "a pipeline for images or texts",
    "throughput": "a pipeline that embeds",
    "reuse": "a pipeline that answers questions about images",
    "photos": "a pipeline that embeds images",
    "growth": "a graph that reads images, texts or frames",
}


def jobs(request: Request, suites: Sequence[Suite], *, iterations: int | None = None) -> list[Job]:
    """The jobs of ``suites`` without repetition; ``iterations`` replaces how often each suite runs a job in a round.

    Raise :class:`UsageError` for a suite that this bundle has nothing for.
    """
    chosen: list[Job] = []
    for suite in suites:
        make, usual = SUITES[suite]
        made = [replace(job, iterations=iterations or usual) for job in make(request)]
        if not made:
            what = f"suite {suite} needs {_NEEDS[suite]}, and {_names(request)} is not one"
            raise UsageError(what, fix="drop that --suite, or name another --pipeline")
        # Two axes of a graph begin with the same sizes.
        chosen += [job for index, job in enumerate(made) if job not in made[:index]]
    return chosen


def parse_suites(names: Sequence[str] | None) -> list[Suite]:
    """The suites called ``names``, by default latency. Raise :class:`UsageError` for an unknown one, and for soak beside others,
    because it takes minutes during which the others would stand still."""
    known = (*SUITES, "soak")
    for name in names or ():
        if name not in known:
            what = f"unknown suite {name!r}"
            fix = "simmim-bench peers measures peers" if name in get_args(Suite) else f"choose among {', '.join(known)}"
            raise UsageError(what, fix=fix)
    chosen: list[Suite] = [suite for suite in get_args(Suite) if suite in (names or ["latency"])]
    if "soak" in chosen and len(chosen) > 1:
        raise UsageError("the suite soak cannot be measured together with others", fix="run it alone: --suite soak")
    return chosen


def require_options(suites: Sequence[Suite], *, batch: int, iterations: int | None, minutes: float | None) -> None:
    """Raise :class:`UsageError` for an option that none of ``suites`` reads."""
    if minutes is not None and "soak" not in suites:
        raise UsageError("--minutes is for the suite soak alone", fix="add --suite soak, or drop --minutes")
    if iterations is not None and "soak" in suites:
        raise UsageError(
            "the suite soak runs for minutes, not for iterations", fix="give --minutes, or drop --iterations"
        )
    if batch != 1 and "latency" not in suites:
        raise UsageError("--batch is for the suite latency alone", fix="add --suite latency, or drop --batch")


def make_pictures(chosen: Sequence[Job], folder: Path) -> None:
    """Make in ``folder`` the photographs that the jobs read: a worker that made one itself would need more memory."""
    every = [part for job in chosen for part in (job, *job.parts)]
    for megapixels in {picture_size(job) for job in every if job.target in {f"verb:{verb}" for verb in OF_IMAGES}}:
        photograph(folder, megapixels)


def sizes(least: int, most: int) -> list[int]:
    """The powers of two from ``least`` to ``most``, and both ends."""
    return sorted({least, most, *(2**k for k in range(32) if least < 2**k < most)})


def _usual(spec: GraphSpec, axis: Axis) -> int:
    """The size of ``axis`` while another one grows: one row, a short text, all frames."""
    if axis.name == BATCH:
        return 1
    of_texts = any(tensor.kind is Kind.TOKEN_IDS and axis.name in tensor.shape for tensor in spec.inputs)
    return max(axis.minimum, min(axis.maximum, USUAL_LENGTH)) if of_texts else axis.maximum


def _embedding(request: Request) -> list[Pipeline]:
    embedding = [one for one in request.pipelines if one.verb in (Verb.EMBED_IMAGE, Verb.EMBED_TEXT)]
    named = len(request.pipelines) < len(request.manifest.pipelines)
    return list(request.pipelines) if named else embedding


def _names(request: Request) -> str:
    return ", ".join(pipeline.name for pipeline in request.pipelines)


def require(plan: Plan) -> None:
    """Raise, before any process starts, the error that an engine of ``plan`` would raise when it opens its graphs.

    :class:`UsageError` for a wrong precision or graph, :class:`EngineUnavailable` for one that the bundle or the device lacks,
    :class:`CheckpointError` for a checkpoint that is not the bundle's.
    """
    for each in plan.engines:
        checkpoint = plan.checkpoint if each.reads_checkpoint else None
        with load(each.bundle or plan.bundle, each.engine, precision=each.precision, checkpoint=checkpoint) as model:
            if each.reads_checkpoint:
                continue
            for graph in plan.graphs:
                model.bundle.artifact(graph, *model.engine.variants(model.plan.of(graph)))
                compiled(model.bundle, model.engine, graph=graph, plan=model.plan)
