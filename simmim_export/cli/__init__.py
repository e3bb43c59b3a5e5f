"""The program ``simmim-export``. A command parses its options, calls the package that does the work, and prints the result."""

from __future__ import annotations

from simmim_export.cli import adopt, answers, build, certify, doctor, embed, export, inspect, verify, web
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
COMMANDS = (
    (export.onnx, export.EXAMPLES),
    (adopt.adopt, adopt.EXAMPLES),
    (inspect.inspect, inspect.EXAMPLES),
    (verify.verify, verify.EXAMPLES),
    (certify.certify, certify.EXAMPLES),
    (build.build, build.EXAMPLES),
    (embed.embed, embed.EXAMPLES),
    (answers.ask, answers.ASK_EXAMPLES),
    (answers.match, answers.MATCH_EXAMPLES),
    (answers.classify, answers.CLASSIFY_EXAMPLES),
    (web.web, web.EXAMPLES),
    (doctor.doctor, doctor.EXAMPLES),
)
for command, examples in COMMANDS:
    app.command(examples=examples)(command)


def main() -> None:
    """Entry point of ``simmim-export``."""
    run_app(app)
