"""What every command must satisfy: help that is complete, readable and fast, and a reference that is up to date."""

from __future__ import annotations

import shlex
import subprocess
import sys
from importlib import import_module

import command_reference
import pytest
import typer
from command_reference import PROGRAMS, Typed

from simmim_export.version import __version__

COMMANDS = list(command_reference.commands())
HEAVY = {"torch", "transformers", "onnx", "onnxruntime", "accelerate", "PIL"}
every_command = pytest.mark.parametrize("typed", COMMANDS, ids=[typed.words for typed in COMMANDS])
every_program = pytest.mark.parametrize("program", PROGRAMS)


def flags(typed: Typed) -> set[str]:
    return {flag for parameter in typed.command.params for flag in parameter.opts}


def help_screen(command, name: str, width: int) -> list[str]:
    """The lines of ``--help`` on a terminal of ``width`` columns."""
    context = command.make_context(name, [], resilient_parsing=True, terminal_width=width)
    return command.get_help(context).splitlines()


@every_command
def test_every_parameter_is_explained(typed: Typed) -> None:
    assert typed.command.help
    for parameter in typed.command.params:
        assert getattr(parameter, "help", None), parameter.name


@every_command
def test_json_is_a_flag_of_every_command(typed: Typed) -> None:
    (json,) = [parameter for parameter in typed.command.params if "--json" in parameter.opts]
    assert json.is_flag


@every_command
def test_a_named_output_is_replaced_only_with_overwrite(typed: Typed) -> None:
    assert not {"--output", "--explain", "--save"} & flags(typed) or "--overwrite" in flags(typed)


@every_command
def test_help_fits_80_columns(typed: Typed) -> None:
    lines = help_screen(typed.command, typed.words, 80)
    assert [line for line in lines if len(line) > 80] == []


@every_program
def test_summaries_are_complete(program: str) -> None:
    group = typer.main.get_command(import_module(PROGRAMS[program]).app)
    lines = help_screen(group, program, 80)
    summaries = [line for line in lines if line.split() and line.split()[0] in group.commands]  # type: ignore[attr-defined]
    assert len(summaries) >= len(group.commands)  # type: ignore[attr-defined]
    for line in summaries:
        assert line.endswith("."), line
        assert not line.endswith("..."), line


@every_command
def test_a_default_is_shown_once(typed: Typed) -> None:
    for parameter in typed.command.params:
        assert "default" not in (parameter.help or ""), f"{parameter.name}: give show_default instead"


@every_command
def test_examples_can_be_typed(typed: Typed) -> None:
    assert typed.command.examples
    for example in typed.command.examples:
        program, *words = shlex.split(example.partition(" > ")[0])
        assert program == typed.program
        if typed.name:
            assert words[0] == typed.name
            words = words[1:]
        typed.command.make_context(typed.words, words)


@every_command
def test_help_loads_nothing_heavy(typed: Typed) -> None:
    arguments = [word for word in (typed.name, "--help") if word]
    code = (
        f"import sys, atexit; sys.argv = ['x', *{arguments!r}]\n"
        "atexit.register(lambda: print('LOADED', *sys.modules))\n"
        f"from {PROGRAMS[typed.program]} import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert not HEAVY & set(done.stdout.partition("LOADED")[2].split())


@every_program
def test_version_loads_nothing_heavy(program: str) -> None:
    code = (
        "import sys, atexit; sys.argv = ['x', '--version']\n"
        "atexit.register(lambda: print('LOADED', *sys.modules))\n"
        f"from {PROGRAMS[program]} import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    shown, _, loaded = done.stdout.partition("LOADED")
    assert done.returncode == 0 and shown.split() == ["simmim-export", __version__], done.stderr
    assert not HEAVY & set(loaded.split())


@every_program
def test_an_unknown_option_is_a_usage_error(program: str, run_cli) -> None:
    done = run_cli(program.removeprefix("simmim-"), "--no-such-option")
    assert done.returncode == 2 and "--no-such-option" in done.stderr


def test_the_reference_is_up_to_date() -> None:
    assert command_reference.REFERENCE.read_text(encoding="utf-8") == command_reference.reference(), "run: make docs"
