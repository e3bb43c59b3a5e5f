"""What this machine has, and what each engine would say if it were asked to run here.

Knows engines and package versions. Must not open a bundle or import torch.
"""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from simmim_export.engines import ENGINES, get_engine
from simmim_export.host import available_threads, cpu_features, cpu_model, has_integer_dot
from simmim_export.version import __version__

PACKAGES = (
    "numpy",
    "pillow",
    "tokenizers",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "torch",
    "torchvision",
    "transformers",
    "onnx",
)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def examine() -> dict[str, Any]:
    """Host, package versions (None where missing), each engine's state with what to install, and known conflicts."""
    engines = {}
    for name in ENGINES:
        engine = get_engine(name)
        reason = engine.why_unavailable()
        engines[name] = {
            "available": reason is None,
            "reason": reason,
            "install": None if reason is None else engine.install,
        }
    packages = {name: _version(name) for name in PACKAGES}
    problems = []
    if packages["onnxruntime"] and packages["onnxruntime-gpu"]:
        problems.append(
            "onnxruntime and onnxruntime-gpu overwrite each other's files: pip uninstall -y onnxruntime onnxruntime-gpu, "
            "then install one of them"
        )
    if has_integer_dot() is False:
        problems.append(
            "this processor has no VNNI: INT8 convolutions with weights of full range are refused; export them with "
            "--precision int8 --reduce-range"
        )
    return {
        "simmim_export": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_model(),
        "features": sorted(cpu_features() or ()),
        "cpus": os.cpu_count(),
        "threads_used": available_threads(),
        "packages": packages,
        "engines": engines,
        "problems": problems,
    }
