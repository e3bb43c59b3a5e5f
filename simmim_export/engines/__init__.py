"""Engines by name. One file an engine; adding one is a file, a row here and an extra in pyproject.toml."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

from simmim_export.engines.base import Engine, cannot_run
from simmim_export.errors import UsageError
from simmim_export.version import __version__

# name -> module, class. A string, so that asking for one engine never imports another.
ENGINES: dict[str, tuple[str, str]] = {
    "torch": ("simmim_export.engines.torch", "TorchEngine"),
    "ort": ("simmim_export.engines.ort", "OrtEngine"),
    "openvino": ("simmim_export.engines.openvino", "OpenVinoEngine"),
    "trt": ("simmim_export.engines.tensorrt", "TrtEngine"),
    # On another device an engine has other precisions, needs other packages and is proven anew: an engine of its own, not an
    # option of one. So certificates, plans and doctor name it like any other, and a benchmark has the reference on both.
    "torch@cuda": ("simmim_export.engines.torch", "TorchCudaEngine"),
    "torch-compile@cuda": ("simmim_export.engines.torch", "TorchCompiledEngine"),
    "ort@cuda": ("simmim_export.engines.ort_cuda", "OrtCudaEngine"),
    "ort-graph@cuda": ("simmim_export.engines.ort_cuda", "OrtCudaGraphEngine"),
}
CPU, CUDA = "cpu", "cuda"
# Where an engine without a device in its name runs, if not on the CPU.
_HOME = {"trt": CUDA}


# The distributions whose versions decide what an engine computes, and how fast.
_PACKAGES = {
    "torch": ("torch", "torchvision", "transformers"),
    "ort": ("onnxruntime", "onnxruntime-gpu"),
    "openvino": ("openvino",),
    "trt": ("tensorrt", "tensorrt-cu12", "tensorrt-cu13"),
    "torch-compile": ("torch", "torchvision", "transformers"),
    "ort-graph": ("onnxruntime", "onnxruntime-gpu"),
}


def versions(name: str | None = None) -> dict[str, str]:
    """The versions of this project and of the installed packages of an engine, of all engines without a name."""
    found = {"simmim-export": __version__}
    for engine in ENGINES if name is None else (name,):
        for package in _PACKAGES[engine.partition("@")[0]]:
            try:
                found[package] = version(package)
            except PackageNotFoundError:
                continue
    return found


def on_device(name: str, device: str | None) -> str:
    """The engine called ``name`` on ``device``, by its name (``ort`` on ``cuda`` is ``ort@cuda``); None is where it is at home.

    Raise :class:`UsageError` for an engine that does not run there.
    """
    if device is None or device == _HOME.get(name, name.partition("@")[2] or CPU):
        return name
    found = f"{name}@{device}"
    if found not in ENGINES:
        there = [engine.partition("@")[0] for engine in ENGINES if engine.endswith(f"@{device}")]
        fix = f"on {device} there are {', '.join(there)}" if there else f"choose {CPU} or {CUDA}"
        raise UsageError(f"engine {name!r} does not run on device {device!r}", fix=fix)
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
        raise cannot_run(name, reason, engine.install)
    return engine
