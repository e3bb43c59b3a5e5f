"""The engines, by name. To add one, write a module, a row in :data:`ENGINES`, and an extra in pyproject.toml."""

from __future__ import annotations

import re
from importlib import import_module

from simmim_export.engines.base import Engine
from simmim_export.engines.failures import cannot_run
from simmim_export.errors import UsageError
from simmim_export.system.conflicts import installed
from simmim_export.version import __version__

# name -> module, class. Strings, so that asking for one engine never imports another.
ENGINES: dict[str, tuple[str, str]] = {
    "torch": ("simmim_export.engines.torch", "TorchEngine"),
    "ort": ("simmim_export.engines.ort", "OrtEngine"),
    "openvino": ("simmim_export.engines.openvino", "OpenVinoEngine"),
    "trt": ("simmim_export.engines.tensorrt", "TrtEngine"),
    "trt-rtx": ("simmim_export.engines.tensorrt", "TrtRtxEngine"),
    # On another device an engine has other precisions, needs other packages and has to be proven again. So it is an engine of its
    # own and not an option: certificates, precision plans and doctor name it like any other, and a benchmark can compare both.
    "torch@cuda": ("simmim_export.engines.torch", "TorchCudaEngine"),
    "torch-compile@cuda": ("simmim_export.engines.torch", "TorchCompiledEngine"),
    "ort@cuda": ("simmim_export.engines.ort_cuda", "OrtCudaEngine"),
    "ort-graph@cuda": ("simmim_export.engines.ort_cuda", "OrtCudaGraphEngine"),
}
CPU, CUDA = "cpu", "cuda"
# The device of an engine whose name has none, if it is not the CPU.
_HOME = {"trt": CUDA, "trt-rtx": CUDA}
# The packages whose versions decide what an engine computes and how fast, by the engine's name or its part up to "-" or "@".
_PACKAGES = {
    "torch": ("torch", "torchvision", "transformers"),
    "ort": ("onnxruntime", "onnxruntime-gpu"),
    "openvino": ("openvino",),
    "trt": ("tensorrt", "tensorrt-cu12", "tensorrt-cu13"),
    "trt-rtx": ("tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu13-libs"),
}


def versions(name: str | None = None) -> dict[str, str]:
    """The versions of this project and of the installed packages of the engine called ``name``, or of all engines."""
    engines = ENGINES if name is None else (name,)
    bases = (engine if engine in _PACKAGES else re.split("[-@]", engine)[0] for engine in engines)
    packages = dict.fromkeys(package for base in bases for package in _PACKAGES[base])
    return {"simmim-export": __version__} | {package: text for package in packages if (text := installed(package))}


def on_device(name: str, device: str | None) -> str:
    """The name of the engine ``name`` on ``device``: ``ort`` on ``cuda`` is ``ort@cuda``. None is the engine's usual device.

    Raise :class:`UsageError` for an engine that does not run there.
    """
    if device is None or device == device_of(name):
        return name
    full_name = f"{name}@{device}"
    if full_name not in ENGINES:
        there = [engine.partition("@")[0] for engine in ENGINES if engine.endswith(f"@{device}")]
        fix = f"on {device} there are {', '.join(there)}" if there else f"choose {CPU} or {CUDA}"
        raise UsageError(f"engine {name!r} does not run on device {device!r}", fix=fix)
    return full_name


def device_of(name: str) -> str:
    """The device that the engine ``name`` runs on: ``cpu`` or ``cuda``."""
    return _HOME.get(name, name.partition("@")[2] or CPU)


def get_engine(name: str) -> Engine:
    """The engine called ``name``, whether or not it can run here. Raise :class:`UsageError` for an unknown name."""
    if name not in ENGINES:
        raise UsageError(f"unknown engine {name!r}", fix=f"choose one of {', '.join(ENGINES)}")
    module, cls = ENGINES[name]
    return getattr(import_module(module), cls)()


def require_engine(name: str) -> Engine:
    """The engine called ``name``; raise :class:`EngineUnavailable` with the reason if it cannot run here."""
    engine = get_engine(name)
    reason = engine.why_unavailable()
    if reason is not None:
        raise cannot_run(name, reason, install=engine.install)
    return engine
