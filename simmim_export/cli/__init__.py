"""The program ``simmim-export``, one module per group of commands. A command parses its options, calls, and prints."""

from __future__ import annotations

from simmim_export.cli import answers, build, certify, doctor, embed, export, inspect, verify
from simmim_export.console import new_app, run_app

app = new_app(
    "Export vision-language models to ONNX, prove that they still answer as trained, and run them without PyTorch.",
    program="simmim-export",
    examples=(
        "simmim-export onnx ckpt.pt -o bundle",
        "simmim-export verify bundle",
        'simmim-export ask bundle photo.jpg "what colour is the circle?"',
    ),
)
for commands in (export, inspect, verify, certify, build, embed, answers, doctor):
    commands.register(app)


def main() -> None:
    """Entry point of ``simmim-export``."""
    run_app(app)
