"""What can be imported without PyTorch and ONNX, and what is public. The contract in pyproject.toml says who may import what."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import simmim_export
from simmim_export.bundle import Bundle
from simmim_export.runtime.loading import load
from simmim_export.runtime.model import Model

ROOT = Path(__file__).parents[2]

# For a fresh interpreter in which torch and its family cannot be imported.
BLOCK = """
import sys, importlib, importlib.abc, pkgutil
class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "torchvision", "transformers", "accelerate", "onnx", "onnxscript", "safetensors"}:
            raise ImportError(f"{name} is forbidden here")
sys.meta_path.insert(0, Block())
"""
# Everything in these can be imported without torch, and so can the commands of the other packages.
TORCH_FREE = ("bundle", "cli", "console", "engines", "proof", "runtime", "system", "web")
COMMANDS = ("training.cli", "benchmarks.cli", "benchmarks.worker")


def run_blocked(code: str, *arguments: object) -> None:
    command = [sys.executable, "-c", BLOCK + code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_the_runtime_needs_neither_torch_nor_onnx(tiny_bundle: Path, picture: Path) -> None:
    code = """
import simmim_export
model = simmim_export.load(sys.argv[1])
assert model.embed_image([sys.argv[2]]).shape == model.embed_text(["red circle"]).shape
assert model.answer(sys.argv[2], "what colour ?")[0].label and len(model.match(sys.argv[2], ["a circle"])) == 1
assert all(report.passed for report in model.verify())
"""
    run_blocked(code, tiny_bundle, picture)


def test_no_module_of_the_runtime_imports_torch_or_onnx() -> None:
    """A module that needs TensorRT is imported only if TensorRT is installed."""
    code = """
for name in sys.argv[1:]:
    package = importlib.import_module(f"simmim_export.{name}")
    for module in pkgutil.walk_packages(getattr(package, "__path__", []), f"{package.__name__}."):
        try:
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
        except ModuleNotFoundError as error:
            assert error.name in ("tensorrt", "cuda"), error
"""
    run_blocked(code, *TORCH_FREE, *COMMANDS)


def test_importing_the_package_is_light() -> None:
    code = "import sys, simmim_export; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"numpy", "PIL", "tokenizers", "typer", "onnxruntime", "torch"} & set(loaded)


def test_the_public_names_are_those_in_all() -> None:
    assert sorted(simmim_export.__all__) == ["Bundle", "Model", "__version__", "load"]
    assert (simmim_export.Bundle, simmim_export.Model, simmim_export.load) == (Bundle, Model, load)
    with pytest.raises(AttributeError):
        simmim_export.nothing  # noqa: B018


def test_dir_lists_the_public_names_and_a_star_imports_them() -> None:
    """In a fresh interpreter, where none of them was used before."""
    code = """
import simmim_export
assert dir(simmim_export) == sorted(simmim_export.__all__)
from simmim_export import *
assert load is simmim_export.load and Model is simmim_export.Model and Bundle is simmim_export.Bundle
assert dir(simmim_export) == sorted(simmim_export.__all__), "use must not change it"
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_pickle_is_never_loaded() -> None:
    for folder in ("simmim_export", "training", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            assert "allow_pickle=True" not in text and "weights_only=False" not in text
            assert "pickle.load" not in text, path
