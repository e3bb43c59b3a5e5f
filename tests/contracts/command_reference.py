"""The command reference of README.md, generated from the commands themselves.

``python tests/contracts/command_reference.py --write`` (``make docs``) rewrites it; the contract test fails when it is stale.
"""

from __future__ import annotations

import re
import sys
from importlib import import_module
from pathlib import Path

import typer

README = Path(__file__).parents[2] / "README.md"
BEGIN, END = "<!-- commands: make docs -->", "<!-- /commands -->"
PROGRAMS = {
    "simmim-train": "simmim_export.training.cli",
    "simmim-export": "simmim_export.cli",
    "simmim-bench": "simmim_export.benchmarks.cli",
}


def commands():
    """(program, command name or "", command) for everything that can be typed."""
    for program, module in PROGRAMS.items():
        group = typer.main.get_command(import_module(module).app)
        if getattr(group, "invoke_without_command", False) or not hasattr(group, "commands"):
            yield program, "", group
        for name, command in getattr(group, "commands", {}).items():
            yield program, name, command


def reference() -> str:
    """The reference as Markdown: one block for each command, one line for each of its parameters."""
    lines = []
    for program, name, command in commands():
        arguments = [p for p in command.params if p.param_type_name == "argument"]
        options = [
            p for p in command.params if p.param_type_name == "option" and not {"--help", "--version"} & set(p.opts)
        ]
        shown = " ".join(_metavar(parameter) for parameter in arguments)
        usage = " ".join(part for part in (program, name, shown) if part)
        summary = " ".join((command.help or "").split("\n\n")[0].split())
        lines += [f"#### `{usage}`", "", summary, ""]
        for option in options:
            default = (
                ""
                if option.default in (None, False, (), []) or callable(option.default)
                else f" (default `{option.default}`)"
            )
            names = ", ".join(f"`{flag}`" for flag in option.opts)
            lines.append(f"- {names}: {' '.join((option.help or '').split())}{default}")
        lines += [""] if options else []
    return "\n".join(lines).strip()


def _metavar(parameter) -> str:
    """How an argument is shown: BUNDLE, [FILES]..."""
    name = parameter.metavar or parameter.name.upper()
    name = name if parameter.required else f"[{name}]"
    return f"{name}..." if parameter.nargs == -1 else name


def readme_with(text: str, block: str) -> str:
    """``text`` with the generated block replaced."""
    pattern = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.DOTALL)
    return pattern.sub(lambda _: f"{BEGIN}\n{block}\n{END}", text)


if __name__ == "__main__":
    if "--write" in sys.argv:
        README.write_text(readme_with(README.read_text(encoding="utf-8"), reference()), encoding="utf-8")
    else:
        print(reference())
