"""What this machine has, and what each engine would say if it were asked to run here.

Knows engines, package versions, and what of both does not go together. Must not open a bundle.
"""

from __future__ import annotations

import os
import platform
from dataclasses import asdict
from typing import Any

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


def examine(thorough: bool = False) -> dict[str, Any]:
    """Host, GPU, package versions (None where missing), each engine's state with what to install, and known conflicts.

    ``thorough`` imports what the models are made with too, which takes seconds: without it PyTorch counts as available where it
    is installed.
    """
    engines = {}
    for name in ENGINES:
        engine = get_engine(name)
        reason = engine.why_unavailable()
        if reason is None and thorough and engine.reads_checkpoint:
            reason = torch_engine.broken()
        engines[name] = {
            "available": reason is None,
            "reason": reason,
            "install": None if reason is None else engine.install,
        }
    packages = {name: installed(name) for name in PACKAGES}
    problems = conflicts()
    if has_integer_dot() is False:
        problems.append(
            "this processor has no VNNI: INT8 gains less here, and OpenVINO refuses what was exported with --full-range"
        )
    return {
        "simmim_export": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_model(),
        "features": sorted(cpu_features() or ()),
        "cpus": os.cpu_count(),
        "threads_used": available_threads(),
        "gpu": _gpu(),
        "packages": packages,
        "engines": engines,
        "problems": problems,
    }


def _gpu() -> dict[str, Any]:
    """Driver and GPUs, or ``reason``: why there are none."""
    driver = nvidia.driver()
    if driver is None:
        return {"reason": nvidia.why_no_gpu(), "driver": None, "cuda": None, "gpus": []}
    cuda = ".".join(map(str, driver.cuda))
    return {"reason": None, "driver": driver.release, "cuda": cuda, "gpus": [asdict(gpu) for gpu in driver.gpus]}
