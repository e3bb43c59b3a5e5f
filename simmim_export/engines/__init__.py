"""Engines by name. One file an engine; adding one is a file, a row here and an extra in pyproject.toml."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

from simmim_export.engines.base import Engine
from simmim_export.errors import EngineUnavailable, UsageError
from simmim_export.version import __version__

# name -> module, class. A string, so that asking for one engine never imports another.
ENGINES: dict[str, tuple[str, str]] = {
    "torch": ("simmim_export.engines.torch", "TorchEngine"),
    "ort": ("simmim_export.engines.ort", "OrtEngine"),
    "openvino": ("simmim_export.engines.openvino", "OpenVinoEngine"),
    "trt": ("simmim_export.engines.trt", "TrtEngine"),
}


# The distributions whose versions decide what an engine computes, and how fast.
_PACKAGES = {
    "torch": ("torch", "torchvision", "transformers"),
    "ort": ("onnxruntime", "onnxruntime-gpu"),
    "openvino": ("openvino",),
    "trt": ("tensorrt",),
}


def versions(name: str | None = None) -> dict[str, str]:
    """The versions of this project and of the installed packages of an engine, of all engines without a name."""
    found = {"simmim-export": __version__}
    for engine in ENGINES if name is None else (name,):
        for package in _PACKAGES[engine]:
            try:
                found[package] = version(package)
            except PackageNotFoundError:
                continue
    return found


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
