"""What every command must satisfy: help that is fast and complete, and a README that is not stale."""

from __future__ import annotations

import subprocess
import sys

import command_reference
import pytest

from simmim_export.version import __version__

COMMANDS = list(command_reference.commands())
IDS = [f"{program} {name}".strip() for program, name, _ in COMMANDS]


@pytest.mark.parametrize(("program", "name", "command"), COMMANDS, ids=IDS)
def test_every_parameter_is_explained(program: str, name: str, command) -> None:
    assert command.help
    for parameter in command.params:
        assert getattr(parameter, "help", None), f"{program} {name}: {parameter.name} has no help"


@pytest.mark.parametrize(("program", "name", "command"), COMMANDS, ids=IDS)
def test_every_command_that_prints_a_result_has_json(program: str, name: str, command) -> None:
    flags = {flag for parameter in command.params for flag in parameter.opts}
    assert "--json" in flags


@pytest.mark.parametrize(("program", "name", "command"), COMMANDS, ids=IDS)
def test_every_command_that_writes_what_is_named_replaces_it_only_when_told(program: str, name: str, command) -> None:
    flags = {flag for parameter in command.params for flag in parameter.opts}
    writes = {flag for p in command.params for flag in p.opts if flag != "--json" or not p.is_flag}
    assert not {"--output", "--explain", "--json"} & writes or "--overwrite" in flags


@pytest.mark.parametrize(("program", "name", "command"), COMMANDS, ids=IDS)
def test_help_does_not_load_anything_heavy(program: str, name: str, command) -> None:
    module = command_reference.PROGRAMS[program]
    arguments = [a for a in (name, "--help") if a]
    code = (
        f"import sys, atexit; sys.argv = ['x', *{arguments!r}]\n"
        "atexit.register(lambda: print('LOADED', *sys.modules))\n"
        f"from {module} import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.partition("LOADED")[2].split())
    assert not {"torch", "transformers", "onnx", "onnxruntime", "accelerate", "PIL"} & loaded


@pytest.mark.parametrize("program", command_reference.PROGRAMS)
def test_the_version_is_shown_without_loading_anything_heavy(program: str) -> None:
    code = (
        "import sys, atexit; sys.argv = ['x', '--version']\n"
        "atexit.register(lambda: print('LOADED', *sys.modules))\n"
        f"from {command_reference.PROGRAMS[program]} import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    shown, _, loaded = done.stdout.partition("LOADED")
    assert done.returncode == 0 and shown.split() == ["simmim-export", __version__], done.stderr
    assert not {"torch", "transformers", "onnx", "onnxruntime", "accelerate", "PIL"} & set(loaded.split())


@pytest.mark.parametrize("program", command_reference.PROGRAMS)
def test_unknown_option_is_a_usage_error(program: str, run_cli) -> None:
    done = run_cli(program.removeprefix("simmim-"), "--no-such-option")
    assert done.returncode == 2 and "No such option" in done.stderr


def test_the_readme_is_not_stale() -> None:
    text = command_reference.README.read_text(encoding="utf-8")
    assert command_reference.BEGIN in text and command_reference.END in text
    assert command_reference.readme_with(text, command_reference.reference()) == text, "run: make docs"
