"""The command ``simmim-export``. One file a command group, and no logic of its own: a command parses, calls, prints."""

from __future__ import annotations

from simmim_export.cli import build, bundles, proof, run
from simmim_export.console import new_app, run_app

app = new_app("Export SimMIM models to ONNX, prove that they still answer as trained, and run them without PyTorch.")
bundles.register(app)
build.register(app)
proof.register(app)
run.register(app)


def main() -> None:
    """Entry point of ``simmim-export``."""
    run_app(app)
