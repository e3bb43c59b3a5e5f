"""Opens a bundle for one engine and precision, and chooses both where the caller leaves it to the certificates."""

from __future__ import annotations

import os
from pathlib import Path

from simmim_export.bundle import Bundle
from simmim_export.engines import get_engine, on_device, require_engine, versions
from simmim_export.engines.base import LATENCY, CompilingEngine, Engine
from simmim_export.engines.checks import threads_for
from simmim_export.errors import BundleError, EngineUnavailable, UsageError
from simmim_export.proof.certificate import PLANNED, Certificate, choose, read
from simmim_export.runtime.inputs import require_name
from simmim_export.runtime.model import Model
from simmim_export.runtime.sessions import Sessions
from simmim_export.spec import Precision, PrecisionPlan
from simmim_export.system.files import as_path, digest
from simmim_export.system.host import available_threads, fingerprint

# The engine that stands for the certificates' choice.
AUTO = "auto"


def load(
    bundle: str | os.PathLike[str],
    engine: str = "ort",
    *,
    precision: str | None = None,
    device: str | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    threads: int | None = None,
    hint: str = LATENCY,
) -> Model:
    """Open the bundle in the folder ``bundle`` for one engine and precision.

    ``engine`` is ``ort``, ``openvino``, ``trt`` or ``torch``. ``engine="auto"`` takes the fastest engine and precision that
    passed ``simmim-export certify`` on this kind of machine; :attr:`Model.why` says why they were chosen.

    ``precision`` is one for all graphs, such as ``int8`` (the default is FP32), or one for each graph, such as
    ``image_encoder=int8,text_encoder=bf16`` (all others run at FP32). ``planned`` is what the exporter's planner chose for this
    engine.

    ``device="cuda"`` runs the engine on an NVIDIA GPU; it is short for an engine name such as ``ort@cuda``.

    ``checkpoint`` is for ``engine="torch"`` alone. It must be the checkpoint that the bundle was exported from.

    ``threads`` is a number of CPU threads; the default is as many as this process may use.

    ``hint="latency"`` answers each call as soon as possible. ``hint="throughput"`` is for several threads that call the model at
    the same time; only some engines have it (openvino).

    Raise :class:`BundleError`, :class:`EngineUnavailable`, :class:`CheckpointError` or :class:`UsageError`. Never fall back to
    another engine or precision.
    """
    path = None if checkpoint is None else as_path("checkpoint", checkpoint)
    require_name("engine", engine, example="ort")
    require_name("hint", hint, example=LATENCY)
    if precision is not None:
        require_name("precision", precision, example="int8")
    if device is not None:
        require_name("device", device, example="cuda")
    # Check the threads before anything is read.
    wanted_threads = threads_for(threads)
    opened, why = Bundle.open(bundle), None
    if engine == AUTO:
        _require_defaults(precision=precision, device=device, threads=wanted_threads, hint=hint)
        certificate, why = choose(
            read(opened),
            fingerprint(),
            versions=versions,
            where=opened.root,
            stands=lambda one: _still_compiled(opened, one),
        )
        engine, precision = certificate.engine, certificate.precision
    name = on_device(engine, device)
    plan = plan_of(opened, name, precision=str(Precision.FP32) if precision is None else precision)
    sessions = Sessions(opened, require_engine(name), plan=plan, checkpoint=path, threads=threads, hint=hint)
    return Model(sessions, why=why)


def plan_of(bundle: Bundle, engine: str, *, precision: str) -> PrecisionPlan:
    """The precision plan that the text ``precision`` describes for the engine called ``engine``.

    Raise :class:`UsageError` for a text that does not parse or that names a graph the bundle lacks, and
    :class:`EngineUnavailable` for ``planned`` if the bundle has no plan for this engine.
    """
    if precision == PLANNED:
        plans = bundle.manifest.plans
        # A plan holds for the INT8 files that it was measured with: those that the engine takes on this processor.
        variant = get_engine(engine).variants(Precision.INT8)[0] if engine in plans else None
        if variant is None or variant not in plans[engine]:
            have = ", ".join(f"{name} with {own}" for name in plans for own in plans[name]) or "no engine"
            raise EngineUnavailable(
                f"the bundle has a plan for {have}, not for {engine}{f' with {variant}' if variant else ''}",
                where=bundle.root,
                fix="on a machine that has the engine, simmim-export onnx ckpt.pt -o BUNDLE --overwrite --precision int8 "
                "--budget cosine=0.998",
            )
        precision = plans[engine][variant]
    plan = PrecisionPlan.parse(precision)
    plan.check(graph.name for graph in bundle.manifest.graphs)
    return plan


def compiled(bundle: Bundle, engine: Engine, *, graph: str, plan: PrecisionPlan) -> Path | None:
    """The file that ``engine`` compiled from ``graph`` for its precision in ``plan``; None if it opens graphs directly.

    Raise as :meth:`CompilingEngine.compiled` does.
    """
    if not isinstance(engine, CompilingEngine):
        return None
    precision = plan.of(graph)
    artifact = bundle.artifact(graph, *engine.variants(precision))
    return engine.compiled(bundle.root, bundle.manifest.graph(graph), precision=precision, sha256=artifact.sha256)


def _require_defaults(*, precision: str | None, device: str | None, threads: int, hint: str) -> None:
    """Raise :class:`UsageError` for an option that contradicts ``engine="auto"``."""
    if device is not None:
        raise UsageError(f"engine auto chooses the device itself, not {device!r}", fix="drop the device")
    if precision is not None:
        raise UsageError(f"engine auto chooses the precision itself, not {precision!r}", fix="drop the precision")
    if threads != available_threads():
        what = f"engine auto relies on certificates for {available_threads()} threads, not for {threads}"
        raise UsageError(what, fix="drop the threads, or name an engine")
    if hint != LATENCY:
        what = f"engine auto relies on certified latency, not on {hint}"
        raise UsageError(what, fix="drop the hint, or name an engine")


def _still_compiled(bundle: Bundle, certificate: Certificate) -> bool:
    """Whether the compiled files that ``certificate`` was measured with are still the ones on disk."""
    engine, plan = get_engine(certificate.engine), PrecisionPlan.parse(certificate.plan)
    try:
        paths = {graph: compiled(bundle, engine, graph=graph, plan=plan) for graph in certificate.graphs}
    except (EngineUnavailable, BundleError):
        return False
    return all(path is None or digest(path) == certificate.graphs[graph].compiled for graph, path in paths.items())
