"""The real Python bindings of TensorRT and CUDA, and TensorRT for RTX, each in its own folder and importable without a GPU.

``python tests/engines/trt/bindings.py`` (which ``make`` runs) installs what is missing into a folder of the virtual environment.
The wheels contain packages of the same name, so they cannot be in the environment itself. TensorRT's wheels link three libraries
that only NVIDIA's own index has. Stubs take their place, which is enough to read every name and signature. TensorRT for RTX is
whole: its parser and its builder run.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from stub_library import write_library

# folder -> what pip installs there. The oldest TensorRT that is supported has wheels from 10.13 on.
TARGETS = {
    "tensorrt-10": ("--no-deps", "tensorrt_cu12_bindings==10.13.3.9"),
    "tensorrt-11": ("--no-deps", "tensorrt_cu13_bindings==11.4.0.106"),
    "rtx": ("--no-deps", "tensorrt-rtx-cu13-libs==1.7.1.116", "tensorrt-rtx-cu13-bindings==1.7.1.116"),
    "cuda-12": ("cuda-bindings==12.9.4",),
    "cuda-13": ("cuda-bindings==13.5.0",),
}
# folder -> the package whose surface is read.
MODULES = {"tensorrt-10": "tensorrt_bindings", "tensorrt-11": "tensorrt_bindings", "rtx": "tensorrt_rtx_bindings"}
LIBRARIES = ("libnvinfer", "libnvinfer_plugin", "libnvonnxparser")
FUNCTIONS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)


class NotInstalled(Exception):
    """The bindings are not installed and could not be; the message says why."""


def folder(name: str) -> Path:
    """The folder of the bindings called ``name``, which are installed if necessary. Raise :class:`NotInstalled`."""
    path = Path(sys.prefix) / "bindings" / name
    path.parent.mkdir(exist_ok=True)
    with _locked(path.parent / f"{name}.lock"):
        if not path.exists():
            partial = path.with_name(f"{name}.{os.getpid()}.partial")
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(partial), *TARGETS[name]]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode != 0:
                raise NotInstalled(f"{TARGETS[name][-1]} cannot be installed: {done.stderr.strip().splitlines()[-1]}")
            if name.startswith("tensorrt"):
                for library in LIBRARIES:
                    soname = f"{library}.so.{name.partition('-')[2]}"
                    write_library(partial / "tensorrt_bindings" / soname, soname, FUNCTIONS)
            partial.rename(path)
    return path


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@cache
def surface(name: str) -> dict[str, Any]:
    """Everything that the bindings called ``name`` offer, read by surface.py in a process of its own."""
    path = folder(name)
    command = [sys.executable, str(Path(__file__).with_name("surface.py")), MODULES.get(name, "cuda")]
    environment = os.environ | {"PYTHONPATH": str(path)}
    # Newer wheels find the stubs in their own folder; older ones only by this variable.
    environment["LD_LIBRARY_PATH"] = str(path / "tensorrt_bindings")
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


if __name__ == "__main__":
    for target in TARGETS:
        try:
            print(folder(target))
        except NotInstalled as reason:
            print(f"{reason}: its tests will be skipped", file=sys.stderr)
