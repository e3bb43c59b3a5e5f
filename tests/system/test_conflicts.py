"""Conflicts of packages, from real metadata and files of packages; and the driver's GPUs, from a library."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from simmim_export.system import nvidia

pytestmark = pytest.mark.skipif(nvidia.driver() is not None, reason="there is a GPU here, with libraries of its own")
ROOT = Path(__file__).parents[2]
REINSTALL = "pip uninstall -y onnxruntime onnxruntime-gpu && pip install"
CUDA_13 = {"nvidia-cuda-runtime": "13.0.96", "nvidia-cublas": "13.1.1", "nvidia-cudnn-cu13": "9.24.0"}
CUDA_12 = {"nvidia-cuda-runtime-cu12": "12.8.90", "nvidia-cublas-cu12": "12.8.4", "nvidia-cudnn-cu12": "9.8.0"}

# The part of the driver's library that is used.
DRIVER = """
#include <string.h>
#include <stddef.h>
int cuInit(unsigned flags) { return STATUS; }
int cuDriverGetVersion(int* version) { *version = VERSION; return 0; }
int cuDeviceGetCount(int* count) { *count = 1; return 0; }
int cuDeviceGet(int* device, int index) { *device = index; return 0; }
int cuDeviceGetName(char* name, int size, int device) { strncpy(name, "NVIDIA Test 1", size); return 0; }
int cuDeviceTotalMem_v2(size_t* bytes, int device) { *bytes = (size_t)8 << 30; return 0; }
int cuDeviceGetAttribute(int* value, int attribute, int device) { *value = attribute == 75 ? 8 : 6; return 0; }
"""


class Environment:
    """A folder of packages as pip leaves them: their metadata, and the files of onnxruntime that doctor looks at."""

    def __init__(self, root: Path) -> None:
        self.root, self.libraries = root / "packages", root / "libraries"
        self.root.mkdir()
        self.libraries.mkdir()

    def install(self, **packages: str) -> None:
        for name, version in packages.items():
            folder = self.root / f"{name.replace('-', '_')}-{version}.dist-info"
            folder.mkdir()
            (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")

    def files(self, package: str, cuda: str | None) -> None:
        folder = self.root / "onnxruntime/capi"
        folder.mkdir(parents=True)
        (self.root / "onnxruntime/__init__.py").write_text("raise RuntimeError('this must not be imported')")
        about = f"package_name = '{package}'\n__version__ = '1.31.1'\n" + (f"cuda_version = '{cuda}'\n" if cuda else "")
        (folder / "build_and_package_info.py").write_text(about)
        if cuda:
            (folder / "libonnxruntime_providers_cuda.so").touch()

    def driver(self, cuda: int, status: int = 0) -> None:
        compiler = shutil.which("cc")
        if compiler is None or sys.platform != "linux":
            pytest.skip("a driver's library cannot be made without a C compiler")
        source, target = self.libraries / "driver.c", self.libraries / "libcuda.so.1"
        source.write_text(DRIVER)
        flags = ("-shared", "-fPIC", f"-DVERSION={cuda}", f"-DSTATUS={status}")
        subprocess.run([compiler, *flags, str(source), "-o", str(target)], check=True)

    def ask(self, code: str) -> object:
        """The value of ``result`` after ``code``, in an interpreter that sees only these packages."""
        command = [sys.executable, "-S", "-c", f"import json\n{code}\nprint(json.dumps(result))"]
        paths = {"PYTHONPATH": f"{ROOT}{os.pathsep}{self.root}", "LD_LIBRARY_PATH": str(self.libraries)}
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **paths}, timeout=60)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def conflicts(self) -> list[str]:
        lines = self.ask("from simmim_export.system.conflicts import conflicts; result = conflicts()")
        assert isinstance(lines, list)
        return lines


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment(tmp_path)


def test_one_package_is_not_a_conflict(environment: Environment) -> None:
    assert environment.conflicts() == []
    environment.install(onnxruntime="1.32.0")
    environment.files("onnxruntime", None)
    assert environment.conflicts() == []


@pytest.mark.parametrize("there", ["onnxruntime", "onnxruntime-gpu"])
def test_two_packages_in_one_folder_are_a_conflict(environment: Environment, there: str) -> None:
    environment.install(**{"onnxruntime": "1.32.0", "onnxruntime-gpu": "1.31.1"}, **CUDA_13)
    environment.files(there, "13.0" if there == "onnxruntime-gpu" else None)
    (conflict,) = environment.conflicts()
    assert conflict.startswith("onnxruntime 1.32.0 and onnxruntime-gpu 1.31.1 ")
    assert f" {there}: " in conflict and conflict.endswith(f"{REINSTALL} onnxruntime")


def test_with_a_gpu_its_package_is_the_one_to_install(environment: Environment) -> None:
    environment.driver(13000)
    environment.install(**{"onnxruntime": "1.32.0", "onnxruntime-gpu": "1.31.1"}, **CUDA_13)
    environment.files("onnxruntime-gpu", "13.0")
    assert environment.conflicts()[0].endswith(f"{REINSTALL} 'onnxruntime-gpu[cuda,cudnn]'")


@pytest.mark.parametrize("files", [None, "onnxruntime"])
def test_missing_files_are_a_conflict(environment: Environment, files: str | None) -> None:
    environment.install(**{"onnxruntime-gpu": "1.31.1"}, **CUDA_13)
    if files:
        environment.files(files, None)
    (conflict,) = environment.conflicts()
    assert conflict.startswith("onnxruntime-gpu is installed but its files are missing") and REINSTALL in conflict
    assert files is None or f" {files}: " in conflict


def test_libraries_of_another_cuda_are_conflicts(environment: Environment) -> None:
    environment.install(**{"onnxruntime-gpu": "1.31.1"}, **CUDA_12)
    environment.files("onnxruntime-gpu", "13.0")
    cublas, cudnn = environment.conflicts()
    assert all(line.endswith("pip install 'onnxruntime-gpu[cuda,cudnn]'") for line in (cublas, cudnn))
    assert "CUDA 13" in cublas and "nvidia-cublas-cu12 12.8.4" in cublas
    assert "cuDNN 9 for CUDA 13" in cudnn and "nvidia-cudnn-cu12 9.8.0" in cudnn


@pytest.mark.parametrize(("cudnn", "conflicts"), [("9.24.0", 0), ("8.9.7", 1), (None, 1)])
def test_cudnn_of_another_version_is_a_conflict(environment: Environment, cudnn: str | None, conflicts: int) -> None:
    environment.install(**{"onnxruntime-gpu": "1.31.1"}, **{k: v for k, v in CUDA_13.items() if "cudnn" not in k})
    environment.files("onnxruntime-gpu", "13.0")
    if cudnn:
        environment.install(**{"nvidia-cudnn-cu13": cudnn})
    lines = environment.conflicts()
    assert len(lines) == conflicts and all("cuDNN 9" in line and (cudnn or "none") in line for line in lines)


@pytest.mark.parametrize(("driver", "conflicts"), [(13000, 0), (12080, 2)])
def test_an_old_driver_is_a_conflict(environment: Environment, driver: int, conflicts: int) -> None:
    environment.driver(driver)
    environment.install(**{"onnxruntime-gpu": "1.31.1", "tensorrt": "11.4.0.106"}, **CUDA_13)
    environment.files("onnxruntime-gpu", "13.0")
    lines = environment.conflicts()
    assert len(lines) == conflicts
    for line in lines:
        assert "needs CUDA 13" in line and "CUDA 12.8 at most" in line and "driver 580" in line
        assert ("pip install 'tensorrt<11'" in line) == line.startswith("tensorrt 11")


def test_tensorrt_10_runs_on_either_cuda(environment: Environment) -> None:
    environment.driver(12080)
    environment.install(tensorrt="10.13.3.9", **CUDA_12)
    assert environment.conflicts() == []


def test_a_driver_lists_its_gpus(environment: Environment) -> None:
    environment.driver(13010)
    code = (
        "from dataclasses import asdict; from simmim_export.system import nvidia; result = asdict(nvidia.require_gpu())"
    )
    driver = environment.ask(code)
    assert isinstance(driver, dict) and driver["cuda"] == [13, 1]
    assert driver["gpus"] == [{"name": "NVIDIA Test 1", "compute": "8.6", "memory": 8 << 30}]


@pytest.mark.parametrize(("status", "why"), [(100, "finds no GPU"), (34, "finds no GPU"), (999, "does not start")])
def test_a_driver_without_a_gpu_is_a_reason(environment: Environment, status: int, why: str) -> None:
    environment.driver(13000, status)
    answers = environment.ask(
        "from simmim_export.system import nvidia; result = [nvidia.why_no_gpu(), nvidia.driver()]"
    )
    assert isinstance(answers, list) and why in answers[0] and str(status) in answers[0] and answers[1] is None


def test_a_library_that_is_not_a_driver_is_a_reason(environment: Environment) -> None:
    (environment.libraries / "libcuda.so.1").write_text("not a library")
    reason = environment.ask("from simmim_export.system import nvidia; result = nvidia.why_no_gpu()")
    assert "libcuda.so.1" in str(reason)
