"""A machine with a fake TensorRT and a fake GPU, which have the names and signatures of either version of the real bindings."""

from __future__ import annotations

import gc
import hashlib
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import bindings
import pytest
from fake_cuda import Gpu, fake_cuda
from fake_tensorrt import World, fake_tensorrt

import simmim_export.engines.tensorrt as package
from simmim_export.bundle import Bundle
from simmim_export.engines.tensorrt import library
from simmim_export.engines.tensorrt.request import Request
from simmim_export.runtime.build import Built, build
from simmim_export.runtime.loading import plan_of

# TensorRT of the first needs CUDA of the second.
PAIRS = {"10": ("tensorrt-10", "cuda-12"), "11": ("tensorrt-11", "cuda-13")}
# The same for TensorRT for RTX, whose module has another name.
RTX = {"rtx": ("rtx", "cuda-13")}
# The modules that import the bindings when they are imported.
OVER = ("build", "callbacks", "device", "network", "rtx", "session")


def surface(name: str) -> dict[str, Any]:
    """The surface of bindings, or a skip that says why there are none."""
    try:
        return bindings.surface(name)
    except bindings.NotInstalled as reason:
        pytest.skip(str(reason))


def _forget() -> None:
    for name in OVER:
        sys.modules.pop(f"{package.__name__}.{name}", None)
        vars(package).pop(name, None)
    library._used.clear()


class Rig:
    """The machine: its GPU, what goes wrong there, and a bundle to build. ``kept`` is a folder for plan files that several tests
    start from."""

    def __init__(self, bundle: Path, gpu: Gpu, world: World, *, major: str, kept: Path) -> None:
        self.bundle, self.gpu, self.world, self.major, self._kept = bundle, gpu, world, major, kept

    def start_built(self, precision: str = "fp32", request: Request | None = None) -> None:
        """As :meth:`build`, but copy the plan files if an earlier test has built them."""
        name = hashlib.sha256(f"{self.major} {precision} {request}".encode()).hexdigest()
        if not (self._kept / name).exists():
            self.build(precision, request)
            shutil.copytree(self.bundle / "engines", self._kept / name)
        shutil.copytree(self._kept / name, self.bundle / "engines", dirs_exist_ok=True)

    def build(self, precision: str = "fp32", request: Request | None = None, watch: Any = None) -> list[Built]:
        """Build the bundle as the command does."""
        from simmim_export.engines.tensorrt import TrtEngine
        from simmim_export.tensorrt_rules.dry_run import modules

        opened = Bundle.open(self.bundle)
        watch = watch or (lambda step, done, total: None)
        plan = plan_of(opened, "trt", precision=precision)
        return build(opened, TrtEngine(), plan=plan, request=request or Request(), modules=modules, watch=watch)

    def plan(self, graph: str = "image_encoder", precision: str = "fp32") -> Path:
        """Where a plan file is, or will be."""
        return self.bundle / f"engines/trt/{graph}.{precision}.plan"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[str], tuple[Gpu, World]]]:
    """Gives this process the bindings of a version, with a fake GPU behind them."""
    monkeypatch.setenv("SIMMIM_EXPORT_CACHE", str(tmp_path / "cache"))

    def enter(major: str) -> tuple[Gpu, World]:
        gpu, world = Gpu(), World()
        tensorrt, cuda = (PAIRS | RTX)[major]
        runtime = fake_cuda(surface(cuda), gpu)
        parents = {"cuda": ModuleType("cuda"), "cuda.bindings": ModuleType("cuda.bindings")}
        parents["cuda.bindings"].runtime = runtime  # type: ignore[attr-defined]
        parents["cuda"].bindings = parents["cuda.bindings"]  # type: ignore[attr-defined]
        name = "tensorrt_rtx" if major in RTX else "tensorrt"
        modules = parents | {"cuda.bindings.runtime": runtime, name: fake_tensorrt(surface(tensorrt), gpu, world)}
        for name, module in modules.items():
            module.__spec__ = ModuleSpec(name, None)
            monkeypatch.setitem(sys.modules, name, module)
        return gpu, world

    _forget()
    yield enter
    _forget()
    gc.collect()


@pytest.fixture(scope="session")
def kept_plan_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where :meth:`Rig.start_built` keeps plan files."""
    return tmp_path_factory.mktemp("plan-files")


@pytest.fixture(params=sorted(PAIRS))
def rig(request: pytest.FixtureRequest, machine: Any, tiny_bundle: Path, tmp_path: Path, kept_plan_files: Path) -> Rig:
    """A machine of either version with its own bundle."""
    gpu, world = machine(request.param)
    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, bundle)
    return Rig(bundle, gpu, world, major=request.param, kept=kept_plan_files)
