"""Every command line that a message tells the user to type is one that the program accepts."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
import typer
from command_reference import PROGRAMS, ROOT

# From the name of a program to the end of the command line.
COMMAND = re.compile(r"(simmim-(?:train|export|bench)) ([^\n`]+?)(?=, |; | > |$| prints)")
# The words that replace an expression of an f-string if it is more than one word.
EXPRESSIONS = {"how": "--engine ort"}


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of each string in a source file that is not a docstring.

    An expression inside an f-string is replaced by ``8``, which is a number and a path.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inner = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    inner |= {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner:
            yield node.lineno, node.value
        elif isinstance(node, ast.JoinedStr):
            parts = (
                str(part.value) if isinstance(part, ast.Constant) else EXPRESSIONS.get(ast.unparse(part.value), "8")  # type: ignore[attr-defined]
                for part in node.values
            )
            yield node.lineno, "".join(parts)


def advice() -> Iterator[tuple[str, str, str]]:
    """(place, program, words) of each command line that a message shows."""
    for path in sorted(
        p for folder in ("simmim_export", "training", "benchmarks") for p in (ROOT / folder).rglob("*.py")
    ):
        for line, text in texts(path):
            for program, words in COMMAND.findall(text):
                # Anything else is a sentence about a program, such as "the folder that simmim-train wrote".
                if words.split()[0] not in ("wrote", "does") and re.match(
                    r"--\w+ |[a-z]+$|[a-z]+ (?:-|[A-Z8]|ckpt)", words
                ):
                    yield f"{path.relative_to(ROOT)}:{line}", program, words


ADVICE = list(advice())


@pytest.mark.parametrize(("place", "program", "words"), ADVICE, ids=[place for place, _, _ in ADVICE])
def test_a_command_in_a_message_can_be_typed(place: str, program: str, words: str) -> None:
    group = typer.main.get_command(import_module(PROGRAMS[program]).app)
    arguments = shlex.split(words)
    command, name = group, program
    if not arguments[0].startswith("-"):
        assert arguments[0] in group.commands, f"{place}: {program} {words}"  # type: ignore[attr-defined]
        name, *arguments = arguments
        command = group.commands[name]  # type: ignore[attr-defined]
    command.make_context(name, arguments)


def test_every_program_is_named_in_a_message() -> None:
    assert len(ADVICE) >= 20 and {program for _, program, _ in ADVICE} == set(PROGRAMS)
