"""Finds packages in this environment that do not work together on a GPU, each with the command that fixes it.

Reads package metadata and looks for shared libraries by name. Imports none of those packages.
"""

from __future__ import annotations

import ast
import ctypes
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from simmim_export.system import nvidia

ORT, ORT_GPU = "onnxruntime", "onnxruntime-gpu"
INSTALL_GPU = "pip install 'onnxruntime-gpu[cuda,cudnn]'"
CUDNN = 9
# The parts of CUDA that each package loads: the name of the wheel, and the name of the library.
_PARTS = {ORT_GPU: {"cuda-runtime": "cudart", "cublas": "cublasLt"}, "tensorrt": {"cuda-runtime": "cudart"}}
# The oldest driver for each major version of CUDA.
_DRIVERS = {12: 525, 13: 580}
# From this major version on, the package tensorrt means tensorrt-cu13. Others may be installed by their own names.
_TENSORRT, _TENSORRT_CUDA = 11, 13


@dataclass(frozen=True)
class OrtFiles:
    """The ``package`` that the files in the folder onnxruntime came with, the ``cuda`` that they were built for ("13.0" or None),
    and whether the CUDA ``provider`` is among them."""

    package: str
    cuda: str | None
    provider: bool


def installed(package: str) -> str | None:
    """The version of ``package`` by its metadata, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def ort_files() -> OrtFiles | None:
    """What is really in the folder onnxruntime, whatever the metadata say; None without that folder. Imports nothing."""
    spec = find_spec(ORT)
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(next(iter(spec.submodule_search_locations))) / "capi"
    about: dict[str, str] = {}
    with suppress(OSError, SyntaxError, ValueError):
        for line in ast.parse((folder / "build_and_package_info.py").read_text(encoding="utf-8")).body:
            if isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name):
                about[line.targets[0].id] = str(ast.literal_eval(line.value))
    has_provider = any(folder.glob("*onnxruntime_providers_cuda.*"))
    return OrtFiles(about.get("package_name", ORT), about.get("cuda_version"), has_provider)


def conflicts() -> list[str]:
    """One line for each conflict: what does not fit, and what to type."""
    return [*_overwritten(), *_libraries(), *_drivers()]


def missing_libraries(cuda: int) -> list[str]:
    """The libraries of CUDA and cuDNN that ONNX Runtime needs and this process cannot load."""
    names = [f"lib{name}.so.{cuda}" for name in ("cudart", "cublasLt", "cublas")]
    return [name for name in (nvidia.LIBRARY, *names, f"libcudnn.so.{CUDNN}") if not _loads(name)]


def _loads(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def _overwritten() -> Iterator[str]:
    cpu, gpu, files = installed(ORT), installed(ORT_GPU), ort_files()
    fix = f"pip uninstall -y {ORT} {ORT_GPU} && {INSTALL_GPU if nvidia.driver() else f'pip install {ORT}'}"
    there = files.package if files else "neither"
    if cpu and gpu:
        what = f"onnxruntime {cpu} and onnxruntime-gpu {gpu} overwrite each other's files; the files there now are from {there}"
        yield f"{what}: {fix}"
    elif (cpu or gpu) and there != (ORT if cpu else ORT_GPU):
        yield f"{ORT if cpu else ORT_GPU} is installed but its files are missing; the files there are from {there}: {fix}"


def _needing_cuda() -> Iterator[tuple[str, int]]:
    """What is installed and built for one major version of CUDA only, with that version."""
    gpu, files, tensorrt = installed(ORT_GPU), ort_files(), installed("tensorrt")
    if gpu and files and files.cuda:
        yield f"onnxruntime-gpu {gpu}", _major(files.cuda)
    by_name = {cuda: number for cuda in (12, 13) if (number := installed(f"tensorrt-cu{cuda}"))}
    for cuda, number in by_name.items():
        yield f"tensorrt-cu{cuda} {number}", cuda
    if tensorrt and not by_name and _major(tensorrt) >= _TENSORRT:
        yield f"tensorrt {tensorrt}", _TENSORRT_CUDA


def _libraries() -> Iterator[str]:
    for name, cuda in _needing_cuda():
        # Only the packages that a wheel is for know where its libraries are. So its metadata count as much as the loader.
        missing = {
            part: _wheels(part)
            for part, library in _PARTS[ORT_GPU if name.startswith(ORT_GPU) else "tensorrt"].items()
            if not any(_major(v) == cuda for v in _wheels(part).values()) and not _loads(f"lib{library}.so.{cuda}")
        }
        if missing:
            here = _shown({wheel: v for wheels in missing.values() for wheel, v in wheels.items()}) or "none of it"
            yield f"{name} needs {' and '.join(missing)} of CUDA {cuda}, but this environment has {here}: {_fix(name, cuda)}"
        if name.startswith(ORT_GPU) and not _loads(f"libcudnn.so.{CUDNN}"):
            cudnn = _wheels("cudnn")
            if _major(cudnn.get(f"nvidia-cudnn-cu{cuda}", "0")) != CUDNN:
                here = _shown(cudnn) or "none"
                yield f"{name} needs cuDNN {CUDNN} for CUDA {cuda}, but this environment has {here}: {_fix(name, cuda)}"


def _wheels(part: str) -> dict[str, str]:
    """The installed wheels of a part of CUDA. Up to CUDA 12, and still for cuDNN, their names end in its major version."""
    names = (f"nvidia-{part}", *(f"nvidia-{part}-cu{major}" for major in (13, 12, 11)))
    return {name: number for name in names if (number := installed(name))}


def _shown(wheels: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in wheels.items())


def _drivers() -> Iterator[str]:
    driver = nvidia.driver()
    if driver is None:
        return
    for name, cuda in _needing_cuda():
        if driver.cuda[0] < cuda:
            older = f", or pip install 'tensorrt<{_TENSORRT}'" if name.startswith("tensorrt") else ""
            needed = f"install NVIDIA's driver {_DRIVERS[cuda]} or newer" if cuda in _DRIVERS else nvidia.INSTALL
            yield f"{name} needs CUDA {cuda}, which the driver cannot run ({driver}): {needed}{older}"


def _fix(name: str, cuda: int) -> str:
    if name.startswith(ORT_GPU):
        return INSTALL_GPU
    return f"pip install 'nvidia-cuda-runtime{'' if cuda >= 13 else f'-cu{cuda}'}=={cuda}.*'"


def _major(text: str) -> int:
    return int(text.partition(".")[0])
