"""Checks every name, argument and type of TensorRT and CUDA that we use against the real bindings, oldest and newest."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import conftest
import pytest
import typed
from conftest import PAIRS, surface
from stub_library import write_library

PACKAGE = Path(__file__).parents[3] / "simmim_export/engines/tensorrt"
SOURCES = {
    f"simmim_export.engines.tensorrt.{path.stem}": path for path in PACKAGE.glob("*.py") if path.stem != "__init__"
}
# The module that only TensorRT for RTX has to serve, which has to serve all the others too.
RTX = "simmim_export.engines.tensorrt.rtx"
EVERY = PAIRS | conftest.RTX
# Names that the engine must use. They show that the list of names is really read from the source.
EXPECTED = {
    "tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED",
    "tensorrt.BuilderFlag.TF32",
    "tensorrt.OnnxParser.parse_from_file",
    "tensorrt.Builder.build_serialized_network",
    "tensorrt.IProgressMonitor",
    "tensorrt.Runtime.deserialize_cuda_engine",
    "tensorrt.IExecutionContext.execute_async_v3",
    "tensorrt.EngineInspector.get_engine_information",
    "cuda.bindings.runtime.cudaMallocHost",
    "cuda.bindings.runtime.cudaGraphLaunch",
    "cuda.bindings.runtime.cudaEventElapsedTime",
}
EXPECTED_OF_RTX = {
    "tensorrt.IBuilderConfig.set_compute_capability",
    "tensorrt.IRuntimeConfig.create_runtime_cache",
    "tensorrt.DynamicShapesKernelSpecializationStrategy.EAGER",
}
# Code that a careless change might contain -> the version whose check it must fail.
REMOVED = {
    "trt.BuilderFlag.FP16": "11",
    "trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH": "11",
    "trt.IInt8EntropyCalibrator2": "11",
    "trt.Builder(trt.Logger()).platform_has_fast_fp16": "11",
    "trt.Builder(trt.Logger()).create_network(flag=1)": "10",
    "trt.Builder()": "10",
    "trt.BuilderFlag.FLOAT128": "10",
    "trt.OnnxParser(trt.Builder(trt.Logger()).create_network(1), trt.Logger()).parse_from_file(1)": "10",
    "cuda.cudaGraphInstantiate(1, 2, 3, 4)": "10",
    "cuda.cudaMallocPinned(1)": "11",
    "trt.Builder(trt.Logger()).build_engine_with_config(1, 2)": "rtx",
    "trt.ComputeCapability.SM90": "rtx",
}


@pytest.fixture(params=sorted(EVERY))
def stubs(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    tensorrt, cuda = (surface(name) for name in EVERY[request.param])
    typed.write_stubs(tmp_path / "stubs", tensorrt, cuda)
    return request.param, tmp_path / "stubs"


def test_every_name_we_use_exists_with_these_types(stubs: tuple[str, Path]) -> None:
    rtx = stubs[0] == "rtx"
    checked = typed.check(stubs[1], {name: path for name, path in SOURCES.items() if rtx or name != RTX})
    assert not checked.errors, "\n".join(checked.errors)
    # Nothing escapes the check because it has no type.
    assert not checked.untyped, "\n".join(checked.untyped)
    assert checked.names >= (EXPECTED | EXPECTED_OF_RTX if rtx else EXPECTED) and len(checked.names) > 100


def test_a_removed_name_is_an_error(stubs: tuple[str, Path], tmp_path: Path) -> None:
    wanted = [code for code, version in REMOVED.items() if version == stubs[0]]
    path = tmp_path / "careless.py"
    path.write_text("import tensorrt as trt\nfrom cuda.bindings import runtime as cuda\n" + "\n".join(wanted) + "\n")
    errors = typed.check(stubs[1], {"careless": path}).errors
    for line, code in enumerate(wanted, 3):
        assert any(f"careless.py:{line}: error" in error for error in errors), f"{code} went unseen: {errors}"


def test_the_bindings_have_the_expected_versions() -> None:
    assert surface("tensorrt-10")["version"].startswith("10.13") and surface("tensorrt-11")["version"].startswith("11.")
    assert surface("cuda-12")["version"].startswith("12.") and surface("cuda-13")["version"].startswith("13.")


def test_a_stub_library_can_be_loaded(tmp_path: Path) -> None:
    write_library(tmp_path / "libx.so.1", "libx.so.1", ("one", "two"))
    code = (
        f"import ctypes; x = ctypes.CDLL({str(tmp_path / 'libx.so.1')!r}); print(x.one(), x.two(), hasattr(x, 'three'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["0", "0", "False"], done.stderr
