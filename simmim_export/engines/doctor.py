"""What this machine has, and for each engine whether it can run here and what to install if it cannot."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict
from typing import Any, TypedDict

from simmim_export.engines import ENGINES, get_engine
from simmim_export.engines import torch as torch_engine
from simmim_export.system import nvidia
from simmim_export.system.conflicts import conflicts, installed
from simmim_export.system.host import available_threads, cpu_features, cpu_model, has_integer_dot
from simmim_export.version import __version__

PACKAGES = (
    "numpy",
    "pillow",
    "tokenizers",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "cuda-bindings",
    "nvidia-cuda-runtime",
    "nvidia-cudnn-cu13",
    "torch",
    "torchvision",
    "transformers",
    "onnx",
)


class EngineState(TypedDict):
    """Whether an engine can run here; if not, the ``reason`` and what to type to ``install`` it."""

    available: bool
    reason: str | None
    install: str | None


class GpuState(TypedDict):
    """The NVIDIA driver, the newest ``cuda`` that it runs, and its GPUs (name, compute capability, memory in bytes); or the
    ``reason`` why there is no GPU."""

    reason: str | None
    driver: str | None
    cuda: str | None
    gpus: list[dict[str, Any]]


class Examination(TypedDict):
    """Everything that ``doctor --json`` prints. ``packages`` maps a name to its version, or to None if it is not installed."""

    simmim_export: str
    python: str
    system: str
    cpu: str
    features: list[str]
    cpus: int
    threads_used: int
    gpu: GpuState
    packages: dict[str, str | None]
    engines: dict[str, EngineState]
    problems: list[str]


def examine(thorough: bool = False) -> Examination:
    """Examine this machine.

    Without ``thorough``, PyTorch counts as available if it is installed. With it, PyTorch and the other packages that models need
    are also imported, which takes seconds.
    """
    engines: dict[str, EngineState] = {}
    for name in ENGINES:
        engine = get_engine(name)
        reason = engine.why_unavailable()
        if reason is None and thorough and engine.reads_checkpoint:
            reason = torch_engine.broken()
        engines[name] = {"available": reason is None, "reason": reason, "install": engine.install if reason else None}
    problems = conflicts()
    if has_integer_dot() is False:
        problems.append("this processor has no VNNI: INT8 gains less here, and its weights have 7 bits (int8-u8)")
    return {
        "simmim_export": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_model(),
        "features": sorted(cpu_features() or ()),
        "cpus": os.cpu_count() or available_threads(),
        "threads_used": available_threads(),
        "gpu": _gpu(),
        "packages": {name: installed(name) for name in PACKAGES},
        "engines": engines,
        "problems": problems,
    }


def _gpu() -> GpuState:
    driver = nvidia.driver()
    if driver is None:
        return {"reason": nvidia.why_no_gpu(), "driver": None, "cuda": None, "gpus": []}
    cuda = ".".join(map(str, driver.cuda))
    return {"reason": None, "driver": driver.release, "cuda": cuda, "gpus": [asdict(gpu) for gpu in driver.gpus]}
