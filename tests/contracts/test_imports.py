"""Who may import what, shown by processes in which the forbidden import raises."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Runs in a fresh interpreter: torch and its family cannot be imported at all.
BLOCK = """
import sys, importlib.abc
class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "torchvision", "transformers", "accelerate", "onnx", "onnxscript", "safetensors"}:
            raise ImportError(f"{name} is forbidden here")
sys.meta_path.insert(0, Block())
"""


def run_blocked(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BLOCK + code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_the_runtime_needs_neither_torch_nor_onnx(tiny_bundle: Path, picture: Path) -> None:
    code = """
import simmim_export
model = simmim_export.load(sys.argv[1])
assert model.embed_image([sys.argv[2]]).shape == model.embed_text(["red circle"]).shape
print(model.answer(sys.argv[2], "what colour ?")[0].label, len(model.match(sys.argv[2], ["a circle"])))
assert all(report.passed for report in model.verify())
"""
    done = run_blocked(code, tiny_bundle, picture)
    assert done.returncode == 0, done.stderr


TORCH_FREE = [
    "errors",
    "spec",
    "bundle",
    "proof.parity",
    "console",
    "engines.doctor",
    "system.conflicts",
    "system.nvidia",
    "engines",
    "engines.base",
    "engines.ort",
    "engines.ort_cuda",
]
TORCH_FREE += [
    "engines.torch",
    "engines.tensorrt",
    "runtime",
    "cli",
    "training.cli",
    "benchmarks.cli",
    "benchmarks.worker",
]


@pytest.mark.parametrize("module", TORCH_FREE)
def test_importing_a_module_does_not_import_torch(module: str) -> None:
    done = run_blocked(f"import simmim_export.{module}")
    assert done.returncode == 0, done.stderr


def test_importing_the_package_is_light() -> None:
    code = "import sys, simmim_export; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"numpy", "PIL", "tokenizers", "typer", "onnxruntime", "torch"} & set(loaded)


def test_pickle_is_never_loaded() -> None:
    for folder in ("simmim_export", "training", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            assert "allow_pickle=True" not in text and "weights_only=False" not in text
            assert "pickle.load" not in text, path
