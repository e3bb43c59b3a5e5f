"""Engines by name. One file an engine; adding one is a file, a row here and an extra in pyproject.toml."""

from __future__ import annotations

from importlib import import_module

from simmim_export.engines.base import Engine
from simmim_export.errors import EngineUnavailable, UsageError

# name -> module, class. A string, so that asking for one engine never imports another.
ENGINES: dict[str, tuple[str, str]] = {
    "torch": ("simmim_export.engines.torch", "TorchEngine"),
    "ort": ("simmim_export.engines.ort", "OrtEngine"),
    "openvino": ("simmim_export.engines.openvino", "OpenVinoEngine"),
    "trt": ("simmim_export.engines.trt", "TrtEngine"),
}


def get_engine(name: str) -> Engine:
    """The engine called ``name``, whether or not it can run here; raise :class:`UsageError` naming the choices."""
    if name not in ENGINES:
        raise UsageError(f"unknown engine {name!r}", fix=f"choose one of {', '.join(ENGINES)}")
    module, cls = ENGINES[name]
    return getattr(import_module(module), cls)()


def require_engine(name: str) -> Engine:
    """The engine called ``name``; raise :class:`EngineUnavailable` with the reason if it cannot run here."""
    engine = get_engine(name)
    reason = engine.why_unavailable()
    if reason is not None:
        raise EngineUnavailable(f"engine {name!r} cannot run here: {reason}", fix=engine.install)
    return engine
